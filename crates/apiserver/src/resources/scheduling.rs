//! `scheduling.k8s.io/v1`: PriorityClass.

use api::{FieldError, Object};

use super::check::{At, Errors, immutable};
use super::row::{Hooks, Row, age_col, col, name_col};
use crate::printing::cells;

const PRIORITY_CLASS: Hooks =
    Hooks { default, validate, validate_update, create_on_update: true, ..Hooks::NONE };

/// Highest value that users may give; the two system classes are above it.
const HIGHEST_USER_VALUE: i64 = 1_000_000_000;
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn default(o: &mut Object) {
    o.set_default(&["preemptionPolicy"], "PreemptLowerPriority");
    o.set_default(&["value"], 0);
}

fn validate(o: &Object, e: &mut Errors) {
    let value = At::top(o, "value");
    let number = value.i64().unwrap_or(0);
    if o.name().starts_with("system-") {
        if !SYSTEM_CLASSES.contains(&(o.name(), number)) {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: \
                 only system-node-critical and system-cluster-critical exist, with their fixed values";
            e.push(FieldError::forbidden("metadata.name", detail));
        }
    } else if number > HIGHEST_USER_VALUE {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_VALUE}");
        value.forbidden(e, &detail);
    }
    At::top(o, "preemptionPolicy").one_of(e, &["Never", "PreemptLowerPriority"]);
}

fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    if new.i64(&["value"]) != old.i64(&["value"]) {
        e.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    immutable(e, new, old, &["preemptionPolicy"]);
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("priorityclasses", "PriorityClass")
            .short(&["pc"])
            .cluster()
            .strategy(PRIORITY_CLASS)
            .exact_columns(vec![
                name_col(),
                col("Value", "integer", "Priority that pods of the class get.", |o, _| {
                    cells::count(o, &["value"]).into()
                }),
                col("Global-Default", "boolean", "Whether pods without a class get this one.", |o, _| {
                    (o.get(&["globalDefault"]).and_then(serde_json::Value::as_bool) == Some(true)).into()
                }),
                age_col(),
                col("PreemptionPolicy", "string", "Whether pods of the class may preempt others.", |o, _| {
                    o.str(&["preemptionPolicy"]).into()
                }),
            ]),
    ]
}
