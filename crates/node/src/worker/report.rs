//! Reporting a pod's status, and what exited containers left.

use api::{ObjectKey, PatchType, RequestOptions, Status};
use client::{Client, EventType};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Map, Value, json};

use super::{PodWorker, pods, revision};
use crate::container_config::termination_file;
use crate::observed::{Blocked, elapsed, find_container};
use crate::pod_actions::{back_off, is_terminating};
use crate::pod_status::{PASSING, PULL_ERROR_SHOWN};
use crate::ports::{ContainerState, ContainerStatus};

/// Fields of the status that belong to the node.
const OWNED: [&str; 14] = [
    "phase",
    "reason",
    "message",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
];

/// Longest termination message, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// Of a message taken from the log.
const MAX_LOG_MESSAGE: u64 = 2048;
const MAX_LOG_LINES: u64 = 80;

impl PodWorker {
    /// Writes the status if it differs from what the API has.
    pub(super) async fn report(&mut self) {
        if self.memory.gone || self.memory.deleted {
            return;
        }
        for _ in 0..4 {
            let status = self.status(self.shared.clock.now());
            if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
                // Before anybody hears of it: the place may be taken at once.
                self.shared.book.release(&self.uid);
            }
            if self.mirror.is_some() {
                return self.report_mirror().await;
            }
            match send_status(&self.shared.client, &self.key(), &self.pod, &status).await {
                Ok(None) => return,
                Ok(Some(pod)) => {
                    self.measure_start(&status);
                    self.take_answer(pod);
                    self.memory.failures = 0;
                    return;
                }
                Err(status) if status.is_conflict() => {
                    if !self.read_again().await {
                        return;
                    }
                }
                // The watch will say so.
                Err(status) if status.is_not_found() => return,
                Err(status) => return self.report_failed(&status),
            }
        }
        self.retry();
    }

    /// The pod runs from now on, if it did not before.
    fn measure_start(&self, status: &core::PodStatus) {
        let phase = |status: &core::PodStatus| status.phase.clone().unwrap_or_default();
        let before = self.pod.status.as_ref().map(phase).unwrap_or_default();
        if phase(status) != "Running" || before == "Running" {
            return;
        }
        let (clock, created) = (&self.shared.clock, &self.pod.metadata.creation_timestamp);
        let since_creation = created.as_ref().map(|at| elapsed(at.0, clock.now())).unwrap_or_default();
        let seen = clock.monotonic().saturating_sub(self.seen);
        self.shared.meter.runs(seen, since_creation, self.memory.pulls);
    }

    fn report_failed(&mut self, status: &Status) {
        tracing::warn!(pod = %self.uid, error = %status, "cannot write the pod's status");
        self.retry();
    }

    fn take_answer(&mut self, pod: core::Pod) {
        if revision(&pod) >= revision(&self.pod) {
            self.accept(pod);
        }
    }

    /// Reads the pod after a conflict; false when it is gone or cannot be read.
    async fn read_again(&mut self) -> bool {
        match self.shared.client.get::<core::Pod>(&self.key()).await {
            Ok(pod) if pod.metadata.uid.as_deref() == Some(&self.uid) => {
                self.accept(pod);
                true
            }
            Ok(_) => false,
            Err(status) if status.is_not_found() => false,
            Err(status) => {
                self.report_failed(&status);
                false
            }
        }
    }

    pub(super) fn read_termination_messages(&mut self) {
        let dir = self.dir();
        let exited = self.record.containers.iter().filter(|c| c.state == ContainerState::Exited);
        let unread: Vec<ContainerStatus> =
            exited.filter(|c| !self.memory.termination_messages.contains_key(&c.id)).cloned().collect();
        for status in unread {
            let container = find_container(&self.pod, &status.name).map(|(_, c)| c);
            let from_log = container.and_then(|c| c.termination_message_policy).as_deref()
                == Some("FallbackToLogsOnError");
            let file = termination_file(&dir, &status.name, status.attempt);
            let mut message = crate::logs::read_start(&file, MAX_MESSAGE);
            if message.is_empty() && from_log && status.exit_code != 0 {
                message = crate::logs::last_lines(&status.log_path, MAX_LOG_LINES, MAX_LOG_MESSAGE);
            }
            self.memory.termination_messages.insert(status.id, message);
        }
    }

    fn tell_pull_back_offs(&mut self, now: Timestamp) {
        let waits = |b: &&Blocked| b.reason == "ErrImagePull" && elapsed(b.since, now) >= PULL_ERROR_SHOWN;
        let waiting: Vec<(String, u32)> = self
            .memory
            .blocked
            .iter()
            .filter(|(_, b)| waits(b))
            .map(|(n, b)| (n.clone(), b.failures))
            .collect();
        for (name, failures) in waiting {
            if !self.memory.pull_back_off_told.insert((name.clone(), failures)) {
                continue;
            }
            let image = find_container(&self.pod, &name).and_then(|(_, c)| c.image).unwrap_or_default();
            let text = format!("Back-off pulling image {image:?}");
            let events = &self.shared.events;
            events.container(&self.pod, &name, EventType::Normal, "BackOff", &text);
            events.container(&self.pod, &name, EventType::Warning, "Failed", "Error: ImagePullBackOff");
        }
    }

    /// One BackOff event for every crash and every failed pull that waits.
    pub(super) fn tell_back_offs(&mut self) {
        let now = self.shared.clock.now();
        let observed = self.observed();
        if is_terminating(&self.pod, &observed) {
            return;
        }
        let status = self.status(now);
        let waiting = |s: &&core::ContainerStatus| {
            let reason = s.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
            reason == Some("CrashLoopBackOff")
        };
        self.tell_pull_back_offs(now);
        let lists = [status.init_container_statuses, status.container_statuses];
        for container in lists.iter().flatten().flatten().filter(waiting) {
            let Some(latest) = observed.latest(&container.name) else { continue };
            if back_off(latest).0 <= now
                || !self.memory.back_off_told.insert((container.name.clone(), latest.attempt))
            {
                continue;
            }
            let text = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                container.name,
                self.pod.metadata.name.as_deref().unwrap_or_default(),
                self.pod.metadata.namespace.as_deref().unwrap_or_default(),
                self.uid
            );
            self.shared.events.container(&self.pod, &container.name, EventType::Warning, "BackOff", &text);
        }
    }
}

