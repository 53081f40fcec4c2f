//! What pods and pod templates have in common: defaults, rules, and what may change.
//!
//! `defaults` fills in a spec; `validate` finds everything wrong with one; `update` says what may change later.

pub(super) mod containers;
pub(super) mod defaults;
pub(super) mod resize;
pub(super) mod update;
pub(super) mod validate;
pub(super) mod volumes;

#[cfg(test)]
mod tests;

use api::FieldError;

use super::check::{At, Errors};

/// Checks a pod template. `policies` are the restart policies the owner allows; the first is the usual one.
pub(super) fn validate_template(template: &At<'_>, policies: &[&str], e: &mut Errors) {
    let metadata = template.field("metadata");
    metadata.field("labels").labels(e);
    metadata.field("annotations").annotations(e);
    let spec = template.field("spec");
    validate::pod_spec(&spec, e);
    let policy = spec.field("restartPolicy");
    if !policy.is_empty() && !policies.contains(&policy.str()) {
        e.push(FieldError::not_supported(&policy.path, policy.value.clone(), policies));
    }
    let containers = spec.field("ephemeralContainers");
    if !containers.is_empty() {
        containers.forbidden(e, "ephemeral containers not allowed in pod template");
    }
}
