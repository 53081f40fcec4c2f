//! ConfigMap and Secret.

use api::{FieldError, Object};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::resources::check::{At, Errors, too_long};
use crate::resources::names;
use crate::resources::row::Hooks;

pub(super) const CONFIG_MAP: Hooks =
    Hooks { validate: validate_config_map, validate_update: config_map_update, ..Hooks::NONE };
pub(super) const SECRET: Hooks = Hooks {
    default: default_secret,
    validate: validate_secret,
    validate_update: secret_update,
    ..Hooks::NONE
};

const ACCOUNT_ANNOTATION: &[&str] = &["metadata", "annotations", "kubernetes.io/service-account.name"];
/// How Kubernetes writes the path of the object as a whole.
const WHOLE: &str = "[]";
const MAX_BYTES: usize = 1024 * 1024;

fn size(o: &Object, field: &str) -> usize {
    let map = o.0.get(field).and_then(Value::as_object);
    map.into_iter().flatten().map(|(_, v)| v.as_str().map_or(0, str::len)).sum()
}

fn keys(o: &Object, field: &str, e: &mut Errors) {
    for (key, at) in At::top(o, field).entries() {
        for detail in names::config_key(key) {
            e.push(FieldError::invalid(&at.path, key, &detail));
        }
    }
}

fn validate_config_map(o: &Object, e: &mut Errors) {
    keys(o, "data", e);
    keys(o, "binaryData", e);
    for (key, at) in At::top(o, "data").entries() {
        if o.get(&["binaryData", key]).is_some() {
            at.invalid_key(e, key, "duplicate of key present in binaryData");
        }
    }
    // Base64 takes four characters for three bytes.
    if size(o, "data") + size(o, "binaryData") / 4 * 3 > MAX_BYTES {
        e.push(too_long(WHOLE, MAX_BYTES));
    }
}

fn config_map_update(new: &Object, old: &Object, e: &mut Errors) {
    immutable_data(new, old, &["data", "binaryData"], e);
}

/// An object marked immutable keeps its data and the mark.
fn immutable_data(new: &Object, old: &Object, fields: &[&str], e: &mut Errors) {
    let is_set = |o: &Object| o.get(&["immutable"]).and_then(Value::as_bool) == Some(true);
    if !is_set(old) {
        return;
    }
    if !is_set(new) {
        e.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    let empty = Value::Object(Map::new());
    let value = |o: &Object, name: &str| o.get(&[name]).filter(|v| !v.is_null()).unwrap_or(&empty).clone();
    for name in fields {
        if value(new, name) != value(old, name) {
            e.push(FieldError::forbidden(*name, "field is immutable when `immutable` is set"));
        }
    }
}

/// The type, and `stringData` turned into `data`.
fn default_secret(o: &mut Object) {
    if o.str(&["type"]).is_empty() {
        o.set(&["type"], "Opaque");
    }
    let Some(Value::Object(strings)) = o.0.remove("stringData") else { return };
    for (key, value) in strings {
        if let Some(text) = value.as_str() {
            o.set(&["data", &key], BASE64_STANDARD.encode(text));
        }
    }
}

fn validate_secret(o: &Object, e: &mut Errors) {
    keys(o, "data", e);
    if size(o, "data") / 4 * 3 > MAX_BYTES {
        e.push(too_long("data", MAX_BYTES));
    }
    let has = |key: &str| o.get(&["data", key]).is_some();
    let need = |key: &str, e: &mut Errors| {
        if !has(key) {
            e.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match o.str(&["type"]) {
        "kubernetes.io/service-account-token" if o.str(ACCOUNT_ANNOTATION).is_empty() => {
            e.push(FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        "kubernetes.io/dockercfg" => json_key(o, ".dockercfg", e),
        "kubernetes.io/dockerconfigjson" => json_key(o, ".dockerconfigjson", e),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username", e);
            need("password", e);
        }
        "kubernetes.io/ssh-auth" if o.str(&["data", "ssh-privatekey"]).is_empty() => {
            e.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => {
            need("tls.crt", e);
            need("tls.key", e);
        }
        _ => {}
    }
}

fn json_key(o: &Object, key: &str, e: &mut Errors) {
    let path = format!("data[{key}]");
    let Some(text) = o.get(&["data", key]).and_then(Value::as_str) else {
        e.push(FieldError::required(path, ""));
        return;
    };
    let parsed = BASE64_STANDARD.decode(text).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    if parsed.is_none() {
        e.push(FieldError::invalid(path, "<secret contents redacted>", "must be valid JSON"));
    }
}

fn secret_update(new: &Object, old: &Object, e: &mut Errors) {
    crate::resources::check::immutable(e, new, old, &["type"]);
    immutable_data(new, old, &["data"], e);
}
