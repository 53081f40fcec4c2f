//! ReplicaSet: keeps a number of pods that match a selector.
//!
//! ```text
//!   pods of the namespace ──claim──▶ own pods ──▶ too few: create    too many: delete the least useful ones
//!                                        └──────▶ status
//! ```

mod rank;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, RequestOptions};
use client::{Action, Cached, Controller, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use crate::claim::{Claimant, selector};
use crate::pod::{Pod, is_active};

/// Creations and deletions in one plan.
const BURST: usize = 500;

pub struct ReplicaSetController;

impl Controller for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<ReplicaSet>(), Watch::map::<Pod>(sets_of_pod)]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(set) = view.get::<ReplicaSet>(key) else { return Plan::nothing() };
        let spec = &set.object.spec;
        let Some(labels) = selector(&spec.selector).filter(|s| !s.requirements.is_empty()) else {
            return Plan::nothing();
        };
        let claimant = Claimant {
            gvr: ReplicaSet::gvr(),
            api_version: "apps/v1",
            kind: "ReplicaSet",
            key,
            uid: &set.uid,
            deleting: set.deleting,
            selector: &labels,
        };
        let candidates = view.in_namespace::<Pod>(&key.namespace);
        let claimed = claimant.claim(view, &Pod::gvr(), candidates, is_active);
        if let Some(read) = claimed.need {
            return Plan::Need(vec![read]);
        }
        let mut actions = claimed.actions;
        let (active, inactive): (Vec<_>, Vec<_>) = claimed.owned.into_iter().partition(|pod| is_active(pod));
        let terminating = inactive.iter().filter(|pod| pod.deleting && !pod.object.is_terminal()).count();
        let observed = status::Observed { active: &active, terminating, refused: view.refused_creation() };
        // The status goes first: a refused creation stops what comes after it.
        actions.extend(status::update(&set, &observed, now));
        if !set.deleting {
            actions.extend(scale(&set, &claimant, &active, view, now));
        }
        Plan::Do { actions, requeue_after: next_available(&active, spec.min_ready_seconds.unwrap_or(0), now) }
    }
}

/// The set that controls a pod; for an orphan, every set that might adopt it.
fn sets_of_pod(view: &View, pod: &Cached<Pod>) -> Vec<ObjectKey> {
    if let Some(owner) = pod.controller() {
        let key = ObjectKey::new(&pod.key.namespace, &owner.name);
        return if owner.kind == "ReplicaSet" { vec![key] } else { Vec::new() };
    }
    let sets = view.in_namespace::<ReplicaSet>(&pod.key.namespace).into_iter();
    let matching = sets.filter(|set| {
        let labels = selector(&set.object.spec.selector);
        labels.is_some_and(|labels| !labels.requirements.is_empty() && labels.matches(&pod.labels))
    });
    matching.map(|set| set.key.clone()).collect()
}

fn scale(
    set: &Cached<ReplicaSet>,
    claimant: &Claimant<'_>,
    active: &[Arc<Cached<Pod>>],
    view: &View,
    now: Timestamp,
) -> Vec<Action> {
    let wanted = set.object.spec.replicas.unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() < wanted {
        let pod = new_pod(set, claimant);
        let create = Action::Create { gvr: Pod::gvr(), namespace: set.key.namespace.clone(), object: pod };
        return vec![create; (wanted - active.len()).min(BURST)];
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Vec::new();
    }
    let related = rank::neighbours(view, set);
    let victims = rank::least_useful(active, &related, now).into_iter().take(surplus);
    victims.map(|pod| delete_pod(&pod)).collect()
}

fn delete_pod(pod: &Cached<Pod>) -> Action {
    let options = RequestOptions { precondition_uid: Some(pod.uid.clone()), ..RequestOptions::default() };
    Action::Delete { gvr: Pod::gvr(), key: pod.key.clone(), options }
}

fn new_pod(set: &Cached<ReplicaSet>, claimant: &Claimant<'_>) -> Value {
    let template = set.object.spec.template.as_ref();
    let meta = template.and_then(|template| template.metadata.as_ref());
    let mut metadata = json!({
        "generateName": format!("{}-", set.key.name),
        "namespace": set.key.namespace,
        "ownerReferences": [claimant.reference()],
    });
    if let Some(meta) = meta {
        if let Some(labels) = &meta.labels {
            metadata["labels"] = json!(labels);
        }
        if let Some(annotations) = &meta.annotations {
            metadata["annotations"] = json!(annotations);
        }
        if let Some(finalizers) = &meta.finalizers {
            metadata["finalizers"] = json!(finalizers);
        }
    }
    let spec = template.and_then(|template| template.spec.as_ref());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// When the next ready pod becomes available.
fn next_available(active: &[Arc<Cached<Pod>>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let waits = active.iter().filter_map(|pod| pod.object.available_in(min_ready_seconds, now));
    waits.filter(|wait| !wait.is_zero()).min()
}
