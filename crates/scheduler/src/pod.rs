//! What the scheduler knows of a pod: compiled once from the typed object when it changes.

use std::collections::{BTreeMap, BTreeSet};

use api::selector::Requirement;
use api::{GroupVersionResource, LabelSelector, ObjectKey};
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as TypedSelector;
use serde::Deserialize;

use crate::resources::{Resources, pod_requests, pod_requests_for_ranking};
use crate::selection::{Namespaces, Selection, Term};

/// A pod, as far as placement is concerned.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Pod")]
pub struct PodInfo {
    pub key: ObjectKey,
    pub uid: String,
    pub resource_version: String,
    pub spec: Spec,
    pub deleting: bool,
    /// Succeeded or Failed: it uses nothing any more.
    pub finished: bool,
    /// Where room is being made for the pod.
    pub nominated_node: Option<String>,
    /// When the node agent took it on, in seconds since 1970.
    pub started: Option<i64>,
    /// The `PodScheduled` condition as stored.
    pub scheduled_condition: Option<Condition>,
}

/// The part of a pod that decides where it may run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    pub labels: BTreeMap<String, String>,
    /// uid of the controller
    pub controller: Option<String>,
    pub scheduler_name: String,
    pub node_name: Option<String>,
    pub priority: i32,
    /// Waits for room rather than making some.
    pub never_preempts: bool,
    pub gated: bool,
    pub requests: Resources,
    /// Requests with the defaults that are used for ranking nodes.
    pub ranking_requests: Resources,
    pub host_ports: BTreeSet<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    /// Alternatives of which one must match; `None` when there is no required node affinity.
    pub node_affinity: Option<Vec<NodeTerm>>,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    /// Weights are negative for anti-affinity.
    pub preferred_pods: Vec<(i64, Term)>,
    pub spread: Vec<Spread>,
    /// Names of its claims.
    pub claims: Vec<String>,
}

/// A port of the node that the pod occupies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub port: i32,
    /// "" and 0.0.0.0 are all addresses.
    pub ip: String,
}

impl HostPort {
    pub(crate) fn conflicts(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// Requirements on a node that must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTerm {
    pub labels: LabelSelector,
    /// Requirements on the field `metadata.name`.
    pub names: LabelSelector,
    /// A term without any requirement matches no node.
    pub empty: bool,
}

/// A topology spread constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    /// `DoNotSchedule`, else `ScheduleAnyway`.
    pub hard: bool,
    pub selection: Selection,
    /// Whether the pod itself is counted.
    pub matches_itself: bool,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

/// A condition of the pod's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl PodInfo {
    /// Whether this scheduler has to find a node for the pod.
    pub fn is_pending(&self) -> bool {
        self.spec.node_name.is_none()
            && !self.deleting
            && !self.finished
            && !self.spec.gated
            && self.spec.scheduler_name == "default-scheduler"
    }
}

impl client::Kind for PodInfo {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "pods")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Pod")
    }
}

impl From<Pod> for PodInfo {
    fn from(pod: Pod) -> Self {
        let meta = pod.metadata;
        let key = ObjectKey::new(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
        let controller = meta.owner_references.into_iter().flatten().find(|o| o.controller == Some(true));
        let labels = meta.labels.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let started = status.start_time.as_ref().map(|time| time.0.as_second());
        let nominated_node = status.nominated_node_name.clone().filter(|name| !name.is_empty());
        let condition = status.conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled");
        let claims = claims(&key.name, pod.spec.as_ref());
        let mut spec =
            compile(&key.namespace, labels, controller.map(|o| o.uid), pod.spec.unwrap_or_default());
        spec.claims = claims;
        Self {
            key,
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            spec,
            deleting: meta.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            nominated_node,
            started,
            scheduled_condition: condition.map(|c| Condition {
                status: c.status,
                reason: c.reason.unwrap_or_default(),
                message: c.message.unwrap_or_default(),
            }),
        }
    }
}

/// Claims that a pod names, and its own, which are named after it.
fn claims(pod: &str, spec: Option<&PodSpec>) -> Vec<String> {
    let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let named = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name)),
        (None, None) => None,
    });
    named.collect()
}

fn compile(
    namespace: &str,
    labels: BTreeMap<String, String>,
    controller: Option<String>,
    pod: PodSpec,
) -> Spec {
    let mut spec = Spec {
        controller,
        scheduler_name: pod.scheduler_name.clone().unwrap_or_else(|| "default-scheduler".into()),
        node_name: pod.node_name.clone().filter(|name| !name.is_empty()),
        priority: pod.priority.unwrap_or(0),
        never_preempts: pod.preemption_policy.as_deref() == Some("Never"),
        gated: pod.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
        requests: pod_requests(&pod),
        ranking_requests: pod_requests_for_ranking(&pod),
        host_ports: host_ports(&pod),
        ..Spec::default()
    };
    spec.spread = pod
        .topology_spread_constraints
        .into_iter()
        .flatten()
        .map(|constraint| spread(namespace, &labels, constraint))
        .collect();
    compile_affinity(&mut spec, namespace, &labels, pod.affinity.unwrap_or_default());
    spec.tolerations = pod.tolerations.unwrap_or_default();
    spec.node_selector = pod.node_selector.unwrap_or_default();
    spec.labels = labels;
    spec
}

