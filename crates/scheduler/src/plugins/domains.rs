//! Sums of pods over topology domains.

use std::borrow::Cow;

use crate::node::NodeInfo;
use crate::snapshot::Snapshot;
use crate::topology::NOWHERE;

/// A domain without any node that counts.
const ABSENT: i64 = i64::MIN;

/// Pods per domain of one topology key.
pub(super) struct Domains<'a> {
    of: Cow<'a, [u32]>,
    sums: Vec<i64>,
}

impl<'a> Domains<'a> {
    /// Adds up `per_node` within each domain, over nodes that are `eligible`.
    pub(super) fn sum(
        snapshot: &'a Snapshot,
        key: &str,
        per_node: &[u32],
        eligible: impl Fn(usize, &NodeInfo) -> bool,
    ) -> Self {
        let (of, size) = snapshot.domains(key);
        let mut sums = vec![ABSENT; size];
        for (slot, (number, count)) in of.iter().zip(per_node).enumerate() {
            if *number != NOWHERE && eligible(slot, &snapshot.nodes()[slot]) {
                let sum = &mut sums[*number as usize];
                *sum = (*sum).max(0) + i64::from(*count);
            }
        }
        Self { of, sums }
    }

    /// Pods in the node's domain; `None` when the node is in none.
    pub(super) fn at(&self, slot: usize) -> Option<i64> {
        let number = self.of[slot];
        (number != NOWHERE).then(|| self.sums[number as usize].max(0))
    }

    /// Sums of all domains that have eligible nodes.
    pub(super) fn counted(&self) -> impl Iterator<Item = i64> {
        self.sums.iter().copied().filter(|sum| *sum != ABSENT)
    }

    /// How many different domains these nodes are in.
    pub(super) fn distinct(&self, slots: impl Iterator<Item = usize>) -> usize {
        let mut seen = vec![false; self.sums.len()];
        let mut count = 0;
        for slot in slots {
            if let Some(seen) = seen.get_mut(self.of[slot] as usize)
                && !std::mem::replace(seen, true)
            {
                count += 1;
            }
        }
        count
    }
}
