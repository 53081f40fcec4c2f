//! `events.k8s.io/v1`: the second view of core Events. Only core Events are stored.

use api::Object;
use serde_json::Value;

use super::core::event;
use super::row::Row;
use crate::resource::{Durability, Strategy};

/// (name in `events.k8s.io/v1`, name in core)
const RENAMED: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

struct EventView;

fn rename(o: &mut Object, from: &str, to: &str) {
    if let Some(value) = o.0.remove(from).filter(|v| !v.is_null()) {
        o.0.insert(to.to_owned(), value);
    }
}

impl Strategy for EventView {
    fn validate(&self, object: &Object) -> Vec<api::FieldError> {
        let mut core = object.clone();
        self.to_stored(&mut core);
        let mut e = Vec::new();
        event::validate_new_style(&core, &mut e);
        e
    }

    fn to_stored(&self, object: &mut Object) {
        for (ours, core) in RENAMED {
            rename(object, ours, core);
        }
        object.0.insert("apiVersion".to_owned(), Value::from("v1"));
        object.0.insert("kind".to_owned(), Value::from("Event"));
    }

    fn from_stored(&self, object: &mut Object) {
        for (ours, core) in RENAMED {
            rename(object, core, ours);
        }
        object.0.insert("apiVersion".to_owned(), Value::from("events.k8s.io/v1"));
        object.0.insert("kind".to_owned(), Value::from("Event"));
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("events", "Event")
            .short(&["ev"])
            .durability(Durability::Relaxed)
            .fields(event::NEW_FIELDS)
            .stored_as("", "v1", "events")
            .strategy(EventView)
            .exact_columns(event::columns()),
    ]
}
