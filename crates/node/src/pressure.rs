//! Measures the machine every few seconds, shows what runs short, and makes room: images first, then pods.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};

use crate::eviction::{
    Candidate, Machine, Measure, Met, Signal, StoredImage, choose, conditions, evicted, met, unused_images,
};
use crate::observed::{Failure, spec};
use crate::resources::{milli, pod_requests};
use crate::volumes::{pod_dir, volume_path};
use crate::worker::Shared;

/// Between measurements: nothing tells of a disk that fills.
const EVERY: Duration = Duration::from_secs(10);
/// After an eviction, until what was freed shows.
const SETTLE: Duration = Duration::from_secs(30);

/// Where evictions go: uid of the pod, and how it fails.
pub(crate) type Evictions = mpsc::UnboundedSender<(String, Failure)>;

/// Works until `stop` turns true.
pub(crate) async fn run(
    shared: Arc<Shared>,
    pods: client::Informer<core::Pod>,
    evictions: Evictions,
    mut stop: watch::Receiver<bool>,
) {
    let mut history = Met::new();
    tokio::select! {
        () = pods.synced() => {}
        () = crate::agent::stopped(&mut stop) => return,
    }
    loop {
        let acted = look(&shared, &pods, &evictions, &mut history).await;
        tokio::select! {
            () = shared.clock.sleep(if acted { SETTLE } else { EVERY }) => {}
            () = crate::agent::stopped(&mut stop) => return,
        }
    }
}

/// One look; true when a pod had to go for pressure.
async fn look(
    shared: &Arc<Shared>,
    pods: &client::Informer<core::Pod>,
    evictions: &Evictions,
    history: &mut Met,
) -> bool {
    let running: Vec<core::Pod> =
        pods.list().iter().map(|cached| cached.object.clone()).filter(is_active).collect();
    for (uid, failure) in oversized(shared, &running).await {
        shared.meter.evicted("localStorage");
        tell(evictions, uid, failure);
    }
    let machine = measure(&shared.config.root_dir);
    let now_met = met(&machine, &shared.config.eviction);
    let shown = conditions(&now_met, history, shared.clock.now());
    shared.pressures.send_if_modified(|old| {
        let changed = *old != shown;
        *old = shown;
        changed
    });
    let Some(first) = now_met.first() else { return false };
    tracing::warn!(signal = first.signal.name(), ?machine, "the node runs short");
    if matches!(first.signal, Signal::Disk | Signal::Inodes) && remove_images(shared).await > 0 {
        return false;
    }
    let candidates = candidates(shared, &running, first.signal).await;
    let Some((uid, failure)) = choose(first, &machine, &candidates) else { return false };
    shared.meter.evicted(first.signal.name());
    tell(evictions, uid, failure);
    true
}

fn tell(evictions: &Evictions, uid: String, failure: Failure) {
    tracing::warn!(pod = %uid, reason = %failure.message, "evicting a pod");
    if evictions.send((uid, failure)).is_err() {
        tracing::debug!("the agent has stopped");
    }
}

fn is_active(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    // Static pods are the machine's own, whatever they take.
    let is_static = crate::static_pods::mirrored(pod).is_some();
    !matches!(phase, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none() && !is_static
}

/// What there is. What cannot be read counts as not measured.
fn measure(dir: &Path) -> Machine {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let meminfo = text("/proc/meminfo");
    let kibibytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|l| l.trim_start_matches(':').trim().split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let memory = Measure { available: kibibytes("MemAvailable") * 1024, total: kibibytes("MemTotal") * 1024 };
    let (mut disk, mut inodes) = (Measure::default(), Measure::default());
    if let Ok(stat) = rustix::fs::statvfs(dir) {
        disk = Measure {
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        };
        // Some file systems have no fixed number of them.
        inodes = Measure { available: stat.f_favail, total: stat.f_files };
    }
    let most: u64 = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0);
    let load = text("/proc/loadavg");
    let threads = load.split(' ').nth(3).and_then(|part| part.split_once('/')?.1.parse::<u64>().ok());
    let pids = match threads {
        Some(used) => Measure { available: most.saturating_sub(used), total: most },
        None => Measure::default(),
    };
    Machine { memory, disk, inodes, pids }
}

