//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::{Filter, taints};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

struct NodeUnschedulable;

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    let tolerated = taints::tolerated(&pod.spec.tolerations, &taint);
    (!tolerated).then(|| Box::new(NodeUnschedulable) as Box<dyn Filter>)
}

impl Filter for NodeUnschedulable {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        !node.spec.unschedulable
    }

    fn reasons(&self, _: usize, _: &NodeInfo) -> Vec<String> {
        vec!["node(s) were unschedulable".into()]
    }
}
