//! Structural validation: a value against a version's OpenAPI schema, with Kubernetes' paths and words.

use std::net::{Ipv4Addr, Ipv6Addr};

use api::{FieldError, FieldErrorKind};
use regex::Regex;
use serde_json::Value;

use super::types::flag;

/// The findings on an object; its own `apiVersion`, `kind` and `metadata` are not the schema's business.
pub(super) fn object(schema: &Value, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut schema = schema.clone();
    for name in ["apiVersion", "kind", "metadata"] {
        if let Some(properties) = schema["properties"].as_object_mut() {
            properties.remove(name);
        }
        if let Some(required) = schema["required"].as_array_mut() {
            required.retain(|r| r != name);
        }
    }
    check(&schema, value, "", &mut errors);
    errors
}

fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    if !has_type(schema, value, path, errors) {
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        push(errors, path, FieldErrorKind::NotSupported, message);
    }
    match value {
        Value::String(text) => string(schema, text, path, errors),
        Value::Number(number) => numeric(schema, number, path, errors),
        Value::Array(list) => array(schema, list, path, errors),
        Value::Object(map) => members(schema, map, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
    combined(schema, value, path, errors);
}

fn push(errors: &mut Vec<FieldError>, path: &str, kind: FieldErrorKind, message: String) {
    let field = if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
    errors.push(FieldError { field, kind, message });
}

fn invalid(errors: &mut Vec<FieldError>, path: &str, value: &Value, detail: &str) {
    let message = format!("Invalid value: {value}: {path} in body {detail}");
    push(errors, path, FieldErrorKind::Invalid, message);
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let is = type_name(value);
    if flag(schema, "x-kubernetes-int-or-string") {
        if matches!(is, "integer" | "string") {
            return true;
        }
        let message = format!("Invalid value: {is:?}: {path} in body must be of type integer,string: {is:?}");
        push(errors, path, FieldErrorKind::TypeInvalid, message);
        return false;
    }
    let want = schema["type"].as_str().unwrap_or_default();
    let whole = value.as_f64().is_some_and(|n| n.fract() == 0.0);
    if want.is_empty()
        || want == is
        || (want == "number" && is == "integer")
        || (want == "integer" && is == "number" && whole)
    {
        return true;
    }
    let message = format!("Invalid value: {is:?}: {path} in body must be of type {want}: {is:?}");
    push(errors, path, FieldErrorKind::TypeInvalid, message);
    false
}

fn count(schema: &Value, name: &str) -> Option<usize> {
    schema[name].as_u64().and_then(|n| usize::try_from(n).ok())
}

fn string(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::from(text);
    let length = text.chars().count();
    if let Some(most) = count(schema, "maxLength").filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        push(errors, path, FieldErrorKind::TooLong, message);
    }
    if let Some(least) = count(schema, "minLength").filter(|least| length < *least) {
        invalid(errors, path, &value, &format!("should be at least {least} chars long"));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).is_ok_and(|regex| regex.is_match(text))
    {
        invalid(errors, path, &value, &format!("should match '{pattern}'"));
    }
    if let Some(format) = schema["format"].as_str()
        && !has_format(format, text)
    {
        invalid(errors, path, &value, &format!("must be of type {format}: {value}"));
    }
}

/// Unknown formats accept everything.
fn has_format(format: &str, text: &str) -> bool {
    let uuid = || {
        let hex = text.bytes().filter(u8::is_ascii_hexdigit).count();
        hex == 32 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
    };
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid(),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "byte" => {
            use base64::Engine as _;
            base64::prelude::BASE64_STANDARD.decode(text).is_ok()
        }
        _ => true,
    }
}

fn numeric(schema: &Value, number: &serde_json::Number, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::Number(number.clone());
    let Some(is) = number.as_f64() else { return };
    if let Some(most) = schema["maximum"].as_f64() {
        if flag(schema, "exclusiveMaximum") {
            if is >= most {
                invalid(errors, path, &value, &format!("should be less than {}", schema["maximum"]));
            }
        } else if is > most {
            invalid(errors, path, &value, &format!("should be less than or equal to {}", schema["maximum"]));
        }
    }
    if let Some(least) = schema["minimum"].as_f64() {
        if flag(schema, "exclusiveMinimum") {
            if is <= least {
                invalid(errors, path, &value, &format!("should be greater than {}", schema["minimum"]));
            }
        } else if is < least {
            let detail = format!("should be greater than or equal to {}", schema["minimum"]);
            invalid(errors, path, &value, &detail);
        }
    }
    if let Some(step) = schema["multipleOf"].as_f64().filter(|step| *step > 0.0)
        && (is / step - (is / step).round()).abs() > 1e-9
    {
        invalid(errors, path, &value, &format!("should be a multiple of {}", schema["multipleOf"]));
    }
    let fits = match schema["format"].as_str() {
        Some("int32") => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Some("int64") => number.as_i64().is_some() || number.is_f64(),
        _ => true,
    };
    if !fits {
        let format = &schema["format"];
        let format = format.as_str().unwrap_or_default();
        invalid(errors, path, &value, &format!("must be of type {format}: {value}"));
    }
}

