//! What kubectl shows of a pod: READY, STATUS, RESTARTS.

use api::Object;
use jiff::Timestamp;
use serde_json::Value;

use super::cells::{self, list, sub};

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// RFC 3339; these sort as text because Kubernetes writes them in UTC to the second
    last_restart: String,
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: String,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        let finished =
            status.pointer("/lastState/terminated/finishedAt").and_then(Value::as_str).unwrap_or("");
        if finished > self.last.as_str() {
            self.last = finished.to_owned();
        }
    }
}

fn state<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status.get("state").and_then(|s| s.get(name)).filter(|s| s.is_object())
}

fn flag(status: &Value, name: &str) -> bool {
    status.get(name).and_then(Value::as_bool) == Some(true)
}

/// `Error`, or `Signal:9`, or `ExitCode:1` when no reason is given.
fn termination(terminated: &Value) -> String {
    let number = |name: &str| terminated.get(name).and_then(Value::as_i64).unwrap_or(0);
    match (sub(terminated, "reason"), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The reason an init container holds the pod back with; `None` when it is through (or a started sidecar).
fn init_reason(status: &Value, index: usize, total: usize, sidecar: bool) -> Option<String> {
    if let Some(terminated) = state(status, "terminated") {
        if terminated.get("exitCode").and_then(Value::as_i64).unwrap_or(0) == 0 {
            return None;
        }
        if !(sidecar && flag(status, "started")) {
            return Some(format!("Init:{}", termination(terminated)));
        }
    }
    if sidecar && flag(status, "started") {
        return None;
    }
    match state(status, "waiting").map(|w| sub(w, "reason")) {
        Some(reason) if !reason.is_empty() && reason != "PodInitializing" => Some(format!("Init:{reason}")),
        _ => Some(format!("Init:{index}/{total}")),
    }
}

fn initial_reason(pod: &Object) -> String {
    let phase = pod.str(&["status", "phase"]);
    let reason = pod.str(&["status", "reason"]);
    let gated = list(pod, &["status", "conditions"])
        .iter()
        .any(|c| sub(c, "type") == "PodScheduled" && sub(c, "reason") == "SchedulingGated");
    match (gated, reason) {
        (true, _) => "SchedulingGated".to_owned(),
        (false, "") => phase.to_owned(),
        (false, reason) => reason.to_owned(),
    }
}

fn summary(pod: &Object) -> Summary {
    let inits = list(pod, &["spec", "initContainers"]);
    let is_sidecar =
        |name: &str| inits.iter().any(|c| sub(c, "name") == name && sub(c, "restartPolicy") == "Always");
    let mut reason = initial_reason(pod);
    let (mut all, mut sidecars, mut ready) = (Restarts::default(), Restarts::default(), 0);
    let mut initializing = false;
    for (index, status) in list(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        let sidecar = is_sidecar(sub(status, "name"));
        all.add(status);
        if sidecar {
            sidecars.add(status);
        }
        if let Some(held) = init_reason(status, index, inits.len(), sidecar) {
            reason = held;
            initializing = true;
            break;
        }
        if sidecar && flag(status, "ready") && state(status, "terminated").is_none() {
            ready += 1;
        }
    }
    if !initializing || cells::condition(pod, "Initialized") == "True" {
        all = sidecars;
        ready += main_containers(pod, &mut reason, &mut all);
    }
    let terminal = matches!(pod.str(&["status", "phase"]), "Succeeded" | "Failed");
    if pod.is_deleting() && pod.str(&["status", "reason"]) == "NodeLost" {
        reason = "Unknown".to_owned();
    } else if pod.is_deleting() && !terminal {
        reason = "Terminating".to_owned();
    }
    let sidecar_count = inits.iter().filter(|c| sub(c, "restartPolicy") == "Always").count();
    let total = list(pod, &["spec", "containers"]).len() + sidecar_count;
    Summary { ready, total, reason, restarts: all.count, last_restart: all.last }
}

/// Goes through the main containers, last first, so that the first one's reason wins. Returns how many are ready.
fn main_containers(pod: &Object, reason: &mut String, restarts: &mut Restarts) -> usize {
    let mut ready = 0;
    for status in list(pod, &["status", "containerStatuses"]).iter().rev() {
        restarts.add(status);
        let waiting = state(status, "waiting").map(|w| sub(w, "reason")).unwrap_or_default();
        if !waiting.is_empty() {
            *reason = waiting.to_owned();
        } else if let Some(terminated) = state(status, "terminated") {
            *reason = termination(terminated);
        } else if flag(status, "ready") && state(status, "running").is_some() {
            ready += 1;
        }
    }
    if reason == "Completed" && ready > 0 {
        let pod_ready = cells::condition(pod, "Ready") == "True";
        *reason = if pod_ready { "Running" } else { "NotReady" }.to_owned();
    }
    ready
}

pub(crate) fn ready(pod: &Object, _: Timestamp) -> Value {
    let s = summary(pod);
    format!("{}/{}", s.ready, s.total).into()
}

pub(crate) fn status(pod: &Object, _: Timestamp) -> Value {
    summary(pod).reason.into()
}

pub(crate) fn restarts(pod: &Object, now: Timestamp) -> Value {
    let s = summary(pod);
    if s.restarts == 0 || s.last_restart.is_empty() {
        return s.restarts.to_string().into();
    }
    format!("{} ({} ago)", s.restarts, cells::since(&s.last_restart, now)).into()
}

pub(crate) fn ip(pod: &Object, _: Timestamp) -> Value {
    let first = list(pod, &["status", "podIPs"]).first().map(|i| sub(i, "ip")).unwrap_or_default();
    cells::or_none(if first.is_empty() { pod.str(&["status", "podIP"]) } else { first }).into()
}

pub(crate) fn readiness_gates(pod: &Object, _: Timestamp) -> Value {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|g| cells::condition(pod, sub(g, "conditionType")) == "True").count();
    format!("{open}/{}", gates.len()).into()
}
