//! Status and conditions of a Deployment.

use std::time::Duration;

use client::{Action, Cached, Kind};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::revision::Set;
use super::scaling::Bounds;

pub(crate) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";

/// What the status is computed from.
pub(crate) struct Observed<'a> {
    pub(crate) deployment: &'a Cached<Deployment>,
    pub(crate) bounds: Bounds,
    pub(crate) new: Option<&'a Set>,
    /// Name of the new ReplicaSet, also before it exists.
    pub(crate) new_name: &'a str,
    pub(crate) old: &'a [Set],
    pub(crate) now: Timestamp,
}

/// One change of a condition that the rollout asks for.
pub(crate) struct Progress {
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Observed<'_> {
    /// Counts and the Available condition; everything else as it was.
    pub(crate) fn counts(&self) -> DeploymentStatus {
        let old = self.deployment.object.status.clone().unwrap_or_default();
        let all: Vec<&Set> = self.old.iter().chain(self.new).collect();
        let sum = |field: fn(&ReplicaSet) -> i32| all.iter().map(|set| field(&set.object)).sum::<i32>();
        let available = sum(available);
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.object.metadata.generation,
            replicas: Some(sum(|set| set.status.as_ref().map_or(0, |s| s.replicas))),
            updated_replicas: Some(
                self.new.map_or(0, |set| set.object.status.as_ref().map_or(0, |s| s.replicas)),
            ),
            ready_replicas: Some(sum(|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
            available_replicas: Some(available),
            unavailable_replicas: Some((sum(replicas) - available).max(0)),
            terminating_replicas: Some(sum(|set| {
                set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0)
            })),
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
        let enough = available >= self.bounds.min_available();
        let (word, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        set_condition(&mut status, AVAILABLE, word, reason, message, self.now);
        status
    }

    /// Whether the rollout has ended: every pod is new and available.
    pub(crate) fn is_complete(&self, status: &DeploymentStatus) -> bool {
        let wanted = Some(self.bounds.replicas);
        status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted
    }

    /// The Progressing and ReplicaFailure conditions; progress is judged only while there is a rollout.
    pub(crate) fn with_progress(
        &self,
        mut status: DeploymentStatus,
        step: Option<Progress>,
        judge: bool,
    ) -> DeploymentStatus {
        let deadline = self.deployment.object.spec.progress_deadline_seconds;
        let deadline = deadline.filter(|seconds| *seconds != i32::MAX);
        if let Some(deadline) = deadline {
            if let Some(step) = step {
                set_condition(&mut status, PROGRESSING, step.status, step.reason, &step.message, self.now);
            }
            if judge {
                self.judge_progress(&mut status, deadline);
            }
        } else {
            remove_condition(&mut status, PROGRESSING);
        }
        self.copy_failure(&mut status);
        status
    }

    fn judge_progress(&self, status: &mut DeploymentStatus, deadline_seconds: i32) {
        let current = condition(status, PROGRESSING).cloned();
        let reason = current.as_ref().and_then(|c| c.reason.as_deref());
        if status.replicas == status.updated_replicas && reason == Some(COMPLETE) {
            return;
        }
        let name = self.new_name;
        if self.is_complete(status) {
            let message = format!("ReplicaSet {name:?} has successfully progressed.");
            set_condition(status, PROGRESSING, "True", COMPLETE, &message, self.now);
        } else if self.has_progressed(status) {
            let message = format!("ReplicaSet {name:?} is progressing.");
            refresh_condition(status, PROGRESSING, "ReplicaSetUpdated", &message, self.now);
        } else if timed_out(current.as_ref(), deadline_seconds, self.now) {
            let message = format!("ReplicaSet {name:?} has timed out progressing.");
            set_condition(status, PROGRESSING, "False", TIMED_OUT, &message, self.now);
        }
    }

    fn has_progressed(&self, new: &DeploymentStatus) -> bool {
        let old = self.deployment.object.status.clone().unwrap_or_default();
        let n = Option::<i32>::unwrap_or_default;
        let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
        n(new.updated_replicas) > n(old.updated_replicas)
            || outdated(new) < outdated(&old)
            || n(new.ready_replicas) > n(old.ready_replicas)
            || n(new.available_replicas) > n(old.available_replicas)
    }

    fn copy_failure(&self, status: &mut DeploymentStatus) {
        let failure = self.new.into_iter().chain(self.old).find_map(|set| {
            let conditions = set.object.status.as_ref()?.conditions.as_ref()?;
            conditions
                .iter()
                .find(|c| c.type_.as_deref() == Some(REPLICA_FAILURE) && c.status.as_deref() == Some("True"))
        });
        match failure {
            Some(failure) => {
                let reason = failure.reason.clone().unwrap_or_default();
                let message = failure.message.clone().unwrap_or_default();
                set_condition(status, REPLICA_FAILURE, "True", &reason, &message, self.now);
            }
            None => remove_condition(status, REPLICA_FAILURE),
        }
    }

    /// When to look again at a rollout that may get stuck.
    pub(crate) fn check_after(&self, status: &DeploymentStatus) -> Option<Duration> {
        let deadline = self.deployment.object.spec.progress_deadline_seconds?;
        let current = condition(status, PROGRESSING)?;
        if self.is_complete(status) || deadline == i32::MAX || current.reason.as_deref() == Some(TIMED_OUT) {
            return None;
        }
        let since = current.last_update_time.as_ref()?.0;
        let seconds = since.as_second() + i64::from(deadline) - self.now.as_second() + 1;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(1).max(1)))
    }

