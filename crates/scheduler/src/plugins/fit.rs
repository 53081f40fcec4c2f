//! NodeResourcesFit: requests must fit what is free. LeastAllocated and BalancedAllocation rank what fits.

use super::{Filter, MAX_SCORE, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

struct Fit<'a>(&'a PodInfo);

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    Some(Box::new(Fit(pod)))
}

impl Fit<'_> {
    /// Calls `each` with the name of every resource that is short, until it returns false.
    fn short(&self, node: &NodeInfo, mut each: impl FnMut(&str) -> bool) {
        let (wanted, free, used) = (&self.0.spec.requests, &node.spec.allocatable, &node.used);
        let lacks = |wanted: i64, allocatable: i64, used: i64| wanted > 0 && wanted > allocatable - used;
        let plain = [
            ("cpu", wanted.milli_cpu, free.milli_cpu, used.milli_cpu),
            ("memory", wanted.memory, free.memory, used.memory),
            ("ephemeral-storage", wanted.ephemeral_storage, free.ephemeral_storage, used.ephemeral_storage),
        ];
        for (name, wanted, allocatable, used) in plain {
            if lacks(wanted, allocatable, used) && !each(name) {
                return;
            }
        }
        for (name, wanted) in &wanted.extended {
            let amount = |of: &crate::resources::Resources| of.extended.get(name).copied().unwrap_or(0);
            if lacks(*wanted, amount(free), amount(used)) && !each(name) {
                return;
            }
        }
    }
}

impl Filter for Fit<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        let mut fits = node.pods < node.spec.max_pods;
        if fits {
            self.short(node, |_| {
                fits = false;
                false
            });
        }
        fits
    }

    fn reasons(&self, _: usize, node: &NodeInfo) -> Vec<String> {
        let mut reasons = Vec::new();
        if node.pods >= node.spec.max_pods {
            reasons.push("Too many pods".to_owned());
        }
        self.short(node, |name| {
            reasons.push(format!("Insufficient {name}"));
            true
        });
        reasons
    }
}

struct LeastAllocated<'a>(&'a PodInfo);

pub(super) fn least_allocated<'a>(
    _: &'a Snapshot,
    pod: &'a PodInfo,
    _: &[usize],
) -> Option<Box<dyn Score + 'a>> {
    Some(Box::new(LeastAllocated(pod)))
}

impl Score for LeastAllocated<'_> {
    fn score(&self, _: usize, node: &NodeInfo) -> i64 {
        let (free, used, wanted) =
            (&node.spec.allocatable, &node.ranking_used, &self.0.spec.ranking_requests);
        let share = |allocatable: i64, used: i64| {
            if allocatable <= 0 || used > allocatable { 0 } else { scale(allocatable - used, allocatable) }
        };
        let cpu = share(free.milli_cpu, used.milli_cpu + wanted.milli_cpu);
        let memory = share(free.memory, used.memory + wanted.memory);
        (cpu + memory) / 2
    }
}

fn scale(part: i64, whole: i64) -> i64 {
    let scaled = i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole);
    i64::try_from(scaled).unwrap_or(MAX_SCORE)
}

struct BalancedAllocation<'a>(&'a PodInfo);

pub(super) fn balanced_allocation<'a>(
    _: &'a Snapshot,
    pod: &'a PodInfo,
    _: &[usize],
) -> Option<Box<dyn Score + 'a>> {
    let wanted = &pod.spec.requests;
    let asks = wanted.milli_cpu > 0 || wanted.memory > 0;
    asks.then(|| Box::new(BalancedAllocation(pod)) as Box<dyn Score>)
}

impl Score for BalancedAllocation<'_> {
    /// Full score when cpu and memory would be used to the same degree.
    fn score(&self, _: usize, node: &NodeInfo) -> i64 {
        let (free, used, wanted) = (&node.spec.allocatable, &node.used, &self.0.spec.requests);
        let fraction = |allocatable: i64, used: i64| {
            if allocatable <= 0 { MAX_SCORE } else { scale(used, allocatable).min(MAX_SCORE) }
        };
        let cpu = fraction(free.milli_cpu, used.milli_cpu + wanted.milli_cpu);
        let memory = fraction(free.memory, used.memory + wanted.memory);
        // The standard deviation of two numbers is half their difference.
        MAX_SCORE - (cpu - memory).abs() / 2
    }
}
