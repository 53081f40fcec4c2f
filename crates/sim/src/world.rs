//! One run: everything wired, worked on, healed, checked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use client::Client;
use tokio::sync::watch;

use crate::check::differences;
use crate::clock::SimClock;
use crate::cluster::Cluster;
use crate::faults::Network;
use crate::node;
use crate::observer::Observer;
use crate::random::Random;
use crate::workload::{PATIENCE, User, Wanted};

const NODES: usize = 3;

/// What a run was.
pub struct Report {
    /// Hash of everything that happened.
    pub trace: String,
    /// Changes in the store.
    pub events: u64,
    /// Starts of the server.
    pub lives: u64,
    /// Virtual time.
    pub elapsed: Duration,
}

/// Runs a world. Call it once in a process, on a thread that has done nothing else.
///
/// # Errors
/// Which rule was broken, or what did not come about.
pub fn run(seed: u64, trace_file: Option<&Path>) -> Result<Report> {
    let file = trace_file.map(std::fs::File::create).transpose().context("cannot write the trace")?;
    let pool = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("cannot start the runtime")?;
    pool.block_on(tokio::task::LocalSet::new().run_until(live(seed, file)))
}

async fn live(seed: u64, file: Option<std::fs::File>) -> Result<Report> {
    let clock = SimClock::new(Random::new(seed, "clock"));
    let ambient = SimClock::new(Random::new(seed, "server"));
    ensure!(apiserver::ambient::install(Box::new(ambient)), "a process has one world");
    let observer = Observer::new(clock.clone(), file);
    let cluster = Cluster::new(seed, clock.clone(), Arc::clone(&observer))?;
    let network = Network::new(seed, Arc::clone(&cluster), clock.clone(), Arc::clone(&observer));
    let (_stop, stopping) = watch::channel(false);
    client::spawn(Arc::clone(&cluster).run());
    let manager = network.client("system:kube-controller-manager", &[]);
    client::spawn(controllers::run(manager, controllers::ControllersConfig::default(), stopping.clone()));
    client::spawn(scheduler::run(network.client("system:kube-scheduler", &[]), stopping));
    for number in 0..NODES {
        let name = format!("node-{number}");
        let client = network.client(&format!("system:node:{name}"), &["system:nodes"]);
        tokio::task::spawn_local(node::run(client, name.clone(), Arc::new(Random::new(seed, &name))));
    }
    let admin = network.client("admin", &["system:masters"]);
    let wanted = User::new(admin.clone(), seed, Arc::clone(&cluster)).work().await;
    network.heal();
    let settled = settle(&admin, &wanted).await;
    let (trace, events, broken) = observer.finish();
    ensure!(broken.is_empty(), "broken rules:\n  {}", broken.join("\n  "));
    settled?;
    Ok(Report { trace, events, lives: cluster.lives(), elapsed: clock.elapsed() })
}

/// Waits until everything is as it must be.
async fn settle(client: &Client, wanted: &Wanted) -> Result<()> {
    let mut last = vec!["nothing could be read".to_owned()];
    let attempts = PATIENCE.as_secs() / 5;
    for _ in 0..attempts {
        tokio::time::sleep(Duration::from_secs(5)).await;
        match differences(client, wanted).await {
            Ok(found) if found.is_empty() => return Ok(()),
            Ok(found) => last = found,
            Err(status) => tracing::info!(%status, "cannot look"),
        }
    }
    Err(anyhow!("not settled after {} s:\n  {}", PATIENCE.as_secs(), last.join("\n  ")))
}
