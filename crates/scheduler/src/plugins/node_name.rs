//! NodeName: a pod that names its node runs there.

use super::Filter;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

struct NodeName<'a>(&'a str);

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    Some(Box::new(NodeName(pod.spec.node_name.as_deref()?)))
}

impl Filter for NodeName<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        node.spec.name == self.0
    }

    fn reasons(&self, _: usize, _: &NodeInfo) -> Vec<String> {
        vec!["node(s) didn't match the requested node name".into()]
    }
}
