//! What to do next for one pod: a pure function of the pod, what was observed and the time.
//!
//! ```text
//!   terminating? ── kill running (grace) ── stop sandbox ── tear down ── final status ── delete from the API
//!   finished?    ── stop sandbox, release volumes; containers stay for their logs
//!   else         ── volumes → sandbox + network → init containers in order → main containers
//! ```

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use crate::hooks::PostStart;
use crate::observed::{
    ContainerKind, IMAGE_LABEL, NodeFacts, Observed, STREAK_LABEL, VolumeState, after, elapsed,
    ephemeral_containers, from_nanos, init_containers, is_sidecar, spec,
};
use crate::ports::{ContainerState, ContainerStatus, Resources};
use crate::resize;
use crate::resources::container_resources;

/// First crash back-off; it doubles with every quick restart.
pub const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
/// Longest crash back-off.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long starts the back-off over.
pub const BACK_OFF_RESET: Duration = Duration::from_secs(600);
/// Dead attempts kept per container, for `logs --previous` and `lastState`.
const KEEP_DEAD: usize = 1;

/// One step for the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAction {
    /// Make the folders, files and mounts of the pod's volumes.
    PrepareVolumes,
    /// Make a sandbox and attach it to the network.
    CreateSandbox {
        attempt: u32,
    },
    /// The sandbox runs but has no address (the agent stopped in between).
    AttachNetwork,
    /// Create and start a container in the sandbox.
    StartContainer {
        name: String,
        kind: ContainerKind,
        attempt: u32,
        streak: u32,
    },
    /// Stop a running container; `message` is the Killing event's.
    KillContainer {
        id: String,
        name: String,
        grace: Duration,
        message: String,
    },
    /// Change the limits of what runs.
    ResizeContainer {
        id: String,
        name: String,
        resources: Resources,
    },
    ResizeSandbox {
        id: String,
        resources: Resources,
    },
    RemoveContainer {
        id: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Release network and volumes.
    TearDown,
    /// Nothing is left: write the final status and delete the pod from the API.
    DeletePod,
    /// Nothing is left and the API has no such pod: the worker ends.
    Forget,
}

/// Ordered steps, and when to look again if nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlan {
    pub actions: Vec<PodAction>,
    pub requeue_after: Option<Duration>,
}

impl PodPlan {
    fn requeue_at(&mut self, at: Timestamp, now: Timestamp) {
        let wait = elapsed(now, at);
        self.requeue_after = Some(self.requeue_after.map_or(wait, |other| other.min(wait)));
    }
}

/// Decides the next steps of a pod.
pub fn pod_actions(pod: &core::Pod, observed: &Observed, _facts: &NodeFacts, now: Timestamp) -> PodPlan {
    let mut plan = PodPlan::default();
    if is_terminating(pod, observed) {
        terminate(pod, observed, now, &mut plan);
    } else if is_finished(pod, observed) || deadline_exceeded(pod, now) {
        wind_down(pod, observed, now, &mut plan);
    } else {
        run(pod, observed, now, &mut plan);
    }
    plan
}

/// Whether the pod is on its way out.
pub fn is_terminating(pod: &core::Pod, observed: &Observed) -> bool {
    observed.gone_from_api || pod.metadata.deletion_timestamp.is_some()
}

/// Whether every container has ended for good, or somebody declared the pod failed.
pub fn is_finished(pod: &core::Pod, observed: &Observed) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) || observed.failure.is_some() {
        return true;
    }
    let failed_init = init_containers(pod).iter().any(|c| {
        let latest = observed.latest(&c.name);
        !is_sidecar(c)
            && latest.is_some_and(|s| s.state == ContainerState::Exited && s.exit_code != 0)
            && !restarts(pod, c, ContainerKind::Init, latest.map_or(0, |s| s.exit_code))
    });
    let mut main = spec(pod).containers.iter();
    failed_init || main.all(|c| ended_with(pod, c, observed).is_some())
}

