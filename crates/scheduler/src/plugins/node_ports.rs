//! NodePorts: two pods of a node cannot have the same host port.

use super::Filter;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

struct NodePorts<'a>(&'a PodInfo);

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    (!pod.spec.host_ports.is_empty()).then(|| Box::new(NodePorts(pod)) as Box<dyn Filter>)
}

impl Filter for NodePorts<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        let mut wanted = self.0.spec.host_ports.iter();
        wanted.all(|port| !node.ports.iter().any(|taken| taken.conflicts(port)))
    }

    fn reasons(&self, _: usize, _: &NodeInfo) -> Vec<String> {
        vec!["node(s) didn't have free ports for the requested pod ports".into()]
    }
}
