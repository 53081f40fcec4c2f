//! Conditions in an object's status.

use api::Object;
use serde_json::{Value, json};

use crate::printing::cells;
use crate::registry::meta;

/// Where kinds keep them.
const PATH: [&str; 2] = ["status", "conditions"];

/// Sets a condition; `lastTransitionTime` changes with the status alone.
pub(crate) fn set(
    object: &mut Object,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: jiff::Timestamp,
) {
    let mut conditions = cells::list(object, &PATH).to_vec();
    let found = conditions.iter().position(|c| c["type"] == type_);
    let since = found
        .map(|at| &conditions[at])
        .filter(|old| old["status"] == status)
        .and_then(|old| old["lastTransitionTime"].as_str().map(str::to_owned))
        .unwrap_or_else(|| meta::timestamp(now));
    let new = json!({"type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since});
    match found {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
    object.set(&PATH, conditions);
}

/// Takes a condition away.
pub(crate) fn remove(object: &mut Object, type_: &str) {
    let conditions: Vec<Value> =
        cells::list(object, &PATH).iter().filter(|c| c["type"] != type_).cloned().collect();
    object.set(&PATH, conditions);
}
