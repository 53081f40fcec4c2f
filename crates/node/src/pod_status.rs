//! The status of one pod: a pure function of the pod, what was observed and the time.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::observed::{
    Blocked, ContainerKind, NodeFacts, Observed, VolumeState, elapsed, ephemeral_containers, from_nanos,
    init_containers, is_sidecar, spec,
};
use crate::pod_actions::{
    back_off, deadline_exceeded, ended_with, initialized, is_finished, is_terminating, restarts,
};
use crate::ports::{ContainerState, ContainerStatus};
use crate::resize;
use crate::resources::qos_class;

/// How long a failed pull shows as ErrImagePull before it shows as ImagePullBackOff.
pub const PULL_ERROR_SHOWN: std::time::Duration = std::time::Duration::from_secs(2);

/// Computes the status that the node reports. Conditions of other writers are not in it.
pub fn pod_status(
    pod: &core::Pod,
    observed: &Observed,
    facts: &NodeFacts,
    now: Timestamp,
) -> core::PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let init = container_statuses(pod, init_containers(pod), observed, &old.init_container_statuses, now);
    let mut main = container_statuses(pod, &spec(pod).containers, observed, &old.container_statuses, now);
    // A pod that was rejected has never had containers.
    let rejected = observed.failure.is_some() && observed.sandboxes.is_empty();
    if rejected {
        main.clear();
    }
    let ephemeral = ephemeral_containers(pod);
    let ephemeral = container_statuses(pod, &ephemeral, observed, &old.ephemeral_container_statuses, now);
    let phase = phase(pod, observed, &old, now);
    let conditions = conditions(pod, observed, &main, &init, phase, now);
    let ips = pod_ips(pod, observed, facts, &old);
    // Terminal phases are shown once nothing runs any more, so that nobody takes the pod's place too early.
    let late = phase == "Failed"
        && deadline_exceeded(pod, now)
        && !matches!(old.phase.as_deref(), Some("Failed" | "Succeeded"));
    let failure = observed.failure.as_ref().filter(|_| phase == "Failed");
    core::PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions),
        container_statuses: Some(main).filter(|_| !rejected),
        init_container_statuses: none_if_empty(init),
        ephemeral_container_statuses: none_if_empty(ephemeral),
        host_ip: facts.node_ips.first().map(ToString::to_string),
        host_ips: none_if_empty(
            facts.node_ips.iter().map(|ip| core::HostIP { ip: ip.to_string() }).collect::<Vec<_>>(),
        ),
        pod_ip: ips.first().cloned(),
        pod_ips: none_if_empty(ips.into_iter().map(|ip| core::PodIP { ip }).collect::<Vec<_>>()),
        qos_class: Some(qos_class(spec(pod)).into()),
        start_time: Some(old.start_time.unwrap_or_else(|| seconds(now))),
        reason: match failure {
            Some(failure) => Some(failure.reason.clone()),
            None if late => Some("DeadlineExceeded".into()),
            None => old.reason,
        },
        message: match failure {
            Some(failure) => Some(failure.message.clone()),
            None if late => Some("Pod was active on the node longer than the specified deadline".into()),
            None => old.message,
        },
        observed_generation: pod.metadata.generation,
        ..core::PodStatus::default()
    }
}

fn none_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

/// API times have whole seconds.
fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn time_of(nanos: i64) -> Option<Time> {
    (nanos > 0).then(|| seconds(from_nanos(nanos)))
}

fn pod_ips(pod: &core::Pod, observed: &Observed, facts: &NodeFacts, old: &core::PodStatus) -> Vec<String> {
    if spec(pod).host_network.unwrap_or(false) {
        let up = !observed.sandboxes.is_empty();
        return if up { facts.node_ips.iter().map(ToString::to_string).collect() } else { Vec::new() };
    }
    if observed.addresses.is_empty() && (is_terminating(pod, observed) || is_finished(pod, observed)) {
        // A finished pod keeps showing the address it had.
        return old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect();
    }
    observed.addresses.iter().map(ToString::to_string).collect()
}

