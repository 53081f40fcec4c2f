//! Preemption: where a pod would fit if less important pods went. Pure; the caller performs it.
//!
//! Of every node that only other pods keep the pod from, all less important pods are taken away in thought; those that
//! can stay after all are put back, the most important ones first. What is left are the node's victims; the node is
//! chosen whose victims hurt least (Kubernetes documentation, "Pod Priority and Preemption").

use std::cmp::Reverse;
use std::sync::Arc;

use api::LabelSelector;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cycle::{fits, resolvable};
use crate::pod::{PodInfo, selector};
use crate::snapshot::Snapshot;

/// So many nodes with victims are compared at most, or a tenth of all if that is more.
const ENOUGH: usize = 100;

/// How many pods may be disrupted just now.
#[derive(Clone, Debug)]
pub struct Budget {
    pub namespace: String,
    pub pods: LabelSelector,
    pub allowed: i64,
}

impl From<&PodDisruptionBudget> for Budget {
    fn from(budget: &PodDisruptionBudget) -> Self {
        let pods = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            pods: selector(pods),
            allowed: budget
                .status
                .as_ref()
                .map_or(0, |status| i64::from(status.disruptions_allowed.unwrap_or(0))),
        }
    }
}

/// A node, and who has to leave it.
#[derive(Clone, Debug, PartialEq)]
pub struct Nomination {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// The node where making room for a pod hurts least, if there is one. `start` says where the search begins.
pub fn preempt(snapshot: &Snapshot, pod: &PodInfo, budgets: &[Budget], start: usize) -> Option<Nomination> {
    if pod.spec.never_preempts || victims_are_leaving(snapshot, pod) {
        return None;
    }
    let count = snapshot.nodes().len();
    let slots = (0..count).map(|i| (start + i) % count);
    let possible = slots.filter(|slot| {
        let lesser = |other: &Arc<PodInfo>| other.spec.priority < pod.spec.priority;
        snapshot.pods_on(&snapshot.nodes()[*slot].spec.name).iter().any(lesser)
    });
    let possible = resolvable(snapshot, pod, possible);
    if possible.is_empty() {
        return None;
    }
    let mut thought = snapshot.clone();
    thought.prepare(pod);
    let found = possible.into_iter().filter_map(|slot| {
        let node = snapshot.nodes()[slot].spec.name.clone();
        victims(&mut thought, pod, node, budgets)
    });
    let found = found.take(ENOUGH.max(count / 10));
    found.min_by_key(Candidate::harm).map(|best| best.nomination)
}

/// Whether room is being made already: somebody less important is on the way out of the nominated node.
fn victims_are_leaving(snapshot: &Snapshot, pod: &PodInfo) -> bool {
    let Some(node) = &pod.nominated_node else { return false };
    let leaves = |other: &Arc<PodInfo>| other.deleting && other.spec.priority < pod.spec.priority;
    snapshot.pods_on(node).iter().any(leaves)
}

struct Candidate {
    nomination: Nomination,
    /// Victims that a budget protects.
    violations: usize,
}

impl Candidate {
    /// Budgets first, then the most important victim, then all of them; of equals the one that lost least work.
    fn harm(&self) -> (usize, i32, i64, usize, Reverse<i64>) {
        let victims = &self.nomination.victims;
        let highest = victims.iter().map(|victim| victim.spec.priority).max().unwrap_or(i32::MIN);
        // No priority counts for nothing, so that fewer victims count less.
        let weight = |victim: &Arc<PodInfo>| i64::from(victim.spec.priority) - i64::from(i32::MIN);
        let sum = victims.iter().map(weight).sum();
        let most = victims.iter().filter(|victim| victim.spec.priority == highest);
        let earliest = most.filter_map(|victim| victim.started).min().unwrap_or(i64::MAX);
        (self.violations, highest, sum, victims.len(), Reverse(earliest))
    }
}

/// Who has to leave a node; the thought snapshot is as before afterwards.
fn victims(thought: &mut Snapshot, pod: &PodInfo, node: String, budgets: &[Budget]) -> Option<Candidate> {
    let mut lesser = thought.pods_on(&node);
    lesser.retain(|other| other.spec.priority < pod.spec.priority);
    lesser.sort_by_key(|other| {
        (Reverse(other.spec.priority), other.started.unwrap_or(i64::MAX), other.key.clone())
    });
    for other in &lesser {
        thought.remove_pod(&other.key);
    }
    let mut victims = Vec::new();
    let mut violations = 0;
    let room = fits(thought, pod, [node.as_str()]);
    let (protected, others) = by_budget(lesser, budgets);
    for (other, is_protected) in
        protected.into_iter().map(|p| (p, true)).chain(others.into_iter().map(|p| (p, false)))
    {
        thought.assume(&other, &node);
        if room && !fits(thought, pod, [node.as_str()]) {
            thought.remove_pod(&other.key);
            violations += usize::from(is_protected);
            victims.push(other);
        }
    }
    for victim in &victims {
        thought.assume(victim, &node);
    }
    victims.sort_by_key(|victim| Reverse(victim.spec.priority));
    (room && !victims.is_empty())
        .then_some(Candidate { nomination: Nomination { node, victims }, violations })
}

/// Pods whose eviction would break a budget, and the others; both in order of importance.
fn by_budget(pods: Vec<Arc<PodInfo>>, budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i64> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut broken = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.namespace == pod.key.namespace && budget.pods.matches(&pod.spec.labels) {
                *left -= 1;
                broken |= *left < 0;
            }
        }
        broken
    })
}
