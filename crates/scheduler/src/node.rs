//! What the scheduler knows of a node.

use std::collections::BTreeMap;

use api::GroupVersionResource;
use k8s_openapi::api::core::v1::{Node, Taint};
use serde::Deserialize;

use crate::pod::{HostPort, PodInfo};
use crate::quantity;
use crate::resources::Resources;

/// A node as its object describes it. Heartbeats do not change it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Node")]
pub struct NodeSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// How many pods may run.
    pub max_pods: i64,
}

impl From<Node> for NodeSpec {
    fn from(node: Node) -> Self {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let allocatable = status.allocatable.or(status.capacity);
        let pods = allocatable.as_ref().and_then(|list| list.get("pods"));
        Self {
            name: node.metadata.name.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            max_pods: pods.and_then(|q| quantity::units(&q.0)).unwrap_or(0),
            allocatable: Resources::from_list(allocatable.as_ref()),
        }
    }
}

impl client::Kind for NodeSpec {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "nodes")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Node")
    }
}

/// A node with what its pods use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInfo {
    pub spec: NodeSpec,
    pub used: Resources,
    /// With the defaults for containers that ask for nothing, for ranking.
    pub ranking_used: Resources,
    pub pods: i64,
    pub ports: Vec<HostPort>,
}

impl NodeInfo {
    pub(crate) fn new(spec: NodeSpec) -> Self {
        Self { spec, ..Self::default() }
    }

    pub(crate) fn add(&mut self, pod: &PodInfo) {
        self.pods += 1;
        self.used.add(&pod.spec.requests);
        self.ranking_used.add(&pod.spec.ranking_requests);
        self.ports.extend(pod.spec.host_ports.iter().cloned());
        self.ports.sort_unstable();
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo) {
        self.pods -= 1;
        self.used.subtract(&pod.spec.requests);
        self.ranking_used.subtract(&pod.spec.ranking_requests);
        for port in &pod.spec.host_ports {
            if let Ok(at) = self.ports.binary_search(port) {
                self.ports.remove(at);
            }
        }
    }
}