fn phase(pod: &core::Pod, observed: &Observed, old: &core::PodStatus, now: Timestamp) -> &'static str {
    match old.phase.as_deref() {
        Some("Failed") => return "Failed",
        Some("Succeeded") => return "Succeeded",
        _ => {}
    }
    let main = &spec(pod).containers;
    let latest: Vec<Option<&ContainerStatus>> = main.iter().map(|c| observed.latest(&c.name)).collect();
    let running = observed.running().next().is_some();
    if (deadline_exceeded(pod, now) || observed.failure.is_some()) && !running {
        return "Failed";
    }
    if is_finished(pod, observed)
        || (is_terminating(pod, observed) && !running && latest.iter().any(Option::is_some))
    {
        // While sidecars are still being stopped the pod is not over yet.
        if running {
            return "Running";
        }
        let passed = |c: &core::Container| match observed.latest(&c.name) {
            Some(status) => status.exit_code == 0,
            None => ended_with(pod, c, observed) == Some(0),
        };
        let all_passed = main.iter().all(passed);
        return if all_passed { "Succeeded" } else { "Failed" };
    }
    if latest.iter().any(|s| s.is_some_and(|s| s.state != ContainerState::Created)) {
        let all_begun = latest.iter().all(|s| s.is_some_and(|s| s.state != ContainerState::Created));
        let was_running = old.phase.as_deref() == Some("Running");
        return if all_begun || was_running { "Running" } else { "Pending" };
    }
    if is_terminating(pod, observed) && !running && observed.torn_down {
        return "Failed";
    }
    if old.phase.as_deref() == Some("Running") { "Running" } else { "Pending" }
}

fn container_statuses(
    pod: &core::Pod,
    containers: &[core::Container],
    observed: &Observed,
    old: &Option<Vec<core::ContainerStatus>>,
    now: Timestamp,
) -> Vec<core::ContainerStatus> {
    let before = |name: &str| old.iter().flatten().find(|s| s.name == name);
    containers.iter().map(|c| container_status(pod, c, observed, before(&c.name), now)).collect()
}

fn container_status(
    pod: &core::Pod,
    container: &core::Container,
    observed: &Observed,
    old: Option<&core::ContainerStatus>,
    now: Timestamp,
) -> core::ContainerStatus {
    let kind = crate::observed::find_container(pod, &container.name).map_or(ContainerKind::Main, |(k, _)| k);
    let latest = observed.latest(&container.name);
    let image = container.image.clone().unwrap_or_default();
    let Some(status) = latest else {
        return never_started(pod, container, kind, observed, old, now);
    };
    let blocked = observed.blocked.get(&container.name);
    let dead = status.state == ContainerState::Exited;
    let over = is_terminating(pod, observed) || is_finished(pod, observed);
    let again = dead && !over && restarts(pod, container, kind, status.exit_code);
    let waiting = match status.state {
        ContainerState::Created => Some(
            blocked.map_or_else(|| waiting("ContainerCreating", ""), |b| blocked_state(container, b, now)),
        ),
        ContainerState::Exited if again => match blocked {
            Some(b) => Some(blocked_state(container, b, now)),
            None => crash_loop(pod, container, status, now),
        },
        _ => None,
    };
    let previous = observed.previous(&container.name);
    let kept = old.and_then(|o| o.last_state.clone()).filter(|s| s.terminated.is_some());
    let (state, last_state) = match waiting {
        Some(state) if dead => (state, Some(terminated(status, observed))),
        Some(state) => (state, previous.map(|p| terminated(p, observed)).or(kept)),
        None if dead => (terminated(status, observed), previous.map(|p| terminated(p, observed)).or(kept)),
        None => (running(status), previous.map(|p| terminated(p, observed)).or(kept)),
    };
    core::ContainerStatus {
        name: container.name.clone(),
        image,
        image_id: status.image_id.clone(),
        container_id: Some(format!("podium://{}", status.id)),
        restart_count: i32::try_from(status.attempt).unwrap_or(i32::MAX),
        ready: match kind {
            ContainerKind::Init => dead && status.exit_code == 0,
            _ => observed.is_ready(container, status),
        },
        started: Some(match kind {
            ContainerKind::Init => status.state == ContainerState::Running,
            _ => observed.is_started(container, status),
        }),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
        resources: Some(given(pod, container, status, old)),
        volume_mounts: none_if_empty(container.volume_mounts.iter().flatten().map(mounted).collect()),
        ..core::ContainerStatus::default()
    }
}

/// How a volume is mounted: what is mounted for reading is so with all that is mounted below it (KEP-3857).
fn mounted(mount: &core::VolumeMount) -> core::VolumeMountStatus {
    core::VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Enabled".into()),
        ..core::VolumeMountStatus::default()
    }
}

/// The amounts a container runs with: what it is allocated, once its control group shows it.
fn given(
    pod: &core::Pod,
    container: &core::Container,
    status: &ContainerStatus,
    old: Option<&core::ContainerStatus>,
) -> core::ResourceRequirements {
    let allocated = container.resources.clone().unwrap_or_default();
    if !resize::differs(pod, container, status) {
        return allocated;
    }
    old.and_then(|o| o.resources.clone()).unwrap_or(allocated)
}

