//! Sets of field paths in the `fieldsV1` form of managedFields (KEP-555).
//!
//! A set is a tree. Its edges are path elements in their encoded form: `f:name` a field or map key,
//! `k:{"name":"x"}` an item of a keyed list, `v:"x"` an item of a set, `i:0` an index.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths; the node itself is in the set when `member` is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// When an element has none of the known prefixes.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let mut set = Self::node(value)?;
        // An empty root is the empty set, not the set of the root.
        set.member = value.get(".").is_some();
        Ok(set)
    }

    fn node(value: &Value) -> Result<Self, String> {
        let Some(map) = value.as_object() else { return Err("a field set must be an object".into()) };
        let mut set = Self { member: map.is_empty() || map.contains_key("."), children: BTreeMap::new() };
        for (element, inner) in map {
            if element != "." {
                set.children.insert(canonical(element)?, Self::node(inner)?);
            }
        }
        Ok(set)
    }

    /// The JSON form.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (element, inner) in &self.children {
            map.insert(element.clone(), inner.to_value());
        }
        Value::Object(map)
    }

    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Adds a path.
    pub fn insert<S: AsRef<str>>(&mut self, path: &[S]) {
        let mut node = self;
        for element in path {
            node = node.children.entry(element.as_ref().to_owned()).or_default();
        }
        node.member = true;
    }

    /// Removes a path and everything below it.
    pub fn remove_below(&mut self, path: &[&str]) {
        let Some((last, parents)) = path.split_last() else { return };
        let Some((first, _)) = parents.split_first() else {
            self.children.remove(*last);
            return;
        };
        if let Some(inner) = self.children.get_mut(*first) {
            inner.remove_below(&path[1..]);
            if inner.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// Removes one path, not what is below it.
    pub fn remove_member(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            self.member = false;
            return;
        };
        if let Some(inner) = self.children.get_mut(*first) {
            inner.remove_member(rest);
            if inner.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// Adds all paths of another set.
    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (element, inner) in &other.children {
            self.children.entry(element.clone()).or_default().union(inner);
        }
    }

    /// Removes all paths of another set.
    pub fn subtract(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        for (element, inner) in &other.children {
            if let Some(mine) = self.children.get_mut(element) {
                mine.subtract(inner);
                if mine.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// The paths that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { member: self.member && other.member, children: BTreeMap::new() };
        for (element, mine) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                let inner = mine.intersection(theirs);
                if !inner.is_empty() {
                    out.children.insert(element.clone(), inner);
                }
            }
        }
        out
    }

    /// All paths in the form of messages: `.spec.containers[name="x"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (element, inner) in &self.children {
            let length = path.len();
            path.push_str(&shown(element));
            inner.collect(path, out);
            path.truncate(length);
        }
    }
}

/// The element of an item of a keyed list.
pub(crate) fn key_element(keys: &[(&str, Value)]) -> String {
    let mut sorted: Vec<&(&str, Value)> = keys.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let parts: Vec<String> = sorted.iter().map(|(name, value)| format!("{:?}:{value}", name)).collect();
    format!("k:{{{}}}", parts.join(","))
}

/// Brings an element that came from outside into the one form that is compared.
fn canonical(element: &str) -> Result<String, String> {
    let wrong = || format!("invalid field path element {element:?}");
    let (kind, rest) = element.split_once(':').ok_or_else(wrong)?;
    match kind {
        "f" | "i" => Ok(element.to_owned()),
        "v" => serde_json::from_str::<Value>(rest).map(|v| format!("v:{v}")).map_err(|_| wrong()),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| wrong())?;
            let keys: Vec<(&str, Value)> = keys.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            Ok(key_element(&keys))
        }
        _ => Err(wrong()),
    }
}

fn shown(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => element.to_owned(),
    }
}
