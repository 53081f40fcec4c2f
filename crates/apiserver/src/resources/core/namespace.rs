//! Namespace: born with a finalizer of its own, in phase Active.

use api::{FieldError, Object};
use serde_json::{Value, json};

use crate::resource::{Strategy, WriteContext};
use crate::resources::check::{At, Errors};
use crate::resources::names;

pub(super) struct NamespaceStrategy;

/// The finalizer in `spec.finalizers` that the namespace controller removes when the namespace is empty.
const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy for NamespaceStrategy {
    fn default(&self, object: &mut Object) {
        let name = object.name().to_owned();
        if !name.is_empty() {
            object.set(&["metadata", "labels", NAME_LABEL], name);
        }
    }

    fn prepare_for_create(&self, _: &WriteContext<'_>, object: &mut Object) {
        object.set(&["status"], json!({"phase": "Active"}));
        let mut finalizers =
            object.get(&["spec", "finalizers"]).and_then(Value::as_array).cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        object.set(&["spec", "finalizers"], finalizers);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        match cx.subresource {
            // The finalize path changes the finalizers and nothing else.
            Some("finalize") => {
                let finalizers = new.get(&["spec", "finalizers"]).cloned().unwrap_or_else(|| json!([]));
                let mut kept = old.clone();
                kept.set(&["spec", "finalizers"], finalizers);
                *new = kept;
            }
            _ => {
                let finalizers = old.get(&["spec", "finalizers"]).cloned();
                match finalizers {
                    Some(list) => new.set(&["spec", "finalizers"], list),
                    None => drop(new.remove(&["spec", "finalizers"])),
                }
            }
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut e = Errors::new();
        for item in At::top(object, "spec").field("finalizers").items() {
            item.text(&mut e, names::qualified_name);
            if !item.str().contains('/') && item.str() != FINALIZER {
                item.invalid(&mut e, "name is neither a standard finalizer name nor is it fully qualified");
            }
        }
        e
    }

    fn validate_update(&self, new: &Object, _: &Object) -> Vec<FieldError> {
        let (phase, deleting) = (new.str(&["status", "phase"]), new.is_deleting());
        let mut e = Errors::new();
        if !deleting && !phase.is_empty() && phase != "Active" {
            e.push(FieldError::invalid(
                "status.phase",
                phase,
                "may only be 'Active' if `deletionTimestamp` is empty",
            ));
        }
        e
    }
}