fn never_started(
    pod: &core::Pod,
    container: &core::Container,
    kind: ContainerKind,
    observed: &Observed,
    old: Option<&core::ContainerStatus>,
    now: Timestamp,
) -> core::ContainerStatus {
    // The runtime may have forgotten a container that the API remembers (a reboot, a pod being deleted).
    if let Some(old) = old.filter(|o| o.container_id.as_deref().is_some_and(|id| !id.is_empty())) {
        return forgotten(pod, container, observed, old, now);
    }
    let state = match observed.blocked.get(&container.name) {
        Some(blocked) => blocked_state(container, blocked, now),
        None if kind == ContainerKind::Main
            && !init_containers(pod).is_empty()
            && !initialized(pod, observed) =>
        {
            waiting("PodInitializing", "")
        }
        None if kind != ContainerKind::Main && observed.ready_sandbox().is_some() => {
            waiting("PodInitializing", "")
        }
        None => waiting("ContainerCreating", ""),
    };
    core::ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        state: Some(state),
        last_state: Some(core::ContainerState::default()),
        ..core::ContainerStatus::default()
    }
}

fn forgotten(
    pod: &core::Pod,
    container: &core::Container,
    observed: &Observed,
    old: &core::ContainerStatus,
    now: Timestamp,
) -> core::ContainerStatus {
    let mut status = old.clone();
    status.ready = false;
    status.started = Some(false);
    if status.state.as_ref().is_some_and(|s| s.running.is_some()) {
        let started_at =
            status.state.as_ref().and_then(|s| s.running.as_ref()).and_then(|r| r.started_at.clone());
        // Nobody saw the exit: say so, never claim success.
        let lost = core::ContainerState {
            terminated: Some(core::ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                container_id: status.container_id.clone(),
                started_at,
                finished_at: Some(seconds(now)),
                ..core::ContainerStateTerminated::default()
            }),
            ..core::ContainerState::default()
        };
        let over = ended_with(pod, container, observed).is_some();
        if over || is_terminating(pod, observed) || is_finished(pod, observed) {
            status.state = Some(lost);
        } else {
            let blocked = observed.blocked.get(&container.name);
            status.state = Some(
                blocked
                    .map_or_else(|| waiting("ContainerCreating", ""), |b| blocked_state(container, b, now)),
            );
            status.last_state = Some(lost);
        }
    }
    status
}

fn waiting(reason: &str, message: &str) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(core::ContainerStateWaiting {
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.into()),
        }),
        ..core::ContainerState::default()
    }
}

/// Waiting reasons of a blocked container; a failed pull turns into its back-off after a moment.
fn blocked_state(container: &core::Container, blocked: &Blocked, now: Timestamp) -> core::ContainerState {
    if blocked.reason == "ErrImagePull" && elapsed(blocked.since, now) >= PULL_ERROR_SHOWN {
        let image = container.image.as_deref().unwrap_or_default();
        let text = format!("Back-off pulling image {image:?}: ErrImagePull: {}", blocked.message);
        return waiting("ImagePullBackOff", &text);
    }
    waiting(&blocked.reason, &blocked.message)
}

fn crash_loop(
    pod: &core::Pod,
    container: &core::Container,
    status: &ContainerStatus,
    now: Timestamp,
) -> Option<core::ContainerState> {
    let (at, _) = back_off(status);
    if at <= now {
        return None;
    }
    let delay = elapsed(from_nanos(status.finished_at_nanos), at);
    let text = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(delay.as_secs()),
        container.name,
        pod.metadata.name.as_deref().unwrap_or_default(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.uid.as_deref().unwrap_or_default(),
    );
    Some(waiting("CrashLoopBackOff", &text))
}

/// `10s`, `1m20s`, `5m0s`: durations as Go prints them.
pub fn go_duration(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn running(status: &ContainerStatus) -> core::ContainerState {
    core::ContainerState {
        running: Some(core::ContainerStateRunning { started_at: time_of(status.started_at_nanos) }),
        ..core::ContainerState::default()
    }
}

fn terminated(status: &ContainerStatus, observed: &Observed) -> core::ContainerState {
    let fallback = if status.exit_code == 0 { "Completed" } else { "Error" };
    let reason = if status.reason.is_empty() { fallback } else { &status.reason };
    let left = observed.termination_messages.get(&status.id).filter(|m| !m.is_empty());
    let message = left.unwrap_or(&status.message);
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            exit_code: status.exit_code,
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.clone()),
            started_at: time_of(status.started_at_nanos),
            finished_at: time_of(status.finished_at_nanos),
            container_id: Some(format!("podium://{}", status.id)),
            ..core::ContainerStateTerminated::default()
        }),
        ..core::ContainerState::default()
    }
}

