//! The parts of Services and EndpointSlices that rules and DNS depend on, decoded once per event.
//!
//! Absent and null fields count as empty. Field names and meanings: Kubernetes API reference, core/v1 Service and discovery.k8s.io/v1 EndpointSlice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{GroupVersionResource, ObjectKey};
use client::Kind;
use serde::Deserialize;

use crate::address::{Family, Network, parse_cidr};

/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub namespace: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&*self.namespace, &*self.name)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_empty")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "null_is_empty")]
    pub status: ServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "null_is_empty")]
    pub kind: String,
    #[serde(rename = "clusterIP", deserialize_with = "null_is_empty")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_empty")]
    pub cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs", deserialize_with = "null_is_empty")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub external_name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<ServicePort>,
    #[serde(deserialize_with = "null_is_empty")]
    pub session_affinity: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub session_affinity_config: SessionAffinityConfig,
    #[serde(deserialize_with = "null_is_empty")]
    pub internal_traffic_policy: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub external_traffic_policy: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub publish_not_ready_addresses: bool,
    #[serde(deserialize_with = "null_is_empty")]
    pub health_check_node_port: u16,
    #[serde(deserialize_with = "null_is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "null_is_empty")]
    pub client_ip: ClientIpConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub protocol: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub port: u16,
    #[serde(deserialize_with = "null_is_empty")]
    pub node_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    #[serde(deserialize_with = "null_is_empty")]
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    #[serde(deserialize_with = "null_is_empty")]
    pub ip: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub ip_mode: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_empty")]
    pub address_type: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    #[serde(deserialize_with = "null_is_empty")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub conditions: EndpointConditions,
    pub hostname: Option<String>,
    pub node_name: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub hints: EndpointHints,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    #[serde(deserialize_with = "null_is_empty")]
    pub for_zones: Vec<Named>,
    #[serde(deserialize_with = "null_is_empty")]
    pub for_nodes: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
}

/// What packet rules need of a pod: host ports, and for policies its labels and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_empty")]
    pub spec: PodSpec,
    #[serde(deserialize_with = "null_is_empty")]
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    #[serde(deserialize_with = "null_is_empty")]
    pub node_name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub host_network: bool,
    #[serde(deserialize_with = "null_is_empty")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "null_is_empty")]
    pub init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<ContainerPort>,
    #[serde(deserialize_with = "null_is_empty")]
    pub restart_policy: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub container_port: u16,
    #[serde(deserialize_with = "null_is_empty")]
    pub host_port: u16,
    #[serde(rename = "hostIP", deserialize_with = "null_is_empty")]
    pub host_ip: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    #[serde(deserialize_with = "null_is_empty")]
    pub phase: String,
    #[serde(rename = "podIP", deserialize_with = "null_is_empty")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "null_is_empty")]
    pub pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    #[serde(deserialize_with = "null_is_empty")]
    pub ip: String,
}

impl Pod {
    /// Its addresses, while it has any of its own and may still run.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ended = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        if ended || self.spec.host_network {
            return Vec::new();
        }
        let single = Some(&self.status.pod_ip).filter(|_| self.status.pod_ips.is_empty());
        let all = self.status.pod_ips.iter().map(|ip| &ip.ip).chain(single);
        all.filter_map(|ip| ip.parse().ok()).collect()
    }

    /// Its first address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses().into_iter().find(|address| Family::of(*address) == family)
    }

    /// The containers whose ports can be open while the pod runs.
    pub fn serving_containers(&self) -> impl Iterator<Item = &Container> {
        let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        self.spec.containers.iter().chain(sidecars)
    }
}

/// What packet rules need of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_empty")]
    pub spec: NodeSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR", deserialize_with = "null_is_empty")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_empty")]
    pub pod_cidrs: Vec<String>,
}

impl NodeSpec {
    /// The networks of the node's pods, the primary one first.
    pub fn networks(&self) -> Vec<Network> {
        let single = Some(&self.pod_cidr).filter(|_| self.pod_cidrs.is_empty());
        self.pod_cidrs.iter().chain(single).filter_map(|cidr| parse_cidr(cidr)).collect()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

impl EndpointConditions {
    /// Unknown counts as ready.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// A terminating endpoint that still answers: used when no endpoint is ready (KEP-1669).
    pub fn is_serving_while_terminating(&self) -> bool {
        self.terminating.unwrap_or(false) && self.serving.unwrap_or_else(|| self.is_ready())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub protocol: String,
    pub port: Option<u16>,
}

/// Writers of Go print empty lists and maps as null.
pub(crate) fn null_is_empty<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

impl Kind for Pod {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "pods")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Pod")
    }
}

impl Kind for Node {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "nodes")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Node")
    }
}

impl Kind for Service {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "services")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Service")
    }
}

impl Kind for EndpointSlice {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("discovery.k8s.io/v1".into(), "EndpointSlice")
    }
}

impl EndpointSlice {
    /// The Service the slice belongs to.
    pub fn service(&self) -> Option<ObjectKey> {
        let name = self.metadata.labels.get(SERVICE_NAME_LABEL)?;
        Some(ObjectKey::new(&*self.metadata.namespace, &**name))
    }
}

/// Services and the slices of each: what rules and DNS records are computed from.
#[derive(Clone, Debug, Default)]
pub struct View {
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, BTreeMap<String, EndpointSlice>>,
    /// which service a slice was filed under, as its label may change
    owners: BTreeMap<ObjectKey, ObjectKey>,
}

impl View {
    /// Records a Service's new state (`None`: deleted).
    pub fn set_service(&mut self, key: &ObjectKey, new: Option<Service>) {
        match new {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
    }

    /// Records a slice's new state; returns the services whose endpoints may have changed.
    pub fn set_slice(&mut self, key: &ObjectKey, new: Option<EndpointSlice>) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        if let Some(owner) = self.owners.remove(key) {
            if let Some(slices) = self.slices.get_mut(&owner) {
                slices.remove(&key.name);
                if slices.is_empty() {
                    self.slices.remove(&owner);
                }
            }
            touched.insert(owner);
        }
        if let Some((slice, owner)) = new.and_then(|s| s.service().map(|o| (s, o))) {
            self.owners.insert(key.clone(), owner.clone());
            self.slices.entry(owner.clone()).or_default().insert(key.name.clone(), slice);
            touched.insert(owner);
        }
        touched
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.services.iter()
    }

    /// The slices of a Service, in order of their names.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }
}
