//! What is to be done for a claim.

use api::ObjectKey;
use client::{Action, EventType, Kind, Plan, Read, View};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use super::binder::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, SELECTED_NODE, Volume, claim_key, class_of, has_annotation,
    patch, set_phase, volume_of,
};
use super::matching::{find, is_reserved, mismatch};
use crate::workload::event;

/// Volumes of such a class are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Tells a provisioner outside that the claim is its to serve.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

pub(super) fn plan(claim: &Claim, view: &View) -> Plan {
    if volume_of(claim).is_empty() { unbound(claim, view) } else { named(claim, view) }
}

fn phase(claim: &Claim) -> Option<&str> {
    claim.object.status.as_ref()?.phase.as_deref()
}

/// A claim without a volume.
fn unbound(claim: &Claim, view: &View) -> Plan {
    if claim.deleting {
        return Plan::nothing();
    }
    let class = view.get::<StorageClass>(&ObjectKey::new("", class_of(claim)));
    let delayed = class.as_ref().is_some_and(|class| {
        class.object.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
            && !has_annotation(&claim.object.metadata, SELECTED_NODE)
    });
    // The scheduler reserves a volume that the pod's node can reach.
    let waits = class
        .as_ref()
        .is_some_and(|class| class.object.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(volume) = find(claim, view, waits) {
        return Plan::actions(bind(claim, &volume));
    }
    let mut actions = set_phase(claim, phase(claim), "Pending", None);
    let provisioner = class.as_ref().map(|class| class.object.provisioner.as_str()).unwrap_or_default();
    if delayed {
        let why = "waiting for first consumer to be created before binding";
        actions.push(event(claim, EventType::Normal, "WaitForFirstConsumer", why));
    } else if provisioner.is_empty() || provisioner == NO_PROVISIONER {
        let why = match class_of(claim) {
            "" => "no persistent volumes available for this claim and no storage class is set".to_owned(),
            name if class.is_none() => format!("storageclass.storage.k8s.io {name:?} not found"),
            _ => "no persistent volumes available for this claim".to_owned(),
        };
        actions.push(event(claim, EventType::Normal, "FailedBinding", why));
    } else {
        let annotations = claim.object.metadata.annotations.as_ref();
        if annotations.and_then(|all| all.get(PROVISIONER)).map(String::as_str) != Some(provisioner) {
            let annotations = json!({PROVISIONER: provisioner});
            actions.push(patch(claim, None, json!({"metadata": {"annotations": annotations}})));
        }
        let why = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by \
             the system administrator. If volume creation is delayed, please verify that the provisioner is running \
             and correctly registered."
        );
        actions.push(event(claim, EventType::Normal, "ExternalProvisioning", why));
    }
    Plan::actions(actions)
}

/// A claim that names a volume: its own already, or one that somebody has chosen.
fn named(claim: &Claim, view: &View) -> Plan {
    let completed = has_annotation(&claim.object.metadata, BIND_COMPLETED);
    let lost = |reason: &str, why: &str| {
        let mut actions = set_phase(claim, phase(claim), "Lost", None);
        if !actions.is_empty() {
            actions.push(event(claim, EventType::Warning, reason, why));
        }
        Plan::actions(actions)
    };
    let pending = || Plan::actions(set_phase(claim, phase(claim), "Pending", None));
    let key = ObjectKey::new("", volume_of(claim));
    let Some(volume) = view.get::<PersistentVolume>(&key) else {
        let read = Read::Get { gvr: PersistentVolume::gvr(), key };
        return match view.read(&read) {
            _ if !completed => pending(),
            None => Plan::Need(vec![read]),
            Some(Err(status)) if status.is_not_found() => {
                lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
            }
            // The cache will show it.
            Some(_) => Plan::nothing(),
        };
    };
    if is_reserved(claim, &volume) {
        return Plan::actions(bind(claim, &volume));
    }
    if claim_key(&volume).is_some() {
        return match completed {
            true => lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            ),
            false => pending(),
        };
    }
    match mismatch(claim, &volume).filter(|_| !completed) {
        None => Plan::actions(bind(claim, &volume)),
        Some(why) => {
            let mut actions = set_phase(claim, phase(claim), "Pending", None);
            let why = format!("Cannot bind to requested volume {:?}: {why}", volume.key.name);
            actions.push(event(claim, EventType::Warning, "VolumeMismatch", why));
            Plan::actions(actions)
        }
    }
}

/// The steps that are left until both name each other: the volume first, so that no other claim gets it.
fn bind(claim: &Claim, volume: &Volume) -> Vec<Action> {
    let mut actions = Vec::new();
    if super::binder::claim_uid(volume) != claim.uid {
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.key.namespace,
            "name": claim.key.name, "uid": claim.uid, "resourceVersion": claim.revision.to_string(),
        });
        let mut change = json!({"spec": {"claimRef": reference}});
        if claim_key(volume).is_none() {
            change["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        actions.push(patch(volume, None, change));
    }
    let volume_phase = volume.object.status.as_ref().and_then(|status| status.phase.as_deref());
    actions.extend(set_phase(volume, volume_phase, "Bound", None));
    let unnamed = volume_of(claim).is_empty();
    if unnamed || !has_annotation(&claim.object.metadata, BIND_COMPLETED) {
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if unnamed {
            annotations[BOUND_BY_CONTROLLER] = "yes".into();
        }
        let change =
            json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.key.name}});
        actions.push(patch(claim, None, change));
    }
    if phase(claim) != Some("Bound") {
        let spec = volume.object.spec.as_ref();
        let mut status = json!({
            "phase": "Bound",
            "accessModes": spec.and_then(|spec| spec.access_modes.clone()),
            "capacity": spec.and_then(|spec| spec.capacity.clone()),
        });
        let attributes = claim.object.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
        if let Some(attributes) = attributes {
            status["currentVolumeAttributesClassName"] = attributes.into();
        }
        actions.push(patch(claim, Some("status"), json!({"status": status})));
    }
    actions
}
