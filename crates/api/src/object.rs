//! The object tree: a JSON object with accessors for `metadata`.

use serde_json::{Map, Value};

use crate::{GroupVersionKind, ObjectKey};

/// A Kubernetes object as a tree. It lives only while a write, patch, admission or rendering is under way;
/// at rest objects are encoded bytes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Object(pub Map<String, Value>);

impl Object {
    /// Wraps a JSON value; `None` when it is no JSON object.
    pub fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self(map)),
            _ => None,
        }
    }

    /// The tree as a JSON value.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Value at a path of field names: `get(&["spec", "nodeName"])`.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, name| value.get(name))
    }

    /// String at a path, "" when absent.
    pub fn str(&self, path: &[&str]) -> &str {
        self.get(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// Integer at a path.
    pub fn i64(&self, path: &[&str]) -> Option<i64> {
        self.get(path).and_then(Value::as_i64)
    }

    /// Sets the value at a path and creates (or replaces non-objects by) the objects on the way.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = &mut self.0;
        for name in parents {
            let slot = map.entry((*name).to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(inner) = slot else { return };
            map = inner;
        }
        map.insert((*last).to_owned(), value.into());
    }

    /// Sets the value at a path only where there is none (absent or null): the shape of defaulting.
    pub fn set_default(&mut self, path: &[&str], value: impl Into<Value>) {
        if self.get(path).is_none_or(Value::is_null) {
            self.set(path, value);
        }
    }

    /// Removes and returns the value at a path.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut map = &mut self.0;
        for name in parents {
            map = map.get_mut(*name)?.as_object_mut()?;
        }
        map.remove(*last)
    }

    /// `apiVersion` and `kind`.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::from_api_version(self.str(&["apiVersion"]), self.str(&["kind"]))
    }

    /// `metadata.name`, "" when absent.
    pub fn name(&self) -> &str {
        self.str(&["metadata", "name"])
    }

    /// `metadata.namespace`, "" when absent.
    pub fn namespace(&self) -> &str {
        self.str(&["metadata", "namespace"])
    }

    /// `metadata.uid`, "" when absent.
    pub fn uid(&self) -> &str {
        self.str(&["metadata", "uid"])
    }

    /// `metadata.resourceVersion`, "" when absent.
    pub fn resource_version(&self) -> &str {
        self.str(&["metadata", "resourceVersion"])
    }

    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace(), self.name())
    }

    /// Whether `metadata.deletionTimestamp` is set.
    pub fn is_deleting(&self) -> bool {
        self.get(&["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reading_and_writing_by_path() {
        let mut object =
            Object::from_value(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": 1})).unwrap();
        assert_eq!(object.key(), ObjectKey::new("n", "a"));
        assert_eq!(object.str(&["spec"]), "");
        object.set(&["spec", "a", "b"], 2);
        object.set_default(&["spec", "a", "b"], 3);
        object.set_default(&["spec", "a", "c"], 4);
        assert_eq!(object.0["spec"], json!({"a": {"b": 2, "c": 4}}));
        assert_eq!(object.remove(&["spec", "a", "b"]), Some(json!(2)));
        assert_eq!(object.remove(&["spec", "x", "b"]), None);
        assert!(!object.is_deleting());
        object.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
        assert!(object.is_deleting());
        assert!(Object::from_value(json!([])).is_none());
    }
}
