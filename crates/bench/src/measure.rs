//! The measurements, in the order in which they are printed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::cluster::{Cluster, idle};
use crate::{Row, host, peers, say, show};

/// How long an idle Podium is watched.
const IDLE: Duration = Duration::from_secs(60);
/// Time to come to rest before that.
const SETTLE: Duration = Duration::from_secs(15);
const SEQUENCE: usize = 50;
const FLEET: usize = 100;

pub(crate) async fn all(podium: &Path) -> Result<()> {
    say(&machine());
    let size = std::fs::metadata(podium)?.len();
    show(&Row::most("binary size", size as f64 / 1e6, "MB", 30.0));
    let cluster = Cluster::start(podium).await?;
    let mut watch = cluster.watch().await?;
    cluster.pod_to_running("first", &mut watch).await?;
    let first = cluster.begun.elapsed();
    show(&Row::most("start → /readyz", millis(cluster.ready), "ms", 300.0));
    show(&Row::most("start → node Ready", millis(cluster.node_ready), "ms", 1000.0));
    show(&Row::most("start → first pod Running", millis(first), "ms", 1500.0));
    sequence(&cluster, &mut watch).await?;
    cluster.clear().await?;
    fleet(&cluster).await?;
    cluster.clear().await?;
    idle_cost(&cluster).await?;
    drop(cluster);
    peers::compare(podium).await
}

async fn sequence(cluster: &Cluster, watch: &mut api::WatchStream) -> Result<()> {
    let mut times = Vec::new();
    for number in 0..SEQUENCE {
        times.push(cluster.pod_to_running(&format!("pod-{number}"), watch).await?);
    }
    times.sort_unstable();
    show(&Row::most("pod create → Running, p50 of 50 in sequence", millis(times[SEQUENCE / 2]), "ms", 60.0));
    show(&Row::most("pod create → Running, p99 of 50 in sequence", millis(times[SEQUENCE - 1]), "ms", 200.0));
    Ok(())
}

async fn fleet(cluster: &Cluster) -> Result<()> {
    let mut watch = cluster.watch().await?;
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "fleet"},
        "spec": {"replicas": FLEET, "selector": {"matchLabels": {"app": "fleet"}},
            "template": {"metadata": {"labels": {"app": "fleet"}}, "spec": idle()}},
    }))?;
    let begun = Instant::now();
    let made = cluster.client.create(Some("default"), &deployment).await;
    made.map_err(|status| anyhow!("cannot create the Deployment: {status}"))?;
    cluster.running(&mut watch, |name| name.starts_with("fleet-"), FLEET).await?;
    show(&Row::most("0 → 100 ready pods", begun.elapsed().as_secs_f64(), "s", 10.0));
    let shims = host::shims(cluster.pid());
    let mut shares: Vec<u64> = shims.into_iter().filter_map(|pid| host::pss_kb(pid).ok()).collect();
    shares.sort_unstable();
    match shares.get(shares.len() / 2) {
        Some(median) => show(&Row::most("shim, proportional share, median", *median as f64, "kB", 300.0)),
        None => say("no shim was found"),
    }
    show(&Row::plain("resident with 100 pods", host::resident_kb(cluster.pid())? as f64 / 1e3, "MB"));
    Ok(())
}

async fn idle_cost(cluster: &Cluster) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let pid = cluster.pid();
    let (busy, written) = (host::processor_seconds(pid)?, host::written_bytes(pid)?);
    tokio::time::sleep(IDLE).await;
    let share = (host::processor_seconds(pid)? - busy) / IDLE.as_secs_f64() * 100.0;
    let minute = (host::written_bytes(pid)? - written) as f64 / 1e3;
    show(&Row::most("idle: resident", host::resident_kb(pid)? as f64 / 1e3, "MB", 80.0));
    show(&Row::most("idle: processor", share, "% of core", 0.5));
    show(&Row::most("idle: disk writes", minute, "kB/min", 100.0));
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    format!("{cores} processors, kernel {}, load {load}", read("/proc/sys/kernel/osrelease").trim())
}