/// Exit code of a main container that has ended for good, also when only the API remembers it.
pub fn ended_with(pod: &core::Pod, container: &core::Container, observed: &Observed) -> Option<i32> {
    let code = match observed.latest(&container.name) {
        Some(status) => (status.state == ContainerState::Exited).then_some(status.exit_code),
        None => lost_exit_code(pod, &container.name),
    };
    code.filter(|code| !restarts(pod, container, ContainerKind::Main, *code))
}

/// Exit code of a container that the API remembers and the runtime has lost (a reboot): the recorded one,
/// else 137, because nobody saw it.
fn lost_exit_code(pod: &core::Pod, name: &str) -> Option<i32> {
    let state = recorded(pod, name)?.state.as_ref();
    Some(state.and_then(|s| s.terminated.as_ref()).map_or(137, |t| t.exit_code))
}

/// When `activeDeadlineSeconds` ends, if the pod has one and has started.
pub fn deadline(pod: &core::Pod) -> Option<Timestamp> {
    let seconds = u64::try_from(spec(pod).active_deadline_seconds?).ok()?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    Some(after(start, Duration::from_secs(seconds)))
}

/// Whether `activeDeadlineSeconds` is over.
pub fn deadline_exceeded(pod: &core::Pod, now: Timestamp) -> bool {
    deadline(pod).is_some_and(|at| at <= now)
}

/// Whether the restart policy starts a container again after this exit code. Container-level policies and
/// rules (KEP-5307) come before the pod's.
pub fn restarts(pod: &core::Pod, container: &core::Container, kind: ContainerKind, exit_code: i32) -> bool {
    if kind == ContainerKind::Ephemeral {
        return false;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        if rule.action == "Restart" && listed == (codes.operator == "In") {
            return true;
        }
    }
    let policy = container.restart_policy.as_deref().or(spec(pod).restart_policy.as_deref());
    match policy.unwrap_or("Always") {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => kind != ContainerKind::Init || exit_code != 0,
    }
}

/// Crash back-off of an exited container: when it may be started again, and the streak of the next attempt.
pub fn back_off(status: &ContainerStatus) -> (Timestamp, u32) {
    let streak: u32 = status.labels.get(STREAK_LABEL).and_then(|s| s.parse().ok()).unwrap_or(0);
    let finished = from_nanos(status.finished_at_nanos);
    let ran = elapsed(from_nanos(status.started_at_nanos.max(status.created_at_nanos)), finished);
    if streak == 0 || ran >= BACK_OFF_RESET {
        return (finished, 1);
    }
    (after(finished, doubled(streak - 1)), streak.saturating_add(1))
}

/// 10 s, 20 s, 40 s … 5 min.
pub fn doubled(times: u32) -> Duration {
    BACK_OFF_FIRST.saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX)).min(BACK_OFF_MAX)
}

/// Seconds a pod has to stop: the deletion's when there is one, else the spec's.
pub fn grace_seconds(pod: &core::Pod) -> i64 {
    let deletion = pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    deletion.or(spec(pod).termination_grace_period_seconds).unwrap_or(30).max(0)
}

fn terminate(pod: &core::Pod, observed: &Observed, now: Timestamp, plan: &mut PodPlan) {
    let grace = remaining_grace(pod, observed, now);
    if kill_all(pod, observed, grace, now, plan) {
        return;
    }
    if stop_sandboxes(observed, plan) {
        return;
    }
    if !observed.torn_down {
        plan.actions.push(PodAction::TearDown);
        return;
    }
    if !observed.gone_from_api {
        plan.actions.push(PodAction::DeletePod);
        return;
    }
    let sandboxes = observed.sandboxes.iter();
    plan.actions.extend(sandboxes.map(|s| PodAction::RemoveSandbox { id: s.id.clone() }));
    plan.actions.push(PodAction::Forget);
}

