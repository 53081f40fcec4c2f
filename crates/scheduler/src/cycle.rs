//! One decision: which node takes this pod. Pure; the caller performs it.

use std::collections::BTreeMap;
use std::fmt;

use crate::hints::Hints;
use crate::plugins::{FILTERS, Filter, FilterPlugin, SCORES};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

/// Up to so many nodes all are looked at; of more, a share that shrinks as the cluster grows.
const ALWAYS_ALL: usize = 100;

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Bind { node: String },
    Unschedulable(Unschedulable),
}

/// Why no node can take a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// Nodes per reason; a node can have several.
    pub reasons: BTreeMap<String, usize>,
    /// Changes that may help.
    pub helped_by: Hints,
    /// Whether a rule was broken that looks at other nodes' pods too.
    pub global: bool,
}

impl fmt::Display for Unschedulable {
    /// The message of the `PodScheduled` condition, as Kubernetes words it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> =
            self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// Where a search begins, and what decides between equals: any number, for example random.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    pub start: usize,
    pub random: u64,
}

/// Finds a node for a pod.
pub fn schedule(snapshot: &Snapshot, pod: &PodInfo, choice: Choice) -> Decision {
    let filters = prepare(snapshot, pod);
    let feasible = feasible(snapshot, &filters, choice.start);
    if feasible.is_empty() {
        return Decision::Unschedulable(explain(snapshot, &filters));
    }
    let best = rank(snapshot, pod, &feasible, choice.random);
    Decision::Bind { node: snapshot.nodes()[best].spec.name.clone() }
}

/// Whether the pod passes all filters on any of these nodes: tells if a change there helps.
pub fn fits<'n>(snapshot: &Snapshot, pod: &PodInfo, nodes: impl IntoIterator<Item = &'n str>) -> bool {
    let filters = prepare(snapshot, pod);
    let slots = nodes.into_iter().filter_map(|node| snapshot.slot(node));
    slots.into_iter().any(|slot| passes(&filters, snapshot, slot))
}

/// Those of some nodes that only what runs there keeps the pod from.
pub(crate) fn resolvable(
    snapshot: &Snapshot,
    pod: &PodInfo,
    slots: impl Iterator<Item = usize>,
) -> Vec<usize> {
    let filters = prepare(snapshot, pod);
    let stays = |plugin: &FilterPlugin| !plugin.helped_by.meets(Hints::POD_REMOVED);
    let passes = |slot: &usize| {
        let node = &snapshot.nodes()[*slot];
        filters.iter().filter(|(plugin, _)| stays(plugin)).all(|(_, filter)| filter.passes(*slot, node))
    };
    slots.filter(passes).collect()
}

type Prepared<'a> = Vec<(&'static FilterPlugin, Box<dyn Filter + 'a>)>;

fn prepare<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Prepared<'a> {
    let prepare = |plugin: &'static FilterPlugin| Some((plugin, (plugin.prepare)(snapshot, pod)?));
    FILTERS.iter().filter_map(prepare).collect()
}

fn passes(filters: &Prepared<'_>, snapshot: &Snapshot, slot: usize) -> bool {
    filters.iter().all(|(_, filter)| filter.passes(slot, &snapshot.nodes()[slot]))
}

/// Slots of nodes that can take the pod, enough of them to rank.
fn feasible(snapshot: &Snapshot, filters: &Prepared<'_>, start: usize) -> Vec<usize> {
    let count = snapshot.nodes().len();
    let enough = enough(count);
    let mut found = Vec::new();
    for i in 0..count {
        let slot = (start + i) % count;
        if passes(filters, snapshot, slot) {
            found.push(slot);
            if found.len() == enough {
                break;
            }
        }
    }
    found
}

/// How many feasible nodes are enough (Kubernetes documentation, "Scheduler Performance Tuning").
fn enough(nodes: usize) -> usize {
    if nodes <= ALWAYS_ALL {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALWAYS_ALL)
}

fn explain(snapshot: &Snapshot, filters: &Prepared<'_>) -> Unschedulable {
    let mut answer = Unschedulable { nodes: snapshot.nodes().len(), ..Unschedulable::default() };
    answer.helped_by = Hints::NODE_ADDED;
    for (slot, node) in snapshot.nodes().iter().enumerate() {
        let Some((plugin, filter)) = filters.iter().find(|(_, filter)| !filter.passes(slot, node)) else {
            continue;
        };
        tracing::trace!(node = node.spec.name, plugin = plugin.name, "refused");
        answer.helped_by = answer.helped_by.or(plugin.helped_by);
        answer.global |= plugin.global;
        for reason in filter.reasons(slot, node) {
            *answer.reasons.entry(reason).or_default() += 1;
        }
    }
    answer
}

/// The best of the candidates; `random` picks one of several best.
fn rank(snapshot: &Snapshot, pod: &PodInfo, candidates: &[usize], random: u64) -> usize {
    if let [only] = candidates {
        return *only;
    }
    let mut totals = vec![0i64; candidates.len()];
    for plugin in &SCORES {
        let Some(score) = (plugin.prepare)(snapshot, pod, candidates) else { continue };
        let each = candidates.iter().map(|slot| score.score(*slot, &snapshot.nodes()[*slot]));
        let mut scores: Vec<i64> = each.collect();
        score.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += plugin.weight * score;
        }
    }
    let most = totals.iter().max().copied().unwrap_or(0);
    let best: Vec<usize> =
        candidates.iter().zip(&totals).filter(|(_, t)| **t == most).map(|(s, _)| *s).collect();
    let pick = usize::try_from(random % best.len() as u64).expect("smaller than a length");
    best[pick]
}
