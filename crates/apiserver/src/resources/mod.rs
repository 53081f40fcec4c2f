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
mod apiregistration;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
pub(crate) mod check;
pub(crate) mod conditions;
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

use std::sync::{Arc, LazyLock};

use api::SchemaTable;

pub(crate) use self::apiextensions::{CLEANUP, custom_resource_definitions, is_established};
pub(crate) use self::apiregistration::AVAILABLE;
use self::row::Row;
use crate::resource::Resource;

/// A group in one version.
struct Group {
    name: &'static str,
    version: &'static str,
    /// `groupPriorityMinimum` and `versionPriority` of its APIService, as Kubernetes has them.
    priority: Priority,
    rows: Vec<Row>,
}

/// Where a group comes in discovery, and a version in its group: what is greater comes first.
pub(crate) type Priority = (i64, i64);

/// The groups, most important first.
fn groups() -> Vec<Group> {
    let certificates = || [certificates::rows(), trust::rows()].into_iter().flatten().collect();
    let group = |name, version, priority, rows| Group { name, version, priority, rows };
    vec![
        group("apiregistration.k8s.io", "v1", (20_000, 15), apiregistration::rows()),
        group("", "v1", (18_000, 1), core::rows()),
        group("apps", "v1", (17_800, 15), apps::rows()),
        group("events.k8s.io", "v1", (17_750, 15), events::rows()),
        group("authentication.k8s.io", "v1", (17_700, 15), reviews::authentication()),
        group("authorization.k8s.io", "v1", (17_600, 15), reviews::authorization()),
        group("autoscaling", "v2", (17_500, 30), autoscaling::rows()),
        group("autoscaling", "v1", (17_500, 15), autoscaling::older_rows()),
        group("batch", "v1", (17_400, 15), batch::rows()),
        group("certificates.k8s.io", "v1", (17_300, 15), certificates()),
        group("networking.k8s.io", "v1", (17_200, 15), networking::rows()),
        group("policy", "v1", (17_100, 15), policy::rows()),
        group("rbac.authorization.k8s.io", "v1", (17_000, 15), rbac::rows()),
        group("storage.k8s.io", "v1", (16_800, 15), storage::rows()),
        group("admissionregistration.k8s.io", "v1", (16_700, 15), admissionregistration::rows()),
        group("apiextensions.k8s.io", "v1", (16_700, 15), apiextensions::rows()),
        group("scheduling.k8s.io", "v1", (16_600, 15), scheduling::rows()),
        group("coordination.k8s.io", "v1", (16_500, 15), coordination::rows()),
        group("node.k8s.io", "v1", (16_300, 15), runtime_classes::rows()),
        group("discovery.k8s.io", "v1", (16_200, 15), discovery::rows()),
        group("flowcontrol.apiserver.k8s.io", "v1", (16_100, 21), flowcontrol::rows()),
        group("resource.k8s.io", "v1", (15_900, 20), devices::rows()),
        group("storagemigration.k8s.io", "v1", (15_800, 15), migration::rows()),
    ]
}

/// The priority of what definitions of custom resources define.
pub(crate) const CUSTOM_PRIORITY: Priority = (1_000, 100);

/// The priority of a built-in group and version.
pub(crate) fn priority(group: &str, version: &str) -> Option<Priority> {
    static ALL: LazyLock<Vec<(&str, &str, Priority)>> =
        LazyLock::new(|| groups().iter().map(|g| (g.name, g.version, g.priority)).collect());
    ALL.iter().find(|(g, v, _)| *g == group && *v == version).map(|(_, _, priority)| *priority)
}

/// The kind of a built-in resource.
pub(crate) fn kind_of(group: &str, version: &str, resource: &str) -> Option<&'static str> {
    let of_group = groups().into_iter().filter(|g| g.name == group && g.version == version);
    let found = of_group.flat_map(|g| g.rows).find(|row| row.resource() == resource)?;
    Some(found.kind())
}

/// All built-in rows. A kind that the schema does not know is left out, with an error in the log.
pub fn builtin(table: Arc<SchemaTable>) -> Vec<Resource> {
    let mut resources = Vec::new();
    for Group { name: group, version, rows, .. } in groups() {
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
