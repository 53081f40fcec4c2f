//! Which nodes a DaemonSet's pod fits, and how a pod is bound to one.

use client::Cached;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{PodTemplateSpec, Toleration};
use serde_json::{Value, json};

use crate::node::{Node, selects, tolerates};
use crate::pod::Pod;

/// Taints of nodes in trouble, which daemons bear (Kubernetes, "DaemonSet": taints and tolerations).
const BORNE: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Borne by daemons in the host's network too.
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The template with the tolerations that every daemon has.
pub(super) fn template(set: &Cached<DaemonSet>) -> PodTemplateSpec {
    let mut template = set.object.spec.template.clone();
    let spec = template.spec.get_or_insert_default();
    let network = spec.host_network.unwrap_or(false).then_some(NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in BORNE.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    template
}

/// Whether a pod should be started on the node, and whether one that is there may stay.
pub(super) fn fits(template: &PodTemplateSpec, node: &Cached<Node>) -> (bool, bool) {
    let Some(spec) = &template.spec else { return (false, false) };
    let named = spec.node_name.as_ref().is_none_or(|name| name.is_empty() || *name == node.key.name);
    if !named || !selects(spec.node_selector.as_ref(), spec.affinity.as_ref(), &node.key.name, &node.labels) {
        return (false, false);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let borne = |effect: &str| {
        let mut taints = node.object.spec.taints.iter().filter(|taint| taint.effect == effect);
        taints.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
    };
    let execute = borne("NoExecute");
    (execute && borne("NoSchedule"), execute)
}

/// The node a pod is on, or will be.
pub(super) fn target_node(pod: &Pod) -> Option<String> {
    if !pod.spec.node_name.is_empty() {
        return Some(pod.spec.node_name.clone());
    }
    let node = pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = node.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields =
        required.node_selector_terms.iter().flat_map(|term| term.match_fields.as_deref().unwrap_or_default());
    let field = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    field.values.as_ref()?.first().cloned()
}

/// Leaves the scheduler one node to choose.
pub(super) fn bind_to(pod: &mut Value, node: &str) {
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}],
    });
}
