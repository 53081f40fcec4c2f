//! A claim that a pod uses, and a volume that is bound, don't go away under those who use them.

use api::ObjectKey;
use client::{Action, Cached, Controller, Kind, Plan, Read, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::binder::patch;
use crate::pod::Pod;

const OF_CLAIMS: &str = "kubernetes.io/pvc-protection";
const OF_VOLUMES: &str = "kubernetes.io/pv-protection";

pub struct ClaimProtection;

impl Controller for ClaimProtection {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<PersistentVolumeClaim>(),
            Watch::map::<Pod>(|_, pod| {
                pod.object.claims(&pod.key).map(|claim| ObjectKey::new(&pod.key.namespace, claim)).collect()
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let Some(claim) = view.get::<PersistentVolumeClaim>(key) else { return Plan::nothing() };
        let held = is_held(&claim.object.metadata, OF_CLAIMS);
        if !claim.deleting || !held {
            return protect(&claim, &claim.object.metadata, OF_CLAIMS);
        }
        let used = |pod: &Cached<Pod>| {
            !pod.object.spec.node_name.is_empty() && pod.object.claims(&pod.key).any(|name| name == key.name)
        };
        if view.in_namespace::<Pod>(&key.namespace).iter().any(|pod| used(pod)) {
            return Plan::nothing();
        }
        // A pod that the cache does not show yet counts too.
        let options = api::RequestOptions::default();
        let read = Read::List { gvr: Pod::gvr(), namespace: Some(key.namespace.clone()), options };
        match view.read(&read) {
            None => Plan::Need(vec![read]),
            Some(Ok(list)) if !uses_live(list, &key.name) => {
                Plan::actions(vec![release(&claim, &claim.object.metadata, OF_CLAIMS)])
            }
            Some(_) => Plan::nothing(),
        }
    }
}

fn uses_live(list: &Value, claim: &str) -> bool {
    list["items"].as_array().into_iter().flatten().any(|pod| {
        let Ok(slim) = serde_json::from_value::<Pod>(pod.clone()) else { return true };
        let key = ObjectKey::new("", pod["metadata"]["name"].as_str().unwrap_or_default());
        !slim.spec.node_name.is_empty() && slim.claims(&key).any(|name| name == claim)
    })
}

pub struct VolumeProtection;

impl Controller for VolumeProtection {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<PersistentVolume>()]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let Some(volume) = view.get::<PersistentVolume>(key) else { return Plan::nothing() };
        if !volume.deleting || !is_held(&volume.object.metadata, OF_VOLUMES) {
            return protect(&volume, &volume.object.metadata, OF_VOLUMES);
        }
        let phase = volume.object.status.as_ref().and_then(|status| status.phase.as_deref());
        match phase {
            Some("Bound") => Plan::nothing(),
            _ => Plan::actions(vec![release(&volume, &volume.object.metadata, OF_VOLUMES)]),
        }
    }
}

fn is_held(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Adds the finalizer to an object that has come without.
fn protect<T: Kind>(object: &Cached<T>, metadata: &ObjectMeta, finalizer: &str) -> Plan {
    if object.deleting || is_held(metadata, finalizer) {
        return Plan::nothing();
    }
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    finalizers.push(finalizer.to_owned());
    Plan::actions(vec![patch(object, None, json!({"metadata": {"finalizers": finalizers}}))])
}

fn release<T: Kind>(object: &Cached<T>, metadata: &ObjectMeta, finalizer: &str) -> Action {
    let kept: Vec<&String> = metadata.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    patch(object, None, json!({"metadata": {"finalizers": kept}}))
}
