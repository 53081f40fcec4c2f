//! PodTopologySpread: hard constraints bound the skew between domains, soft ones prefer emptier domains.

use super::topology::{Domains, domain, sums};
use super::{Filter, MAX_SCORE, Score, node_affinity, taints};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Spread};
use crate::snapshot::{HOSTNAME, Snapshot};

/// Whether a node takes part in the counting of a constraint (KEP-3094).
fn included(constraint: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || node_affinity::matches(pod, &node.spec))
        && (!constraint.honor_taints || taints::untolerated(pod, node).is_none())
}

fn has_all_keys(constraints: &[Spread], node: &NodeInfo) -> bool {
    constraints.iter().all(|constraint| domain(node, &constraint.topology_key).is_some())
}

struct Hard<'a> {
    constraints: Vec<(Spread, Domains<'a, i64>, i64)>,
}

pub(super) fn filter<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    let hard: Vec<Spread> = pod.spec.spread.iter().filter(|c| c.hard).cloned().collect();
    if hard.is_empty() {
        return None;
    }
    let sum = |constraint: &Spread| {
        let counted = snapshot.count(&constraint.selection);
        let domains = sums(snapshot, &constraint.topology_key, &counted, |_, node| {
            has_all_keys(&hard, node) && included(constraint, pod, node)
        });
        let enough = i64::try_from(domains.len()).is_ok_and(|count| count >= constraint.min_domains);
        let least = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
        (constraint.clone(), domains, least)
    };
    Some(Box::new(Hard { constraints: hard.iter().map(sum).collect() }))
}

impl Hard<'_> {
    fn reason(&self, node: &NodeInfo) -> Option<&'static str> {
        for (constraint, domains, least) in &self.constraints {
            let Some(domain) = domain(node, &constraint.topology_key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let present = domains.get(domain).copied().unwrap_or(0);
            if present + i64::from(constraint.matches_itself) - least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }
}

impl Filter for Hard<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        self.reason(node).is_none()
    }

    fn reasons(&self, _: usize, node: &NodeInfo) -> Vec<String> {
        self.reason(node).into_iter().map(str::to_owned).collect()
    }
}

struct Soft<'a> {
    constraints: Vec<(Spread, Domains<'a, i64>, f64)>,
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
    let sum = |constraint: &Spread| {
        let counted = snapshot.count(&constraint.selection);
        let domains = sums(snapshot, &constraint.topology_key, &counted, |_, node| {
            (!all_keys || has_all_keys(&soft, node)) && included(constraint, pod, node)
        });
        let ranked = candidates.iter().map(|slot| &snapshot.nodes()[*slot]);
        let ranked = ranked.filter(|node| !all_keys || has_all_keys(&soft, node));
        let size = if constraint.topology_key == HOSTNAME {
            ranked.count()
        } else {
            let values = ranked.filter_map(|node| domain(node, &constraint.topology_key));
            values.collect::<std::collections::BTreeSet<_>>().len()
        };
        let size = f64::from(u32::try_from(size).unwrap_or(u32::MAX));
        (constraint.clone(), domains, (size + 2.0).ln())
    };
    Some(Box::new(Soft { constraints: soft.iter().map(sum).collect(), all_keys }))
}

impl Score for Soft<'_> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts are small")]
    fn score(&self, _: usize, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for (constraint, domains, weight) in &self.constraints {
            match domain(node, &constraint.topology_key) {
                Some(domain) => {
                    let present = domains.get(domain).copied().unwrap_or(0);
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
