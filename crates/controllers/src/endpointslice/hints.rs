//! Zones of endpoints, and for whom each is meant (`trafficDistribution`, KEP-4444 and KEP-3015): an endpoint serves its own
//! zone, or its own node first. Whether that leaves enough is for each proxy to see.

use client::Cached;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{EndpointHints, ForNode, ForZone};

use super::desired::Group;

/// Label of a Node.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

/// Completes the endpoints; `zone` is that of a node.
pub(super) fn add(service: &Cached<Service>, groups: &mut [Group], zone: impl Fn(&str) -> Option<String>) {
    let spec = service.object.spec.as_ref();
    let wish = spec.and_then(|spec| spec.traffic_distribution.as_deref()).unwrap_or_default();
    let by_zone = matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    let by_node = wish == "PreferSameNode";
    for endpoint in groups.iter_mut().flat_map(|group| &mut group.endpoints) {
        let Some(node) = endpoint.node_name.clone() else { continue };
        endpoint.zone = zone(&node);
        if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(true) {
            continue;
        }
        let of_zone = endpoint.zone.clone().filter(|_| by_zone).map(|name| vec![ForZone { name }]);
        let of_node = by_node.then(|| vec![ForNode { name: node }]);
        if of_zone.is_some() || of_node.is_some() {
            endpoint.hints = Some(EndpointHints { for_nodes: of_node, for_zones: of_zone });
        }
    }
}
