//! Which pods go first when there are too many (Kubernetes documentation, "ReplicaSet: scaling down").

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use client::{Cached, View};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::pod::{Pod, is_active};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Active pods per node of this set and of the others of the same controller: crowded nodes are thinned first.
pub(crate) fn neighbours(view: &View, set: &Cached<ReplicaSet>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    let siblings = match set.controller() {
        Some(owner) => view.owned_by::<ReplicaSet>(&owner.uid),
        None => Vec::new(),
    };
    let uids = siblings.iter().map(|sibling| sibling.uid.as_str()).filter(|uid| *uid != set.uid);
    for uid in uids.chain([set.uid.as_str()]) {
        for pod in view.owned_by::<Pod>(uid).iter().filter(|pod| is_active(pod)) {
            *counts.entry(pod.object.spec.node_name.clone()).or_insert(0) += 1;
        }
    }
    counts
}

/// Pods in the order in which they are deleted.
pub(crate) fn least_useful(
    pods: &[Arc<Cached<Pod>>],
    neighbours: &HashMap<String, usize>,
    now: Timestamp,
) -> Vec<Arc<Cached<Pod>>> {
    let mut sorted = pods.to_vec();
    sorted.sort_by(|a, b| compare(a, b, neighbours, now).then_with(|| a.key.cmp(&b.key)));
    sorted
}

fn compare(
    a: &Cached<Pod>,
    b: &Cached<Pod>,
    neighbours: &HashMap<String, usize>,
    now: Timestamp,
) -> Ordering {
    let (pod_a, pod_b) = (&a.object, &b.object);
    let assigned = |pod: &Pod| !pod.spec.node_name.is_empty();
    let crowd = |pod: &Pod| neighbours.get(&pod.spec.node_name).copied().unwrap_or(0);
    let ready_age = |pod: &Pod| pod.ready_since().map(|since| age_class(since, now));
    let age = |pod: &Pod| pod.metadata.creation_timestamp.map(|since| age_class(since, now));
    let by_ready_age = if pod_a.is_ready() && pod_b.is_ready() {
        ready_age(pod_a).cmp(&ready_age(pod_b))
    } else {
        Ordering::Equal
    };
    assigned(pod_a)
        .cmp(&assigned(pod_b))
        .then_with(|| phase(pod_a).cmp(&phase(pod_b)))
        .then_with(|| pod_a.is_ready().cmp(&pod_b.is_ready()))
        .then_with(|| cost(pod_a).cmp(&cost(pod_b)))
        .then_with(|| crowd(pod_b).cmp(&crowd(pod_a)))
        .then(by_ready_age)
        .then_with(|| pod_b.restarts().cmp(&pod_a.restarts()))
        .then_with(|| age(pod_a).cmp(&age(pod_b)))
}

fn phase(pod: &Pod) -> u8 {
    match pod.status.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

fn cost(pod: &Pod) -> i32 {
    pod.metadata.annotations.get(COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Ages are compared on a logarithmic scale, so that similar ages leave the choice to chance.
fn age_class(since: Timestamp, now: Timestamp) -> u32 {
    let seconds = u64::try_from(now.as_second() - since.as_second()).unwrap_or(0);
    u64::BITS - seconds.leading_zeros()
}
