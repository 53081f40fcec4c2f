//! A pod's volumes: one folder each below `<root>/<uid>/volumes`.
//!
//! ```text
//!   configMap, secret, projected, downwardAPI ──payload──▶ atomic_writer (..data symlink, live updates)
//!   emptyDir ──▶ folder or tmpfs        hostPath ──▶ the path itself
//! ```
//!
//! Preparing is idempotent: it runs again whenever a source changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use crate::fields::FieldContext;
use crate::observed::spec;
use crate::references::Sources;

pub mod atomic_writer;
pub mod certificate;
pub mod claim;
mod config_map;
mod downward_api;
mod empty_dir;
mod fs_group;
mod host_path;
mod projected;
mod secret;
pub mod sub_path;
pub mod token;
mod trust_bundle;

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadFile {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Files of a volume by relative path.
pub type Payload = BTreeMap<String, PayloadFile>;

/// A volume could not be made; the text is the FailedMount event's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// What volumes are made from.
pub struct VolumeInputs<'a> {
    pub pod: &'a core::Pod,
    pub dir: &'a Path,
    pub sources: &'a Sources,
    /// What the pod's claims are bound to.
    pub claims: &'a claim::Claims,
    pub fields: &'a FieldContext,
    pub tokens: &'a token::Tokens,
    pub certificates: &'a certificate::Certificates,
}

/// Folder of a pod's volumes and files.
pub fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join(uid)
}

/// Where a volume is on the host.
pub fn volume_path(pod_dir: &Path, volume: &core::Volume) -> PathBuf {
    match &volume.host_path {
        Some(source) => PathBuf::from(&source.path),
        None => pod_dir.join("volumes").join(&volume.name),
    }
}

/// Makes or updates all volumes.
///
/// # Errors
/// The first volume that cannot be made.
pub fn prepare(inputs: &VolumeInputs<'_>) -> Result<(), VolumeError> {
    for volume in spec(inputs.pod).volumes.iter().flatten() {
        let fail = |message: String| VolumeError { volume: volume.name.clone(), message };
        prepare_one(inputs, volume).map_err(fail)?;
    }
    Ok(())
}

fn prepare_one(inputs: &VolumeInputs<'_>, volume: &core::Volume) -> Result<(), String> {
    let path = volume_path(inputs.dir, volume);
    if let Some(source) = &volume.host_path {
        return host_path::prepare(source);
    }
    if volume.persistent_volume_claim.is_some() {
        return claim::prepare(&path, inputs.claims.get(&volume.name), inputs.pod);
    }
    if volume.image.is_some() {
        // Containers get their images right from the runtime.
        return Ok(());
    }
    let fs_group = fs_group(inputs.pod);
    if let Some(source) = &volume.empty_dir {
        return empty_dir::prepare(&path, source, fs_group);
    }
    let payload = if let Some(source) = &volume.config_map {
        config_map::payload(source, inputs.sources)?
    } else if let Some(source) = &volume.secret {
        secret::payload(source, inputs.sources)?
    } else if let Some(source) = &volume.downward_api {
        downward_api::payload(source, inputs.pod, inputs.fields)?
    } else if let Some(source) = &volume.projected {
        projected::payload(source, &volume.name, inputs)?
    } else {
        return Err("this kind of volume is not supported by the node".into());
    };
    atomic_writer::write(&path, &payload, fs_group).map_err(|e| e.to_string())
}

/// `securityContext.fsGroup` of the pod.
pub fn fs_group(pod: &core::Pod) -> Option<u32> {
    let group = spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Unmounts and removes everything of a pod below its folder.
///
/// # Errors
/// The first failing removal; what is left is tried again with the next call.
pub fn tear_down(dir: &Path) -> std::io::Result<()> {
    if let Ok(entries) = std::fs::read_dir(dir.join("volumes")) {
        // What a link leads to belongs to somebody else.
        let own = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        for entry in entries.flatten().filter(own) {
            empty_dir::unmount(&entry.path())?;
        }
    }
    for bind in walk_binds(&dir.join("volume-subpaths")) {
        sub_path::release(&bind)?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Mount points of subPaths: `<container>/<index>` below the folder.
fn walk_binds(root: &Path) -> Vec<PathBuf> {
    let children = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    children(root.to_path_buf()).flat_map(children).collect()
}

/// Mode bits of an API field; `default` when unset.
pub(crate) fn mode(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|m| u32::try_from(m).ok()).unwrap_or(default) & 0o7777
}

/// Default mode of projected files.
pub(crate) const DEFAULT_MODE: u32 = 0o644;

/// Selects keys: all of them, or `items` with their paths and modes.
pub(crate) fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<core::KeyToPath>>,
    default_mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |bytes: &Vec<u8>| PayloadFile { bytes: bytes.clone(), mode: default_mode };
        return Ok(data.iter().map(|(key, bytes)| (key.clone(), file(bytes))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let file = PayloadFile { bytes: bytes.clone(), mode: mode(item.mode, default_mode) };
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests;
