//! `metadata.managedFields`: who wrote which field, and its upkeep on updates (KEP-555).

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fieldset::FieldSet;
use super::typed::Typed;
use crate::{Object, SchemaTable, TypeId, time};

/// Most update entries that are kept apart; older ones are folded into one.
const MAX_UPDATE_ENTRIES: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// How a manager wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) set: FieldSet,
}

impl Entry {
    pub(super) fn same_writer(&self, other: &Entry) -> bool {
        let mine = (&self.manager, self.operation, &self.subresource);
        // An applier is one whatever version it writes; updates are kept per version.
        mine == (&other.manager, other.operation, &other.subresource)
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn from_value(value: &Value) -> Option<Entry> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let set = FieldSet::from_value(value.get("fieldsV1").unwrap_or(&json!({}))).ok()?;
        let time = Some(text("time")).filter(|t| !t.is_empty());
        let (manager, api_version, subresource) = (text("manager"), text("apiVersion"), text("subresource"));
        Some(Entry { manager, operation, api_version, subresource, time, set })
    }

    fn to_value(&self) -> Value {
        let mut value = json!({
            "manager": self.manager, "operation": self.operation.as_str(), "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.set.to_value(),
        });
        if let Some(time) = &self.time {
            value["time"] = time.as_str().into();
        }
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.as_str().into();
        }
        value
    }
}

/// The entries of an object; entries that cannot be read are left out.
pub(super) fn entries(object: &Object) -> Vec<Entry> {
    let list = object.get(&["metadata", "managedFields"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Entry::from_value).collect()
}

/// Writes entries into an object, in Kubernetes' order, without empty ones.
pub(super) fn store(object: &mut Object, mut list: Vec<Entry>) {
    list.retain(|entry| !entry.set.is_empty());
    fold_ancient(&mut list);
    list.sort_by(|a, b| {
        (a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            b.operation,
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    if list.is_empty() {
        object.remove(&["metadata", "managedFields"]);
    } else {
        let list: Vec<Value> = list.iter().map(Entry::to_value).collect();
        object.set(&["metadata", "managedFields"], list);
    }
}

fn fold_ancient(list: &mut Vec<Entry>) {
    let mut updates: Vec<usize> =
        (0..list.len()).filter(|i| list[*i].operation == Operation::Update).collect();
    if updates.len() <= MAX_UPDATE_ENTRIES {
        return;
    }
    updates.sort_by(|a, b| list[*a].time.cmp(&list[*b].time));
    updates.truncate(updates.len() - MAX_UPDATE_ENTRIES + 1);
    updates.sort_unstable_by(|a, b| b.cmp(a));
    let mut folded: Vec<Entry> = Vec::new();
    for index in updates {
        let entry = list.remove(index);
        let bucket = folded.iter_mut().find(|f| f.api_version == entry.api_version);
        match bucket {
            Some(bucket) => {
                bucket.set.union(&entry.set);
                bucket.time = bucket.time.take().max(entry.time);
            }
            None => folded.push(Entry { manager: ANCIENT.into(), subresource: String::new(), ..entry }),
        }
    }
    list.extend(folded);
}

/// Fields that have no owner: identity and what the server sets itself.
const UNTRACKED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

pub(super) fn strip(set: &mut FieldSet) {
    set.remove_below(&["f:apiVersion"]);
    set.remove_below(&["f:kind"]);
    for name in UNTRACKED {
        set.remove_below(&["f:metadata", &format!("f:{name}")]);
    }
    set.remove_member(&["f:metadata"]);
}

/// The tree without managedFields, which are not compared.
pub(super) fn without_managed(object: &Object) -> Map<String, Value> {
    let mut copy = Map::new();
    for (name, value) in &object.0 {
        let value = match (name.as_str(), value) {
            ("metadata", Value::Object(meta)) => {
                let kept = meta.iter().filter(|(k, _)| *k != "managedFields");
                Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            _ => value.clone(),
        };
        copy.insert(name.clone(), value);
    }
    copy
}

/// Keeps `metadata.managedFields` of `new` after a create (`old` absent), update or patch by `manager`: it owns what it
/// changed, others lose what was changed or removed. Costs a walk over the parts that differ.
///
/// Fields that this endpoint may not write must already be reset in `new`.
#[allow(clippy::too_many_arguments)]
pub fn track_update(
    table: &SchemaTable,
    ty: TypeId,
    old: Option<&Object>,
    new: &mut Object,
    manager: &str,
    subresource: &str,
    operation: Operation,
    now: Timestamp,
) {
    let given = new.remove(&["metadata", "managedFields"]);
    let reset = given.as_ref().and_then(Value::as_array).is_some_and(|list| match list.as_slice() {
        [] => true,
        [one] => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    });
    let mut list = if reset {
        Vec::new()
    } else {
        let sent: Option<Vec<Entry>> = given
            .as_ref()
            .and_then(Value::as_array)
            .map(|l| l.iter().filter_map(Entry::from_value).collect());
        let sent = sent.filter(|l| !l.is_empty() && subresource.is_empty());
        sent.unwrap_or_else(|| old.map(entries).unwrap_or_default())
    };
    let empty = Map::new();
    let mut changes = Typed::new(table).compare(ty, old.map_or(&empty, |o| &o.0), &new.0);
    strip(&mut changes.removed);
    strip(&mut changes.written);
    record(
        &mut list,
        changes.written,
        &changes.removed,
        manager,
        subresource,
        &new.gvk().api_version(),
        operation,
        now,
    );
    store(new, list);
}

#[allow(clippy::too_many_arguments)]
fn record(
    list: &mut Vec<Entry>,
    written: FieldSet,
    removed: &FieldSet,
    manager: &str,
    subresource: &str,
    api_version: &str,
    operation: Operation,
    now: Timestamp,
) {
    let mut mine = Entry {
        manager: manager.to_owned(),
        operation,
        api_version: api_version.to_owned(),
        subresource: subresource.to_owned(),
        time: None,
        set: FieldSet::default(),
    };
    for entry in list.iter_mut() {
        entry.set.subtract(removed);
        if !entry.same_writer(&mine) {
            entry.set.subtract(&written);
        }
    }
    let before = list.iter().position(|entry| entry.same_writer(&mine)).map(|at| list.remove(at));
    if let Some(before) = before {
        mine.set = before.set;
        mine.time = before.time;
    }
    let held = mine.set.clone();
    mine.set.union(&written);
    if mine.set != held || mine.time.is_none() {
        mine.time = Some(time::seconds(now));
    }
    list.push(mine);
}
