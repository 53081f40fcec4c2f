//! Filters say which nodes can take a pod, scores which of them is best. One file per plugin; the two tables
//! below are the default profile of Kubernetes, in its order and with its weights.

mod domains;
mod fit;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod spread;
mod taints;
mod volume_binding;

use crate::hints::Hints;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

pub(crate) const MAX_SCORE: i64 = 100;

/// One rule about where a pod can run, prepared for one pod.
pub(crate) trait Filter {
    fn passes(&self, slot: usize, node: &NodeInfo) -> bool;

    /// Why a node that does not pass does not.
    fn reasons(&self, slot: usize, node: &NodeInfo) -> Vec<String>;
}

/// One preference about where a pod should run, prepared for one pod.
pub(crate) trait Score {
    /// Any number; higher is better after [`Score::normalize`].
    fn score(&self, slot: usize, node: &NodeInfo) -> i64;

    /// Brings the scores of all candidates to 0..=[`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

pub(crate) struct FilterPlugin {
    pub(crate) name: &'static str,
    /// Changes after which a node that was refused may pass.
    pub(crate) helped_by: Hints,
    /// Whether the verdict on a node depends on other nodes' pods too.
    pub(crate) global: bool,
    /// `None` when the rule says nothing about this pod.
    pub(crate) prepare: for<'a> fn(&'a Snapshot, &'a PodInfo) -> Option<Box<dyn Filter + 'a>>,
}

pub(crate) struct ScorePlugin {
    pub(crate) weight: i64,
    /// The last argument are the slots of the nodes that can take the pod.
    pub(crate) prepare: for<'a> fn(&'a Snapshot, &'a PodInfo, &[usize]) -> Option<Box<dyn Score + 'a>>,
}

const OTHER_PODS: Hints = Hints::POD_ADDED
    .or(Hints::POD_REMOVED)
    .or(Hints::POD_LABELS)
    .or(Hints::NODE_ADDED)
    .or(Hints::NODE_LABELS)
    .or(Hints::NODE_REMOVED);

pub(crate) const FILTERS: [FilterPlugin; 9] = [
    FilterPlugin {
        name: "NodeUnschedulable",
        helped_by: Hints::NODE_ADDED.or(Hints::NODE_TAINTS),
        global: false,
        prepare: node_unschedulable::filter,
    },
    FilterPlugin {
        name: "NodeName",
        helped_by: Hints::NODE_ADDED,
        global: false,
        prepare: node_name::filter,
    },
    FilterPlugin {
        name: "TaintToleration",
        helped_by: Hints::NODE_ADDED.or(Hints::NODE_TAINTS),
        global: false,
        prepare: taints::filter,
    },
    FilterPlugin {
        name: "NodeAffinity",
        helped_by: Hints::NODE_ADDED.or(Hints::NODE_LABELS),
        global: false,
        prepare: node_affinity::filter,
    },
    FilterPlugin {
        name: "NodePorts",
        helped_by: Hints::NODE_ADDED.or(Hints::POD_REMOVED),
        global: false,
        prepare: node_ports::filter,
    },
    FilterPlugin {
        name: "NodeResourcesFit",
        helped_by: Hints::NODE_ADDED.or(Hints::NODE_ALLOCATABLE).or(Hints::POD_REMOVED),
        global: false,
        prepare: fit::filter,
    },
    FilterPlugin {
        name: "VolumeBinding",
        helped_by: Hints::NODE_ADDED.or(Hints::NODE_LABELS).or(Hints::VOLUMES),
        global: false,
        prepare: volume_binding::filter,
    },
    FilterPlugin {
        name: "PodTopologySpread",
        helped_by: OTHER_PODS.or(Hints::NODE_TAINTS),
        global: true,
        prepare: spread::filter,
    },
    FilterPlugin {
        name: "InterPodAffinity",
        helped_by: OTHER_PODS.or(Hints::NAMESPACE_LABELS),
        global: true,
        prepare: inter_pod_affinity::filter,
    },
];

pub(crate) const SCORES: [ScorePlugin; 6] = [
    ScorePlugin { weight: 3, prepare: taints::score },
    ScorePlugin { weight: 2, prepare: node_affinity::score },
    ScorePlugin { weight: 1, prepare: fit::least_allocated },
    ScorePlugin { weight: 1, prepare: fit::balanced_allocation },
    ScorePlugin { weight: 2, prepare: spread::score },
    ScorePlugin { weight: 2, prepare: inter_pod_affinity::score },
];

/// Scales non-negative scores so that the highest becomes [`MAX_SCORE`].
fn normalize_to_highest(scores: &mut [i64]) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    if highest > 0 {
        for score in scores {
            *score = *score * MAX_SCORE / highest;
        }
    }
}
