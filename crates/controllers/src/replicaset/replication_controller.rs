//! ReplicationController, read as a ReplicaSet.

use api::{GroupVersionResource, ObjectKey, PatchType};
use client::{Action, Cached, Controller, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Flavour, plan_set};
use crate::claim::selector;
use crate::pod::Pod;
use crate::workload::keys_of_pod;

/// A ReplicationController whose selector, a plain map, has become a label selector.
#[derive(Clone)]
pub(crate) struct AsSet(ReplicaSet);

impl AsSet {
    pub(crate) fn replicas(&self) -> i32 {
        self.0.spec.replicas.unwrap_or(1)
    }
}

impl<'de> Deserialize<'de> for AsSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let selector = value["spec"]["selector"].take();
        let spec = value["spec"].as_object_mut();
        if let Some(spec) = spec {
            spec.insert("selector".into(), json!({"matchLabels": selector}));
        }
        value["apiVersion"] = "apps/v1".into();
        value["kind"] = "ReplicaSet".into();
        serde_json::from_value(value).map(AsSet).map_err(serde::de::Error::custom)
    }
}

impl Kind for AsSet {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "replicationcontrollers")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "ReplicationController")
    }
}

pub struct ReplicationControllerController;

impl Controller for ReplicationControllerController {
    fn name(&self) -> &'static str {
        "replication-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<AsSet>(),
            Watch::map::<Pod>(|view, pod| {
                keys_of_pod::<AsSet>(view, pod, |set| selector(&set.0.spec.selector))
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(cached) = view.get::<AsSet>(key) else { return Plan::nothing() };
        let flavour = Flavour { gvr: AsSet::gvr(), api_version: "v1", kind: "ReplicationController" };
        let set = Cached {
            key: cached.key.clone(),
            uid: cached.uid.clone(),
            revision: cached.revision,
            labels: cached.labels.clone(),
            owners: cached.owners.clone(),
            deleting: cached.deleting,
            object: cached.object.0.clone(),
        };
        plan_set(&flavour, &set, view, now)
    }
}

/// Writes the status alone: the rest was read in another shape. The older kind does not count pods that are ending.
pub(super) fn write_status(flavour: &Flavour, set: &Cached<ReplicaSet>, status: &ReplicaSetStatus) -> Action {
    let mut status = json!(status);
    if let Some(fields) = status.as_object_mut() {
        fields.remove("terminatingReplicas");
        // A merge must take a condition away that no longer holds.
        fields.entry("conditions").or_insert(Value::Null);
    }
    Action::Patch {
        gvr: flavour.gvr.clone(),
        key: set.key.clone(),
        subresource: Some("status".into()),
        kind: PatchType::Merge,
        patch: json!({
            "metadata": {"uid": set.uid, "resourceVersion": set.revision.to_string()}, "status": status,
        }),
    }
}
