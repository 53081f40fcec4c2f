//! A version's schema as types of a table: what decoding, pruning, defaults and apply need of it.
//!
//! Scalars become `Any`: a wrong scalar is a finding of validation with its field, as for every custom resource,
//! and not a body that cannot be read.

use std::borrow::Cow;
use std::collections::HashMap;

use api::{Field, FieldType, ListType, SchemaTable, TypeDef, TypeId};
use serde_json::Value;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// What a custom kind is called.
pub(super) struct KindName<'a> {
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    pub(super) kind: &'a str,
    pub(super) list_kind: &'a str,
}

impl KindName<'_> {
    /// `com.example.v1.Widget`
    pub(super) fn definition(&self) -> String {
        let mut parts: Vec<&str> = self.group.split('.').rev().collect();
        parts.extend([self.version, self.kind]);
        parts.join(".")
    }
}

/// The table of one custom kind: its own types, and of the built-in ones those that every kind refers to.
pub(super) fn table(base: &SchemaTable, name: &KindName<'_>, schema: &Value) -> (SchemaTable, TypeId) {
    let mut builder = Builder { base, types: Vec::new(), imported: HashMap::new() };
    for kind in ["DeleteOptions", "Status", "WatchEvent"] {
        builder.import_named(&format!("{META}{kind}"));
    }
    let definition = name.definition();
    let object = builder.object(schema, &definition, true);
    let mut items = Field::new("items", FieldType::List(Box::new(FieldType::Ref(object))));
    items.required = true;
    let mut fields =
        vec![Field::new("apiVersion", FieldType::String), Field::new("kind", FieldType::String), items];
    fields.extend(builder.meta("metadata", "ListMeta"));
    let list = builder.add(TypeDef::new(format!("{definition}List"), fields));
    let key = |kind: &str| (name.group.to_owned(), name.version.to_owned(), kind.to_owned());
    let mut kinds = HashMap::from([(key(name.kind), object), (key(name.list_kind), list)]);
    if let Some(scale) = base.kind("autoscaling", "v1", "Scale") {
        let scale = builder.import(scale);
        kinds.insert(("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned()), scale);
    }
    (SchemaTable::new(builder.types, kinds), object)
}

struct Builder<'a> {
    base: &'a SchemaTable,
    types: Vec<TypeDef>,
    imported: HashMap<TypeId, TypeId>,
}

impl Builder<'_> {
    fn add(&mut self, ty: TypeDef) -> TypeId {
        let id = TypeId(u32::try_from(self.types.len()).expect("a schema has less than 2^32 types"));
        self.types.push(ty);
        id
    }

    /// Takes over a built-in type with everything that it refers to.
    fn import(&mut self, id: TypeId) -> TypeId {
        if let Some(known) = self.imported.get(&id) {
            return *known;
        }
        let mut ty = self.base.get(id).clone();
        let own = self.add(TypeDef::new(ty.name.clone(), Vec::new()));
        self.imported.insert(id, own);
        for field in &mut ty.fields {
            field.ty = self.import_type(&field.ty);
        }
        self.types[own.0 as usize] = ty;
        own
    }

    fn import_type(&mut self, ty: &FieldType) -> FieldType {
        match ty {
            FieldType::Ref(id) => FieldType::Ref(self.import(*id)),
            FieldType::List(inner) => FieldType::List(Box::new(self.import_type(inner))),
            FieldType::Map(inner) => FieldType::Map(Box::new(self.import_type(inner))),
            other => other.clone(),
        }
    }

    fn import_named(&mut self, name: &str) -> Option<TypeId> {
        let id = self.base.by_name(name)?;
        Some(self.import(id))
    }

    fn meta(&mut self, field: &'static str, kind: &str) -> Option<Field> {
        let id = self.import_named(&format!("{META}{kind}"))?;
        Some(Field::new(field, FieldType::Ref(id)))
    }

    /// The type of an object schema. `whole` objects have a kind and metadata of their own.
    fn object(&mut self, schema: &Value, name: &str, whole: bool) -> TypeId {
        let id = self.add(TypeDef::new(name.to_owned(), Vec::new()));
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let own = |field: &str| whole && matches!(field, "apiVersion" | "kind" | "metadata");
        let mut fields = Vec::new();
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            if !own(field) {
                let ty = self.field_type(property, &format!("{name}.{field}"));
                fields.push(self::field(field, ty, property, required.contains(&field.as_str())));
            }
        }
        if whole {
            fields.push(Field::new("apiVersion", FieldType::String));
            fields.push(Field::new("kind", FieldType::String));
            fields.extend(self.meta("metadata", "ObjectMeta"));
        }
        let mut ty = TypeDef::new(name.to_owned(), fields);
        ty.preserve_unknown = flag(schema, "x-kubernetes-preserve-unknown-fields");
        ty.atomic = schema["x-kubernetes-map-type"] == "atomic";
        ty.description = Cow::Owned(schema["description"].as_str().unwrap_or_default().to_owned());
        self.types[id.0 as usize] = ty;
        id
    }

    fn field_type(&mut self, schema: &Value, name: &str) -> FieldType {
        match schema["type"].as_str().unwrap_or_default() {
            "array" => {
                let items = self.field_type(&schema["items"], &format!("{name}.items"));
                FieldType::List(Box::new(items))
            }
            "object" => {
                let embedded = flag(schema, "x-kubernetes-embedded-resource");
                let has_properties = schema["properties"].as_object().is_some_and(|map| !map.is_empty());
                match &schema["additionalProperties"] {
                    Value::Object(_) if !has_properties && !embedded => {
                        let values = &schema["additionalProperties"];
                        FieldType::Map(Box::new(self.field_type(values, &format!("{name}.values"))))
                    }
                    Value::Bool(true) if !has_properties && !embedded => {
                        FieldType::Map(Box::new(FieldType::Any))
                    }
                    _ => FieldType::Ref(self.object(schema, name, embedded)),
                }
            }
            _ => FieldType::Any,
        }
    }
}

fn field(name: &str, ty: FieldType, schema: &Value, required: bool) -> Field {
    let mut field = Field::new(name.to_owned(), ty);
    field.required = required;
    field.list_type = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListType::Set,
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            ListType::Map(keys.filter_map(|key| key.as_str().map(str::to_owned)).collect())
        }
        _ => ListType::Atomic,
    };
    field.atomic = schema["x-kubernetes-map-type"] == "atomic";
    field.default = schema.get("default").map(|value| Cow::Owned(value.to_string()));
    field.description = Cow::Owned(schema["description"].as_str().unwrap_or_default().to_owned());
    field
}

pub(super) fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool() == Some(true)
}