/// A pod that was removed by force gets what its spec says, or 30 s; else the time until the API's deadline.
fn remaining_grace(pod: &core::Pod, observed: &Observed, now: Timestamp) -> Duration {
    let whole = Duration::from_secs(u64::try_from(grace_seconds(pod)).unwrap_or(0));
    match &pod.metadata.deletion_timestamp {
        // A forced deletion has no grace left.
        Some(_) if pod.metadata.deletion_grace_period_seconds == Some(0) => Duration::ZERO,
        // deletionTimestamp is the moment of the request plus the grace period, rounded down to a second.
        Some(deadline) => whole.min(elapsed(now, deadline.0) + Duration::from_secs(1)),
        None if observed.gone_from_api => whole.min(Duration::from_secs(30)),
        None => whole,
    }
}

/// Emits kills for what runs: main containers first, then sidecars in reverse order. True while any runs.
fn kill_all(
    pod: &core::Pod,
    observed: &Observed,
    grace: Duration,
    now: Timestamp,
    plan: &mut PodPlan,
) -> bool {
    let sidecars: Vec<&str> =
        init_containers(pod).iter().filter(|c| is_sidecar(c)).map(|c| c.name.as_str()).collect();
    let mut running: Vec<&ContainerStatus> = observed.running().collect();
    if running.is_empty() {
        return false;
    }
    running.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
    let (side, main): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|c| sidecars.contains(&c.name.as_str()));
    let last_sidecar = || side.iter().max_by_key(|c| sidecars.iter().position(|n| *n == c.name)).copied();
    let batch: Vec<&ContainerStatus> =
        if main.is_empty() { last_sidecar().into_iter().collect() } else { main };
    for status in batch {
        kill(status, grace, format!("Stopping container {}", status.name), observed, now, plan);
    }
    true
}

/// Emits one kill, unless one with as early a deadline is under way.
fn kill(
    status: &ContainerStatus,
    grace: Duration,
    message: String,
    observed: &Observed,
    now: Timestamp,
    plan: &mut PodPlan,
) {
    let due = after(now, grace);
    let soon_enough = |at: &Timestamp| *at <= after(due, Duration::from_secs(1));
    if observed.killing.get(&status.id).is_some_and(soon_enough) {
        return;
    }
    plan.actions.push(PodAction::KillContainer {
        id: status.id.clone(),
        name: status.name.clone(),
        grace,
        message,
    });
}

fn stop_sandboxes(observed: &Observed, plan: &mut PodPlan) -> bool {
    let ready = observed.sandboxes.iter().filter(|s| s.ready);
    let before = plan.actions.len();
    plan.actions.extend(ready.map(|s| PodAction::StopSandbox { id: s.id.clone() }));
    plan.actions.len() > before
}

/// A finished pod gives back everything but its logs.
fn wind_down(pod: &core::Pod, observed: &Observed, now: Timestamp, plan: &mut PodPlan) {
    let seconds =
        observed.failure.as_ref().and_then(|f| f.grace_seconds).unwrap_or_else(|| grace_seconds(pod));
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if kill_all(pod, observed, grace, now, plan) || stop_sandboxes(observed, plan) {
        return;
    }
    if !observed.torn_down {
        plan.actions.push(PodAction::TearDown);
    }
}

