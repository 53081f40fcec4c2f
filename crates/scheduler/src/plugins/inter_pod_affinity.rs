//! InterPodAffinity: required and preferred affinity and anti-affinity, of the pod and of those that run already.

use super::domains::Domains;
use super::{Filter, MAX_SCORE, Score};
use crate::counters::Carry;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::selection::Selection;
use crate::snapshot::Snapshot;

struct Required<'a> {
    near: Vec<Domains<'a>>,
    /// No pod matches the affinity yet and the pod itself would: it may be the first.
    first: bool,
    away: Vec<Domains<'a>>,
    /// Anti-affinity of running pods.
    kept_out: Vec<Domains<'a>>,
}

pub(super) fn filter<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    let mut required = Required { near: Vec::new(), first: false, away: Vec::new(), kept_out: Vec::new() };
    if !pod.spec.affinity.is_empty() {
        let all = Selection::all(&pod.spec.affinity);
        let counted = snapshot.count(&all);
        let keys = pod.spec.affinity.iter().map(|term| term.topology_key.as_str());
        required.near = keys.map(|key| Domains::sum(snapshot, key, &counted, |_, _| true)).collect();
        let nobody = required.near.iter().all(|domains| domains.counted().all(|count| count == 0));
        required.first = nobody && snapshot.selects(&all, pod);
    }
    for term in &pod.spec.anti_affinity {
        let counted = snapshot.count(&term.selection);
        required.away.push(Domains::sum(snapshot, &term.topology_key, &counted, |_, _| true));
    }
    for carried in snapshot.carried_terms_selecting(pod) {
        if carried.carry == Carry::RequiredAnti {
            let key = carried.term.topology_key.as_str();
            required.kept_out.push(Domains::sum(snapshot, key, &carried.per_node, |_, _| true));
        }
    }
    let anything = [&required.near, &required.away, &required.kept_out].iter().any(|list| !list.is_empty());
    anything.then(|| Box::new(required) as Box<dyn Filter>)
}

fn occupied(list: &[Domains<'_>], slot: usize) -> bool {
    list.iter().any(|domains| domains.at(slot).is_some_and(|count| count > 0))
}

impl Required<'_> {
    fn reason(&self, slot: usize) -> Option<&'static str> {
        let near = |domains: &Domains<'_>| domains.at(slot).is_some_and(|count| self.first || count > 0);
        if !self.near.iter().all(near) {
            return Some("node(s) didn't match pod affinity rules");
        }
        if occupied(&self.away, slot) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        occupied(&self.kept_out, slot).then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }
}

impl Filter for Required<'_> {
    fn passes(&self, slot: usize, _: &NodeInfo) -> bool {
        self.reason(slot).is_none()
    }

    fn reasons(&self, slot: usize, _: &NodeInfo) -> Vec<String> {
        self.reason(slot).into_iter().map(str::to_owned).collect()
    }
}

struct Preferred<'a>(Vec<(i64, Domains<'a>)>);

pub(super) fn score<'a>(
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    _: &[usize],
) -> Option<Box<dyn Score + 'a>> {
    let mut terms = Vec::new();
    for (weight, term) in &pod.spec.preferred_pods {
        let counted = snapshot.count(&term.selection);
        let key = term.topology_key.as_str();
        terms.push((*weight, Domains::sum(snapshot, key, &counted, |_, _| true)));
    }
    for carried in snapshot.carried_terms_selecting(pod) {
        if let Carry::Weighted(weight) = carried.carry {
            let key = carried.term.topology_key.as_str();
            terms.push((weight, Domains::sum(snapshot, key, &carried.per_node, |_, _| true)));
        }
    }
    (!terms.is_empty()).then(|| Box::new(Preferred(terms)) as Box<dyn Score>)
}

impl Score for Preferred<'_> {
    fn score(&self, slot: usize, _: &NodeInfo) -> i64 {
        self.0.iter().map(|(weight, domains)| weight * domains.at(slot).unwrap_or(0)).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (least, most) =
            (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if most > least { MAX_SCORE * (*score - least) / (most - least) } else { 0 };
        }
    }
}
