//! persistentVolumeClaim volumes whose volume is a folder of this node: hostPath and local PersistentVolumes.
//!
//! The volume's folder in the pod is a link to it: nothing is copied or mounted, and nothing is lost with the pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::ObjectKey;
use client::Client;
use k8s_openapi::api::core::v1 as core;

use super::{fs_group, host_path};
use crate::observed::spec;

/// What a claim is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    path: PathBuf,
    /// As of hostPath volumes.
    kind: Option<String>,
    /// The folder serves pods alone: its files may change their group.
    local: bool,
}

/// By name of the pod's volume.
pub type Claims = BTreeMap<String, Claim>;

/// Reads what the pod's claims are bound to.
///
/// # Errors
/// A claim that is not there or not bound, or a kind of volume that needs a driver.
pub async fn resolve(client: &Client, pod: &core::Pod) -> Result<Claims, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut claims = Claims::new();
    for volume in spec(pod).volumes.iter().flatten() {
        let Some(source) = &volume.persistent_volume_claim else { continue };
        let name = &source.claim_name;
        let claim: core::PersistentVolumeClaim = client
            .get(&ObjectKey::new(namespace.clone(), name.clone()))
            .await
            .map_err(|e| format!("persistentvolumeclaim {name:?}: {e}"))?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let to = claim.spec.and_then(|s| s.volume_name).filter(|to| bound && !to.is_empty());
        let to = to.ok_or_else(|| format!("persistentvolumeclaim {name:?} is not bound"))?;
        let found: core::PersistentVolume = client
            .get(&ObjectKey::new("", to.clone()))
            .await
            .map_err(|e| format!("persistentvolume {to:?}: {e}"))?;
        claims.insert(
            volume.name.clone(),
            of_volume(&found).map_err(|e| format!("persistentvolume {to:?}: {e}"))?,
        );
    }
    Ok(claims)
}

fn of_volume(volume: &core::PersistentVolume) -> Result<Claim, String> {
    let spec = volume.spec.as_ref().ok_or("it has no spec")?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported by the node".into());
    }
    match (&spec.host_path, &spec.local) {
        (Some(host), _) => {
            Ok(Claim { path: PathBuf::from(&host.path), kind: host.type_.clone(), local: false })
        }
        (None, Some(local)) => {
            let kind = Some("Directory".to_owned());
            Ok(Claim { path: PathBuf::from(&local.path), kind, local: true })
        }
        (None, None) => Err("this kind of volume needs a driver, which the node does not have".into()),
    }
}

/// Makes the pod's volume lead to the claimed folder.
pub(super) fn prepare(path: &Path, claim: Option<&Claim>, pod: &core::Pod) -> Result<(), String> {
    let claim = claim.ok_or("the claim has not been read yet")?;
    let source = core::HostPathVolumeSource {
        path: claim.path.to_string_lossy().into_owned(),
        type_: claim.kind.clone(),
    };
    host_path::prepare(&source)?;
    if claim.local
        && let Some(group) = super::fs_group(pod)
    {
        fs_group::apply(&claim.path, group, fs_group::changes_always(pod)).map_err(|e| e.to_string())?;
    }
    if std::fs::read_link(path).ok().as_ref() == Some(&claim.path) {
        return Ok(());
    }
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::os::unix::fs::symlink(&claim.path, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn folders_of_the_node_are_served_and_nothing_else() {
        let volume = |spec: Value| {
            of_volume(&serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap())
        };
        let host = volume(json!({"hostPath": {"path": "/data", "type": "Directory"}})).unwrap();
        assert_eq!((host.path.to_str(), host.local), (Some("/data"), false));
        assert!(volume(json!({"local": {"path": "/disk"}})).unwrap().local);
        assert!(volume(json!({"local": {"path": "/disk"}, "volumeMode": "Block"})).is_err());
        assert!(volume(json!({"nfs": {"path": "/", "server": "s"}})).is_err());
    }

    #[test]
    fn a_pod_that_goes_leaves_the_claimed_folder() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("kept"), "1").unwrap();
        let pod_dir = root.path().join("pod");
        let path = pod_dir.join("volumes/v");
        let claim = Claim { path: data.clone(), kind: Some("Directory".into()), local: true };
        let pod = core::Pod::default();
        assert!(prepare(&path, None, &pod).is_err());
        prepare(&path, Some(&claim), &pod).unwrap();
        prepare(&path, Some(&claim), &pod).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("kept")).unwrap(), "1");
        super::super::tear_down(&pod_dir).unwrap();
        assert!(!pod_dir.exists() && data.join("kept").exists());
        let gone = Claim { path: root.path().join("gone"), ..claim };
        assert!(prepare(&path, Some(&gone), &pod).is_err());
    }
}
