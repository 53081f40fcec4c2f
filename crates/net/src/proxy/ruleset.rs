//! What the packet rules of a node should be: a pure function of Services and EndpointSlices.
//!
//! ```text
//!   Service ports ─▶ Frontend (address, protocol, port)  ──▶ Backend: endpoints (+ affinity) | Reject | Drop
//! ```
//!
//! A node port is a frontend without an address: it is reached on every local address. Rules are data: see
//! [`super::program`] for how a frontend becomes elements of maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use api::ObjectKey;

use crate::model::{Endpoint, EndpointSlice, Service, ServicePort, View};

/// Services that carry it are left to another proxy.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Services that carry it are treated as headless, whatever their cluster IP.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// Transport protocols that are balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The API's word; an empty one means TCP.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "TCP" | "" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// Where clients send packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// `None`: any local address of the node
    pub address: Option<Ipv4Addr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// Where packets end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// What happens to packets for a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// At least one target; with affinity a client stays with its target for so many seconds.
    Targets { targets: Vec<Target>, affinity_seconds: Option<u32> },
    /// No endpoints at all: the client is told at once.
    Reject,
    /// A "Local" traffic policy and no endpoint on this node.
    Drop,
}

/// All frontends of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub frontends: BTreeMap<Frontend, Backend>,
}

/// The rules for all services. Where two services claim one frontend, the first by namespace and name gets it.
pub fn desired_rules(view: &View, node: &str) -> Ruleset {
    let mut frontends = BTreeMap::new();
    for (key, service) in view.services() {
        for (frontend, backend) in service_rules(service, &slices_of(view, key), node) {
            frontends.entry(frontend).or_insert(backend);
        }
    }
    Ruleset { frontends }
}

fn slices_of<'a>(view: &'a View, key: &ObjectKey) -> Vec<&'a EndpointSlice> {
    view.slices(key).collect()
}

/// The rules for one service of the view; none if it is not there.
pub fn rules_of(view: &View, key: &ObjectKey, node: &str) -> Vec<(Frontend, Backend)> {
    view.service(key).map(|s| service_rules(s, &slices_of(view, key), node)).unwrap_or_default()
}

fn service_rules(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<(Frontend, Backend)> {
    let labels = &service.metadata.labels;
    let spec = &service.spec;
    let skipped = spec.kind == "ExternalName"
        || labels.contains_key(OTHER_PROXY_LABEL)
        || labels.contains_key(HEADLESS_LABEL)
        || spec.cluster_ip.is_empty()
        || spec.cluster_ip == "None";
    if skipped {
        return Vec::new();
    }
    let affinity_seconds = (spec.session_affinity == "ClientIP")
        .then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_SECONDS));
    let cluster_ips: BTreeSet<Ipv4Addr> =
        spec.cluster_ips.iter().chain([&spec.cluster_ip]).filter_map(|a| a.parse().ok()).collect();
    let ingress = service.status.load_balancer.ingress.iter();
    let balancers = ingress.filter(|i| i.ip_mode != "Proxy").map(|i| &i.ip);
    let external: BTreeSet<Ipv4Addr> =
        spec.external_ips.iter().chain(balancers).filter_map(|a| a.parse().ok()).collect();

    let mut out = Vec::new();
    for port in &spec.ports {
        let Some(protocol) = Protocol::parse(&port.protocol) else { continue };
        let backend = |local: bool| backend(slices, port, protocol, local.then_some(node), affinity_seconds);
        let inside = backend(spec.internal_traffic_policy == "Local");
        let outside = backend(spec.external_traffic_policy == "Local");
        let at = |address, port| Frontend { address, protocol, port };
        out.extend(cluster_ips.iter().map(|a| (at(Some(*a), port.port), inside.clone())));
        out.extend(external.iter().map(|a| (at(Some(*a), port.port), outside.clone())));
        if port.node_port != 0 {
            out.push((at(None, port.node_port), outside));
        }
    }
    out
}

/// Chooses the endpoints of one port: the ready ones, or else those that still serve while they terminate; with
/// `only_on`, those on one node.
fn backend(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    protocol: Protocol,
    only_on: Option<&str>,
    affinity_seconds: Option<u32>,
) -> Backend {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    let mut anywhere = false;
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let matching = |p: &&crate::model::EndpointPort| {
            p.name == port.name && Protocol::parse(&p.protocol) == Some(protocol)
        };
        for number in slice.ports.iter().filter(matching).filter_map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let Some(target) = target(endpoint, number) else { continue };
                let usable = endpoint.conditions.is_ready();
                let fallback = endpoint.conditions.is_serving_while_terminating();
                anywhere |= usable || fallback;
                if only_on.is_some_and(|node| endpoint.node_name.as_deref() != Some(node)) {
                    continue;
                }
                if usable {
                    ready.insert(target);
                } else if fallback {
                    serving.insert(target);
                }
            }
        }
    }
    let chosen = if ready.is_empty() { serving } else { ready };
    match (chosen.is_empty(), anywhere) {
        (false, _) => Backend::Targets { targets: chosen.into_iter().collect(), affinity_seconds },
        (true, true) => Backend::Drop,
        (true, false) => Backend::Reject,
    }
}

/// All addresses of an endpoint reach the same pod; the first is used.
fn target(endpoint: &Endpoint, port: u16) -> Option<Target> {
    Some(Target { address: endpoint.addresses.first()?.parse().ok()?, port })
}

/// Orders `new` so that targets that stay keep their places and holes are filled from the end: the number of
/// changed map elements is then that of changed targets, not of all behind the first change.
pub fn keep_places(old: &[Target], new: Vec<Target>) -> Vec<Target> {
    let mut fresh: BTreeSet<Target> = new.into_iter().collect();
    let total = fresh.len();
    let mut places: Vec<Option<Target>> = old.iter().map(|t| fresh.take(t)).collect();
    let mut fresh = fresh.into_iter();
    for place in places.iter_mut().filter(|p| p.is_none()) {
        *place = fresh.next();
    }
    let mut out: Vec<Target> = Vec::with_capacity(total);
    let mut last = places.len();
    let mut i = 0;
    while i < last {
        match places[i] {
            Some(target) => out.push(target),
            None => {
                // Nothing new is left for this place: the last one moves in.
                let moved = loop {
                    last -= 1;
                    if last <= i || places[last].is_some() {
                        break places.get(last).copied().flatten().filter(|_| last > i);
                    }
                };
                out.extend(moved);
            }
        }
        i += 1;
    }
    out.extend(fresh);
    out
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{:?} {address}:{}", self.protocol, self.port),
            None => write!(f, "{:?} node:{}", self.protocol, self.port),
        }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (frontend, backend) in &self.frontends {
            write!(f, "{frontend} ->")?;
            match backend {
                Backend::Targets { targets, affinity_seconds } => {
                    for t in targets {
                        write!(f, " {}:{}", t.address, t.port)?;
                    }
                    if let Some(seconds) = affinity_seconds {
                        write!(f, " (same client, same target for {seconds} s)")?;
                    }
                }
                Backend::Reject => write!(f, " reject")?,
                Backend::Drop => write!(f, " drop")?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
