//! Schemas as data: what fields a kind has, and how its lists and maps merge.
//!
//! One [`SchemaTable`] holds many types that refer to each other by [`TypeId`]. The built-in kinds' table comes from the
//! `schema` crate; a CustomResourceDefinition makes one of the same form at run time.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::Object;

/// Index of a type in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldType {
    String,
    /// RFC 3339 time, seconds (`Time`) or microseconds (`MicroTime`); a JSON string
    Time,
    MicroTime,
    /// Base64 in JSON
    Bytes,
    Boolean,
    Int32,
    Int64,
    Double,
    IntOrString,
    Quantity,
    /// Any JSON value: RawExtension, FieldsV1, JSONSchemaProps defaults
    Any,
    /// A type of this table
    Ref(TypeId),
    List(Box<FieldType>),
    /// String keys
    Map(Box<FieldType>),
}

/// How server-side apply merges a list (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Keys (`x-kubernetes-list-map-keys`)
    Map(Vec<String>),
}

/// The protobuf form of a value that is any JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Embedded {
    /// A message whose field 1 is the JSON text
    #[default]
    Raw,
    /// A message without fields
    Empty,
    /// JSONSchemaPropsOrBool, …OrArray, …OrStringArray: the schema is of the type that has the field
    SchemaOrBool,
    SchemaOrList,
    SchemaOrStrings,
}

/// One field of an object type.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// JSON name
    pub name: Cow<'static, str>,
    pub ty: FieldType,
    pub required: bool,
    pub list_type: ListType,
    /// `x-kubernetes-map-type: atomic` (on maps and structs)
    pub atomic: bool,
    /// Strategic merge patch: `patchMergeKey`, and whether `patchStrategy` has `merge`, `retainKeys`
    pub patch_merge_key: Option<Cow<'static, str>>,
    pub patch_merge: bool,
    pub patch_retain_keys: bool,
    /// Literal default as JSON text
    pub default: Option<Cow<'static, str>>,
    /// Protobuf field number, 0 when unknown
    pub number: u32,
    /// Numbers of the nested protobuf messages that hold this field when Go inlines a struct, outermost first
    pub inlined_in: Vec<u32>,
    /// A scalar behind a pointer in Go: its zero differs from its absence
    pub pointer: bool,
    /// How protobuf holds an `Any`
    pub embedded: Embedded,
    pub description: Cow<'static, str>,
}

/// One object type.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeDef {
    /// `io.k8s.api.core.v1.Pod`
    pub name: Cow<'static, str>,
    pub description: Cow<'static, str>,
    /// Sorted by name
    pub fields: Vec<Field>,
    /// Unknown fields are kept (CRDs: `x-kubernetes-preserve-unknown-fields`)
    pub preserve_unknown: bool,
    pub atomic: bool,
}

impl Field {
    /// An optional field of a type, with all markers unset.
    pub fn new(name: impl Into<Cow<'static, str>>, ty: FieldType) -> Self {
        Self {
            name: name.into(),
            ty,
            required: false,
            list_type: ListType::Atomic,
            atomic: false,
            patch_merge_key: None,
            patch_merge: false,
            patch_retain_keys: false,
            default: None,
            number: 0,
            inlined_in: Vec::new(),
            pointer: false,
            embedded: Embedded::Raw,
            description: Cow::Borrowed(""),
        }
    }
}

impl TypeDef {
    /// A type from its fields, in any order.
    pub fn new(name: impl Into<Cow<'static, str>>, mut fields: Vec<Field>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            name: name.into(),
            description: Cow::Borrowed(""),
            fields,
            preserve_unknown: false,
            atomic: false,
        }
    }

    /// Field by JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let index = self.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        self.fields.get(index)
    }
}

/// Types and the kinds among them.
#[derive(Clone, Debug, Default)]
pub struct SchemaTable {
    types: Vec<TypeDef>,
    by_name: HashMap<String, TypeId>,
    by_kind: HashMap<(String, String, String), TypeId>,
}

impl SchemaTable {
    /// Builds a table; `kinds` maps (group, version, kind) to a type.
    pub fn new(types: Vec<TypeDef>, kinds: HashMap<(String, String, String), TypeId>) -> Self {
        let ids = 0u32..;
        let by_name =
            types.iter().zip(ids).map(|(t, id)| (t.name.clone().into_owned(), TypeId(id))).collect();
        Self { types, by_name, by_kind: kinds }
    }

    /// A type by id. Ids come from this table only.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }

    /// A type by its definition name (`io.k8s.api.core.v1.Pod`).
    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        self.by_kind.get(&(group.to_owned(), version.to_owned(), kind.to_owned())).copied()
    }

    /// All kinds, in no particular order.
    pub fn kinds(&self) -> impl Iterator<Item = (&(String, String, String), TypeId)> {
        self.by_kind.iter().map(|(k, id)| (k, *id))
    }

    /// All types with their ids.
    pub fn types(&self) -> impl Iterator<Item = (TypeId, &TypeDef)> {
        (0u32..).map(TypeId).zip(&self.types)
    }
}

/// Fills the literal defaults of the schema into fields that are absent, in objects that are present.
pub fn apply_defaults(table: &SchemaTable, ty: TypeId, object: &mut Object) {
    default_map(table, ty, &mut object.0);
}

fn default_map(table: &SchemaTable, ty: TypeId, map: &mut Map<String, Value>) {
    for field in &table.get(ty).fields {
        if let Some(value) = map.get_mut(field.name.as_ref()) {
            default_value(table, &field.ty, value);
        } else if let Some(literal) = &field.default
            && let Ok(mut value) = serde_json::from_str::<Value>(literal)
        {
            default_value(table, &field.ty, &mut value);
            map.insert(field.name.clone().into_owned(), value);
        }
    }
}

fn default_value(table: &SchemaTable, ty: &FieldType, value: &mut Value) {
    match (ty, value) {
        (FieldType::Ref(id), Value::Object(map)) => default_map(table, *id, map),
        (FieldType::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| default_value(table, inner, item));
        }
        (FieldType::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|item| default_value(table, inner, item));
        }
        _ => {}
    }
}

#[cfg(test)]
pub(crate) fn test_table() -> (SchemaTable, TypeId) {
    tests::table()
}

#[cfg(test)]
mod tests;
