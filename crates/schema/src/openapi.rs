//! Types as OpenAPI v3 components, with the extensions that kubectl and other clients read.

use std::collections::BTreeMap;

use api::{Field, FieldType, ListType, SchemaTable, TypeId};
use serde_json::{Map, Value, json};

/// Values that have a component of their own in Kubernetes' documents.
const SCALARS: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "date-time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "date-time"),
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", ""),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "int-or-string"),
];

/// `$ref` of a component.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The components of some types and of everything that they refer to, by name.
pub fn components(table: &SchemaTable, roots: impl IntoIterator<Item = TypeId>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (name, format) in SCALARS {
        let mut scalar = json!({"type": "string"});
        if !format.is_empty() {
            scalar["format"] = (*format).into();
        }
        if *format != "date-time" {
            scalar = json!({"oneOf": [{"type": "string"}, {"type": if format.is_empty() { "number" } else { "integer" }}]});
        }
        found.insert((*name).to_owned(), scalar);
    }
    let mut open: Vec<TypeId> = roots.into_iter().collect();
    while let Some(id) = open.pop() {
        let name = table.get(id).name.as_ref();
        if !found.contains_key(name) {
            found.insert(name.to_owned(), component(table, id));
            open.extend(table.get(id).fields.iter().filter_map(|field| target(&field.ty)));
        }
    }
    found
}

/// One type as a component.
pub fn component(table: &SchemaTable, id: TypeId) -> Value {
    let ty = table.get(id);
    let mut component = Map::from_iter([
        ("type".to_owned(), json!("object")),
        ("description".to_owned(), json!(ty.description)),
    ]);
    if !ty.fields.is_empty() {
        let properties = ty.fields.iter().map(|f| (f.name.clone().into_owned(), property(table, f)));
        component.insert("properties".into(), Value::Object(properties.collect()));
    }
    let required: Vec<_> = ty.fields.iter().filter(|f| f.required).map(|f| f.name.as_ref()).collect();
    if !required.is_empty() {
        component.insert("required".into(), json!(required));
    }
    if ty.atomic {
        component.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    if ty.preserve_unknown {
        component.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true));
    }
    Value::Object(component)
}

fn property(table: &SchemaTable, field: &Field) -> Value {
    let mut schema = match of_type(table, &field.ty) {
        Value::Object(mut schema) => {
            // siblings of $ref are ignored by OpenAPI 3.0 readers
            if let Some(target) = schema.remove("$ref") {
                schema.insert("allOf".into(), json!([{ "$ref": target }]));
            }
            schema
        }
        _ => Map::new(),
    };
    schema.insert("description".into(), json!(field.description));
    if let Some(default) = field.default.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok())
    {
        schema.insert("default".into(), default);
    }
    for (name, value) in extensions(field) {
        schema.insert(name.into(), value);
    }
    Value::Object(schema)
}

fn extensions(field: &Field) -> Vec<(&'static str, Value)> {
    let mut extensions = Vec::new();
    if matches!(field.ty, FieldType::List(_)) {
        match &field.list_type {
            ListType::Atomic => extensions.push(("x-kubernetes-list-type", json!("atomic"))),
            ListType::Set => extensions.push(("x-kubernetes-list-type", json!("set"))),
            ListType::Map(keys) => {
                extensions.push(("x-kubernetes-list-type", json!("map")));
                extensions.push(("x-kubernetes-list-map-keys", json!(keys)));
            }
        }
    }
    if field.atomic {
        extensions.push(("x-kubernetes-map-type", json!("atomic")));
    }
    if let Some(key) = &field.patch_merge_key {
        extensions.push(("x-kubernetes-patch-merge-key", json!(key)));
    }
    let strategy = match (field.patch_merge, field.patch_retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return extensions,
    };
    extensions.push(("x-kubernetes-patch-strategy", json!(strategy)));
    extensions
}

fn of_type(table: &SchemaTable, ty: &FieldType) -> Value {
    match ty {
        FieldType::String => json!({"type": "string"}),
        FieldType::Time => reference(SCALARS[0].0),
        FieldType::MicroTime => reference(SCALARS[1].0),
        FieldType::Quantity => reference(SCALARS[2].0),
        FieldType::IntOrString => reference(SCALARS[3].0),
        FieldType::Bytes => json!({"type": "string", "format": "byte"}),
        FieldType::Boolean => json!({"type": "boolean"}),
        FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
        FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
        FieldType::Double => json!({"type": "number", "format": "double"}),
        FieldType::Any => json!({"type": "object"}),
        FieldType::Ref(id) => reference(&table.get(*id).name),
        FieldType::List(items) => json!({"type": "array", "items": of_type(table, items)}),
        FieldType::Map(values) => json!({"type": "object", "additionalProperties": of_type(table, values)}),
    }
}

fn target(ty: &FieldType) -> Option<TypeId> {
    match ty {
        FieldType::Ref(id) => Some(*id),
        FieldType::List(inner) | FieldType::Map(inner) => target(inner),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_carries_merge_rules_and_all_that_it_needs_is_there() {
        let table = crate::table();
        let components = components(&table, table.kind("", "v1", "Service"));
        let ports = &components["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["port", "protocol"]));
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
        assert_eq!(ports["items"], reference("io.k8s.api.core.v1.ServicePort"));
        let text = serde_json::to_string(&components).unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(components.contains_key(name), "{name} is referred to but missing");
        }
    }
}
