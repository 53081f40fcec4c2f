//! Events, in core's field names.

use api::{FieldError, Object};
use jiff::Timestamp;
use serde_json::Value;

use crate::printing::cells;
use crate::resource::Column;
use crate::resources::check::{At, Errors};
use crate::resources::row::{Hooks, col, name_col, wide};

pub(in crate::resources) const EVENT: Hooks = Hooks { validate, create_on_update: true, ..Hooks::NONE };

/// Field selectors of core events.
pub(in crate::resources) const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source=source.component|reportingComponent",
    "type",
];

/// The same of `events.k8s.io`.
pub(in crate::resources) const NEW_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

fn validate(o: &Object, e: &mut Errors) {
    let namespace = o.str(&["involvedObject", "namespace"]);
    let expected = if namespace.is_empty() { "default" } else { namespace };
    // Events on cluster-scoped objects live in `default`; kube-system is allowed too, as Kubernetes does.
    let fits = o.namespace() == expected || (namespace.is_empty() && o.namespace() == "kube-system");
    if !o.namespace().is_empty() && !fits {
        e.push(FieldError::invalid("involvedObject.namespace", namespace, "does not match event.namespace"));
    }
    let instance = At::top(o, "reportingInstance");
    if instance.str().len() > 128 {
        instance.invalid(e, "can have at most 128 characters");
    }
    At::top(o, "series").field("count").non_negative(e);
}

/// The stricter rules of events made through `events.k8s.io/v1`, on an event in core's field names.
pub(in crate::resources) fn validate_new_style(o: &Object, e: &mut Errors) {
    validate(o, e);
    if o.str(&["eventTime"]).is_empty() {
        return;
    }
    At::new(o.0.get("reportingComponent").unwrap_or(&Value::Null), "reportingController").required(e);
    At::top(o, "reportingInstance").required(e);
    At::top(o, "action").required(e);
    At::top(o, "reason").required(e);
    At::top(o, "type").one_of(e, &["Normal", "Warning"]);
    let note = o.str(&["message"]);
    if note.len() > 1024 {
        e.push(FieldError::invalid("note", "", "can have at most 1024 characters"));
    }
    let reason = At::top(o, "reason");
    if reason.str().len() > 128 {
        reason.invalid(e, "can have at most 128 characters");
    }
}

/// Value of either name of a field.
fn either<'a>(o: &'a Object, core: &str, renamed: &str) -> &'a Value {
    o.0.get(core).or_else(|| o.0.get(renamed)).unwrap_or(&Value::Null)
}

fn time(o: &Object, core: &str, renamed: &str) -> String {
    let text = either(o, core, renamed).as_str().unwrap_or_default();
    if text.is_empty() { o.str(&["eventTime"]).to_owned() } else { text.to_owned() }
}

fn last_seen(o: &Object, now: Timestamp) -> Value {
    let series = o.str(&["series", "lastObservedTime"]);
    let then = if series.is_empty() {
        time(o, "lastTimestamp", "deprecatedLastTimestamp")
    } else {
        series.to_owned()
    };
    cells::since(&then, now).into()
}

fn source(o: &Object, _: Timestamp) -> Value {
    let source = either(o, "source", "deprecatedSource");
    let mut component = cells::sub(source, "component");
    if component.is_empty() {
        component = either(o, "reportingComponent", "reportingController").as_str().unwrap_or_default();
    }
    match cells::sub(source, "host") {
        "" => component.into(),
        host => format!("{component}, {host}").into(),
    }
}

fn object(o: &Object, _: Timestamp) -> Value {
    let object = either(o, "involvedObject", "regarding");
    format!("{}/{}", cells::sub(object, "kind").to_lowercase(), cells::sub(object, "name")).into()
}

fn count(o: &Object, _: Timestamp) -> Value {
    let series = o.i64(&["series", "count"]);
    series.or_else(|| either(o, "count", "deprecatedCount").as_i64()).unwrap_or(1).into()
}

pub(in crate::resources) fn columns() -> Vec<Column> {
    let mut name = name_col();
    name.priority = 1;
    vec![
        col("Last Seen", "string", "Time since the newest occurrence.", last_seen),
        col("Type", "string", "Normal or Warning.", |o, _| o.str(&["type"]).into()),
        col("Reason", "string", "Short machine-readable reason.", |o, _| o.str(&["reason"]).into()),
        col("Object", "string", "What the event is about.", object),
        wide("Subobject", "string", "Part of the object.", |o, _| {
            cells::sub(either(o, "involvedObject", "regarding"), "fieldPath").into()
        }),
        wide("Source", "string", "Who reports.", source),
        col("Message", "string", "What happened.", |o, _| {
            either(o, "message", "note").as_str().unwrap_or_default().trim().into()
        }),
        wide("First Seen", "string", "Time since the first occurrence.", |o, now| {
            cells::since(&time(o, "firstTimestamp", "deprecatedFirstTimestamp"), now).into()
        }),
        wide("Count", "integer", "Number of occurrences.", count),
        name,
    ]
}
