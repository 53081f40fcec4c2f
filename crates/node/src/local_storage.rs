//! What pods keep on the node's disk, and which of them keep more than they may (Kubernetes, "Local ephemeral storage"):
//! writable layers, logs, and emptyDir volumes that are not in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use crate::eviction::evicted;
use crate::observed::{Failure, find_container, init_containers, spec};
use crate::ports::ContainerStatus;
use crate::resources::{binary, limits, pod_limits, whole};
use crate::volumes::{pod_dir, volume_path};
use crate::worker::Shared;

const NAME: &str = "ephemeral-storage";

/// Bytes of one pod on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Writable layer and logs, by container.
    pub containers: BTreeMap<String, u64>,
    /// emptyDir volumes.
    pub volumes: BTreeMap<String, u64>,
}

impl PodUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).sum()
    }
}

fn bytes(amount: Option<i64>) -> Option<u64> {
    amount.and_then(|amount| u64::try_from(amount).ok()).filter(|amount| *amount > 0)
}

/// emptyDir volumes on disk, with their limits. A tmpfs keeps its limit by itself.
fn on_disk(pod: &core::Pod) -> impl Iterator<Item = (&core::Volume, Option<&str>)> {
    spec(pod).volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory"))?;
        Some((volume, source.size_limit.as_ref().map(|limit| limit.0.as_str())))
    })
}

fn containers(pod: &core::Pod) -> impl Iterator<Item = &core::Container> {
    init_containers(pod).iter().chain(&spec(pod).containers)
}

/// Whether the pod has any limit, so that it must be measured.
pub fn is_limited(pod: &core::Pod) -> bool {
    on_disk(pod).any(|(_, limit)| limit.is_some())
        || containers(pod).any(|c| limits(c).is_some_and(|l| l.contains_key(NAME)))
}

/// How a pod fails that keeps too much.
pub fn excess(pod: &core::Pod, used: &PodUse) -> Option<Failure> {
    for (volume, limit) in on_disk(pod) {
        let Some(limit) = limit else { continue };
        let most = bytes(crate::resources::milli(limit).and_then(|m| i64::try_from(m / 1000).ok()));
        let held = used.volumes.get(&volume.name).copied().unwrap_or(0);
        if most.is_some_and(|most| held > most) {
            let name = &volume.name;
            return Some(evicted(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ")));
        }
    }
    let most = pod_limits(spec(pod)).get(NAME).and_then(|amount| u64::try_from(amount / 1000).ok());
    if let Some(most) = most.filter(|most| *most > 0 && used.total() > *most) {
        let limit = binary(most);
        let message =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(evicted(message));
    }
    for container in containers(pod) {
        let name = &container.name;
        let most = bytes(whole(limits(container), NAME));
        let held = used.containers.get(name).copied().unwrap_or(0);
        if let Some(most) = most.filter(|most| held > *most) {
            let limit = binary(most);
            let message = format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ");
            return Some(evicted(message));
        }
    }
    None
}

/// Measures a pod.
pub(crate) async fn measure(shared: &Shared, pod: &core::Pod, records: &[ContainerStatus]) -> PodUse {
    let config = &shared.config;
    let dir = pod_dir(&config.root_dir, pod.metadata.uid.as_deref().unwrap_or_default());
    let logs = crate::logs::log_dir(&config.log_root, pod);
    let volumes: Vec<(String, PathBuf)> =
        on_disk(pod).map(|(volume, _)| (volume.name.clone(), volume_path(&dir, volume))).collect();
    let mut layers: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for record in records.iter().filter(|record| find_container(pod, &record.name).is_some()) {
        let own = layers.entry(record.name.clone()).or_insert_with(|| vec![logs.join(&record.name)]);
        own.extend(Some(record.layer.clone()).filter(|layer| !layer.as_os_str().is_empty()));
    }
    let work = tokio::task::spawn_blocking(move || PodUse {
        containers: layers
            .into_iter()
            .map(|(name, dirs)| (name, dirs.iter().map(|dir| size(dir)).sum()))
            .collect(),
        volumes: volumes.into_iter().map(|(name, dir)| (name, size(&dir))).collect(),
    });
    work.await.unwrap_or_default()
}

/// Bytes on disk below a folder. Follows no link and crosses no mount; what goes meanwhile does not count.
fn size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(top) = std::fs::symlink_metadata(dir) else { return 0 };
    let mut total = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            total += meta.blocks() * 512;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_keeps_too_much() {
        let limit = |amount: &str| json!({"limits": {"ephemeral-storage": amount}});
        let pod: core::Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": limit("2Mi")}, {"name": "b", "resources": limit("1024Ki")}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "500k"}}, {"name": "w", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}]}}))
        .unwrap();
        assert!(is_limited(&pod) && !is_limited(&core::Pod::default()));
        let used = |a: u64, b: u64, v: u64, w: u64| PodUse {
            containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
            volumes: [("v".to_owned(), v), ("w".to_owned(), w)].into(),
        };
        let mib = 1 << 20;
        let table = [
            (used(mib, mib, 500_000, 0), None),
            (used(0, 0, 500_001, 0), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"500k\". ")),
            (used(0, 0, 0, 3 * mib), None),
            (
                used(mib, mib, 1, mib),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
            ),
            (
                used(1, mib + 1, 0, 0),
                Some("Container b exceeded its local ephemeral storage limit \"1Mi\". "),
            ),
        ];
        for (used, want) in table {
            let found = excess(&pod, &used);
            assert_eq!(found.as_ref().map(|f| f.message.as_str()), want, "{used:?}");
            assert!(found.is_none_or(|f| f.reason == "Evicted" && f.grace_seconds == Some(1)));
        }
    }

    #[test]
    fn folders_are_measured_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir_all(inner.join("deep")).unwrap();
        std::fs::write(inner.join("deep/file"), vec![1u8; 100_000]).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1u8; 1_000_000]).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), inner.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), inner.join("loop")).unwrap();
        let found = size(&inner);
        assert!((100_000..500_000).contains(&found), "{found}");
        assert_eq!(size(&dir.path().join("gone")), 0);
    }
}