fn run(pod: &core::Pod, observed: &Observed, now: Timestamp, plan: &mut PodPlan) {
    if let Some(at) = deadline(pod) {
        plan.requeue_at(at, now);
    }
    match &observed.volumes {
        VolumeState::Ready => {}
        VolumeState::Unknown => plan.actions.push(PodAction::PrepareVolumes),
        VolumeState::Failed(blocked) => match blocked.retry_at {
            Some(at) if at > now => return plan.requeue_at(at, now),
            _ => plan.actions.push(PodAction::PrepareVolumes),
        },
    }
    if observed.ready_sandbox().is_none() {
        if let Some(at) = observed.sandbox_blocked.as_ref().and_then(|b| b.retry_at).filter(|at| *at > now) {
            plan.actions.clear();
            return plan.requeue_at(at, now);
        }
        let attempt = observed.sandboxes.first().map_or(0, |s| s.attempt + 1);
        let dead = observed.sandboxes.iter().filter(|s| s.ready);
        plan.actions.extend(dead.map(|s| PodAction::StopSandbox { id: s.id.clone() }));
        plan.actions.push(PodAction::CreateSandbox { attempt });
    } else if observed.addresses.is_empty() && !spec(pod).host_network.unwrap_or(false) {
        if let Some(at) = observed.sandbox_blocked.as_ref().and_then(|b| b.retry_at).filter(|at| *at > now) {
            plan.actions.clear();
            return plan.requeue_at(at, now);
        }
        plan.actions.push(PodAction::AttachNetwork);
    }
    plan.actions.extend(resize::actions(pod, observed));
    run_containers(pod, observed, now, plan);
    collect_dead(pod, observed, plan);
}

/// Init containers one after the other, sidecars kept alive on the way; main containers once all have passed.
fn run_containers(pod: &core::Pod, observed: &Observed, now: Timestamp, plan: &mut PodPlan) {
    let initialized = initialized(pod, observed);
    for container in init_containers(pod) {
        if is_sidecar(container) {
            step(pod, container, ContainerKind::Sidecar, observed, now, plan);
            let started = observed.latest(&container.name).is_some_and(|s| observed.is_started(container, s));
            if !started && !initialized {
                return;
            }
            continue;
        }
        if initialized || passed(container, observed) {
            continue;
        }
        return step(pod, container, ContainerKind::Init, observed, now, plan);
    }
    for container in &spec(pod).containers {
        step(pod, container, ContainerKind::Main, observed, now, plan);
    }
    for container in ephemeral_containers(pod) {
        step(pod, &container, ContainerKind::Ephemeral, observed, now, plan);
    }
}

fn passed(container: &core::Container, observed: &Observed) -> bool {
    let latest = current(observed, &container.name);
    latest.is_some_and(|s| s.state == ContainerState::Exited && s.exit_code == 0)
}

/// The latest attempt within the newest sandbox. A new sandbox (after a reboot) runs init containers again.
fn current<'a>(observed: &'a Observed, name: &str) -> Option<&'a ContainerStatus> {
    let sandbox = &observed.sandboxes.first()?.id;
    observed.latest(name).filter(|status| status.sandbox_id == *sandbox)
}

/// Whether initialisation is over: a main container exists in the newest sandbox, or all init containers passed.
pub fn initialized(pod: &core::Pod, observed: &Observed) -> bool {
    let mut main = spec(pod).containers.iter();
    if main.any(|c| current(observed, &c.name).is_some()) {
        return true;
    }
    init_containers(pod).iter().all(|c| {
        if is_sidecar(c) {
            current(observed, &c.name).is_some_and(|s| observed.is_started(c, s))
        } else {
            passed(c, observed)
        }
    })
}

/// Starts, restarts or kills one container.
fn step(
    pod: &core::Pod,
    container: &core::Container,
    kind: ContainerKind,
    observed: &Observed,
    now: Timestamp,
    plan: &mut PodPlan,
) {
    let latest = observed.latest(&container.name);
    let start = |attempt: u32, streak: u32| PodAction::StartContainer {
        name: container.name.clone(),
        kind,
        attempt,
        streak,
    };
    let action = match latest {
        None if kind == ContainerKind::Main && ended_with(pod, container, observed).is_some() => return,
        None => start(recorded_attempt(pod, &container.name), 0),
        Some(status) => match status.state {
            ContainerState::Running => return keep(pod, container, status, observed, now, plan),
            // Created but never started: the agent stopped in between.
            ContainerState::Created => {
                plan.actions.push(PodAction::RemoveContainer { id: status.id.clone() });
                let streak = status.labels.get(STREAK_LABEL).and_then(|s| s.parse().ok()).unwrap_or(0);
                start(status.attempt, streak)
            }
            ContainerState::Exited => {
                let same_sandbox = current(observed, &container.name).is_some();
                if kind == ContainerKind::Ephemeral
                    || (same_sandbox && kind == ContainerKind::Init && status.exit_code == 0)
                {
                    return;
                }
                let lost = !same_sandbox && kind == ContainerKind::Init;
                if !lost && !restarts(pod, container, kind, status.exit_code) {
                    return;
                }
                let (at, streak) = back_off(status);
                if at > now {
                    return plan.requeue_at(at, now);
                }
                start(status.attempt + 1, streak)
            }
        },
    };
    match observed.blocked.get(&container.name) {
        Some(blocked) => match blocked.retry_at {
            Some(at) if at > now => plan.requeue_at(at, now),
            Some(_) => plan.actions.push(action),
            None => {}
        },
        None => plan.actions.push(action),
    }
}

