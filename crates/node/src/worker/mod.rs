//! One task per pod: observe, decide, act, report, wait. Serial within a pod, parallel across pods.
//!
//! ```text
//!   pod changes ─┐
//!   runtime ─────┤             observe ─▶ pod_actions ─▶ effects ─┐
//!   probes ──────┼─ wake up ─▶    ▲                               │
//!   sources ─────┤                └───────────────────────────────┘ until nothing is left to do
//!   timers ──────┘             pod_status ─▶ API, when it differs
//! ```
//!
//! Whatever wakes the worker is only a reason to look: decisions come from what is observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey};
use client::{Client, Clock, Informer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};

use crate::admission::{Book, Supply};
use crate::config::NodeConfig;
use crate::env::ServiceView;
use crate::events::PodEvents;
use crate::hooks::PostStart;
use crate::images::pull_failed;
use crate::meter::NodeMeter;
use crate::observed::{
    Blocked, Failure, NodeFacts, Observed, ProbeOutcome, VolumeState, after, elapsed, from_nanos,
};
use crate::pod_actions::{PodAction, pod_actions};
use crate::pod_status::{PULL_ERROR_SHOWN, pod_status};
use crate::ports::{ContainerState, ImageInfo, PodNetwork, Runtime, RuntimeError};
use crate::prober::{ProbeKind, ProbeNews, ProbeTarget, RunningProbe};
use crate::references::{Held, References};
use crate::resize;
use crate::view::{PodRecord, RuntimeView};
use crate::volumes::{certificate::Certificates, pod_dir, token::Tokens};

mod admit;
mod effects;
mod mirror;
mod report;
mod start;

/// Rounds of observing and acting before the worker lets others run.
const MAX_ROUNDS: u32 = 30;
/// Wait after a failed call to the runtime or the API; doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What all workers of a node share.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) facts: NodeFacts,
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) view: RuntimeView,
    pub(crate) references: References,
    pub(crate) services: Informer<ServiceView>,
    pub(crate) events: PodEvents,
    /// This node's own object.
    pub(crate) node: Informer<core::Node>,
    /// What the pods of the node have been promised.
    pub(crate) book: Book,
    /// Conditions of the node that say what runs short.
    pub(crate) pressures: watch::Sender<Vec<String>>,
    pub(crate) meter: NodeMeter,
}

impl Shared {
    /// What the node has to give now.
    pub(crate) fn supply(&self) -> Supply {
        let node = self.node.list().first().map(|cached| cached.object.clone());
        let pressures = self.pressures.borrow().clone();
        Supply { pressures, ..Supply::new(node.as_ref(), &self.facts, self.config.max_pods) }
    }
}

/// Where a pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Api,
    /// A static pod.
    File,
}

/// A reason to look.
pub(crate) enum Wake {
    Pod(Arc<client::Cached<core::Pod>>),
    /// The API has no such pod any more, or the static pod's file has gone.
    Gone,
    /// The static pod's mirror in the API.
    Mirror(Arc<client::Cached<core::Pod>>),
    /// The mirror of this uid is no longer there.
    MirrorGone(String),
    /// The node gives the pod up.
    Fail(Failure),
    /// Something happened in the runtime.
    Look,
    Pulled {
        container: String,
        attempt: u32,
        reference: String,
        took: Duration,
        result: Box<Result<ImageInfo, RuntimeError>>,
    },
    Stopped {
        id: String,
    },
    PostStarted {
        id: String,
        container: String,
        result: Result<(), String>,
    },
    TornDown(Result<(), String>),
}