/// Writes what differs; the answer is the pod as it is now, or `None` when nothing did.
pub(super) async fn send_status(
    client: &Client,
    key: &ObjectKey,
    pod: &core::Pod,
    status: &core::PodStatus,
) -> Result<Option<core::Pod>, Status> {
    let Some(patch) = status_patch(pod, status) else { return Ok(None) };
    let options = RequestOptions::default();
    let answer = client.patch(&pods(), key, Some("status"), PatchType::Merge, &patch, options).await?;
    serde_json::from_value(answer.into_value()).map(Some).map_err(Status::internal)
}

/// A merge patch from the pod's present status to `status`, or `None` when nothing the node owns differs.
/// Conditions of others are carried along; the resourceVersion makes sure that none is lost.
pub(super) fn status_patch(pod: &core::Pod, status: &core::PodStatus) -> Option<Value> {
    let mut status = status.clone();
    let ours: Vec<String> = status.conditions.iter().flatten().map(|c| c.type_.clone()).collect();
    let present = pod.status.clone().unwrap_or_default();
    let foreign = present
        .conditions
        .clone()
        .unwrap_or_default()
        .into_iter()
        .filter(|c| !ours.contains(&c.type_) && !PASSING.contains(&c.type_.as_str()));
    status.conditions.get_or_insert_with(Vec::new).extend(foreign);
    let mut before = present;
    // The order of conditions means nothing.
    let same = sorted(&before) == sorted(&status);
    if same {
        before.conditions.clone_from(&status.conditions);
    }
    let (Ok(Value::Object(before)), Ok(Value::Object(after))) =
        (serde_json::to_value(before), serde_json::to_value(status))
    else {
        return None;
    };
    let mut changes = Map::new();
    for field in OWNED {
        if before.get(field) != after.get(field) {
            changes.insert(field.into(), after.get(field).cloned().unwrap_or(Value::Null));
        }
    }
    if changes.is_empty() {
        return None;
    }
    let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
    Some(json!({"metadata": meta, "status": changes}))
}

fn sorted(status: &core::PodStatus) -> Vec<core::PodCondition> {
    let mut conditions = status.conditions.clone().unwrap_or_default();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}
