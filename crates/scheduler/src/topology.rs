//! Topology domains: nodes that share the value of a label. Each value has a number, so that sums over domains
//! are additions in an array.

use std::collections::{BTreeMap, HashMap};

use crate::node::NodeInfo;

/// Number of no domain: the node lacks the label.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Topology keys kept; beyond, all are forgotten and made again as needed.
const MAX_KEYS: usize = 64;

/// Domain of each node, for one label.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    numbers: HashMap<String, u32>,
    of: Vec<u32>,
}

impl Topology {
    pub(crate) fn new(key: &str, nodes: &[NodeInfo]) -> Self {
        let mut topology = Self::default();
        for node in nodes {
            let number = topology.number(node.spec.labels.get(key));
            topology.of.push(number);
        }
        topology
    }

    fn number(&mut self, value: Option<&String>) -> u32 {
        let Some(value) = value else { return NOWHERE };
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let next = u32::try_from(self.numbers.len()).expect("fewer domains than labels ever seen");
        self.numbers.insert(value.clone(), next);
        next
    }

    /// Domain number of each node.
    pub(crate) fn of(&self) -> &[u32] {
        &self.of
    }

    /// How many numbers are given out, some perhaps to domains without nodes.
    pub(crate) fn size(&self) -> usize {
        self.numbers.len()
    }
}

/// All labels that decisions have asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topologies(BTreeMap<String, Topology>);

impl Topologies {
    pub(crate) fn ensure(&mut self, key: &str, nodes: &[NodeInfo]) {
        if self.0.contains_key(key) {
            return;
        }
        if self.0.len() >= MAX_KEYS {
            self.0.clear();
        }
        self.0.insert(key.to_owned(), Topology::new(key, nodes));
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Topology> {
        self.0.get(key)
    }

    /// Takes over the labels of a new or changed node.
    pub(crate) fn set_node(&mut self, slot: usize, labels: &BTreeMap<String, String>) {
        for (key, topology) in &mut self.0 {
            let number = topology.number(labels.get(key));
            match topology.of.get_mut(slot) {
                Some(of) => *of = number,
                None => topology.of.push(number),
            }
        }
    }

    /// Removes a node; the last one takes its place.
    pub(crate) fn swap_remove_node(&mut self, slot: usize) {
        self.0.retain(|_, topology| {
            topology.of.swap_remove(slot);
            // Numbers are not taken back one by one; a topology of mostly departed domains is made anew.
            topology.numbers.len() <= 64 + 2 * topology.of.len()
        });
    }
}
