//! Measures the machine every few seconds, shows what runs short, and makes room: images first, then pods.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};

use crate::eviction::{Candidate, History, Machine, Measure, Signal, choose, is_critical, judge};
use crate::observed::{Failure, spec};
use crate::resources::pod_requests;
use crate::view::Snapshot;
use crate::worker::Shared;
use crate::{image_gc, local_storage};

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
    let mut history = History::default();
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
    history: &mut History,
) -> bool {
    let running: Vec<core::Pod> =
        pods.list().iter().map(|cached| cached.object.clone()).filter(is_active).collect();
    let snapshot = match shared.view.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::warn!(%error, "cannot list containers");
            return false;
        }
    };
    for (uid, failure) in oversized(shared, &running, &snapshot).await {
        shared.meter.evicted("localStorage");
        tell(evictions, uid, failure);
    }
    let rules = &shared.config.eviction;
    let machine = measure(&shared.config.root_dir, &shared.config.image_dir);
    let verdict = judge(&machine, rules, history, shared.clock.now());
    shared.pressures.send_if_modified(|old| {
        let changed = *old != verdict.conditions;
        old.clone_from(&verdict.conditions);
        changed
    });
    let Some(due) = verdict.due else { return false };
    tracing::warn!(signal = due.signal.name(), ?machine, "the node runs short");
    let on_disk = !matches!(due.signal, Signal::Memory | Signal::Pids);
    if on_disk && image_gc::remove_unused(shared).await > 0 {
        return false;
    }
    let candidates = candidates(shared, &running, &snapshot, on_disk).await;
    let Some((uid, failure)) = choose(&due, &machine, rules, &candidates) else { return false };
    shared.meter.evicted(due.signal.name());
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
fn measure(dir: &Path, images: &Path) -> Machine {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let meminfo = text("/proc/meminfo");
    let kibibytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|l| l.trim_start_matches(':').trim().split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let memory = Measure { available: kibibytes("MemAvailable") * 1024, total: kibibytes("MemTotal") * 1024 };
    let ((disk, inodes), (image_disk, image_inodes)) = (self::disk(dir), self::disk(images));
    let most: u64 = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0);
    let load = text("/proc/loadavg");
    let threads = load.split(' ').nth(3).and_then(|part| part.split_once('/')?.1.parse::<u64>().ok());
    let pids = match threads {
        Some(used) => Measure { available: most.saturating_sub(used), total: most },
        None => Measure::default(),
    };
    Machine { memory, disk, inodes, image_disk, image_inodes, pids }
}

/// Bytes and inodes of the file system that a folder is on.
pub(crate) fn disk(dir: &Path) -> (Measure, Measure) {
    let Ok(stat) = rustix::fs::statvfs(dir) else { return Default::default() };
    let disk = Measure {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    };
    // Some file systems have no fixed number of inodes.
    (disk, Measure { available: stat.f_favail, total: stat.f_files })
}

async fn candidates(
    shared: &Shared,
    pods: &[core::Pod],
    snapshot: &Snapshot,
    on_disk: bool,
) -> Vec<Candidate> {
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
        let disk_used = if on_disk {
            let containers = snapshot.get(&uid).map(|record| record.containers.as_slice());
            local_storage::measure(shared, pod, containers.unwrap_or_default()).await.total()
        } else {
            0
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

/// Pods that keep more on disk than they may.
async fn oversized(shared: &Shared, pods: &[core::Pod], snapshot: &Snapshot) -> Vec<(String, Failure)> {
    let mut found = Vec::new();
    let movable = |pod: &&core::Pod| !is_critical(spec(pod).priority.unwrap_or(0));
    for pod in pods.iter().filter(movable).filter(|pod| local_storage::is_limited(pod)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let containers = snapshot.get(&uid).map(|record| record.containers.as_slice());
        let used = local_storage::measure(shared, pod, containers.unwrap_or_default()).await;
        found.extend(local_storage::excess(pod, &used).map(|failure| (uid, failure)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_measured() {
        let machine = measure(Path::new("/"), Path::new("/"));
        for measure in [machine.memory, machine.disk, machine.image_disk, machine.pids] {
            assert!(measure.total > 0 && measure.available <= measure.total, "{machine:?}");
        }
    }
}
