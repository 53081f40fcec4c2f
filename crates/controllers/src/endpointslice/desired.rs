//! Which endpoints a Service has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use client::Cached;
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod::Pod;

/// Endpoints that share an address family and resolved ports, and therefore slices.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) address_type: &'static str,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Groups in a stable order, each with endpoints in pod order.
pub(crate) fn groups(service: &Cached<Service>, pods: &[Arc<Cached<Pod>>]) -> Vec<Group> {
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for address_type in families(service) {
        for pod in pods.iter().filter(|pod| !pod.object.is_terminal()) {
            let Some(address) = pod.object.addresses().into_iter().find(|a| family(a) == Some(address_type))
            else {
                continue;
            };
            let ports = resolved_ports(service, &pod.object);
            let id = (address_type, serde_json::to_string(&ports).expect("ports can be encoded"));
            let group =
                groups.entry(id).or_insert_with(|| Group { address_type, ports, endpoints: Vec::new() });
            group.endpoints.push(endpoint(service, pod, address));
        }
    }
    groups.into_values().collect()
}

/// Address families of a service.
pub(crate) fn families(service: &Cached<Service>) -> Vec<&'static str> {
    let spec = service.object.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_ref()).map(Vec::as_slice).unwrap_or_default();
    if listed.is_empty() {
        return vec!["IPv4"];
    }
    listed.iter().map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" }).collect()
}

fn family(address: &str) -> Option<&'static str> {
    match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn endpoint(service: &Cached<Service>, pod: &Cached<Pod>, address: &str) -> Endpoint {
    let spec = service.object.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let serving = pod.object.is_ready();
    let hostname = &pod.object.spec.hostname;
    let named = !hostname.is_empty() && pod.object.spec.subdomain == service.key.name;
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !pod.deleting)),
            serving: Some(serving),
            terminating: Some(pod.deleting),
        }),
        hostname: named.then(|| hostname.clone()),
        node_name: Some(pod.object.spec.node_name.clone()).filter(|name| !name.is_empty()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// Ports with numbers; a named port that the pod does not have is left out.
fn resolved_ports(service: &Cached<Service>, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.object.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let resolve = |port: &ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target(port, &protocol, pod)?),
            protocol: Some(protocol),
            app_protocol: port.app_protocol.clone(),
        })
    };
    ports.into_iter().flatten().filter_map(resolve).collect()
}

fn target(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let mut named = ports.filter(|p| p.name == *name && p.protocol.as_deref().unwrap_or("TCP") == protocol);
    named.next().map(|port| port.container_port)
}