    /// Writes a status that differs from the stored one.
    pub(crate) fn write(&self, status: DeploymentStatus) -> Option<Action> {
        let old = self.deployment.object.status.clone().unwrap_or_default();
        if normal(&old) == normal(&status) {
            return None;
        }
        let mut object = self.deployment.object.clone();
        object.status = Some(status);
        let mut object = json!(object);
        object["apiVersion"] = "apps/v1".into();
        object["kind"] = "Deployment".into();
        Some(Action::UpdateStatus { gvr: Deployment::gvr(), key: self.deployment.key.clone(), object })
    }
}

/// A paused Deployment makes no progress and is not blamed for it.
pub(crate) fn pause_change(deployment: &Cached<Deployment>) -> Option<Progress> {
    let spec = &deployment.object.spec;
    spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let status = deployment.object.status.as_ref();
    let reason = status.and_then(|s| condition(s, PROGRESSING)).and_then(|c| c.reason.as_deref());
    let paused = spec.paused.unwrap_or(false);
    match reason {
        Some(TIMED_OUT) => None,
        Some("DeploymentPaused") if !paused => Some(("DeploymentResumed", "Deployment is resumed")),
        Some("DeploymentPaused") => None,
        _ if paused => Some(("DeploymentPaused", "Deployment is paused")),
        _ => None,
    }
    .map(|(reason, message)| Progress { status: "Unknown", reason, message: message.into() })
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(crate) fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(type_))
}

fn timed_out(current: Option<&DeploymentCondition>, deadline_seconds: i32, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some(COMPLETE | "DeploymentPaused") => false,
        Some(TIMED_OUT) => true,
        _ => current
            .last_update_time
            .as_ref()
            .is_some_and(|since| since.0.as_second() + i64::from(deadline_seconds) < now.as_second()),
    }
}

/// Sets a condition; nothing changes when status and reason are as they were.
pub(crate) fn set_condition(
    status: &mut DeploymentStatus,
    type_: &str,
    word: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let current = condition(status, type_);
    if current.is_some_and(|c| c.status.as_deref() == Some(word) && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let transition =
        current.filter(|c| c.status.as_deref() == Some(word)).and_then(|c| c.last_transition_time.clone());
    put(status, type_, word, reason, message, transition, now);
}

/// Sets a condition to True with a new update time even when it was like that.
fn refresh_condition(
    status: &mut DeploymentStatus,
    type_: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let current = condition(status, type_).filter(|c| c.status.as_deref() == Some("True"));
    let transition = current.and_then(|c| c.last_transition_time.clone());
    put(status, type_, "True", reason, message, transition, now);
}

fn put(
    status: &mut DeploymentStatus,
    type_: &str,
    word: &str,
    reason: &str,
    message: &str,
    transition: Option<Time>,
    now: Timestamp,
) {
    let now = Timestamp::from_second(now.as_second()).map(Time).ok();
    let new = DeploymentCondition {
        type_: Some(type_.into()),
        status: Some(word.into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: now.clone(),
        last_transition_time: transition.or(now),
    };
    let list = status.conditions.get_or_insert_default();
    match list.iter_mut().find(|condition| condition.type_.as_deref() == Some(type_)) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(list) = &mut status.conditions {
        list.retain(|condition| condition.type_.as_deref() != Some(type_));
    }
}

/// An absent number means zero and an absent list means an empty one.
fn normal(status: &DeploymentStatus) -> DeploymentStatus {
    let n = |value: Option<i32>| Some(value.unwrap_or(0));
    DeploymentStatus {
        available_replicas: n(status.available_replicas),
        collision_count: n(status.collision_count),
        conditions: Some(status.conditions.clone().unwrap_or_default()),
        observed_generation: Some(status.observed_generation.unwrap_or(0)),
        ready_replicas: n(status.ready_replicas),
        replicas: n(status.replicas),
        terminating_replicas: n(status.terminating_replicas),
        unavailable_replicas: n(status.unavailable_replicas),
        updated_replicas: n(status.updated_replicas),
    }
}
