//! Server-side apply (KEP-555): a manager states the fields it wants; it owns them, loses those it no longer states, and
//! conflicts with other owners of a field it would change.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::fieldset::FieldSet;
use super::track::{Entry, Operation, entries, store, strip, without_managed};
use super::typed::Typed;
use crate::{Cause, Object, Reason, SchemaTable, Status, TypeId, time};

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager as messages show it: `"x" using apps/v1`
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("{0}")]
    Invalid(String),
    #[error("{}", describe(.0))]
    Conflict(Vec<Conflict>),
}

fn describe(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        by_manager.entry(&conflict.manager).or_default().push(&conflict.field);
    }
    let mut lines = Vec::new();
    for (manager, fields) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(fields.into_iter().map(|field| format!("- {field}")));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let message = error.to_string();
        match error {
            ApplyError::Invalid(_) => Status::bad_request(message),
            ApplyError::Conflict(conflicts) => {
                let mut status = Status::new(Reason::Conflict, message);
                let cause = |c: Conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", c.manager),
                    field: c.field,
                };
                status.causes = conflicts.into_iter().map(cause).collect();
                status
            }
        }
    }
}

/// Applies `config` as `manager`. `live` is absent when the object is to be created. `config` was decoded under the
/// schema and holds no field that this endpoint may not write. With `force` other managers lose what conflicts.
///
/// An application that changes nothing returns the live object as it is.
///
/// # Errors
/// Conflicts with other managers; a configuration with managedFields or with list items that lack their keys.
#[allow(clippy::too_many_arguments)]
pub fn apply(
    table: &SchemaTable,
    ty: TypeId,
    live: Option<&Object>,
    config: &Object,
    manager: &str,
    subresource: &str,
    force: bool,
    now: Timestamp,
) -> Result<Object, ApplyError> {
    if config.get(&["metadata", "managedFields"]).and_then(Value::as_array).is_some_and(|l| !l.is_empty()) {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".into()));
    }
    let typed = Typed::new(table);
    let config = without_managed(config);
    let before = live.map(without_managed).unwrap_or_default();
    let mut list = live.map(entries).unwrap_or_default();
    own_what_was_there(&mut list, &typed, ty, live, &before);

    let mut stated = typed.set_of(ty, &config).map_err(ApplyError::Invalid)?;
    strip(&mut stated);
    let api_version = config.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let mut mine = Entry {
        manager: manager.to_owned(),
        operation: Operation::Apply,
        api_version: api_version.to_owned(),
        subresource: subresource.to_owned(),
        time: None,
        set: stated,
    };
    let previous = list.iter().position(|e| e.same_writer(&mine)).map(|at| list.remove(at));

    let mut merged = before.clone();
    typed.merge(ty, &mut merged, &config).map_err(ApplyError::Invalid)?;
    if let Some(previous) = &previous {
        let mut keep = mine.set.clone();
        list.iter().for_each(|entry| keep.union(&entry.set));
        typed.remove(ty, &mut merged, &previous.set, &keep);
    }
    settle(&typed, ty, &before, &merged, &mut list, force)?;

    let unchanged =
        live.is_some() && merged == before && previous.as_ref().is_some_and(|p| p.set == mine.set);
    let kept_time = previous.and_then(|p| p.time).filter(|_| unchanged);
    mine.time = kept_time.or_else(|| Some(time::seconds(now)));
    list.push(mine);
    let mut object = Object(merged);
    store(&mut object, list);
    Ok(object)
}

/// Fields written before anybody applied, without a recorded owner, get one, so that applying over them conflicts.
fn own_what_was_there(
    list: &mut Vec<Entry>,
    typed: &Typed<'_>,
    ty: TypeId,
    live: Option<&Object>,
    before: &Map<String, Value>,
) {
    let Some(live) = live.filter(|_| list.is_empty()) else { return };
    // A live list with unreadable keys can have no owner.
    let mut set = typed.set_of(ty, before).unwrap_or_default();
    strip(&mut set);
    list.push(Entry {
        manager: "before-first-apply".into(),
        operation: Operation::Update,
        api_version: live.gvk().api_version(),
        subresource: String::new(),
        time: None,
        set,
    });
}

/// Takes changed and removed fields from the other managers, or reports them as conflicts.
fn settle(
    typed: &Typed<'_>,
    ty: TypeId,
    before: &Map<String, Value>,
    merged: &Map<String, Value>,
    others: &mut [Entry],
    force: bool,
) -> Result<(), ApplyError> {
    let changes = typed.compare(ty, before, merged);
    let mut conflicts = Vec::new();
    for entry in others.iter() {
        let shared: FieldSet = entry.set.intersection(&changes.written);
        let manager = shown(entry);
        conflicts
            .extend(shared.paths().into_iter().map(|field| Conflict { manager: manager.clone(), field }));
    }
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflict(conflicts));
    }
    for entry in others {
        entry.set.subtract(&changes.written);
        entry.set.subtract(&changes.removed);
    }
    Ok(())
}

fn shown(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", entry.subresource));
    }
    if entry.operation == Operation::Update {
        text.push_str(&format!(" using {}", entry.api_version));
        if let Some(time) = &entry.time {
            text.push_str(&format!(" at {time}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
