//! Walks over trees under a schema: sets of paths, differences, merging and removal, as server-side apply sees them.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::fieldset::{FieldSet, key_element};
use crate::{Field, FieldType, ListType, SchemaTable, TypeDef, TypeId};

/// A place in the schema: a type with the markers of the field that holds it.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    ty: &'a FieldType,
    list: &'a ListType,
    atomic: bool,
    /// A field the schema does not know: objects merge, everything else is atomic.
    deduced: bool,
}

/// How a value at a slot merges.
enum Shape<'a> {
    /// As one value
    Leaf,
    Struct(&'a TypeDef),
    Map(&'a FieldType),
    Set,
    Keyed(&'a FieldType, &'a [String]),
    Deduced,
}

/// What differs between two trees.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) removed: FieldSet,
    /// Changed and added paths together
    pub(super) written: FieldSet,
}

const ATOMIC: &ListType = &ListType::Atomic;

#[derive(Clone, Copy)]
pub(super) struct Typed<'t> {
    table: &'t SchemaTable,
}

impl<'t> Typed<'t> {
    pub(super) fn new(table: &'t SchemaTable) -> Self {
        Self { table }
    }

    fn shape<'a>(&self, slot: Slot<'a>, value: &Value) -> Shape<'a>
    where
        't: 'a,
    {
        let table: &'a SchemaTable = self.table;
        match (slot.ty, value) {
            _ if slot.deduced => {
                if value.is_object() {
                    Shape::Deduced
                } else {
                    Shape::Leaf
                }
            }
            _ if slot.atomic => Shape::Leaf,
            (FieldType::Ref(id), Value::Object(_)) => {
                let def = table.get(*id);
                if def.atomic { Shape::Leaf } else { Shape::Struct(def) }
            }
            (FieldType::Map(inner), Value::Object(_)) => Shape::Map(inner),
            (FieldType::List(inner), Value::Array(_)) => match slot.list {
                ListType::Atomic => Shape::Leaf,
                ListType::Set => Shape::Set,
                ListType::Map(keys) => Shape::Keyed(inner, keys),
            },
            _ => Shape::Leaf,
        }
    }

    fn child<'a>(&self, shape: &Shape<'a>, name: &str) -> Slot<'a> {
        match shape {
            Shape::Struct(def) => match def.field(name) {
                Some(field) => of_field(field),
                None => Slot { ty: &FieldType::Any, list: ATOMIC, atomic: false, deduced: true },
            },
            Shape::Map(inner) => plain(inner),
            _ => Slot { ty: &FieldType::Any, list: ATOMIC, atomic: false, deduced: true },
        }
    }

    /// The path element of a list item.
    fn element(&self, shape: &Shape<'_>, item: &Value) -> Result<String, String> {
        let Shape::Keyed(inner, keys) = shape else { return Ok(format!("v:{item}")) };
        let mut parts = Vec::with_capacity(keys.len());
        let mut given = 0;
        for key in *keys {
            let default = || {
                let FieldType::Ref(id) = inner else { return None };
                serde_json::from_str(self.table.get(*id).field(key)?.default.as_deref()?).ok()
            };
            let value = item.get(key).cloned().inspect(|_| given += 1).or_else(default);
            if let Some(value) = value.filter(|v| !v.is_null()) {
                parts.push((key.as_str(), value));
            }
        }
        if parts.is_empty() || given == 0 {
            let all: Vec<String> = keys.iter().map(|k| format!("{k:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields {}",
                all.join(", ")
            ));
        }
        Ok(key_element(&parts))
    }

    /// The set of paths that a configuration holds.
    pub(super) fn set_of(&self, ty: TypeId, map: &Map<String, Value>) -> Result<FieldSet, String> {
        let mut set = FieldSet::default();
        let shape = Shape::Struct(self.table.get(ty));
        self.collect_map(&shape, map, false, &mut set)?;
        Ok(set)
    }

    fn collect_map(
        &self,
        shape: &Shape<'_>,
        map: &Map<String, Value>,
        all: bool,
        set: &mut FieldSet,
    ) -> Result<(), String> {
        for (name, value) in map {
            let mut node = FieldSet::default();
            let known = matches!(shape, Shape::Struct(def) if def.field(name).is_some());
            let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
            node.member = all || empty || !known;
            self.collect(self.child(shape, name), value, all, &mut node)
                .map_err(|e| format!(".{name}{e}"))?;
            if !node.is_empty() {
                set.children.entry(format!("f:{name}")).or_default().union(&node);
            }
        }
        Ok(())
    }

    /// Adds what is at and below a value; with `all`, containers themselves are members too.
    fn collect(&self, slot: Slot<'_>, value: &Value, all: bool, set: &mut FieldSet) -> Result<(), String> {
        set.member |= all;
        let shape = self.shape(slot, value);
        match (&shape, value) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(map)) => {
                self.collect_map(&shape, map, all, set)
            }
            (Shape::Set, Value::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    let node = set.children.entry(format!("v:{item}")).or_default();
                    if node.member && !all {
                        return Err(format!("[{i}]: duplicate entries for set element {item}"));
                    }
                    node.member = true;
                }
                Ok(())
            }
            (Shape::Keyed(inner, _), Value::Array(items)) => {
                let slot = plain(inner);
                for (i, item) in items.iter().enumerate() {
                    let element = self.element(&shape, item).map_err(|e| format!("[{i}]: {e}"))?;
                    let node = set.children.entry(element).or_default();
                    if node.member && !all {
                        return Err(format!("[{i}]: duplicate entries for key"));
                    }
                    node.member = true;
                    self.collect(slot, item, all, node)?;
                }
                Ok(())
            }
            _ => {
                set.member = true;
                Ok(())
            }
        }
    }

    /// Compares two trees; equal parts are not walked.
    pub(super) fn compare(&self, ty: TypeId, old: &Map<String, Value>, new: &Map<String, Value>) -> Changes {
        let mut changes = Changes::default();
        let shape = Shape::Struct(self.table.get(ty));
        self.compare_maps(&shape, old, new, &mut Vec::new(), &mut changes);
        changes
    }

    fn compare_maps(
        &self,
        shape: &Shape<'_>,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
        path: &mut Vec<String>,
        out: &mut Changes,
    ) {
        for (name, after) in new {
            let before = old.get(name);
            if before == Some(after) {
                continue;
            }
            path.push(format!("f:{name}"));
            self.compare_values(self.child(shape, name), before, Some(after), path, out);
            path.pop();
        }
        for (name, before) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            path.push(format!("f:{name}"));
            self.compare_values(self.child(shape, name), Some(before), None, path, out);
            path.pop();
        }
    }

    fn compare_values(
        &self,
        slot: Slot<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<String>,
        out: &mut Changes,
    ) {
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (None, Some(new)) => return self.whole(slot, new, path, &mut out.written),
            (Some(old), None) => return self.whole(slot, old, path, &mut out.removed),
            (None, None) => return,
        };
        if old == new {
            return;
        }
        let shape = self.shape(slot, new);
        match (&shape, old, new) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(old), Value::Object(new)) => {
                self.compare_maps(&shape, old, new, path, out);
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(old), Value::Array(new)) => {
                self.compare_lists(&shape, old, new, path, out);
            }
            _ => out.written.insert(path),
        }
    }

    fn compare_lists(
        &self,
        shape: &Shape<'_>,
        old: &[Value],
        new: &[Value],
        path: &mut Vec<String>,
        out: &mut Changes,
    ) {
        let indexed = |items: &[Value]| -> Option<Vec<String>> {
            items.iter().map(|item| self.element(shape, item).ok()).collect()
        };
        let (Some(before), Some(after)) = (indexed(old), indexed(new)) else {
            out.written.insert(path);
            return;
        };
        let slot = match shape {
            Shape::Keyed(inner, _) => plain(inner),
            _ => plain(&FieldType::Any),
        };
        let before_at = places(&before);
        let after_at = places(&after);
        for (item, key) in new.iter().zip(&after) {
            path.push(key.clone());
            let counterpart = before_at.get(key.as_str()).map(|i| &old[*i]);
            self.compare_values(slot, counterpart, Some(item), path, out);
            path.pop();
        }
        for (item, key) in old.iter().zip(&before) {
            if !after_at.contains_key(key.as_str()) {
                path.push(key.clone());
                self.compare_values(slot, Some(item), None, path, out);
                path.pop();
            }
        }
    }

    /// Adds a whole value at a path: leaves, items and the containers on the way, except the objects directly below
    /// the root (`spec`, `status`, `metadata`), which every object has.
    fn whole(&self, slot: Slot<'_>, value: &Value, path: &[String], out: &mut FieldSet) {
        let mut node = FieldSet::default();
        // A list whose items lack their keys is taken as one value.
        if self.collect(slot, value, true, &mut node).is_err() {
            node = FieldSet { member: true, children: std::collections::BTreeMap::new() };
        }
        if path.len() == 1 && !node.children.is_empty() {
            node.member = false;
        }
        let mut target = out;
        for element in path {
            target = target.children.entry(element.clone()).or_default();
        }
        target.union(&node);
    }

    /// Merges an applied configuration over the live tree.
    pub(super) fn merge(
        &self,
        ty: TypeId,
        live: &mut Map<String, Value>,
        config: &Map<String, Value>,
    ) -> Result<(), String> {
        self.merge_maps(&Shape::Struct(self.table.get(ty)), live, config)
    }

    fn merge_maps(
        &self,
        shape: &Shape<'_>,
        live: &mut Map<String, Value>,
        config: &Map<String, Value>,
    ) -> Result<(), String> {
        for (name, value) in config {
            match live.get_mut(name) {
                Some(current) => self.merge_values(self.child(shape, name), current, value)?,
                None => {
                    live.insert(name.clone(), value.clone());
                }
            }
        }
        Ok(())
    }

    fn merge_values(&self, slot: Slot<'_>, live: &mut Value, config: &Value) -> Result<(), String> {
        let shape = self.shape(slot, config);
        match (&shape, &mut *live, config) {
            (
                Shape::Struct(_) | Shape::Map(_) | Shape::Deduced,
                Value::Object(live),
                Value::Object(config),
            ) => self.merge_maps(&shape, live, config),
            (Shape::Set | Shape::Keyed(..), Value::Array(items), Value::Array(config)) => {
                *items = self.merge_lists(&shape, std::mem::take(items), config)?;
                Ok(())
            }
            _ => {
                *live = config.clone();
                Ok(())
            }
        }
    }

    /// Items in the order of the configuration; items of the live list alone keep their place before the shared item
    /// that followed them.
    fn merge_lists(
        &self,
        shape: &Shape<'_>,
        live: Vec<Value>,
        config: &[Value],
    ) -> Result<Vec<Value>, String> {
        let wanted = config.iter().map(|item| self.element(shape, item)).collect::<Result<Vec<_>, _>>()?;
        let shared = places(&wanted);
        // Live items whose keys cannot be read are kept as they are.
        let keys: Vec<Option<String>> = live.iter().map(|item| self.element(shape, item).ok()).collect();
        let mut live: Vec<Option<Value>> = live.into_iter().map(Some).collect();
        let is_shared = |i: usize| keys[i].as_ref().is_some_and(|k| shared.contains_key(k.as_str()));
        let mut live_at: HashMap<&str, usize> = HashMap::new();
        for (i, key) in keys.iter().enumerate() {
            if let Some(key) = key {
                live_at.entry(key).or_insert(i);
            }
        }
        let mut out = Vec::with_capacity(live.len() + config.len());
        let mut passed = 0;
        for (item, key) in config.iter().zip(&wanted) {
            let found = live_at.remove(key.as_str());
            let Some((at, mut merged)) = found.and_then(|at| Some((at, live[at].take()?))) else {
                out.push(item.clone());
                continue;
            };
            for i in (passed..at).filter(|i| !is_shared(*i)) {
                out.extend(live[i].take());
            }
            passed = passed.max(at);
            if let Shape::Keyed(inner, _) = shape {
                self.merge_values(plain(inner), &mut merged, item)?;
            }
            out.push(merged);
        }
        out.extend(
            (0..live.len()).filter(|i| !is_shared(*i)).filter_map(|i| live[i].take()).collect::<Vec<_>>(),
        );
        Ok(out)
    }

    /// Removes the members of `last` that nothing in `keep` stands for.
    pub(super) fn remove(&self, ty: TypeId, map: &mut Map<String, Value>, last: &FieldSet, keep: &FieldSet) {
        self.remove_from_map(&Shape::Struct(self.table.get(ty)), map, last, keep);
    }

    fn remove_from_map(
        &self,
        shape: &Shape<'_>,
        map: &mut Map<String, Value>,
        last: &FieldSet,
        keep: &FieldSet,
    ) {
        map.retain(|name, value| {
            let element = format!("f:{name}");
            self.keep_value(
                self.child(shape, name),
                value,
                last.children.get(&element),
                keep.children.get(&element),
            )
        });
    }

    fn keep_value(
        &self,
        slot: Slot<'_>,
        value: &mut Value,
        last: Option<&FieldSet>,
        keep: Option<&FieldSet>,
    ) -> bool {
        let Some(last) = last else { return true };
        if last.member && keep.is_none() {
            return false;
        }
        let none = FieldSet::default();
        let keep = keep.unwrap_or(&none);
        let shape = self.shape(slot, value);
        match (&shape, value) {
            (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(map)) => {
                let had = !map.is_empty();
                self.remove_from_map(&shape, map, last, keep);
                // A map or struct that the configuration alone had filled goes with its last member.
                !(had && map.is_empty() && keep.is_empty())
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
                let inner = match &shape {
                    Shape::Keyed(inner, _) => plain(inner),
                    _ => plain(&FieldType::Any),
                };
                let had = !items.is_empty();
                items.retain_mut(|item| match self.element(&shape, item) {
                    Ok(key) => self.keep_value(inner, item, last.children.get(&key), keep.children.get(&key)),
                    Err(_) => true,
                });
                !(had && items.is_empty() && keep.is_empty())
            }
            _ => true,
        }
    }
}

/// Index of the first occurrence of each key.
fn places(keys: &[String]) -> HashMap<&str, usize> {
    let mut out = HashMap::with_capacity(keys.len());
    for (i, key) in keys.iter().enumerate() {
        out.entry(key.as_str()).or_insert(i);
    }
    out
}

fn of_field(field: &Field) -> Slot<'_> {
    Slot { ty: &field.ty, list: &field.list_type, atomic: field.atomic, deduced: false }
}

fn plain(ty: &FieldType) -> Slot<'_> {
    Slot { ty, list: ATOMIC, atomic: false, deduced: false }
}
