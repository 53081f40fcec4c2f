//! VolumeBinding: the pod's volumes can be reached from the node.

use super::Filter;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

struct VolumeBinding<'a>(&'a Snapshot, &'a PodInfo);

pub(super) fn filter<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    (!pod.spec.claims.is_empty()).then(|| Box::new(VolumeBinding(snapshot, pod)) as Box<dyn Filter>)
}

impl Filter for VolumeBinding<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        self.0.volumes.steps(self.1, &node.spec).is_ok()
    }

    fn reasons(&self, _: usize, node: &NodeInfo) -> Vec<String> {
        self.0.volumes.steps(self.1, &node.spec).err().into_iter().collect()
    }
}
