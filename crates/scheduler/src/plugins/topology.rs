//! Sums over topology domains: nodes that share the value of a label.

use std::collections::HashMap;

use crate::node::NodeInfo;
use crate::snapshot::Snapshot;

/// Sum per value of a topology key; only looked up, never walked, where order could matter.
pub(super) type Domains<'a, N> = HashMap<&'a str, N>;

pub(super) fn domain<'a>(node: &'a NodeInfo, key: &str) -> Option<&'a str> {
    node.spec.labels.get(key).map(String::as_str)
}

/// Adds up `per_node` within each domain, over nodes that are `eligible`.
pub(super) fn sums<'a>(
    snapshot: &'a Snapshot,
    key: &str,
    per_node: &[u32],
    eligible: impl Fn(usize, &NodeInfo) -> bool,
) -> Domains<'a, i64> {
    let mut sums = Domains::new();
    for (slot, (node, count)) in snapshot.nodes().iter().zip(per_node).enumerate() {
        if let Some(domain) = domain(node, key)
            && eligible(slot, node)
        {
            *sums.entry(domain).or_default() += i64::from(*count);
        }
    }
    sums
}