fn array(schema: &Value, list: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if let Some(most) = count(schema, "maxItems").filter(|most| list.len() > *most) {
        let message = format!("Too many: {}: must have at most {most} items", list.len());
        push(errors, path, FieldErrorKind::TooMany, message);
    }
    if let Some(least) = count(schema, "minItems").filter(|least| list.len() < *least) {
        let value = Value::Array(list.to_vec());
        invalid(errors, path, &value, &format!("should have at least {least} items"));
    }
    let identity: Option<Vec<&str>> = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(Vec::new()),
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            Some(keys.filter_map(Value::as_str).collect())
        }
        _ => None,
    };
    let mut seen: Vec<Value> = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(keys) = &identity {
            let own = if keys.is_empty() {
                item.clone()
            } else {
                keys.iter().map(|key| ((*key).to_owned(), item[*key].clone())).collect()
            };
            if seen.contains(&own) {
                errors.push(FieldError::duplicate(path.clone(), own.clone()));
            }
            seen.push(own);
        }
        check(&schema["items"], item, &path, errors);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn members(schema: &Value, map: &serde_json::Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(most) = count(schema, "maxProperties").filter(|most| map.len() > *most) {
        let message = format!("Too many: {}: must have at most {most} items", map.len());
        push(errors, path, FieldErrorKind::TooMany, message);
    }
    if let Some(least) = count(schema, "minProperties").filter(|least| map.len() < *least) {
        let value = Value::Object(map.clone());
        invalid(errors, path, &value, &format!("should have at least {least} properties"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            errors.push(FieldError::required(join(path, name), ""));
        }
    }
    if flag(schema, "x-kubernetes-embedded-resource") {
        for name in ["apiVersion", "kind"] {
            if map.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                errors.push(FieldError::required(join(path, name), "must not be empty"));
            }
        }
    }
    for (name, value) in map {
        let property = schema["properties"].get(name);
        let other = Some(&schema["additionalProperties"]).filter(|other| other.is_object());
        if let Some(schema) = property.or(other) {
            check(schema, value, &join(path, name), errors);
        }
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`.
fn combined(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let fits = |schema: &Value| {
        let mut found = Vec::new();
        check(schema, value, path, &mut found);
        found.is_empty()
    };
    for schema in schema["allOf"].as_array().into_iter().flatten() {
        check(schema, value, path, errors);
    }
    if let Some(any) = schema["anyOf"].as_array()
        && !any.iter().any(fits)
    {
        invalid(errors, path, value, "must validate at least one schema (anyOf)");
    }
    if let Some(one) = schema["oneOf"].as_array()
        && one.iter().filter(|schema| fits(schema)).count() != 1
    {
        invalid(errors, path, value, "must validate one and only one schema (oneOf)");
    }
    if schema["not"].is_object() && fits(&schema["not"]) {
        invalid(errors, path, value, "must not validate the schema (not)");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_name_the_field_and_the_rule() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
            "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 5},
                "mode": {"type": "string", "enum": ["a", "b"]},
                "name": {"type": "string", "pattern": "^x", "maxLength": 3},
                "port": {"x-kubernetes-int-or-string": true},
                "maybe": {"type": "string", "nullable": true},
                "at": {"type": "string", "format": "date-time"},
                "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
                "one": {"type": "integer", "oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}}}}});
        let table = [
            (json!({}), "spec: Required value"),
            (json!({"spec": {"size": 2, "port": "http", "maybe": null, "map": {"a": true}, "one": 4}}), ""),
            (json!({"spec": {}}), "spec.size: Required value"),
            (
                json!({"spec": {"size": "x"}}),
                r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
            ),
            (
                json!({"spec": {"size": 0}}),
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ),
            (
                json!({"spec": {"size": 1, "mode": "c"}}),
                r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (
                json!({"spec": {"size": 1, "name": "yyyy"}}),
                "spec.name: Too long: may not be more than 3 bytes|spec.name: Invalid value: \"yyyy\": spec.name in \
                 body should match '^x'",
            ),
            (
                json!({"spec": {"size": 1, "port": true}}),
                r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
            ),
            (
                json!({"spec": {"size": 1, "at": "noon"}}),
                r#"spec.at: Invalid value: "noon": spec.at in body must be of type date-time: "noon""#,
            ),
            (json!({"spec": {"size": 1, "set": ["a", "a"]}}), r#"spec.set[1]: Duplicate value: "a""#),
            (
                json!({"spec": {"size": 1, "map": {"a": 1}}}),
                r#"spec.map.a: Invalid value: "integer": spec.map.a in body must be of type boolean: "integer""#,
            ),
            (
                json!({"spec": {"size": 1, "one": 6}}),
                "spec.one: Invalid value: 6: spec.one in body must validate one and only one schema (oneOf)",
            ),
        ];
        for (value, want) in table {
            let found: Vec<String> = object(&schema, &value).iter().map(ToString::to_string).collect();
            assert_eq!(found.join("|"), want, "{value}");
        }
    }
}
