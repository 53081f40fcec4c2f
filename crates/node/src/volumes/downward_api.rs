//! downwardAPI volumes.

use k8s_openapi::api::core::v1 as core;

use super::{DEFAULT_MODE, Payload, PayloadFile, mode};
use crate::fields::{FieldContext, field, resource};

pub(super) fn payload(
    source: &core::DownwardAPIVolumeSource,
    pod: &core::Pod,
    cx: &FieldContext,
) -> Result<Payload, String> {
    let default = mode(source.default_mode, DEFAULT_MODE);
    project(source.items.as_deref().unwrap_or_default(), default, pod, cx)
}

/// Files of downward API items, also inside a projected volume.
pub(super) fn project(
    items: &[core::DownwardAPIVolumeFile],
    default_mode: u32,
    pod: &core::Pod,
    cx: &FieldContext,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(r), _) => field(pod, &r.field_path, cx)?,
            (None, Some(r)) => resource(pod, None, r, cx)?,
            (None, None) => continue,
        };
        let file = PayloadFile { bytes: value.into_bytes(), mode: mode(item.mode, default_mode) };
        payload.insert(item.path.clone(), file);
    }
    Ok(payload)
}
