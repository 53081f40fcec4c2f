//! `apps/v1`: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision.

mod rules;

use super::row::{Row, col, wide};
use crate::printing::cells;
use crate::resource::Column;

/// Containers, images and selector of a workload's template, for `-o wide`.
pub(super) fn template_columns() -> Vec<Column> {
    vec![
        wide("Containers", "string", "Names of the template's containers.", cells::template_containers),
        wide("Images", "string", "Images of the template's containers.", cells::template_images),
        wide("Selector", "string", "Which pods belong to this object.", cells::spec_selector),
    ]
}

/// Desired, Current, Ready of replica sets and replication controllers.
pub(super) fn replica_columns() -> Vec<Column> {
    vec![
        col("Desired", "integer", "Wanted number of pods.", |o, _| {
            cells::count(o, &["spec", "replicas"]).into()
        }),
        col("Current", "integer", "Present number of pods.", |o, _| {
            cells::count(o, &["status", "replicas"]).into()
        }),
        col("Ready", "integer", "Number of ready pods.", |o, _| {
            cells::count(o, &["status", "readyReplicas"]).into()
        }),
    ]
}

fn ready_of_wanted(o: &api::Object, _: jiff::Timestamp) -> serde_json::Value {
    let ready = cells::count(o, &["status", "readyReplicas"]);
    format!("{ready}/{}", cells::count(o, &["spec", "replicas"])).into()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("controllerrevisions", "ControllerRevision").strategy(rules::CONTROLLER_REVISION).columns(
            vec![
                col("Controller", "string", "The object whose history this is.", |o, _| {
                    let owners = cells::list(o, &["metadata", "ownerReferences"]);
                    let owner = owners.iter().find(|r| r["controller"] == true);
                    let Some(owner) = owner else { return "<none>".into() };
                    let group = cells::sub(owner, "apiVersion").split_once('/').map(|(g, _)| format!(".{g}"));
                    let kind = cells::sub(owner, "kind").to_lowercase();
                    format!("{kind}{}/{}", group.unwrap_or_default(), cells::sub(owner, "name")).into()
                }),
                col("Revision", "integer", "Number of the state.", |o, _| {
                    cells::count(o, &["revision"]).into()
                }),
            ],
            Vec::new(),
        ),
        Row::new("daemonsets", "DaemonSet")
            .short(&["ds"])
            .in_all()
            .status()
            .strategy(rules::DAEMON_SET)
            .columns(
                vec![
                    col("Desired", "integer", "Number of nodes that should run the pod.", |o, _| {
                        cells::count(o, &["status", "desiredNumberScheduled"]).into()
                    }),
                    col("Current", "integer", "Number of nodes that run the pod and should.", |o, _| {
                        cells::count(o, &["status", "currentNumberScheduled"]).into()
                    }),
                    col("Ready", "integer", "Number of ready pods.", |o, _| {
                        cells::count(o, &["status", "numberReady"]).into()
                    }),
                    col("Up-to-date", "integer", "Number of pods of the newest template.", |o, _| {
                        cells::count(o, &["status", "updatedNumberScheduled"]).into()
                    }),
                    col(
                        "Available",
                        "integer",
                        "Number of pods that have been ready long enough.",
                        |o, _| cells::count(o, &["status", "numberAvailable"]).into(),
                    ),
                    col("Node Selector", "string", "Labels a node must have to run the pod.", |o, _| {
                        cells::labels(o.get(&["spec", "template", "spec", "nodeSelector"])).into()
                    }),
                ],
                template_columns(),
            ),
        Row::new("deployments", "Deployment")
            .short(&["deploy"])
            .in_all()
            .status()
            .scale(&["status", "replicas"])
            .strategy(rules::DEPLOYMENT)
            .columns(
                vec![
                    col("Ready", "string", "Ready pods of wanted pods.", ready_of_wanted),
                    col("Up-to-date", "integer", "Number of pods of the newest template.", |o, _| {
                        cells::count(o, &["status", "updatedReplicas"]).into()
                    }),
                    col(
                        "Available",
                        "integer",
                        "Number of pods that have been ready long enough.",
                        |o, _| cells::count(o, &["status", "availableReplicas"]).into(),
                    ),
                ],
                template_columns(),
            ),
        Row::new("replicasets", "ReplicaSet")
            .short(&["rs"])
            .in_all()
            .fields(&["status.replicas"])
            .status()
            .scale(&["status", "replicas"])
            .strategy(rules::REPLICA_SET)
            .columns(replica_columns(), template_columns()),
        Row::new("statefulsets", "StatefulSet")
            .short(&["sts"])
            .in_all()
            .status()
            .scale(&["status", "replicas"])
            .strategy(rules::STATEFUL_SET)
            .columns(
                vec![col("Ready", "string", "Ready pods of wanted pods.", ready_of_wanted)],
                template_columns().into_iter().take(2).collect(),
            ),
    ]
}
