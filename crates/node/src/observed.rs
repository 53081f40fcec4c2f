//! What is known about one pod on this node: the input of the two pure deciders.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use crate::hooks::PostStart;
use crate::ports::{ContainerState, ContainerStatus, SandboxStatus};

/// Container label: how many quick restarts in a row led to this container. It lives in the runtime, so that
/// the crash back-off survives a restart of the agent.
pub const STREAK_LABEL: &str = "podium.io/restart-streak";

/// Container label: the image as the pod named it when the container was made.
pub const IMAGE_LABEL: &str = "podium.io/image";

/// A container that cannot be started for the moment, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// As in `state.waiting.reason`.
    pub reason: String,
    pub message: String,
    pub since: Timestamp,
    /// `None`: something under way (a pull) will wake the worker.
    pub retry_at: Option<Timestamp>,
    /// Failures in a row; doubles the back-off.
    pub failures: u32,
}

/// Results of a running container's probes so far; `None` where there is no such probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeOutcome {
    pub started: Option<bool>,
    pub ready: Option<bool>,
    /// The liveness or startup probe gave up: kill with this message and grace override.
    pub failed: Option<ProbeFailure>,
}

/// A probe that asks for the container to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// `liveness` or `startup`.
    pub probe: String,
    pub grace_seconds: Option<i64>,
}

/// Whether the pod's volumes are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VolumeState {
    #[default]
    Unknown,
    Ready,
    Failed(Blocked),
}

/// One pod as seen on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<SandboxStatus>,
    /// In no particular order; several attempts of a name.
    pub containers: Vec<ContainerStatus>,
    pub addresses: Vec<IpAddr>,
    pub volumes: VolumeState,
    /// The sandbox or its network cannot be made for the moment.
    pub sandbox_blocked: Option<Blocked>,
    /// By container name.
    pub blocked: BTreeMap<String, Blocked>,
    /// By container id.
    pub probes: BTreeMap<String, ProbeOutcome>,
    /// Containers whose postStart hook has not succeeded yet, by container id.
    pub post_start: BTreeMap<String, PostStart>,
    /// Text left by exited containers, by container id.
    pub termination_messages: BTreeMap<String, String>,
    /// Containers being stopped, by id: when SIGKILL is due.
    pub killing: BTreeMap<String, Timestamp>,
    /// The node has given the pod up.
    pub failure: Option<Failure>,
    /// A resize that is not taken up: reason and message of the condition PodResizePending.
    pub resize_pending: Option<(String, String)>,
    /// Why the last change of control groups failed.
    pub resize_error: Option<String>,
    /// The API has no such pod any more.
    pub gone_from_api: bool,
    /// Nothing of the pod is left on the node but its sandbox record.
    pub torn_down: bool,
}

impl Observed {
    /// The newest sandbox, if containers can be started in it.
    pub fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// Highest attempt of a container name.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| (c.attempt, c.created_at_nanos))
    }

    /// The attempt before the latest.
    pub fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        let latest = self.latest(name)?;
        let earlier = self.containers.iter().filter(|c| c.name == name && c.id != latest.id);
        earlier.max_by_key(|c| (c.attempt, c.created_at_nanos))
    }

    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|c| c.state == ContainerState::Running)
    }

    /// Whether a running container counts as started (its postStart hook and startup probe have passed, or there are none).
    pub fn is_started(&self, container: &core::Container, status: &ContainerStatus) -> bool {
        if status.state != ContainerState::Running || self.post_start.contains_key(&status.id) {
            return false;
        }
        let outcome = self.probes.get(&status.id).and_then(|probes| probes.started);
        outcome.unwrap_or(container.startup_probe.is_none())
    }

    /// Whether a running container is ready: started, and its readiness probe (if any) passes.
    pub fn is_ready(&self, container: &core::Container, status: &ContainerStatus) -> bool {
        if !self.is_started(container, status) {
            return false;
        }
        let outcome = self.probes.get(&status.id).and_then(|probes| probes.ready);
        outcome.unwrap_or(container.readiness_probe.is_none())
    }
}

/// How a pod fails that the node rejects or evicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// As in `status.reason`.
    pub reason: String,
    pub message: String,
    /// Seconds its containers have to stop; `None` is the pod's own grace period.
    pub grace_seconds: Option<i64>,
    /// It is told as a disruption, which a Job may not count.
    pub disruption: bool,
}

/// Facts of the node that decisions depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

/// What a container is within its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerKind {
    Init,
    /// An init container with restartPolicy Always (KEP-753).
    Sidecar,
    Main,
    Ephemeral,
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &core::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's spec; an empty one if it is missing, which the API server never lets through.
pub fn spec(pod: &core::Pod) -> &core::PodSpec {
    static EMPTY: std::sync::OnceLock<core::PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(core::PodSpec::default))
}

/// Init containers and sidecars in order.
pub fn init_containers(pod: &core::Pod) -> &[core::Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// Ephemeral containers as plain ones.
pub fn ephemeral_containers(pod: &core::Pod) -> Vec<core::Container> {
    let list = spec(pod).ephemeral_containers.as_deref().unwrap_or_default();
    list.iter().map(plain_ephemeral).collect()
}

fn plain_ephemeral(e: &core::EphemeralContainer) -> core::Container {
    core::Container {
        name: e.name.clone(),
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..core::Container::default()
    }
}

/// Container of any kind by name.
pub fn find_container(pod: &core::Pod, name: &str) -> Option<(ContainerKind, core::Container)> {
    if let Some(c) = spec(pod).containers.iter().find(|c| c.name == name) {
        return Some((ContainerKind::Main, c.clone()));
    }
    if let Some(c) = init_containers(pod).iter().find(|c| c.name == name) {
        let kind = if is_sidecar(c) { ContainerKind::Sidecar } else { ContainerKind::Init };
        return Some((kind, c.clone()));
    }
    let found = ephemeral_containers(pod).into_iter().find(|c| c.name == name);
    found.map(|c| (ContainerKind::Ephemeral, c))
}

/// Time from nanoseconds since the epoch.
pub fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `later - earlier`, zero when that is negative (a clock step).
pub fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

/// `at + duration`, saturating.
pub fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}
