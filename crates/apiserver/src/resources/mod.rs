//! The table of built-in kinds.
//!
//! A kind is a [`row::Row`] in the file of its group: names, scope, subresources, selectable fields, printer columns,
//! and hooks (defaults, validation, …) where the schema does not say enough. Nothing outside this folder names a kind.
//!
//! ```text
//!   core/  apps  batch  rbac  storage  networking  …     a function `rows()` per group and version
//!   pod_spec/                                            defaults and rules of pods and pod templates
//!   check  names  selectors  required                    the words that rules are written with
//! ```

mod admissionregistration;
mod apiextensions;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
pub(crate) mod check;
mod coordination;
mod core;
mod defaults;
mod devices;
mod discovery;
mod events;
mod flowcontrol;
mod migration;
pub(crate) mod names;
mod networking;
mod pod_spec;
mod policy;
mod quantity;
mod rbac;
mod required;
mod reviews;
mod row;
mod runtime_classes;
mod scheduling;
pub(crate) mod selectors;
mod storage;
mod trust;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use api::SchemaTable;

pub(crate) use self::apiextensions::{CLEANUP, custom_resource_definitions, is_established};
use self::row::Row;
use crate::resource::Resource;

/// The groups in the order of discovery: group, version, rows.
fn groups() -> Vec<(&'static str, &'static str, Vec<Row>)> {
    vec![
        ("", "v1", core::rows()),
        ("events.k8s.io", "v1", events::rows()),
        ("authentication.k8s.io", "v1", reviews::authentication()),
        ("authorization.k8s.io", "v1", reviews::authorization()),
        ("admissionregistration.k8s.io", "v1", admissionregistration::rows()),
        ("apiextensions.k8s.io", "v1", apiextensions::rows()),
        ("apps", "v1", apps::rows()),
        ("autoscaling", "v2", autoscaling::rows()),
        ("batch", "v1", batch::rows()),
        ("certificates.k8s.io", "v1", [certificates::rows(), trust::rows()].into_iter().flatten().collect()),
        ("coordination.k8s.io", "v1", coordination::rows()),
        ("discovery.k8s.io", "v1", discovery::rows()),
        ("flowcontrol.apiserver.k8s.io", "v1", flowcontrol::rows()),
        ("networking.k8s.io", "v1", networking::rows()),
        ("node.k8s.io", "v1", runtime_classes::rows()),
        ("policy", "v1", policy::rows()),
        ("rbac.authorization.k8s.io", "v1", rbac::rows()),
        ("resource.k8s.io", "v1", devices::rows()),
        ("scheduling.k8s.io", "v1", scheduling::rows()),
        ("storage.k8s.io", "v1", storage::rows()),
        ("storagemigration.k8s.io", "v1", migration::rows()),
    ]
}

/// The kind of a built-in resource.
pub(crate) fn kind_of(group: &str, version: &str, resource: &str) -> Option<&'static str> {
    let of_group = groups().into_iter().filter(|(g, v, _)| *g == group && *v == version);
    let found = of_group.flat_map(|(_, _, rows)| rows).find(|row| row.resource() == resource)?;
    Some(found.kind())
}

/// All built-in rows. A kind that the schema does not know is left out, with an error in the log.
pub fn builtin(table: Arc<SchemaTable>) -> Vec<Resource> {
    let mut resources = Vec::new();
    for (group, version, rows) in groups() {
        for row in rows {
            let resource = row.resource();
            match row.build(group, version, &table) {
                Some(row) => resources.push(row),
                None => {
                    tracing::error!(group, version, resource, "kind is missing in the schema and not served")
                }
            }
        }
    }
    resources
}