async fn candidates(shared: &Arc<Shared>, pods: &[core::Pod], signal: Signal) -> Vec<Candidate> {
    let usage = match shared.runtime.usage().await {
        Ok(usage) => usage,
        Err(error) => {
            tracing::warn!(%error, "cannot read what pods use");
            Vec::new()
        }
    };
    let mut list = Vec::new();
    for pod in pods {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let own = usage.iter().filter(|u| u.pod_uid == uid);
        let (memory_used, pids) = own.fold((0, 0), |(m, p), u| (m + u.memory_bytes, p + u.processes));
        let requests = pod_requests(spec(pod));
        let requested =
            |name: &str| requests.get(name).and_then(|amount| u64::try_from(amount / 1000).ok()).unwrap_or(0);
        let disk_used = match signal {
            Signal::Disk | Signal::Inodes => {
                let logs = crate::logs::log_dir(&shared.config.log_root, pod);
                let volumes = pod_dir(&shared.config.root_dir, &uid);
                sizes(vec![volumes, logs]).await.iter().sum()
            }
            Signal::Memory | Signal::Pids => 0,
        };
        list.push(Candidate {
            priority: spec(pod).priority.unwrap_or(0),
            memory_used,
            memory_requested: requested("memory"),
            disk_used,
            disk_requested: requested("ephemeral-storage"),
            pids,
            uid,
        });
    }
    list
}

/// Pods whose emptyDir volumes hold more than they may.
async fn oversized(shared: &Arc<Shared>, pods: &[core::Pod]) -> Vec<(String, Failure)> {
    let mut found = Vec::new();
    for pod in pods {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = pod_dir(&shared.config.root_dir, &uid);
        for volume in spec(pod).volumes.iter().flatten() {
            // A tmpfs keeps its limit by itself.
            let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory"));
            let Some(limit) = source.and_then(|e| e.size_limit.as_ref()) else { continue };
            let Some(most) = milli(&limit.0).and_then(|m| u64::try_from(m / 1000).ok()).filter(|m| *m > 0)
            else {
                continue;
            };
            let used: u64 = sizes(vec![volume_path(&dir, volume)]).await.iter().sum();
            if used > most {
                let message =
                    format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0);
                found.push((uid.clone(), evicted(message)));
                break;
            }
        }
    }
    found
}

/// Bytes on disk below each folder.
async fn sizes(dirs: Vec<std::path::PathBuf>) -> Vec<u64> {
    let work = tokio::task::spawn_blocking(move || dirs.iter().map(|dir| size(dir)).collect());
    work.await.unwrap_or_default()
}

/// Follows no link and crosses no mount; what goes meanwhile does not count.
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

/// Removes images that no container uses and that can be had again; returns how many went.
async fn remove_images(shared: &Shared) -> usize {
    let (Ok(images), Ok(containers)) =
        (shared.runtime.list_images().await, shared.runtime.list_containers().await)
    else {
        return 0;
    };
    let used: BTreeSet<&str> = containers.iter().map(|c| c.image_id.as_str()).collect();
    let stored: Vec<StoredImage> = images
        .iter()
        .map(|i| StoredImage {
            reference: i.id.clone(),
            size: i.size_bytes,
            used: used.contains(i.id.as_str()),
            fetched: !i.repo_digests.is_empty(),
        })
        .collect();
    let mut removed = 0;
    for reference in unused_images(&stored) {
        match shared.runtime.remove_image(&reference).await {
            Ok(()) => removed += 1,
            // A container may have begun to use it, or it is mounted.
            Err(error) => tracing::info!(image = %reference, %error, "an unused image stays"),
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn this_machine_is_measured() {
        let machine = measure(Path::new("/"));
        for measure in [machine.memory, machine.disk, machine.pids] {
            assert!(measure.total > 0 && measure.available <= measure.total, "{machine:?}");
        }
    }
}
