//! Required fields by the schema's own markers.

use api::{Field, FieldError, FieldType, Object, SchemaTable, TypeDef, TypeId};
use serde_json::{Map, Value};

/// Required strings that are absent or empty. Absent numbers, booleans, lists and structs are left to the kinds' own
/// rules: Go reads them as zero values, and the zero value is often allowed. `metadata` and `status` are not looked at.
pub(crate) fn missing(table: &SchemaTable, schema: TypeId, object: &Object) -> Vec<FieldError> {
    let mut out = Vec::new();
    walk(table, schema, &object.0, "", &mut out);
    out
}

/// Required texts that may be empty all the same, as (type, field): Kubernetes takes them as they are.
const MAY_BE_EMPTY: [(&str, &str); 5] = [
    // "" is the core group.
    ("GroupResource", "group"),
    ("HTTPHeader", "value"),
    ("Sysctl", "value"),
    ("TokenRequest", "audience"),
    ("LocalObjectReference", "name"),
];

fn must_have_text(ty: &TypeDef, field: &Field) -> bool {
    let short = ty.name.rsplit('.').next().unwrap_or_default();
    let text = field.required && matches!(field.ty, FieldType::String);
    text && !MAY_BE_EMPTY.contains(&(short, field.name.as_ref()))
}

fn walk(
    table: &SchemaTable,
    schema: TypeId,
    map: &Map<String, Value>,
    path: &str,
    out: &mut Vec<FieldError>,
) {
    let ty = table.get(schema);
    for field in &ty.fields {
        let name = field.name.as_ref();
        if path.is_empty() && matches!(name, "metadata" | "status" | "apiVersion" | "kind") {
            continue;
        }
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match map.get(name) {
            None | Some(Value::Null) if must_have_text(ty, field) => {
                out.push(FieldError::required(path, ""));
            }
            Some(Value::String(s)) if s.is_empty() && must_have_text(ty, field) => {
                out.push(FieldError::required(path, ""));
            }
            Some(value) => descend(table, &field.ty, value, &path, out),
            None => {}
        }
    }
}

fn descend(table: &SchemaTable, ty: &FieldType, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    match (ty, value) {
        // An ObjectMeta further down (of templates) follows its own rules.
        (FieldType::Ref(id), Value::Object(map)) if !path.ends_with(".metadata") => {
            walk(table, *id, map, path, out)
        }
        (FieldType::List(item), Value::Array(list)) => {
            for (i, value) in list.iter().enumerate() {
                descend(table, item, value, &format!("{path}[{i}]"), out);
            }
        }
        (FieldType::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                descend(table, item, value, &format!("{path}[{key}]"), out);
            }
        }
        _ => {}
    }
}
