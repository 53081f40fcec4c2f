//! Which volume suits a claim.

use std::sync::Arc;

use api::{LabelSelector, Quantity};
use client::View;
use k8s_openapi::api::core::v1::PersistentVolume;

use super::binder::{Claim, Volume, claim_key, claim_uid, class_of, volume_class};

/// The volume reserved for a claim, else the smallest free one that has all that the claim asks for.
pub(super) fn find(claim: &Claim, view: &View, reserved_only: bool) -> Option<Arc<Volume>> {
    let volumes = view.list::<PersistentVolume>();
    let mut fitting: Vec<Arc<Volume>> = volumes.into_iter().filter(|volume| suits(claim, volume)).collect();
    if let Some(index) = fitting.iter().position(|volume| is_reserved(claim, volume)) {
        return Some(fitting.swap_remove(index));
    }
    fitting.retain(|volume| claim_key(volume).is_none() && !reserved_only);
    fitting.into_iter().min_by_key(|volume| capacity(volume))
}

/// Whether a volume names the claim.
pub(super) fn is_reserved(claim: &Claim, volume: &Volume) -> bool {
    claim_key(volume).as_ref() == Some(&claim.key)
        && (claim_uid(volume).is_empty() || claim_uid(volume) == claim.uid)
}

/// Why a volume that is named outright cannot be the claim's.
pub(super) fn mismatch(claim: &Claim, volume: &Volume) -> Option<&'static str> {
    if request(claim) > capacity(volume) {
        return Some("requested PV is too small");
    }
    if volume_class(volume) != class_of(claim) {
        return Some("storageClassName does not match");
    }
    if mode(claim.object.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()))
        != mode(volume.object.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()))
    {
        return Some("incompatible volumeMode");
    }
    let attributes = claim.object.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let given = volume.object.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    if attributes.unwrap_or_default() != given.unwrap_or_default() {
        return Some("volumeAttributesClassName does not match");
    }
    let modes = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let wanted = modes(claim.object.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    let offered = modes(volume.object.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    if !wanted.iter().all(|mode| offered.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}

fn suits(claim: &Claim, volume: &Volume) -> bool {
    if volume.deleting {
        return false;
    }
    let selector = claim.object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(|selector| LabelSelector::from_value(&serde_json::json!(selector)));
    let phase = volume.object.status.as_ref().and_then(|status| status.phase.as_deref());
    // A volume that nobody has looked at yet may be about to be somebody else's.
    let free = claim_key(volume).is_some() || phase == Some("Available");
    let labelled = match selector {
        None => true,
        Some(Ok(selector)) => is_reserved(claim, volume) || selector.matches(&volume.labels),
        Some(Err(_)) => false,
    };
    free && labelled && mismatch(claim, volume).is_none()
}

fn mode(mode: Option<&str>) -> &str {
    mode.unwrap_or("Filesystem")
}

pub(super) fn capacity(volume: &Volume) -> Quantity {
    let spec = volume.object.spec.as_ref();
    let storage = spec.and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    storage.and_then(|storage| Quantity::parse(&storage.0).ok()).unwrap_or_default()
}

fn request(claim: &Claim) -> Quantity {
    let resources = claim.object.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let storage = resources.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    storage.and_then(|storage| Quantity::parse(&storage.0).ok()).unwrap_or_default()
}