/// What the worker knows beyond the runtime's lists.
#[derive(Default)]
struct Memory {
    volumes: VolumeState,
    sandbox_blocked: Option<Blocked>,
    blocked: BTreeMap<String, Blocked>,
    probes: BTreeMap<String, ProbeOutcome>,
    probers: BTreeMap<(String, ProbeKind), RunningProbe>,
    post_start: BTreeMap<String, PostStart>,
    termination_messages: BTreeMap<String, String>,
    killing: BTreeMap<String, Timestamp>,
    /// Pulled, by container, attempt and reference.
    images: BTreeMap<(String, u32, String), ImageInfo>,
    back_off_told: BTreeSet<(String, u32)>,
    pull_back_off_told: BTreeSet<(String, u32)>,
    held: Option<Held>,
    tokens: Tokens,
    certificates: Certificates,
    /// The pod was taken.
    admitted: bool,
    failure: Option<Failure>,
    /// The spec's amounts, and those of them that the node has promised.
    wanted: resize::Amounts,
    allocated: Option<resize::Amounts>,
    resize_pending: Option<(String, String)>,
    resize_error: Option<String>,
    gone: bool,
    /// The volumes were ready once.
    mounted: bool,
    /// A renewal of their credentials has failed, and is tried again after a while.
    renewing: bool,
    tearing_down: bool,
    torn_down: bool,
    deleted: bool,
    /// Time that pulls took before the pod ran.
    pulls: Duration,
    /// Failed calls in a row.
    failures: u32,
    retry_at: Option<Timestamp>,
}

/// How an action went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Done: observe again.
    Done,
    /// Goes on in the background; something will wake the worker.
    Background,
    /// Did not work; the rest of the plan is void.
    Failed,
    /// The worker is done for good.
    End,
}

/// The worker of one pod.
pub(crate) struct PodWorker {
    shared: Arc<Shared>,
    uid: String,
    pod: core::Pod,
    /// Of a static pod.
    mirror: Option<mirror::Mirror>,
    record: PodRecord,
    memory: Memory,
    inbox: mpsc::UnboundedReceiver<Wake>,
    wake: mpsc::UnboundedSender<Wake>,
    sources: (mpsc::UnboundedSender<()>, mpsc::UnboundedReceiver<()>),
    /// Something has left the node.
    freed: watch::Receiver<u64>,
    /// When the node first saw the pod, on the monotonic clock.
    seen: Duration,
    probe_news: (mpsc::UnboundedSender<ProbeNews>, mpsc::UnboundedReceiver<ProbeNews>),
}

