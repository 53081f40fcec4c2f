//! Removal of fields that a schema does not know.

use serde_json::{Map, Value};

use crate::{FieldType, Object, SchemaTable, TypeId};

/// Removes unknown fields and returns their paths.
pub fn prune(table: &SchemaTable, ty: TypeId, object: &mut Object) -> Vec<String> {
    let mut dropped = Vec::new();
    prune_map(table, ty, &mut object.0, &mut String::new(), &mut dropped);
    dropped
}

fn prune_map(
    table: &SchemaTable,
    ty: TypeId,
    map: &mut Map<String, Value>,
    path: &mut String,
    out: &mut Vec<String>,
) {
    let def = table.get(ty);
    let length = path.len();
    let with = |path: &mut String, name: &str| {
        if length > 0 {
            path.push('.');
        }
        path.push_str(name);
    };
    map.retain(|name, value| {
        with(path, name);
        let keep = match def.field(name) {
            Some(field) => {
                prune_value(table, &field.ty, value, path, out);
                true
            }
            None if def.preserve_unknown => true,
            None => {
                out.push(path.clone());
                false
            }
        };
        path.truncate(length);
        keep
    });
}

fn prune_value(
    table: &SchemaTable,
    ty: &FieldType,
    value: &mut Value,
    path: &mut String,
    out: &mut Vec<String>,
) {
    let length = path.len();
    match (ty, value) {
        (FieldType::Ref(id), Value::Object(map)) => prune_map(table, *id, map, path, out),
        (FieldType::List(inner), Value::Array(items)) if nested(inner) => {
            for (i, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{i}]"));
                prune_value(table, inner, item, path, out);
                path.truncate(length);
            }
        }
        (FieldType::Map(inner), Value::Object(map)) if nested(inner) => {
            for (key, item) in map {
                path.push('.');
                path.push_str(key);
                prune_value(table, inner, item, path, out);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn nested(ty: &FieldType) -> bool {
    matches!(ty, FieldType::Ref(_) | FieldType::List(_) | FieldType::Map(_))
}