fn host_ports(pod: &PodSpec) -> BTreeSet<HostPort> {
    let sidecars =
        pod.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = pod.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let occupied = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some(HostPort { protocol, port: number, ip: port.host_ip.clone().unwrap_or_default() })
    });
    occupied.collect()
}

fn compile_affinity(spec: &mut Spec, namespace: &str, labels: &BTreeMap<String, String>, affinity: Affinity) {
    if let Some(nodes) = affinity.node_affinity {
        let required = nodes.required_during_scheduling_ignored_during_execution;
        spec.node_affinity = required.map(|r| r.node_selector_terms.into_iter().map(node_term).collect());
        let preferred = nodes.preferred_during_scheduling_ignored_during_execution;
        let preferred = preferred.into_iter().flatten();
        spec.preferred_nodes = preferred.map(|p| (i64::from(p.weight), node_term(p.preference))).collect();
    }
    let compile = |term| pod_term(namespace, labels, term);
    if let Some(pods) = affinity.pod_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution;
        spec.affinity = required.into_iter().flatten().map(compile).collect();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.into_iter().flatten();
        spec.preferred_pods =
            preferred.map(|p| (i64::from(p.weight), compile(p.pod_affinity_term))).collect();
    }
    if let Some(pods) = affinity.pod_anti_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution;
        spec.anti_affinity = required.into_iter().flatten().map(compile).collect();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.into_iter().flatten();
        spec.preferred_pods.extend(preferred.map(|p| (-i64::from(p.weight), compile(p.pod_affinity_term))));
    }
}

pub(crate) fn node_term(term: NodeSelectorTerm) -> NodeTerm {
    let labels: Vec<_> = term.match_expressions.into_iter().flatten().collect();
    let names: Vec<_> = term.match_fields.into_iter().flatten().collect();
    NodeTerm {
        empty: labels.is_empty() && names.is_empty(),
        labels: LabelSelector { requirements: labels.into_iter().map(node_requirement).collect() },
        names: LabelSelector { requirements: names.into_iter().map(node_requirement).collect() },
    }
}

fn node_requirement(requirement: NodeSelectorRequirement) -> Requirement {
    let values = requirement.values.unwrap_or_default();
    let number = || values.first().and_then(|v| v.parse().ok());
    match requirement.operator.as_str() {
        "Gt" => match number() {
            Some(bound) => Requirement::GreaterThan(requirement.key, bound),
            None => nothing(requirement.key),
        },
        "Lt" => match number() {
            Some(bound) => Requirement::LessThan(requirement.key, bound),
            None => nothing(requirement.key),
        },
        operator => label_requirement(requirement.key, operator, values),
    }
}

/// A requirement that nothing fulfils: `In` an empty set.
fn nothing(key: String) -> Requirement {
    Requirement::In(key, Vec::new())
}

fn label_requirement(key: String, operator: &str, values: Vec<String>) -> Requirement {
    match operator {
        "In" => Requirement::In(key, values),
        "NotIn" => Requirement::NotIn(key, values),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        _ => nothing(key),
    }
}

/// Compiles a label selector. No selector at all selects nothing.
pub(crate) fn selector(typed: Option<TypedSelector>) -> LabelSelector {
    let Some(typed) = typed else {
        return LabelSelector { requirements: vec![nothing(String::new())] };
    };
    let labels = typed.match_labels.into_iter().flatten();
    let mut requirements: Vec<_> = labels.map(|(k, v)| Requirement::In(k, vec![v])).collect();
    let expressions = typed.match_expressions.into_iter().flatten();
    requirements
        .extend(expressions.map(|e| label_requirement(e.key, &e.operator, e.values.unwrap_or_default())));
    LabelSelector { requirements }
}

fn pod_term(namespace: &str, labels: &BTreeMap<String, String>, term: PodAffinityTerm) -> Term {
    let mut names: BTreeSet<String> = term.namespaces.into_iter().flatten().collect();
    let by_labels = term.namespace_selector.map(|typed| selector(Some(typed)));
    if names.is_empty() && by_labels.is_none() {
        names.insert(namespace.to_owned());
    }
    let mut labels_of_pods = selector(term.label_selector);
    for key in term.match_label_keys.into_iter().flatten() {
        let value = labels.get(&key).cloned();
        labels_of_pods.requirements.extend(value.map(|value| Requirement::In(key, vec![value])));
    }
    for key in term.mismatch_label_keys.into_iter().flatten() {
        let value = labels.get(&key).cloned();
        labels_of_pods.requirements.extend(value.map(|value| Requirement::NotIn(key, vec![value])));
    }
    let selection = Selection::new(Namespaces { names, by_labels }, labels_of_pods);
    Term { topology_key: term.topology_key, selection }
}

fn spread(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    constraint: TopologySpreadConstraint,
) -> Spread {
    let mut pods = selector(constraint.label_selector);
    for key in constraint.match_label_keys.into_iter().flatten() {
        let value = labels.get(&key).cloned();
        pods.requirements.extend(value.map(|value| Requirement::In(key, vec![value])));
    }
    Spread {
        topology_key: constraint.topology_key,
        max_skew: i64::from(constraint.max_skew),
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
        matches_itself: pods.matches(labels),
        selection: Selection::new(Namespaces::one(namespace), pods).living(),
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}
