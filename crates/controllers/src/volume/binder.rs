//! One controller for both sides; a key without a namespace is that of a volume.

use api::ObjectKey;
use client::{Action, Cached, Controller, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub(super) type Volume = Cached<PersistentVolume>;
pub(super) type Claim = Cached<PersistentVolumeClaim>;

pub struct PersistentVolumeBinder;

impl Controller for PersistentVolumeBinder {
    fn name(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::map::<PersistentVolume>(keys_of_volume),
            Watch::map::<PersistentVolumeClaim>(keys_of_claim),
            Watch::map::<StorageClass>(|view, class| {
                let claims = view.list::<PersistentVolumeClaim>();
                let waiting =
                    claims.iter().filter(|c| volume_of(c).is_empty() && class_of(c) == class.key.name);
                waiting.map(|claim| claim.key.clone()).collect()
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        if key.namespace.is_empty() {
            let volume = view.get::<PersistentVolume>(key);
            return volume.map_or_else(Plan::nothing, |volume| super::reclaim::plan(&volume, view));
        }
        let claim = view.get::<PersistentVolumeClaim>(key);
        claim.map_or_else(Plan::nothing, |claim| super::claim::plan(&claim, view))
    }
}

/// A volume concerns the claim that it names, that names it, and every claim that waits for one like it.
fn keys_of_volume(view: &View, volume: &Volume) -> Vec<ObjectKey> {
    let mut keys = vec![volume.key.clone()];
    match claim_key(volume) {
        Some(claim) => keys.push(claim),
        None => {
            let claims = view.list::<PersistentVolumeClaim>();
            let waiting = claims.iter().filter(|claim| match volume_of(claim) {
                "" => class_of(claim) == volume_class(volume),
                named => named == volume.key.name,
            });
            keys.extend(waiting.map(|claim| claim.key.clone()));
        }
    }
    keys
}

/// A claim concerns the volumes that name it.
fn keys_of_claim(view: &View, claim: &Claim) -> Vec<ObjectKey> {
    let volumes = view.list::<PersistentVolume>();
    let named = volumes.iter().filter(|volume| claim_key(volume).as_ref() == Some(&claim.key));
    let mut keys: Vec<ObjectKey> = named.map(|volume| volume.key.clone()).collect();
    let volume = ObjectKey::new("", volume_of(claim));
    if !volume.name.is_empty() && !keys.contains(&volume) {
        keys.push(volume);
    }
    keys.push(claim.key.clone());
    keys
}

/// The claim that a volume is for.
pub(super) fn claim_key(volume: &Volume) -> Option<ObjectKey> {
    let reference = volume.object.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref()?))
}

/// "" for a claim that somebody has reserved the volume for by name only.
pub(super) fn claim_uid(volume: &Volume) -> &str {
    let spec = volume.object.spec.as_ref();
    let reference = spec.and_then(|spec| spec.claim_ref.as_ref());
    reference.and_then(|reference| reference.uid.as_deref()).unwrap_or_default()
}

pub(super) fn volume_of(claim: &Claim) -> &str {
    claim.object.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

pub(super) fn class_of(claim: &Claim) -> &str {
    claim.object.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default()
}

pub(super) fn volume_class(volume: &Volume) -> &str {
    volume.object.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default()
}

pub(super) fn has_annotation<T>(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    name: T,
) -> bool
where
    T: AsRef<str>,
{
    metadata.annotations.as_ref().is_some_and(|all| all.contains_key(name.as_ref()))
}

/// Changes parts of an object that is still as it was seen.
pub(super) fn patch<T: Kind>(object: &Cached<T>, subresource: Option<&str>, mut patch: Value) -> Action {
    patch["metadata"]["uid"] = object.uid.clone().into();
    if subresource.is_none() {
        patch["metadata"]["resourceVersion"] = object.revision.to_string().into();
    }
    Action::Patch {
        gvr: T::gvr(),
        key: object.key.clone(),
        subresource: subresource.map(str::to_owned),
        kind: api::PatchType::Merge,
        patch,
    }
}

/// Sets the phase and why, where they differ.
pub(super) fn set_phase<T: Kind>(
    object: &Cached<T>,
    now: Option<&str>,
    phase: &str,
    message: Option<&str>,
) -> Vec<Action> {
    if now == Some(phase) {
        return Vec::new();
    }
    let mut status = json!({"phase": phase});
    if let Some(message) = message {
        status["message"] = message.into();
    }
    vec![patch(object, Some("status"), json!({"status": status}))]
}
