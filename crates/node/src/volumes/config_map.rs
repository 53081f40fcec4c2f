//! configMap volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::{DEFAULT_MODE, Payload, mode, select};
use crate::references::Sources;

pub(super) fn payload(source: &core::ConfigMapVolumeSource, sources: &Sources) -> Result<Payload, String> {
    let default = mode(source.default_mode, DEFAULT_MODE);
    project(&source.name, source.items.as_ref(), source.optional, default, sources)
}

/// Files of one ConfigMap, also inside a projected volume.
pub(super) fn project(
    name: &str,
    items: Option<&Vec<core::KeyToPath>>,
    optional: Option<bool>,
    default_mode: u32,
    sources: &Sources,
) -> Result<Payload, String> {
    let optional = optional.unwrap_or(false);
    match sources.config_maps.get(name) {
        Some(Some(map)) => select(&data(map), items, default_mode, optional),
        _ if optional => Ok(Payload::new()),
        _ => Err(format!("configmap {name:?} not found")),
    }
}

fn data(map: &core::ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}
