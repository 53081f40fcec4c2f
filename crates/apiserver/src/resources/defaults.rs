//! The words that defaulting is written with.

use serde_json::{Map, Value};

/// The items of a list, none when it is absent.
pub(crate) fn items_mut(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

/// The object at a field, where it is one.
pub(crate) fn object_mut<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    value.get_mut(field).filter(|v| v.is_object())
}

/// Sets a field of an object where it has no value: absent, null or, for text defaults, "".
pub(crate) fn fill(object: &mut Value, field: &str, default: impl Into<Value>) {
    let Value::Object(map) = object else { return };
    fill_map(map, field, default);
}

/// The same for a map.
pub(crate) fn fill_map(map: &mut Map<String, Value>, field: &str, default: impl Into<Value>) {
    let default = default.into();
    let unset = match map.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty() && default.is_string(),
        _ => false,
    };
    if unset {
        map.insert(field.to_owned(), default);
    }
}

/// The same, for numbers where Go takes 0 for "not set".
pub(crate) fn fill_zero(object: &mut Value, field: &str, default: i64) {
    if object.get(field).and_then(Value::as_i64) == Some(0) {
        object[field] = default.into();
    }
    fill(object, field, default);
}

/// The string at a field, "" when absent.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
