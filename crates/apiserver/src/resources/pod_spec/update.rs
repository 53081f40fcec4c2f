//! What may change in a pod after its creation.

use api::{FieldError, Object};
use serde_json::Value;

use crate::resources::check::{At, Errors};

const ONLY_THESE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Findings on a change of a pod's spec through the main path.
pub(crate) fn validate(new: &Object, old: &Object, e: &mut Errors) {
    let (new_spec, old_spec) = (At::top(new, "spec"), At::top(old, "spec"));
    for list in ["containers", "initContainers"] {
        if new_spec.field(list).len() != old_spec.field(list).len() {
            let detail = "pod updates may not add or remove containers";
            e.push(FieldError::forbidden(format!("spec.{list}"), detail));
            return;
        }
    }
    deadline(&new_spec, &old_spec, e);
    added_tolerations(&new_spec, &old_spec, e);
    let gates = gates(&new_spec, &old_spec, e);
    let mut allowed = new_spec.value.clone();
    for list in ["containers", "initContainers"] {
        for (i, old) in old_spec.field(list).items().enumerate() {
            allowed[list][i]["image"] = old.field("image").value.clone();
        }
    }
    for name in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        take_over(&mut allowed, old_spec.value, name);
    }
    if old_spec.field("terminationGracePeriodSeconds").i64().is_some_and(|n| n < 0)
        && new_spec.field("terminationGracePeriodSeconds").i64() == Some(1)
    {
        take_over(&mut allowed, old_spec.value, "terminationGracePeriodSeconds");
    }
    if gates {
        // A gated pod is not scheduled yet: its node selector and affinity may still be narrowed.
        take_over(&mut allowed, old_spec.value, "nodeSelector");
        take_over(&mut allowed, old_spec.value, "affinity");
    }
    if without_empty(&allowed) != without_empty(old_spec.value) {
        e.push(FieldError::forbidden("spec", ONLY_THESE));
    }
}

fn take_over(spec: &mut Value, old: &Value, name: &str) {
    match (old.get(name), spec.as_object_mut()) {
        (Some(value), Some(map)) => drop(map.insert(name.to_owned(), value.clone())),
        (None, Some(map)) => drop(map.remove(name)),
        _ => {}
    }
}

/// The value without nulls and empty lists and objects: absent and empty are the same.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), without_empty(v)));
            Value::Object(kept.filter(|(_, v)| !is_empty(v)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn deadline(new: &At<'_>, old: &At<'_>, e: &mut Errors) {
    let (after, before) = (new.field("activeDeadlineSeconds"), old.field("activeDeadlineSeconds"));
    let Some(before) = before.i64() else { return };
    match after.i64() {
        None => e.push(FieldError::invalid(
            &after.path,
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        Some(n) if n > before => {
            after.invalid(e, &format!("must be less than or equal to previous value: {before}"))
        }
        Some(_) => {}
    }
}

fn added_tolerations(new: &At<'_>, old: &At<'_>, e: &mut Errors) {
    let (after, before) = (new.field("tolerations"), old.field("tolerations"));
    let same = |a: &At<'_>, b: &At<'_>| {
        ["key", "operator", "value", "effect"].iter().all(|f| a.field(f).str() == b.field(f).str())
    };
    if before.items().any(|old| !after.items().any(|new| same(&new, &old))) {
        after.forbidden(e, "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// Gates may go but not come. Returns whether the pod was gated.
fn gates(new: &At<'_>, old: &At<'_>, e: &mut Errors) -> bool {
    let (after, before) = (new.field("schedulingGates"), old.field("schedulingGates"));
    for gate in after.items() {
        let name = gate.field("name").str();
        if !before.items().any(|g| g.field("name").str() == name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            after.forbidden(e, &detail);
        }
    }
    !before.is_empty()
}