/// First attempt number: 0, or after the one that the API remembers and the runtime has lost.
fn recorded_attempt(pod: &core::Pod, name: &str) -> u32 {
    recorded(pod, name).map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
}

/// The API's status of a container that ran at some time.
fn recorded<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a core::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|s| s.name == name);
    // One that was only made when the agent stopped has neither ended nor used up an attempt.
    let ran = |state: &core::ContainerState| state.running.is_some() || state.terminated.is_some();
    found.filter(|s| {
        let made = s.container_id.as_deref().is_some_and(|id| !id.is_empty());
        made && [&s.state, &s.last_state].into_iter().flatten().any(ran)
    })
}

fn keep(
    pod: &core::Pod,
    container: &core::Container,
    status: &ContainerStatus,
    observed: &Observed,
    now: Timestamp,
    plan: &mut PodPlan,
) {
    let grace = Duration::from_secs(u64::try_from(grace_seconds(pod)).unwrap_or(0));
    let made_from = status.labels.get(IMAGE_LABEL);
    if made_from.is_some() && made_from != container.image.as_ref() {
        let message = format!("Container {} definition changed, will be restarted", container.name);
        return kill(status, grace, message, observed, now, plan);
    }
    if resize::differs(pod, container, status) {
        let target = container_resources(container, spec(pod), 1);
        if resize::restarts(container, &status.resources, &target) {
            let message = format!("Container {} resize requires restart", container.name);
            return kill(status, grace, message, observed, now, plan);
        }
    }
    if observed.post_start.get(&status.id) == Some(&PostStart::Failed) {
        return kill(status, grace, "FailedPostStartHook".into(), observed, now, plan);
    }
    let Some(failure) = observed.probes.get(&status.id).and_then(|p| p.failed.as_ref()) else { return };
    let seconds = failure.grace_seconds.unwrap_or_else(|| grace_seconds(pod)).max(0);
    let message = format!("Container {} failed {} probe, will be restarted", container.name, failure.probe);
    kill(status, Duration::from_secs(u64::try_from(seconds).unwrap_or(0)), message, observed, now, plan);
}

/// Removes dead attempts beyond the last few, and sandboxes replaced by a newer one that hold none.
fn collect_dead(pod: &core::Pod, observed: &Observed, plan: &mut PodPlan) {
    let mut names: Vec<&str> = observed.containers.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let mut dead: Vec<&ContainerStatus> = observed
            .containers
            .iter()
            .filter(|c| c.name == name && c.state == ContainerState::Exited)
            .collect();
        dead.sort_by_key(|c| std::cmp::Reverse(c.attempt));
        let keep = if crate::observed::find_container(pod, name).is_some() { KEEP_DEAD } else { 0 };
        let surplus = dead.into_iter().skip(keep);
        plan.actions.extend(surplus.map(|c| PodAction::RemoveContainer { id: c.id.clone() }));
    }
    for sandbox in observed.sandboxes.iter().skip(1) {
        let used = observed.containers.iter().any(|c| c.sandbox_id == sandbox.id);
        if !used && !sandbox.ready {
            plan.actions.push(PodAction::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