impl PodWorker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pod: core::Pod,
        origin: Origin,
        wake: mpsc::UnboundedSender<Wake>,
        inbox: mpsc::UnboundedReceiver<Wake>,
    ) -> Self {
        let freed = shared.book.freed();
        Self {
            freed,
            seen: shared.clock.monotonic(),
            shared,
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            pod,
            mirror: (origin == Origin::File).then(mirror::Mirror::default),
            record: PodRecord::default(),
            memory: Memory::default(),
            inbox,
            wake,
            sources: mpsc::unbounded_channel(),
            probe_news: mpsc::unbounded_channel(),
        }
    }

    /// Works until the pod is gone from API and node.
    pub(crate) async fn run(mut self) {
        loop {
            self.drain();
            let requeue = match self.reconcile().await {
                Some(requeue) => requeue,
                None => return,
            };
            let clock = self.shared.clock.clone();
            let timer = async move {
                match requeue {
                    Some(wait) => clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(wake) = self.inbox.recv() => self.take(wake),
                Some(news) = self.probe_news.1.recv() => self.take_probe(news),
                Some(()) = self.sources.1.recv() => self.sources_changed(),
                Ok(()) = self.freed.changed(), if self.memory.resize_pending.is_some() => {}
                () = timer => {}
            }
        }
    }

    /// Takes everything that has come meanwhile, so that one look answers it all.
    fn drain(&mut self) {
        while let Ok(wake) = self.inbox.try_recv() {
            self.take(wake);
        }
        while let Ok(news) = self.probe_news.1.try_recv() {
            self.take_probe(news);
        }
        while self.sources.1.try_recv().is_ok() {
            self.sources_changed();
        }
    }

    fn take(&mut self, wake: Wake) {
        match wake {
            Wake::Pod(cached) => self.take_pod(cached.object.clone()),
            Wake::Gone => self.memory.gone = true,
            Wake::Mirror(cached) => self.take_mirror(cached.object.clone()),
            Wake::MirrorGone(uid) => self.mirror_gone(&uid),
            Wake::Fail(failure) => {
                let events = &self.shared.events;
                events.pod(&self.pod, client::EventType::Warning, &failure.reason, &failure.message);
                self.memory.failure.get_or_insert(failure);
            }
            Wake::Look => {}
            Wake::Pulled { container, attempt, reference, took, result } => {
                self.pulled(&container, attempt, reference, took, *result)
            }
            Wake::Stopped { id } => drop(self.memory.killing.remove(&id)),
            Wake::PostStarted { id, container, result } => self.post_started(id, &container, result),
            Wake::TornDown(result) => {
                self.memory.tearing_down = false;
                match result {
                    Ok(()) => self.memory.torn_down = true,
                    Err(error) => {
                        tracing::warn!(pod = %self.uid, %error, "cannot release network or volumes");
                        self.retry();
                    }
                }
            }
        }
    }

    /// Keeps the newer of the known and the given pod: the cache may lag behind our own writes.
    fn take_pod(&mut self, pod: core::Pod) {
        if revision(&pod) >= revision(&self.pod) {
            let changed = pod.metadata.labels != self.pod.metadata.labels
                || pod.metadata.annotations != self.pod.metadata.annotations;
            self.accept(pod);
            if changed {
                // Downward API files show labels and annotations.
                self.sources_changed();
            }
        }
    }

    /// Takes a version of the pod; the rest of the worker sees the amounts that the node has promised.
    fn accept(&mut self, mut pod: core::Pod) {
        self.memory.wanted = resize::wanted(&pod);
        if let Some(allocated) = &self.memory.allocated {
            resize::allocate(&mut pod, allocated);
        }
        self.pod = pod;
    }

    fn sources_changed(&mut self) {
        self.memory.renewing = false;
        self.memory.volumes = VolumeState::Unknown;
        // A missing ConfigMap or Secret may be there now.
        self.memory.blocked.retain(|_, blocked| blocked.reason != "CreateContainerConfigError");
    }

    fn take_probe(&mut self, news: ProbeNews) {
        let word = news.kind.as_str();
        if let Some(failure) = &news.failure {
            let mut title = word.to_owned();
            title[..1].make_ascii_uppercase();
            let text = format!("{title} probe failed: {failure}");
            let warning = client::EventType::Warning;
            self.shared.events.container(&self.pod, &news.container, warning, "Unhealthy", &text);
        }
        let Some(verdict) = news.verdict else { return };
        let container = crate::observed::find_container(&self.pod, &news.container).map(|(_, c)| c);
        let outcome = self.memory.probes.entry(news.container_id).or_default();
        match (news.kind, verdict) {
            (ProbeKind::Readiness, ready) => outcome.ready = Some(ready),
            (ProbeKind::Startup, true) => outcome.started = Some(true),
            (ProbeKind::Liveness, true) => outcome.failed = None,
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                let probe = container.as_ref().and_then(|c| news.kind.of(c));
                outcome.failed = Some(crate::observed::ProbeFailure {
                    probe: word.into(),
                    grace_seconds: probe.and_then(|p| p.termination_grace_period_seconds),
                });
            }
        }
    }

    fn pulled(
        &mut self,
        container: &str,
        attempt: u32,
        image: String,
        took: Duration,
        result: Result<ImageInfo, RuntimeError>,
    ) {
        let now = self.shared.clock.now();
        let events = &self.shared.events;
        match result {
            Ok(info) => {
                self.shared.meter.pulled(info.size_bytes, took);
                tracing::info!(image, bytes = info.size_bytes, ?took, "image pulled");
                self.memory.pulls += took;
                let (took, size) = (crate::images::duration_text(took), info.size_bytes);
                let text = format!(
                    "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
                );
                events.container(&self.pod, container, client::EventType::Normal, "Pulled", &text);
                self.memory.blocked.remove(container);
                self.memory.images.insert((container.to_owned(), attempt, image), info);
            }
            Err(error) => {
                let failures = self.memory.blocked.get(container).map_or(0, |b| b.failures);
                let blocked = pull_failed(&image, &error, failures, now);
                let text = format!("Failed to pull image {image:?}: {error}");
                events.container(&self.pod, container, client::EventType::Warning, "Failed", &text);
                let text = format!("Error: {}", blocked.reason);
                events.container(&self.pod, container, client::EventType::Warning, "Failed", &text);
                self.memory.blocked.insert(container.to_owned(), blocked);
            }
        }
    }

    /// Looks and acts until nothing is left to do, then reports. `None`: the worker is done for good;
    /// `Some(when)`: look again then, if nothing happens before.
    async fn reconcile(&mut self) -> Option<Option<Duration>> {
        let begun = self.shared.clock.monotonic();
        let operation = if self.memory.gone || self.pod.metadata.deletion_timestamp.is_some() {
            "kill"
        } else if self.memory.admitted {
            "sync"
        } else {
            "create"
        };
        let next = self.look_and_act().await;
        let took = self.shared.clock.monotonic().saturating_sub(begun);
        self.shared.meter.worked(operation, took);
        next
    }

    async fn look_and_act(&mut self) -> Option<Option<Duration>> {
        for _ in 0..MAX_ROUNDS {
            if let Err(error) = self.observe().await {
                tracing::warn!(pod = %self.uid, %error, "cannot list containers");
                self.retry();
                break;
            }
            self.admit();
            self.renew_credentials();
            let now = self.shared.clock.now();
            let plan = pod_actions(&self.pod, &self.observed(), &self.shared.facts, now);
            let mut progress = false;
            let mut failed = false;
            for action in plan.actions {
                match self.perform(action).await {
                    Flow::Done => progress = true,
                    Flow::Background => {}
                    Flow::Failed => {
                        failed = true;
                        break;
                    }
                    Flow::End => return None,
                }
            }
            if failed || !progress {
                break;
            }
        }
        self.tell_back_offs();
        self.report().await;
        Some(self.requeue())
    }

    /// Reads the runtime's lists and what exited containers left.
    async fn observe(&mut self) -> Result<(), RuntimeError> {
        let snapshot = self.shared.view.snapshot().await?;
        self.record = snapshot.get(&self.uid).cloned().unwrap_or_default();
        let running: BTreeSet<&str> = self
            .record
            .containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
            .map(|c| c.id.as_str())
            .collect();
        self.memory.probes.retain(|id, _| running.contains(id.as_str()));
        self.memory.probers.retain(|(id, _), _| running.contains(id.as_str()));
        self.memory.killing.retain(|id, _| running.contains(id.as_str()));
        self.memory.post_start.retain(|id, _| running.contains(id.as_str()));
        self.read_termination_messages();
        self.start_probes();
        Ok(())
    }

    /// The deciders' input.
    fn observed(&self) -> Observed {
        Observed {
            sandboxes: self.record.sandboxes.clone(),
            containers: self.record.containers.clone(),
            addresses: self.shared.network.addresses(&self.uid),
            volumes: self.memory.volumes.clone(),
            sandbox_blocked: self.memory.sandbox_blocked.clone(),
            blocked: self.memory.blocked.clone(),
            probes: self.memory.probes.clone(),
            post_start: self.memory.post_start.clone(),
            termination_messages: self.memory.termination_messages.clone(),
            killing: self.memory.killing.clone(),
            failure: self.memory.failure.clone(),
            resize_pending: self.memory.resize_pending.clone(),
            resize_error: self.memory.resize_error.clone(),
            gone_from_api: self.memory.gone,
            torn_down: self.memory.torn_down,
        }
    }

    /// Where probes and hooks reach the pod.
    fn pod_ip(&self) -> Option<std::net::IpAddr> {
        if crate::observed::spec(&self.pod).host_network.unwrap_or(false) {
            return self.shared.facts.node_ips.first().copied();
        }
        self.shared.network.addresses(&self.uid).first().copied()
    }

    fn start_probes(&mut self) {
        let terminating = crate::pod_actions::is_terminating(&self.pod, &self.observed());
        let now = self.shared.clock.now();
        let pod_ip = self.pod_ip();
        for status in self.record.containers.iter().filter(|c| c.state == ContainerState::Running) {
            let Some((_, container)) = crate::observed::find_container(&self.pod, &status.name) else {
                continue;
            };
            let started = self.memory.probes.get(&status.id).and_then(|p| p.started) == Some(true);
            if self.memory.post_start.contains_key(&status.id) {
                continue;
            }
            let held_back = container.startup_probe.is_some() && !started;
            for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                let slot = (status.id.clone(), kind);
                let wanted = match kind {
                    ProbeKind::Startup => held_back && !terminating,
                    // Readiness goes on while a pod ends, so that it can leave its services.
                    ProbeKind::Readiness => !held_back,
                    ProbeKind::Liveness => !held_back && !terminating,
                };
                if !wanted || kind.of(&container).is_none() {
                    self.memory.probers.remove(&slot);
                    continue;
                }
                if self.memory.probers.contains_key(&slot) {
                    continue;
                }
                let target = ProbeTarget {
                    container_id: status.id.clone(),
                    container: container.clone(),
                    pod_ip,
                    age: elapsed(from_nanos(status.started_at_nanos), now),
                };
                let (runtime, clock) = (self.shared.runtime.clone(), self.shared.clock.clone());
                let results = self.shared.meter.probes.of(&self.pod, &status.name, kind);
                let news = self.probe_news.0.clone();
                let probe = crate::prober::start(kind, target, runtime, clock, news, results);
                self.memory.probers.insert(slot, probe);
            }
        }
    }

    /// When tokens and certificates in volumes are to be asked for again.
    fn renewals(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        [self.memory.tokens.renew_at(now), self.memory.certificates.renew_at()].into_iter().flatten()
    }

    /// Has volumes made again whose tokens or certificates are due, which asks for new ones.
    fn renew_credentials(&mut self) {
        let now = self.shared.clock.now();
        let due = self.renewals(now).any(|at| at <= now);
        if due && !self.memory.renewing && matches!(self.memory.volumes, VolumeState::Ready) {
            self.memory.renewing = true;
            self.memory.volumes = VolumeState::Unknown;
        }
    }

    /// Remembers that a call failed, for the next look.
    fn retry(&mut self) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.memory.failures.min(10)).min(RETRY_MAX);
        self.memory.failures = self.memory.failures.saturating_add(1);
        self.memory.retry_at = Some(after(self.shared.clock.now(), wait));
    }

    fn requeue(&mut self) -> Option<Duration> {
        let now = self.shared.clock.now();
        let plan = pod_actions(&self.pod, &self.observed(), &self.shared.facts, now);
        let pulls = self.memory.blocked.values().filter(|b| b.reason == "ErrImagePull");
        let flips = pulls.map(|b| after(b.since, PULL_ERROR_SHOWN)).filter(|at| *at > now);
        let retry = self.memory.retry_at.take();
        // What is due and was not to be had is tried again with the volumes.
        let credentials = self.renewals(now).filter(|at| *at > now && !self.memory.torn_down);
        let moments = flips.chain(retry).chain(credentials).map(|at| elapsed(now, at));
        let wait = moments.chain(plan.requeue_after).min()?;
        // Timers may fire a little early: never spin.
        Some(wait.max(Duration::from_millis(1)))
    }

    fn dir(&self) -> std::path::PathBuf {
        pod_dir(&self.shared.config.root_dir, &self.uid)
    }

    fn status(&self, now: Timestamp) -> core::PodStatus {
        pod_status(&self.pod, &self.observed(), &self.shared.facts, now)
    }

    async fn perform(&mut self, action: PodAction) -> Flow {
        match action {
            PodAction::PrepareVolumes => self.prepare_volumes().await,
            PodAction::CreateSandbox { attempt } => self.create_sandbox(attempt).await,
            PodAction::AttachNetwork => self.attach_network().await,
            PodAction::StartContainer { name, attempt, streak, .. } => {
                self.start_container(&name, attempt, streak).await
            }
            PodAction::KillContainer { id, name, grace, message } => self.kill(id, &name, grace, &message),
            PodAction::ResizeContainer { id, name, resources } => {
                self.resize_container(&id, &name, resources).await
            }
            PodAction::ResizeSandbox { id, resources } => self.resize_sandbox(&id, resources).await,
            PodAction::RemoveContainer { id } => self.remove_container(&id).await,
            PodAction::StopSandbox { id } => self.stop_sandbox(&id).await,
            PodAction::RemoveSandbox { id } => self.remove_sandbox(&id).await,
            PodAction::TearDown => self.tear_down(),
            PodAction::DeletePod => self.delete_pod().await,
            PodAction::Forget => self.forget().await,
        }
    }
}

/// Namespace and name.
pub(crate) fn key_of(pod: &core::Pod) -> ObjectKey {
    let meta = &pod.metadata;
    ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

pub(crate) fn pods() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "pods")
}

/// `metadata.resourceVersion` as a number.
fn revision(pod: &core::Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
