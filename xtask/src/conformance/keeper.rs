//! The process that keeps a cluster for the tool: it removes the cluster when the tool ends, however that ends.
//!
//! ```text
//!   tool                                 keeper (a process group of its own: no ctrl-C)
//!   start ── --keep-cluster BINARY … ──▶ takes a slot
//!         ◀── folder PATH ──────────────
//!         ◀── ready PID ────────────────  starts the cluster
//!   tests in PID's namespaces
//!         ◀── ended NODE ───────────────  should never happen
//!   end   ── closes the pipe ──────────▶ removes the cluster, ends
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::cluster::{self, Cluster, Running};
use super::slot::Slot;
use super::{checked, hosts};

/// The flag that turns the tool into a keeper.
pub(super) const FLAG: &str = "--keep-cluster";
/// A cluster that isn't ready by then never will be.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The tool's end of a kept cluster. Dropped: the cluster is removed.
pub(super) struct Kept {
    keeper: Child,
    /// The cluster's data and logs, and the copy of podium that it runs.
    pub(super) folder: PathBuf,
    lines: Mutex<Receiver<String>>,
    /// Process in the namespaces of the first machine.
    first: String,
    ended: Arc<AtomicBool>,
}

impl Kept {
    /// Starts a keeper with a copy of the given podium; its cluster may not be ready yet.
    pub(super) fn start(binary: &Path, images: &[PathBuf]) -> Result<Self> {
        // this very program, also when a build has replaced its file
        let mut command = Command::new("/proc/self/exe");
        command.args(["conformance", FLAG]).arg(binary).args(images).process_group(0);
        let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = keeper.stdout.take().context("no output of the keeper")?;
        let (sender, lines) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let (folder, first) = (PathBuf::new(), String::new());
        let mut kept = Self { keeper, folder, lines: Mutex::new(lines), first, ended: Arc::clone(&ended) };
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.starts_with("ended ") {
                    ended.store(true, Ordering::Relaxed);
                }
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        kept.folder = PathBuf::from(kept.answer("folder ")?);
        Ok(kept)
    }

    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        self.first = self.answer("ready ")?;
        Ok(())
    }

    fn answer(&self, what: &str) -> Result<String> {
        let line = self
            .lines
            .lock()
            .map_err(|_| anyhow!("another thread failed"))?
            .recv_timeout(START_TIMEOUT)
            .map_err(|_| anyhow!("the cluster did not start"))?;
        line.strip_prefix(what)
            .map(str::to_owned)
            .with_context(|| format!("the cluster did not start: {line}"))
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        cluster::kubeconfig(&self.folder)
    }

    /// A program on the control plane's machine.
    pub(super) fn command(&self, program: &str) -> Command {
        hosts::inside(&self.first, program)
    }

    /// Whether no podium has ended.
    pub(super) fn alive(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    /// Copies the nodes' logs to where the tests' logs are.
    pub(super) fn keep_logs(&self, logs: &Path) -> Result<()> {
        for number in 1..=2 {
            let log = self.folder.join(format!("node-{number}.log"));
            if log.exists() {
                let name = format!("node-{number}-of-{}.log", self.keeper.id());
                std::fs::copy(&log, logs.join(name)).context("cannot keep a log")?;
            }
        }
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        match self.keeper.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("xtask: the cluster's keeper failed: {other:?}"),
        }
    }
}

/// What the keeper does.
///
/// # Errors
/// When the cluster can't be started.
pub(super) fn keep(cache: &Path, arguments: &[String]) -> Result<()> {
    let Some((binary, images)) = arguments.split_first() else { bail!("{FLAG} needs a binary") };
    let slot = Slot::take(cache, |folder| Cluster::sweep(&folder.join("podium"), folder))?;
    let copy = slot.folder.join("podium");
    let partial = slot.folder.join("podium.partial");
    std::fs::copy(binary, &partial).with_context(|| format!("cannot copy {binary}"))?;
    std::fs::rename(&partial, &copy).with_context(|| format!("cannot keep {}", copy.display()))?;
    say(&format!("folder {}", slot.folder.display()))?;
    let running = Running::default();
    let stopping = Arc::new(AtomicBool::new(false));
    let tool_ended = watch_tool(&running, &stopping);
    let images: Vec<PathBuf> = images.iter().map(PathBuf::from).collect();
    let ended = move |node: &str| {
        if !stopping.load(Ordering::Relaxed) && say(&format!("ended {node}")).is_err() {
            eprintln!("xtask: {node} ended");
        }
    };
    let cluster = Cluster::start(&copy, &slot.folder, &images, Arc::clone(&running), ended)?;
    // from now on the cluster is stopped in order
    running.lock().map_err(|_| anyhow!("another thread failed"))?.clear();
    say(&format!("ready {}", cluster.first()))?;
    tool_ended.recv().context("nobody watches the tool")
}

/// Tells when the pipe from the tool is closed; then also ends what is still starting.
fn watch_tool(running: &Running, stopping: &Arc<AtomicBool>) -> Receiver<()> {
    let (sender, receiver) = channel();
    let (running, stopping) = (Arc::clone(running), Arc::clone(stopping));
    std::thread::spawn(move || {
        let read = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stopping.store(true, Ordering::Relaxed);
        let starting = running.lock().map(|mut running| std::mem::take(&mut *running)).unwrap_or_default();
        let killed: Result<Vec<()>> =
            starting.iter().map(|pid| checked(Command::new("kill").arg(pid.to_string()))).collect();
        if let Some(error) = read.err().map(anyhow::Error::from).or(killed.err()) {
            eprintln!("xtask: the end of the tool: {error:#}");
        }
        // the receiver is gone when the start failed
        sender.send(()).unwrap_or_default();
    });
    receiver
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("the tool has ended")
}
