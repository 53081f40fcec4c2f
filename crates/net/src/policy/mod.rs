//! Network policies: which traffic the pods of a node may receive and send.
//!
//! ```text
//!   NetworkPolicies, Namespaces, Pods ─▶ Policies ─▶ of_node(): per isolated pod the allowed boxes      (pure)
//!                                                        └▶ proxy::Table: elements of sets, only what differs
//! ```
//!
//! As the API says: a pod that some policy selects for a direction may only do what some policy allows; the others may do
//! anything; replies are always allowed; so is what a pod says to itself, and what a node says to its own pods. The
//! cluster's DNS servers run on the nodes, not in pods: for policies they count as pods of `kube-system` labelled
//! `k8s-app: kube-dns`.

mod boxes;
mod follow;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::{GroupVersionResource, LabelSelector, ObjectKey};
use client::Kind;
use serde::Deserialize;
use serde_json::Value;

pub use boxes::{Allow, Ports, Range, disjoint};
pub use follow::follow;

use crate::address::{Family, number, parse_cidr, range};
use crate::model::{Metadata, Pod, null_is_empty};
use crate::proxy::Protocol;

/// A NetworkPolicy, with its selectors as they came.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_empty")]
    pub spec: PolicySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySpec {
    #[serde(deserialize_with = "null_is_empty")]
    pub pod_selector: serde_json::Map<String, Value>,
    #[serde(deserialize_with = "null_is_empty")]
    pub policy_types: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<Rule>,
    #[serde(deserialize_with = "null_is_empty")]
    pub egress: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Rule {
    #[serde(alias = "from", alias = "to", deserialize_with = "null_is_empty")]
    pub peers: Vec<Peer>,
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<PolicyPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    pub ip_block: Option<IpBlock>,
    pub pod_selector: Option<Value>,
    pub namespace_selector: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    #[serde(deserialize_with = "null_is_empty")]
    pub cidr: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub except: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    #[serde(deserialize_with = "null_is_empty")]
    pub protocol: String,
    /// a number, a name, or nothing
    pub port: Option<Value>,
    pub end_port: Option<u16>,
}

impl Kind for NetworkPolicy {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("networking.k8s.io", "v1", "networkpolicies")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("networking.k8s.io/v1".into(), "NetworkPolicy")
    }
}

/// What an isolated pod may do; `None` for a direction in which it is not isolated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules {
    pub ingress: Option<Vec<Range>>,
    pub egress: Option<Vec<Range>>,
}

/// The rules of a node's isolated pods, by address; the ranges are of the address' family.
pub type NodeRules = BTreeMap<IpAddr, PodRules>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// All that policies depend on.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub policies: BTreeMap<ObjectKey, NetworkPolicy>,
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// labels by name
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Policies {
    /// The rules of the isolated pods on a node.
    pub fn of_node(&self, node: &str) -> NodeRules {
        let mut out = NodeRules::new();
        if self.policies.is_empty() {
            return out;
        }
        for (key, pod) in self.pods.iter().filter(|(_, pod)| pod.spec.node_name == node) {
            let addresses = pod.addresses();
            if addresses.is_empty() {
                continue;
            }
            let from = ObjectKey::new(&*key.namespace, "");
            let here = self.policies.range(from..).take_while(|(k, _)| k.namespace == key.namespace);
            let own: Vec<&NetworkPolicy> =
                here.map(|(_, policy)| policy).filter(|p| selects(&p.spec.pod_selector, pod)).collect();
            for address in addresses {
                let rules = PodRules {
                    ingress: self.direction(Direction::Ingress, &own, pod, address),
                    egress: self.direction(Direction::Egress, &own, pod, address),
                };
                if rules != PodRules::default() {
                    out.insert(address, rules);
                }
            }
        }
        out
    }

    fn direction(
        &self,
        direction: Direction,
        policies: &[&NetworkPolicy],
        pod: &Pod,
        address: IpAddr,
    ) -> Option<Vec<Range>> {
        let isolating: Vec<&&NetworkPolicy> =
            policies.iter().filter(|p| isolates(&p.spec, direction)).collect();
        if isolating.is_empty() {
            return None;
        }
        let own = number(address);
        let mut allows = vec![Allow { first: own, last: own, ports: vec![Ports::ALL] }];
        for policy in isolating {
            let rules = match direction {
                Direction::Ingress => &policy.spec.ingress,
                Direction::Egress => &policy.spec.egress,
            };
            for rule in rules {
                for (first, last, peer) in self.peers(rule, &policy.metadata.namespace, Family::of(address)) {
                    // A named port is one of the pod that is asked.
                    let asked = if direction == Direction::Ingress { Some(pod) } else { peer };
                    let ports = ports(rule, asked);
                    if !ports.is_empty() {
                        allows.push(Allow { first, last, ports });
                    }
                }
            }
        }
        Some(disjoint(&allows))
    }

    /// First and last addresses of a rule's peers in a family, and the pod that has them, if it is one.
    fn peers<'a>(
        &'a self,
        rule: &'a Rule,
        namespace: &'a str,
        family: Family,
    ) -> Vec<(u128, u128, Option<&'a Pod>)> {
        if rule.peers.is_empty() {
            return vec![(0, family.highest(), None)];
        }
        let mut out = Vec::new();
        for peer in &rule.peers {
            if let Some(block) = &peer.ip_block {
                out.extend(without(block, family).into_iter().map(|(first, last)| (first, last, None)));
                continue;
            }
            let selectors =
                (peer.pod_selector.as_ref().map(selector), peer.namespace_selector.as_ref().map(selector));
            let fits = |(key, pod): &(&ObjectKey, &Pod)| {
                let near = match &selectors.1 {
                    None => key.namespace == namespace,
                    Some(wanted) => self.namespaces.get(&*key.namespace).is_some_and(|l| wanted.matches(l)),
                };
                near && selectors.0.as_ref().is_none_or(|wanted| wanted.matches(&pod.metadata.labels))
            };
            for (_, pod) in self.pods.iter().filter(fits) {
                if let Some(address) = pod.address(family).map(number) {
                    out.push((address, address, Some(pod)));
                }
            }
        }
        out
    }
}

