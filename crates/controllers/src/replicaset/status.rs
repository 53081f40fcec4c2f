//! The status of a ReplicaSet.

use std::sync::Arc;

use api::Status;
use client::{Action, Cached, Kind};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{Flavour, replication_controller};
use crate::pod::Pod;

const REPLICA_FAILURE: &str = "ReplicaFailure";
const FAILED_CREATE: &str = "FailedCreate";

pub(crate) struct Observed<'a> {
    pub(crate) active: &'a [Arc<Cached<Pod>>],
    pub(crate) terminating: usize,
    pub(crate) refused: Option<&'a Status>,
}

/// Writes the status if it is not what was observed.
pub(crate) fn update(
    flavour: &Flavour,
    set: &Cached<ReplicaSet>,
    observed: &Observed<'_>,
    now: Timestamp,
) -> Option<Action> {
    let old = set.object.status.clone().unwrap_or_default();
    let new = compute(set, &old, observed, now);
    if same(&new, &old) {
        return None;
    }
    if flavour.gvr != ReplicaSet::gvr() {
        return Some(replication_controller::write_status(flavour, set, &new));
    }
    let mut object = set.object.clone();
    object.status = Some(new);
    let mut object = json!(object);
    object["apiVersion"] = "apps/v1".into();
    object["kind"] = "ReplicaSet".into();
    Some(Action::UpdateStatus { gvr: ReplicaSet::gvr(), key: set.key.clone(), object })
}

/// Equal, where an absent number means zero and an absent list means an empty one.
fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let numbers = |s: &ReplicaSetStatus| {
        [s.fully_labeled_replicas, s.ready_replicas, s.available_replicas, s.terminating_replicas]
            .map(Option::unwrap_or_default)
    };
    a.replicas == b.replicas
        && numbers(a) == numbers(b)
        && a.observed_generation == b.observed_generation
        && a.conditions.clone().unwrap_or_default() == b.conditions.clone().unwrap_or_default()
}

fn compute(
    set: &Cached<ReplicaSet>,
    old: &ReplicaSetStatus,
    observed: &Observed<'_>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = &set.object.spec;
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref());
    let labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let count =
        |test: &dyn Fn(&Cached<Pod>) -> bool| number(observed.active.iter().filter(|pod| test(pod)).count());
    ReplicaSetStatus {
        replicas: number(observed.active.len()),
        fully_labeled_replicas: Some(count(&|pod| labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))),
        ready_replicas: Some(count(&|pod| pod.object.is_ready())),
        available_replicas: Some(count(&|pod| {
            pod.object.available_in(min_ready, now).is_some_and(|d| d.is_zero())
        })),
        terminating_replicas: Some(number(observed.terminating)),
        observed_generation: set.object.metadata.generation,
        conditions: conditions(old, observed.refused, now),
    }
}

fn conditions(
    old: &ReplicaSetStatus,
    refused: Option<&Status>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut list = old.conditions.clone().unwrap_or_default();
    let existing = list.iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE)).cloned();
    // The message names the pod that was refused last; a new name alone is no news and would be written for ever.
    let failing = |condition: &ReplicaSetCondition| {
        condition.status.as_deref() == Some("True") && condition.reason.as_deref() == Some(FAILED_CREATE)
    };
    if refused.is_some() && existing.as_ref().is_some_and(failing) {
        return Some(list);
    }
    list.retain(|condition| condition.type_.as_deref() != Some(REPLICA_FAILURE));
    if let Some(status) = refused {
        let since = existing.and_then(|condition| condition.last_transition_time);
        list.push(ReplicaSetCondition {
            type_: Some(REPLICA_FAILURE.into()),
            status: Some("True".into()),
            reason: Some(FAILED_CREATE.into()),
            message: Some(status.message.clone()),
            last_transition_time: since.or_else(|| Timestamp::from_second(now.as_second()).ok().map(Time)),
        });
    }
    (!list.is_empty()).then_some(list)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
