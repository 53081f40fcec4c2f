//! A cursor into an object that knows its path, with the checks that validation repeats.

use std::collections::HashSet;

use api::{FieldError, Object};
use serde_json::Value;

static NULL: Value = Value::Null;

/// What validation found so far.
pub(crate) type Errors = Vec<FieldError>;

/// A value and the path that leads to it: `spec.containers[0].name`.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    pub(crate) value: &'a Value,
    pub(crate) path: String,
}

impl<'a> At<'a> {
    /// A top-level field of an object.
    pub(crate) fn top(object: &'a Object, name: &str) -> Self {
        Self { value: object.0.get(name).unwrap_or(&NULL), path: name.to_owned() }
    }

    /// A value under a path of its own.
    pub(crate) fn new(value: &'a Value, path: &str) -> Self {
        Self { value, path: path.to_owned() }
    }

    /// A field of this object, null when absent.
    pub(crate) fn field(&self, name: &str) -> At<'a> {
        At { value: self.value.get(name).unwrap_or(&NULL), path: format!("{}.{name}", self.path) }
    }

    /// The items of this list.
    pub(crate) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(move |(i, value)| At { value, path: format!("{path}[{i}]") })
    }

    /// The entries of this map.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| (key.as_str(), At { value, path: format!("{path}[{key}]") }))
    }

    pub(crate) fn len(&self) -> usize {
        self.value
            .as_array()
            .map(Vec::len)
            .or_else(|| self.value.as_object().map(serde_json::Map::len))
            .unwrap_or(0)
    }

    pub(crate) fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub(crate) fn i64(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(crate) fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    /// Neither absent nor null.
    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Go's zero value: absent, null, "", an empty list or map.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn invalid(&self, e: &mut Errors, detail: &str) {
        e.push(FieldError::invalid(&self.path, self.value.clone(), detail));
    }

    pub(crate) fn forbidden(&self, e: &mut Errors, detail: &str) {
        e.push(FieldError::forbidden(&self.path, detail));
    }

    /// Whether there is a value; says so when there is none.
    pub(crate) fn required(&self, e: &mut Errors) -> bool {
        self.required_because(e, "")
    }

    pub(crate) fn required_because(&self, e: &mut Errors, detail: &str) -> bool {
        if self.is_empty() {
            e.push(FieldError::required(&self.path, detail));
        }
        !self.is_empty()
    }

    /// Where set, one of these.
    pub(crate) fn one_of(&self, e: &mut Errors, allowed: &[&str]) {
        if !self.is_empty() && !allowed.contains(&self.str()) {
            e.push(FieldError::not_supported(&self.path, self.value.clone(), allowed));
        }
    }

    /// Set, and one of these.
    pub(crate) fn required_one_of(&self, e: &mut Errors, allowed: &[&str]) {
        if self.required(e) {
            self.one_of(e, allowed);
        }
    }

    /// Where set, a text that a rule of [`super::names`] accepts.
    pub(crate) fn text(&self, e: &mut Errors, rule: fn(&str) -> Vec<String>) {
        if !self.is_empty() {
            for detail in rule(self.str()) {
                self.invalid(e, &detail);
            }
        }
    }

    /// Set, and a text that a rule accepts.
    pub(crate) fn required_text(&self, e: &mut Errors, rule: fn(&str) -> Vec<String>) {
        if self.required(e) {
            self.text(e, rule);
        }
    }

    pub(crate) fn non_negative(&self, e: &mut Errors) {
        if self.i64().is_some_and(|n| n < 0) {
            self.invalid(e, "must be greater than or equal to 0");
        }
    }

    pub(crate) fn positive(&self, e: &mut Errors) {
        if self.i64().is_some_and(|n| n <= 0) {
            self.invalid(e, "must be greater than 0");
        }
    }

    /// Where set, an integer within both bounds.
    pub(crate) fn between(&self, e: &mut Errors, low: i64, high: i64) {
        if self.i64().is_some_and(|n| !(low..=high).contains(&n)) {
            self.invalid(e, &format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A port number; absent counts as 0.
    pub(crate) fn port(&self, e: &mut Errors) {
        let port = self.i64().unwrap_or(0);
        for detail in super::names::port_number(port) {
            e.push(FieldError::invalid(&self.path, port, &detail));
        }
    }

    /// A port by number or by name.
    pub(crate) fn port_or_name(&self, e: &mut Errors) {
        match self.value {
            Value::String(name) => {
                for detail in super::names::port_name(name) {
                    self.invalid(e, &detail);
                }
            }
            _ => self.port(e),
        }
    }

    /// Keys and values of a label map.
    pub(crate) fn labels(&self, e: &mut Errors) {
        for (key, value) in self.entries() {
            for detail in super::names::qualified_name(key) {
                e.push(FieldError::invalid(&self.path, key, &detail));
            }
            for detail in super::names::label_value(value.str()) {
                e.push(FieldError::invalid(&self.path, value.str(), &detail));
            }
        }
    }

    /// Keys of an annotation map and its size.
    pub(crate) fn annotations(&self, e: &mut Errors) {
        let mut size = 0;
        for (key, value) in self.entries() {
            size += key.len() + value.str().len();
            for detail in super::names::qualified_name(&key.to_lowercase()) {
                e.push(FieldError::invalid(&self.path, key, &detail));
            }
        }
        if size > 256 * 1024 {
            e.push(too_long(&self.path, 256 * 1024));
        }
    }

    /// No two items of this list share the value of `key`.
    pub(crate) fn unique(&self, e: &mut Errors, key: &str) {
        let mut seen = HashSet::new();
        for item in self.items() {
            let at = item.field(key);
            if !at.is_empty() && !seen.insert(at.str()) {
                e.push(FieldError::duplicate(&at.path, at.value.clone()));
            }
        }
    }
}

/// A value that is longer than allowed.
pub(crate) fn too_long(path: &str, max: usize) -> FieldError {
    FieldError {
        field: path.to_owned(),
        kind: api::FieldErrorKind::TooLong,
        message: format!("Too long: may not be more than {max} bytes"),
    }
}

/// The field may not change once it is set; null and absent are the same.
pub(crate) fn immutable(e: &mut Errors, new: &Object, old: &Object, path: &[&str]) {
    let value = |o: &Object| o.get(path).cloned().unwrap_or(Value::Null);
    let (new, old) = (value(new), value(old));
    if new != old {
        e.push(FieldError::invalid(path.join("."), new, "field is immutable"));
    }
}

impl At<'_> {
    /// Something is wrong with the key of this map entry.
    pub(crate) fn invalid_key(&self, e: &mut Errors, key: &str, detail: &str) {
        e.push(FieldError::invalid(&self.path, key, detail));
    }
}
