//! Numbers of pods per node and selection, kept current by deltas, so that affinity and spreading never look at
//! all pods.
//!
//! Two directions: `counts` has pods that a selection of an incoming pod selects; `carried` has pods that carry a
//! term which an incoming pod may be selected by.

use std::collections::BTreeMap;

use crate::pod::PodInfo;
use crate::selection::{NamespaceLabels, Selection, Term};

/// Selections kept; the least recently used goes first.
const MAX_COUNTS: usize = 512;

/// What a carried term does to the pods it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carry {
    /// Keeps them out of its topology domain.
    RequiredAnti,
    /// Draws them near, or keeps them away when negative.
    Weighted(i64),
}

/// Weight of required affinity of running pods when a new pod's nodes are ranked.
const HARD_AFFINITY_WEIGHT: i64 = 1;

#[derive(Clone, Debug, PartialEq)]
struct Count {
    selection: Selection,
    per_node: Vec<u32>,
    used: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Carried {
    pub(crate) term: Term,
    pub(crate) carry: Carry,
    pub(crate) per_node: Vec<u32>,
    total: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    nodes: usize,
    counts: BTreeMap<String, Count>,
    carried: BTreeMap<String, Carried>,
    clock: u64,
}

impl Counters {
    pub(crate) fn push_node(&mut self) {
        self.nodes += 1;
        for per_node in self.vectors() {
            per_node.push(0);
        }
    }

    /// Removes a node; the last one takes its place.
    pub(crate) fn swap_remove_node(&mut self, slot: usize) {
        self.nodes -= 1;
        for carried in self.carried.values_mut() {
            carried.total -= carried.per_node[slot];
        }
        for per_node in self.vectors() {
            per_node.swap_remove(slot);
        }
        self.carried.retain(|_, carried| carried.total > 0);
    }

    fn vectors(&mut self) -> impl Iterator<Item = &mut Vec<u32>> {
        let counts = self.counts.values_mut().map(|c| &mut c.per_node);
        counts.chain(self.carried.values_mut().map(|c| &mut c.per_node))
    }

    pub(crate) fn add(&mut self, slot: usize, pod: &PodInfo, namespaces: &NamespaceLabels) {
        for count in self.counts.values_mut() {
            count.per_node[slot] += u32::from(count.selection.contains(pod, namespaces));
        }
        for (term, carry) in carried_by(pod) {
            let nodes = self.nodes;
            let carried = self.carried.entry(carried_key(term, carry)).or_insert_with(|| Carried {
                term: term.clone(),
                carry,
                per_node: vec![0; nodes],
                total: 0,
            });
            carried.per_node[slot] += 1;
            carried.total += 1;
        }
    }

    pub(crate) fn remove(&mut self, slot: usize, pod: &PodInfo, namespaces: &NamespaceLabels) {
        for count in self.counts.values_mut() {
            count.per_node[slot] -= u32::from(count.selection.contains(pod, namespaces));
        }
        for (term, carry) in carried_by(pod) {
            let key = carried_key(term, carry);
            let Some(carried) = self.carried.get_mut(&key) else { continue };
            carried.per_node[slot] -= 1;
            carried.total -= 1;
            if carried.total == 0 {
                self.carried.remove(&key);
            }
        }
    }

    /// Forgets selections by namespace labels, whose meaning changed.
    pub(crate) fn namespaces_changed(&mut self) {
        self.counts.retain(|_, count| !count.selection.depends_on_namespace_labels());
    }

    /// Makes sure that a selection is counted; `count` counts it from scratch.
    pub(crate) fn ensure(&mut self, selection: &Selection, count: impl FnOnce(&Selection) -> Vec<u32>) {
        self.clock += 1;
        let used = self.clock;
        if let Some(known) = self.counts.get_mut(selection.text()) {
            known.used = used;
            return;
        }
        if self.counts.len() >= MAX_COUNTS {
            let oldest = self.counts.iter().min_by_key(|(_, count)| count.used).map(|(text, _)| text.clone());
            oldest.map(|text| self.counts.remove(&text));
        }
        let per_node = count(selection);
        self.counts
            .insert(selection.text().to_owned(), Count { selection: selection.clone(), per_node, used });
    }

    pub(crate) fn get(&self, selection: &Selection) -> Option<&[u32]> {
        self.counts.get(selection.text()).map(|count| &*count.per_node)
    }

    pub(crate) fn carried(&self) -> impl Iterator<Item = &Carried> {
        self.carried.values()
    }

    /// The counted selections.
    pub(crate) fn selections(&self) -> Vec<Selection> {
        self.counts.values().map(|count| count.selection.clone()).collect()
    }
}

fn carried_key(term: &Term, carry: Carry) -> String {
    format!("{carry:?} {} {}", term.topology_key, term.selection.text())
}

fn carried_by(pod: &PodInfo) -> impl Iterator<Item = (&Term, Carry)> {
    let anti = pod.spec.anti_affinity.iter().map(|term| (term, Carry::RequiredAnti));
    let hard = pod.spec.affinity.iter().map(|term| (term, Carry::Weighted(HARD_AFFINITY_WEIGHT)));
    let soft = pod.spec.preferred_pods.iter().map(|(weight, term)| (term, Carry::Weighted(*weight)));
    anti.chain(hard).chain(soft)
}
