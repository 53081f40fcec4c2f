//! NodeAffinity: node selector, required and preferred node affinity.

use std::collections::BTreeMap;

use super::{Filter, Score};
use crate::node::{NodeInfo, NodeSpec};
use crate::pod::{NodeTerm, PodInfo};
use crate::snapshot::Snapshot;

impl NodeTerm {
    pub(crate) fn matches(&self, node: &NodeSpec) -> bool {
        let name = |field: &str| (field == "metadata.name").then_some(node.name.as_str());
        !self.empty && self.labels.matches(&node.labels) && self.names.matches_with(name)
    }
}

/// Whether the node has what selector and required affinity ask for.
pub(crate) fn matches(pod: &PodInfo, node: &NodeSpec) -> bool {
    let has = |(name, value): (&String, &String)| node.labels.get(name) == Some(value);
    let selector: &BTreeMap<_, _> = &pod.spec.node_selector;
    let terms = pod.spec.node_affinity.as_ref();
    selector.iter().all(has) && terms.is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
}

struct NodeAffinity<'a>(&'a PodInfo);

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    let asks = !pod.spec.node_selector.is_empty() || pod.spec.node_affinity.is_some();
    asks.then(|| Box::new(NodeAffinity(pod)) as Box<dyn Filter>)
}

impl Filter for NodeAffinity<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        matches(self.0, &node.spec)
    }

    fn reasons(&self, _: usize, _: &NodeInfo) -> Vec<String> {
        vec!["node(s) didn't match Pod's node affinity/selector".into()]
    }
}

pub(super) fn score<'a>(_: &'a Snapshot, pod: &'a PodInfo, _: &[usize]) -> Option<Box<dyn Score + 'a>> {
    (!pod.spec.preferred_nodes.is_empty()).then(|| Box::new(NodeAffinity(pod)) as Box<dyn Score>)
}

impl Score for NodeAffinity<'_> {
    fn score(&self, _: usize, node: &NodeInfo) -> i64 {
        let terms = self.0.spec.preferred_nodes.iter();
        terms.filter(|(_, term)| term.matches(&node.spec)).map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        super::normalize_to_highest(scores);
    }
}
