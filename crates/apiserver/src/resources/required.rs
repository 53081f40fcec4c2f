//! Required fields by the schema's own markers.

use api::{Field, FieldError, FieldType, Object, SchemaTable, TypeId};
use serde_json::{Map, Value};

/// Required strings that are absent or empty. Absent numbers, booleans, lists and structs are left to the kinds' own
/// rules: Go reads them as zero values, and the zero value is often allowed. `metadata` and `status` are not looked at.
pub(crate) fn missing(table: &SchemaTable, schema: TypeId, object: &Object) -> Vec<FieldError> {
    let mut out = Vec::new();
    walk(table, schema, &object.0, "", &mut out);
    out
}

fn is_text(field: &Field) -> bool {
    matches!(field.ty, FieldType::String)
}

fn walk(
    table: &SchemaTable,
    schema: TypeId,
    map: &Map<String, Value>,
    path: &str,
    out: &mut Vec<FieldError>,
) {
    for field in &table.get(schema).fields {
        let name = field.name.as_ref();
        if path.is_empty() && matches!(name, "metadata" | "status" | "apiVersion" | "kind") {
            continue;
        }
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match map.get(name) {
            None | Some(Value::Null) if field.required && is_text(field) => {
                out.push(FieldError::required(path, ""));
            }
            Some(Value::String(s)) if s.is_empty() && field.required && is_text(field) => {
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
