//! What controllers read of a Node.

use api::GroupVersionResource;
use client::Kind;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};
use serde::Deserialize;
use serde_json::json;

/// A slim view of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: NodeMeta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMeta {
    pub creation_timestamp: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    pub conditions: Vec<NodeCondition>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_heartbeat_time: Option<Timestamp>,
    pub last_transition_time: Option<Timestamp>,
}

impl Kind for Node {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "nodes")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Node")
    }
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if set(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    if set(&toleration.key).is_some_and(|key| key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            set(&toleration.key).is_some()
                && toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default()
        }
        _ => false,
    }
}

/// Whether a node fulfils a pod's node selector and required node affinity.
pub(crate) fn selects(
    node_selector: Option<&std::collections::BTreeMap<String, String>>,
    affinity: Option<&Affinity>,
    name: &str,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    if node_selector.into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let required = affinity
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, name, labels)))
}

fn fits(term: &NodeSelectorTerm, name: &str, labels: &std::collections::BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let test = |one: &NodeSelectorRequirement, value: &dyn Fn(&str) -> Option<String>| {
        let requirement = api::selector::Requirement::from_expression(&json!(one));
        requirement.is_ok_and(|requirement| {
            let found = value(&one.key);
            let selector = api::LabelSelector { requirements: vec![requirement] };
            selector.matches_with(|_| found.as_deref())
        })
    };
    // A term without requirements selects nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|one| test(one, &|key| labels.get(key).cloned()))
        && fields.iter().all(|one| test(one, &|key| (key == "metadata.name").then(|| name.to_owned())))
}