/// The five conditions that a node owns; the transition time stays while the status does.
fn conditions(
    pod: &core::Pod,
    observed: &Observed,
    main: &[core::ContainerStatus],
    init: &[core::ContainerStatus],
    phase: &str,
    now: Timestamp,
) -> Vec<core::PodCondition> {
    let over = matches!(phase, "Succeeded" | "Failed");
    let sandbox = observed.ready_sandbox().is_some()
        && (!observed.addresses.is_empty() || spec(pod).host_network.unwrap_or(false));
    let initialized_condition = if phase == "Succeeded" {
        (true, "PodCompleted", String::new())
    } else if initialized(pod, observed) || (over && init.iter().all(|s| s.ready)) {
        (true, "", String::new())
    } else {
        let incomplete = names(init.iter().filter(|s| !s.ready));
        (false, "ContainersNotInitialized", format!("containers with incomplete status: [{incomplete}]"))
    };
    let sidecars =
        init.iter().filter(|s| init_containers(pod).iter().any(|c| c.name == s.name && is_sidecar(c)));
    let unready = names(sidecars.chain(main).filter(|s| !s.ready));
    let containers_ready = match phase {
        "Succeeded" => (false, "PodCompleted", String::new()),
        "Failed" => (false, "PodFailed", String::new()),
        _ if unready.is_empty() => (true, "", String::new()),
        _ => (false, "ContainersNotReady", format!("containers with unready status: [{unready}]")),
    };
    let ready = if containers_ready.0 { gates(pod) } else { containers_ready.clone() };
    let volumes_ready = observed.volumes == VolumeState::Ready;
    let list = [
        ("PodReadyToStartContainers", (sandbox && (volumes_ready || !main.is_empty()), "", String::new())),
        ("Initialized", initialized_condition),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, "", String::new())),
    ];
    let standing = list.into_iter().map(|(name, state)| condition(pod, name, state, now));
    let passing = passing_conditions(pod, observed);
    standing.chain(passing.into_iter().map(|(name, state)| condition(pod, name, state, now))).collect()
}

/// Conditions that are there only while they are true.
pub const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn passing_conditions<'a>(
    pod: &core::Pod,
    observed: &'a Observed,
) -> Vec<(&'static str, (bool, &'a str, String))> {
    let mut list = Vec::new();
    if let Some((reason, message)) = &observed.resize_pending {
        list.push((PASSING[0], (true, reason.as_str(), message.clone())));
    }
    if resize::in_progress(pod, observed) {
        let error = observed.resize_error.as_ref();
        list.push((PASSING[1], (true, error.map_or("", |_| "Error"), error.cloned().unwrap_or_default())));
    }
    if let Some(failure) = observed.failure.as_ref().filter(|failure| failure.disruption) {
        list.push(("DisruptionTarget", (true, "TerminationByKubelet", failure.message.clone())));
    }
    list
}

fn names<'a>(statuses: impl Iterator<Item = &'a core::ContainerStatus>) -> String {
    statuses.map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Readiness gates (KEP-580): conditions written by others that must be true.
fn gates(pod: &core::Pod) -> (bool, &'static str, String) {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    for gate in spec(pod).readiness_gates.iter().flatten() {
        match conditions.iter().find(|c| c.type_ == gate.condition_type) {
            Some(c) if c.status == "True" => {}
            found => {
                let state = if found.is_some() { "is not \"True\"" } else { "does not exist" };
                let gate = &gate.condition_type;
                let text = match found {
                    Some(c) => format!("the status of pod readiness gate {gate:?} {state}, but {}", c.status),
                    None => format!("corresponding condition of pod readiness gate {gate:?} {state}."),
                };
                return (false, "ReadinessGatesNotReady", text);
            }
        }
    }
    (true, "", String::new())
}

fn condition(pod: &core::Pod, name: &str, state: (bool, &str, String), now: Timestamp) -> core::PodCondition {
    let (met, reason, message) = state;
    let status = if met { "True" } else { "False" };
    let old = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == name);
    let unchanged = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    core::PodCondition {
        type_: name.into(),
        status: status.into(),
        reason: (!reason.is_empty()).then(|| reason.into()),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: Some(unchanged.unwrap_or_else(|| seconds(now))),
        observed_generation: pod.metadata.generation,
        ..core::PodCondition::default()
    }
}

#[cfg(test)]
mod tests;
