//! secret volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::{DEFAULT_MODE, Payload, mode, select};
use crate::references::Sources;

pub(super) fn payload(source: &core::SecretVolumeSource, sources: &Sources) -> Result<Payload, String> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let default = mode(source.default_mode, DEFAULT_MODE);
    project(name, source.items.as_ref(), source.optional, default, sources)
}

/// Files of one Secret, also inside a projected volume.
pub(super) fn project(
    name: &str,
    items: Option<&Vec<core::KeyToPath>>,
    optional: Option<bool>,
    default_mode: u32,
    sources: &Sources,
) -> Result<Payload, String> {
    let optional = optional.unwrap_or(false);
    match sources.secrets.get(name) {
        Some(Some(secret)) => {
            let data: BTreeMap<String, Vec<u8>> =
                secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
            select(&data, items, default_mode, optional)
        }
        _ if optional => Ok(Payload::new()),
        _ => Err(format!("secret {name:?} not found")),
    }
}
