//! OpenAPI v3 components of a table's types.

use std::collections::BTreeSet;

use api::{Field, FieldType, ListType, SchemaTable, TypeId};
use serde_json::{Map, Value, json};

/// One component of `/openapi/v3`; references point to `#/components/schemas/<type name>`.
pub fn component(table: &SchemaTable, id: TypeId) -> Value {
    let def = table.get(id);
    let mut out = Map::new();
    if !def.description.is_empty() {
        out.insert("description".into(), def.description.as_ref().into());
    }
    out.insert("type".into(), "object".into());
    let properties: Map<String, Value> =
        def.fields.iter().map(|f| (f.name.clone().into_owned(), property(table, f))).collect();
    if !properties.is_empty() {
        out.insert("properties".into(), Value::Object(properties));
    }
    let required: Vec<&str> = def.fields.iter().filter(|f| f.required).map(|f| f.name.as_ref()).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    if def.atomic {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if def.preserve_unknown {
        out.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    let kinds: BTreeSet<_> = table.kinds().filter(|(_, kind)| *kind == id).map(|(names, _)| names).collect();
    if !kinds.is_empty() {
        let list = kinds.iter().map(|(g, v, k)| json!({"group": g, "version": v, "kind": k})).collect();
        out.insert("x-kubernetes-group-version-kind".into(), list);
    }
    Value::Object(out)
}

/// The types that a type needs, itself included, in order of their ids.
pub fn reachable(table: &SchemaTable, roots: impl IntoIterator<Item = TypeId>) -> BTreeSet<TypeId> {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<TypeId> = roots.into_iter().collect();
    while let Some(id) = todo.pop() {
        if seen.insert(id) {
            todo.extend(table.get(id).fields.iter().filter_map(|f| referenced(&f.ty)));
        }
    }
    seen
}

/// `components.schemas` with everything that the roots need.
pub fn components(table: &SchemaTable, roots: impl IntoIterator<Item = TypeId>) -> Map<String, Value> {
    let ids = reachable(table, roots);
    ids.into_iter().map(|id| (table.get(id).name.clone().into_owned(), component(table, id))).collect()
}

/// A reference to a type's component.
pub fn reference(table: &SchemaTable, id: TypeId) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", table.get(id).name)})
}

fn referenced(ty: &FieldType) -> Option<TypeId> {
    match ty {
        FieldType::Ref(id) => Some(*id),
        FieldType::List(inner) | FieldType::Map(inner) => referenced(inner),
        _ => None,
    }
}

fn property(table: &SchemaTable, field: &Field) -> Value {
    let mut schema = match field.ty {
        // A reference may have no siblings, so what belongs to the field stands around it.
        FieldType::Ref(id) => json!({"allOf": [reference(table, id)], "default": {}}),
        _ => of_type(table, &field.ty),
    };
    let pointer = matches!(field.ty, FieldType::Ref(_)) && !field.required;
    let Value::Object(out) = &mut schema else { return schema };
    if pointer {
        out.remove("default");
    }
    if !field.description.is_empty() {
        out.insert("description".into(), field.description.as_ref().into());
    }
    if let Some(value) = field.default.as_deref().and_then(|d| serde_json::from_str::<Value>(d).ok()) {
        out.insert("default".into(), value);
    }
    match &field.list_type {
        _ if !matches!(field.ty, FieldType::List(_)) => {}
        ListType::Atomic => drop(out.insert("x-kubernetes-list-type".into(), "atomic".into())),
        ListType::Set => drop(out.insert("x-kubernetes-list-type".into(), "set".into())),
        ListType::Map(keys) => {
            out.insert("x-kubernetes-list-type".into(), "map".into());
            out.insert("x-kubernetes-list-map-keys".into(), keys.clone().into());
        }
    }
    let words = [("merge", field.patch_merge), ("retainKeys", field.patch_retain_keys)];
    let strategy: Vec<&str> = words.iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect();
    if !strategy.is_empty() {
        out.insert("x-kubernetes-patch-strategy".into(), strategy.join(",").into());
    }
    if let Some(key) = &field.patch_merge_key {
        out.insert("x-kubernetes-patch-merge-key".into(), key.as_ref().into());
    }
    if field.atomic {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    schema
}

fn of_type(table: &SchemaTable, ty: &FieldType) -> Value {
    match ty {
        FieldType::String => json!({"type": "string"}),
        FieldType::Time | FieldType::MicroTime => json!({"type": "string", "format": "date-time"}),
        FieldType::Bytes => json!({"type": "string", "format": "byte"}),
        FieldType::Boolean => json!({"type": "boolean"}),
        FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
        FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
        FieldType::Double => json!({"type": "number", "format": "double"}),
        FieldType::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        FieldType::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        FieldType::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        FieldType::Ref(id) => reference(table, *id),
        FieldType::List(inner) => json!({"type": "array", "items": of_type(table, inner)}),
        FieldType::Map(inner) => json!({"type": "object", "additionalProperties": of_type(table, inner)}),
    }
}
