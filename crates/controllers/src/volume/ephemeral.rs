//! Claims of pods' own ephemeral volumes: made from the template in the pod, and gone with it.

use api::ObjectKey;
use client::{Action, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::workload::event;

pub struct EphemeralVolumeController;

impl Controller for EphemeralVolumeController {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<Pod>(), Watch::controller::<PersistentVolumeClaim>("Pod")]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let Some(pod) = view.get::<Pod>(key).filter(|pod| !pod.deleting && !pod.object.is_terminal()) else {
            return Plan::nothing();
        };
        let mut actions = Vec::new();
        for volume in &pod.object.spec.volumes {
            let Some(template) = volume.ephemeral.as_ref().map(|e| &e["volumeClaimTemplate"]) else {
                continue;
            };
            let name = format!("{}-{}", key.name, volume.name);
            let claim = ObjectKey::new(&key.namespace, &name);
            match view.get::<PersistentVolumeClaim>(&claim) {
                None => actions.push(create(key, &pod.uid, &name, template)),
                Some(claim) if claim.controller().is_some_and(|owner| owner.uid == pod.uid) => {}
                Some(_) => {
                    let why = format!("PVC {claim} was not created for pod {key} (pod is not owner)");
                    actions.push(event(&pod, EventType::Warning, "FailedBinding", why));
                }
            }
        }
        Plan::actions(actions)
    }
}

fn create(pod: &ObjectKey, uid: &str, name: &str, template: &Value) -> Action {
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name, "namespace": pod.namespace,
            "labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"],
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": uid, "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": template["spec"],
    });
    Action::Create { gvr: PersistentVolumeClaim::gvr(), namespace: pod.namespace.clone(), object }
}
