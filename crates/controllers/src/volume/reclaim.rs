//! What is to be done for a volume.

use client::{EventType, Kind, Plan, Read, View};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use super::binder::{
    BOUND_BY_CONTROLLER, Volume, claim_key, claim_uid, has_annotation, patch, set_phase, volume_of,
};
use crate::workload::event;

/// Names who made the volume, and so who deletes it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

fn phase(volume: &Volume) -> Option<&str> {
    volume.object.status.as_ref()?.phase.as_deref()
}

pub(super) fn plan(volume: &Volume, view: &View) -> Plan {
    let is_now = |wanted: &str| Plan::actions(set_phase(volume, phase(volume), wanted, None));
    let Some(key) = claim_key(volume).filter(|_| !claim_uid(volume).is_empty()) else {
        return is_now("Available");
    };
    match view.get::<PersistentVolumeClaim>(&key).filter(|claim| claim.uid == claim_uid(volume)) {
        Some(claim) if volume_of(&claim) == volume.key.name => is_now("Bound"),
        // The claim's own plan goes on.
        Some(claim) if volume_of(&claim).is_empty() => Plan::nothing(),
        Some(_) => unbind(volume),
        None => {
            let read = Read::Get { gvr: PersistentVolumeClaim::gvr(), key };
            match view.read(&read) {
                None => Plan::Need(vec![read]),
                Some(Ok(live)) if live["metadata"]["uid"] == claim_uid(volume) => Plan::nothing(),
                Some(Err(status)) if !status.is_not_found() => Plan::nothing(),
                Some(_) => reclaim(volume),
            }
        }
    }
}

/// The claim has another volume.
fn unbind(volume: &Volume) -> Plan {
    let change = match has_annotation(&volume.object.metadata, BOUND_BY_CONTROLLER) {
        true => json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}}),
        false => json!({"spec": {"claimRef": {"uid": null}}}),
    };
    Plan::actions(vec![patch(volume, None, change)])
}

/// The claim is gone.
fn reclaim(volume: &Volume) -> Plan {
    let policy = volume.object.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let elsewhere = has_annotation(&volume.object.metadata, PROVISIONED_BY);
    let failure = match policy {
        Some("Delete") if !elsewhere => Some((
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.key.name
            ),
        )),
        Some("Recycle") => {
            Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()))
        }
        _ => None,
    };
    let Some((reason, why)) = failure else {
        return Plan::actions(set_phase(volume, phase(volume), "Released", None));
    };
    let mut actions = set_phase(volume, phase(volume), "Failed", Some(&why));
    if !actions.is_empty() {
        actions.push(event::<k8s_openapi::api::core::v1::PersistentVolume>(
            volume,
            EventType::Warning,
            reason,
            why,
        ));
    }
    Plan::actions(actions)
}
