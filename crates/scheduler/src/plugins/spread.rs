//! PodTopologySpread: hard constraints bound the skew between domains, soft ones prefer emptier domains.

use super::domains::Domains;
use super::{Filter, MAX_SCORE, Score, node_affinity, taints};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Spread};
use crate::snapshot::{HOSTNAME, Snapshot};
use crate::topology::NOWHERE;

/// Whether a node takes part in the counting of a constraint (KEP-3094).
fn included(constraint: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || node_affinity::matches(pod, &node.spec))
        && (!constraint.honor_taints || taints::untolerated(pod, node).is_none())
}

/// Whether each node is in a domain of every constraint.
fn with_all_keys(snapshot: &Snapshot, constraints: &[Spread]) -> Vec<bool> {
    let mut all = vec![true; snapshot.nodes().len()];
    for constraint in constraints {
        for (has, number) in all.iter_mut().zip(snapshot.domains(&constraint.topology_key).0.iter()) {
            *has &= *number != NOWHERE;
        }
    }
    all
}

struct Hard<'a> {
    constraints: Vec<(Spread, Domains<'a>, i64)>,
}

pub(super) fn filter<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    let hard: Vec<Spread> = pod.spec.spread.iter().filter(|c| c.hard).cloned().collect();
    if hard.is_empty() {
        return None;
    }
    let has_keys = with_all_keys(snapshot, &hard);
    let sum = |constraint: &Spread| {
        let counted = snapshot.count(&constraint.selection);
        let domains = Domains::sum(snapshot, &constraint.topology_key, &counted, |slot, node| {
            has_keys[slot] && included(constraint, pod, node)
        });
        let enough =
            i64::try_from(domains.counted().count()).is_ok_and(|count| count >= constraint.min_domains);
        let least = if enough { domains.counted().min().unwrap_or(0) } else { 0 };
        (constraint.clone(), domains, least)
    };
    Some(Box::new(Hard { constraints: hard.iter().map(sum).collect() }))
}

impl Hard<'_> {
    fn reason(&self, slot: usize) -> Option<&'static str> {
        for (constraint, domains, least) in &self.constraints {
            let Some(present) = domains.at(slot) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            if present + i64::from(constraint.matches_itself) - least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }
}

impl Filter for Hard<'_> {
    fn passes(&self, slot: usize, _: &NodeInfo) -> bool {
        self.reason(slot).is_none()
    }

    fn reasons(&self, slot: usize, _: &NodeInfo) -> Vec<String> {
        self.reason(slot).into_iter().map(str::to_owned).collect()
    }
}

struct Soft<'a> {
    constraints: Vec<(Spread, Domains<'a>, f64)>,
    /// Own constraints leave out nodes that lack a label; the default ones do not.
    all_keys: bool,
}

/// Score of a node that lacks a required label, until normalised.
const IGNORED: i64 = i64::MIN;

pub(super) fn score<'a>(
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    candidates: &[usize],
) -> Option<Box<dyn Score + 'a>> {
    let constraints = snapshot.spread_constraints(pod);
    let soft: Vec<Spread> = constraints.iter().filter(|c| !c.hard).cloned().collect();
    if soft.is_empty() {
        return None;
    }
    let all_keys = !pod.spec.spread.is_empty();
    let has_keys = if all_keys { with_all_keys(snapshot, &soft) } else { vec![true; snapshot.nodes().len()] };
    let sum = |constraint: &Spread| {
        let counted = snapshot.count(&constraint.selection);
        let domains = Domains::sum(snapshot, &constraint.topology_key, &counted, |slot, node| {
            has_keys[slot] && included(constraint, pod, node)
        });
        let ranked = candidates.iter().copied().filter(|slot| has_keys[*slot]);
        let size =
            if constraint.topology_key == HOSTNAME { ranked.count() } else { domains.distinct(ranked) };
        let size = f64::from(u32::try_from(size).unwrap_or(u32::MAX));
        (constraint.clone(), domains, (size + 2.0).ln())
    };
    Some(Box::new(Soft { constraints: soft.iter().map(sum).collect(), all_keys }))
}

impl Score for Soft<'_> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts are small")]
    fn score(&self, slot: usize, _: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for (constraint, domains, weight) in &self.constraints {
            match domains.at(slot) {
                Some(present) => {
                    score += present as f64 * weight + (constraint.max_skew - 1) as f64;
                }
                None if self.all_keys => return IGNORED,
                None => {}
            }
        }
        score.round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        let counted = || scores.iter().copied().filter(|score| *score != IGNORED);
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if most == 0 => MAX_SCORE,
                score => MAX_SCORE * (most + least - score) / most,
            };
        }
    }
}
