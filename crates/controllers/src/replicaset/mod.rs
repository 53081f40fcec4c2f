//! ReplicaSet and ReplicationController: keep a number of pods that match a selector. One plan serves both; the older
//! kind is read as the newer one.
//!
//! ```text
//!   pods of the namespace ──claim──▶ own pods ──▶ too few: create    too many: delete the least useful ones
//!                                        └──────▶ status
//! ```

mod rank;
mod replication_controller;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, RequestOptions};
use client::{Action, Cached, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};

use crate::claim::{Claimant, selector};
use crate::pod::{Pod, is_active};

/// Creations and deletions in one plan.
const BURST: usize = 500;

pub(crate) use replication_controller::AsSet;
pub use replication_controller::ReplicationControllerController;

pub struct ReplicaSetController;

/// The kind that a set really is.
#[derive(Clone)]
pub(crate) struct Flavour {
    pub(crate) gvr: GroupVersionResource,
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
}

impl Controller for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<ReplicaSet>(), Watch::map::<Pod>(sets_of_pod)]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(set) = view.get::<ReplicaSet>(key) else { return Plan::nothing() };
        let flavour = Flavour { gvr: ReplicaSet::gvr(), api_version: "apps/v1", kind: "ReplicaSet" };
        plan_set(&flavour, &set, view, now)
    }
}

/// The plan of a set of either kind.
fn plan_set(flavour: &Flavour, set: &Cached<ReplicaSet>, view: &View, now: Timestamp) -> Plan {
    let spec = &set.object.spec;
    let Some(labels) = selector(&spec.selector).filter(|s| !s.requirements.is_empty()) else {
        return Plan::nothing();
    };
    let claimant = Claimant {
        gvr: flavour.gvr.clone(),
        api_version: flavour.api_version,
        kind: flavour.kind,
        key: &set.key,
        uid: &set.uid,
        deleting: set.deleting,
        selector: &labels,
    };
    let candidates = view.in_namespace::<Pod>(&set.key.namespace);
    let claimed = claimant.claim(view, &Pod::gvr(), candidates, is_active);
    if let Some(read) = claimed.need {
        return Plan::Need(vec![read]);
    }
    let mut actions = claimed.actions;
    let (active, inactive): (Vec<_>, Vec<_>) = claimed.owned.into_iter().partition(|pod| is_active(pod));
    let terminating = inactive.iter().filter(|pod| pod.deleting && !pod.object.is_terminal()).count();
    let observed = status::Observed { active: &active, terminating, refused: refused(view) };
    // The status goes first: a refused creation stops what comes after it.
    actions.extend(status::update(flavour, set, &observed, now));
    if !set.deleting {
        actions.extend(scale(flavour, set, &claimant, &active, view, now));
    }
    Plan::Do { actions, requeue_after: next_available(&active, spec.min_ready_seconds.unwrap_or(0), now) }
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

/// A refusal that says something about the set; a name that is taken does not, nor does a namespace that ends.
fn refused(view: &View) -> Option<&api::Status> {
    let about_the_set = |status: &&api::Status| {
        !status.is_already_exists() && !status.has_cause(client::NAMESPACE_TERMINATING)
    };
    view.refused_creation().filter(about_the_set)
}

fn scale(
    flavour: &Flavour,
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
        let names = new_names(set, (wanted - active.len()).min(BURST), now);
        let creations = names.iter().map(|name| {
            let mut pod = pod.clone();
            pod["metadata"]["name"] = name.as_str().into();
            Action::Create { gvr: Pod::gvr(), namespace: set.key.namespace.clone(), object: pod }
        });
        let events =
            names.iter().map(|name| event(flavour, set, "SuccessfulCreate", format!("Created pod: {name}")));
        return creations.chain(events).collect();
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Vec::new();
    }
    let related = rank::neighbours(view, set);
    let mut victims = rank::least_useful(active, &related, now);
    victims.truncate(surplus);
    let deletions = victims.iter().map(|pod| delete_pod(pod));
    let events = victims
        .iter()
        .map(|pod| event(flavour, set, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)));
    deletions.chain(events).collect()
}

/// Names for new pods, chosen here so that the events can tell them: the set's name and five characters.
fn new_names(set: &Cached<ReplicaSet>, count: usize, now: Timestamp) -> Vec<String> {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    /// A pod's name is its host name, of 63 characters at most.
    const LONGEST_BASE: usize = 57;
    let base: String = set.key.name.chars().take(LONGEST_BASE).collect();
    let name = |index: usize| {
        let mut hasher = std::hash::DefaultHasher::new();
        (&set.uid, now.as_nanosecond(), index).hash(&mut hasher);
        let mut rest = hasher.finish();
        let mut suffix = String::new();
        for _ in 0..5 {
            let (quotient, digit) = (rest / ALPHABET.len() as u64, rest % ALPHABET.len() as u64);
            suffix.push(char::from(ALPHABET[usize::try_from(digit).unwrap_or(0)]));
            rest = quotient;
        }
        format!("{base}-{suffix}")
    };
    let names: BTreeSet<String> = (0..count).map(name).collect();
    names.into_iter().collect()
}

fn event(flavour: &Flavour, set: &Cached<ReplicaSet>, reason: &str, message: String) -> Action {
    Action::Event {
        about: ObjectReference {
            api_version: Some(flavour.api_version.into()),
            kind: Some(flavour.kind.into()),
            namespace: Some(set.key.namespace.clone()),
            name: Some(set.key.name.clone()),
            uid: Some(set.uid.clone()),
            resource_version: Some(set.revision.to_string()),
            field_path: None,
        },
        event_type: EventType::Normal,
        reason: reason.into(),
        message,
    }
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