fn selector(value: &Value) -> LabelSelector {
    // The API server has checked it; what cannot be read selects nothing, which allows nothing.
    LabelSelector::from_value(value).unwrap_or_else(|_| LabelSelector::nothing())
}

fn selects(wanted: &serde_json::Map<String, Value>, pod: &Pod) -> bool {
    selector(&Value::Object(wanted.clone())).matches(&pod.metadata.labels)
}

fn isolates(spec: &PolicySpec, direction: Direction) -> bool {
    let named = |name: &str| spec.policy_types.iter().any(|t| t == name);
    match direction {
        Direction::Ingress => spec.policy_types.is_empty() || named("Ingress"),
        Direction::Egress if spec.policy_types.is_empty() => !spec.egress.is_empty(),
        Direction::Egress => named("Egress"),
    }
}

/// A block's ranges in a family, less those of its exceptions.
fn without(block: &IpBlock, family: Family) -> Vec<(u128, u128)> {
    let range = |text: &str| parse_cidr(text).filter(|n| Family::of(n.0) == family).map(range);
    let mut left: Vec<(u128, u128)> = range(&block.cidr).into_iter().collect();
    for (first, last) in block.except.iter().filter_map(|e| range(e)) {
        let cut = |(from, to): (u128, u128)| {
            let below = (from < first).then(|| (from, to.min(first - 1)));
            let above = (to > last).then(|| (from.max(last + 1), to));
            below.into_iter().chain(above)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

fn ports(rule: &Rule, asked: Option<&Pod>) -> Vec<Ports> {
    if rule.ports.is_empty() {
        return vec![Ports::ALL];
    }
    let mut out = Vec::new();
    for port in &rule.ports {
        let Some(protocol) = Protocol::parse(&port.protocol) else { continue };
        let at = |first, last| Ports { protocol: Some(protocol.number()), first, last };
        match &port.port {
            None | Some(Value::Null) => out.push(at(0, u16::MAX)),
            Some(Value::String(name)) => {
                let containers = asked.into_iter().flat_map(Pod::serving_containers);
                let named = containers
                    .flat_map(|c| &c.ports)
                    .filter(|p| p.name == *name && Protocol::parse(&p.protocol) == Some(protocol));
                out.extend(named.map(|p| at(p.container_port, p.container_port)));
            }
            Some(number) => {
                let first = number.as_u64().and_then(|n| u16::try_from(n).ok());
                out.extend(first.map(|first| at(first, port.end_port.unwrap_or(first).max(first))));
            }
        }
    }
    out
}
