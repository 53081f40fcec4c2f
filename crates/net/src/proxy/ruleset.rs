//! What the packet rules of a node should be: a pure function of Services and EndpointSlices.
//!
//! ```text
//!   Service ports ─▶ Frontend (address, protocol, port)  ──▶ Backend: endpoints (+ affinity) | Reject | Drop
//! ```
//!
//! A node port is a frontend without an address: it is reached on every local address. The families are apart: what is
//! here is always asked for one of them. Rules are data: see [`super::program`] for how a frontend becomes elements of
//! maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use api::ObjectKey;

use crate::address::{Family, Network, parse_cidr};
use crate::model::{ContainerPort, Endpoint, EndpointSlice, Pod, Service, ServicePort, View};

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
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    /// For clients inside the cluster (pods, the node itself) alone, who come first here.
    pub inside: bool,
}

impl Frontend {
    /// One for all clients.
    pub fn new(address: Option<IpAddr>, protocol: Protocol, port: u16) -> Self {
        Self { address, protocol, port, inside: false }
    }
}

/// Where packets end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub address: IpAddr,
    pub port: u16,
}

/// What happens to packets for a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// At least one target; with affinity a client stays with its target for so many seconds. If there are
    /// `sources`, clients from elsewhere are not served.
    Targets { targets: Vec<Target>, affinity_seconds: Option<u32>, sources: Vec<Network> },
    /// No endpoints at all: the client is told at once.
    Reject,
    /// A "Local" traffic policy and no endpoint on this node.
    Drop,
    /// The same, but clients inside the cluster have a frontend of their own.
    DropOutside,
}

impl Backend {
    /// Targets for everybody, without affinity.
    pub fn to(targets: Vec<Target>) -> Self {
        Backend::Targets { targets, affinity_seconds: None, sources: Vec::new() }
    }
}

/// Where a node is: what decides which endpoints it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    /// Label `topology.kubernetes.io/zone`, or "".
    pub zone: String,
}

/// All frontends of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub frontends: BTreeMap<Frontend, Backend>,
}

/// The rules of a family for all services. Where two services claim one frontend, the first by namespace and name gets it.
pub fn desired_rules(view: &View, here: &Place, family: Family) -> Ruleset {
    let mut frontends = BTreeMap::new();
    for (key, service) in view.services() {
        for (frontend, backend) in service_rules(service, &slices_of(view, key, family), here, family) {
            frontends.entry(frontend).or_insert(backend);
        }
    }
    Ruleset { frontends }
}

fn slices_of<'a>(view: &'a View, key: &ObjectKey, family: Family) -> Vec<&'a EndpointSlice> {
    view.slices(key).filter(|slice| slice.address_type == family.name()).collect()
}

/// The rules of a family for one service of the view; none if it is not there.
pub fn rules_of(view: &View, key: &ObjectKey, here: &Place, family: Family) -> Vec<(Frontend, Backend)> {
    let rules = |service| service_rules(service, &slices_of(view, key, family), here, family);
    view.service(key).map(rules).unwrap_or_default()
}

/// The host ports of a pod on this node (`hostPort`, `hostIP` of its containers' ports) in a family. An address
/// `0.0.0.0` or `::` means every one that the node has in its family.
pub fn host_ports(pod: &Pod, family: Family) -> Vec<(Frontend, Backend)> {
    let Some(address) = pod.address(family) else { return Vec::new() };
    let ports = pod.serving_containers().flat_map(|c| &c.ports).filter(|p| p.host_port != 0);
    let rule = |port: &ContainerPort| {
        let host: Option<IpAddr> = match port.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        // What is sent to a loopback address of IPv6 cannot leave the node's own loopback.
        let unreachable = |host: IpAddr| host.is_ipv6() && host.is_loopback();
        if host.is_some_and(|host| Family::of(host) != family || unreachable(host)) {
            return None;
        }
        let host = host.filter(|host| !host.is_unspecified());
        let frontend = Frontend::new(host, Protocol::parse(&port.protocol)?, port.host_port);
        Some((frontend, Backend::to(vec![Target { address, port: port.container_port }])))
    };
    ports.filter_map(rule).collect()
}

/// How many ready endpoints of a service are on this node: what its health check port tells a load balancer.
pub fn local_endpoints(view: &View, key: &ObjectKey, node: &str) -> usize {
    // With two families every endpoint is there twice.
    let count = |family| {
        let slices = slices_of(view, key, family);
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let local = endpoints.filter(|e| e.conditions.is_ready() && e.node_name.as_deref() == Some(node));
        local.filter_map(|e| e.addresses.first()).collect::<BTreeSet<_>>().len()
    };
    count(Family::V4).max(count(Family::V6))
}

fn service_rules(
    service: &Service,
    slices: &[&EndpointSlice],
    here: &Place,
    family: Family,
) -> Vec<(Frontend, Backend)> {
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
    let of_family = |texts: &mut dyn Iterator<Item = &String>| -> BTreeSet<IpAddr> {
        texts.filter_map(|text| text.parse().ok()).filter(|a| Family::of(*a) == family).collect()
    };
    let cluster_ips = of_family(&mut spec.cluster_ips.iter().chain([&spec.cluster_ip]));
    let ingress = service.status.load_balancer.ingress.iter();
    let balancers = of_family(&mut ingress.filter(|i| i.ip_mode != "Proxy").map(|i| &i.ip));
    let external = of_family(&mut spec.external_ips.iter());
    let ranges = spec.load_balancer_source_ranges.iter().filter_map(|r| parse_cidr(r.trim()));
    let ranges: Vec<Network> = ranges.filter(|r| Family::of(r.0) == family).collect();
    // A family that the service does not have has no endpoints of it either.
    if cluster_ips.is_empty() {
        return Vec::new();
    }

    let mut out = Vec::new();
    for port in &spec.ports {
        let Some(protocol) = Protocol::parse(&port.protocol) else { continue };
        let backend = |local: bool| backend(slices, port, protocol, local, here, affinity_seconds);
        let inside = backend(spec.internal_traffic_policy == "Local");
        out.extend(
            cluster_ips.iter().map(|a| (Frontend::new(Some(*a), protocol, port.port), inside.clone())),
        );
        let keeps_local = spec.external_traffic_policy == "Local";
        let (everywhere, outside) = (backend(false), backend(keeps_local));
        let mut at = |address, port, sources: &[Network]| {
            let frontend = Frontend::new(address, protocol, port);
            let split = keeps_local && matches!(everywhere, Backend::Targets { .. });
            if split {
                // "Local" is about keeping an outside client's address; who is inside gets every endpoint.
                let inside = Frontend { inside: true, ..frontend };
                out.push((inside, everywhere.clone()));
            }
            let outside = match &outside {
                Backend::Drop if split => Backend::DropOutside,
                other => restricted(other.clone(), sources),
            };
            out.push((frontend, outside));
        };
        external.iter().for_each(|a| at(Some(*a), port.port, &[]));
        balancers.difference(&external).for_each(|a| at(Some(*a), port.port, &ranges));
        if port.node_port != 0 {
            at(None, port.node_port, &[]);
        }
    }
    out
}

fn restricted(backend: Backend, ranges: &[Network]) -> Backend {
    match backend {
        Backend::Targets { targets, affinity_seconds, .. } => {
            Backend::Targets { targets, affinity_seconds, sources: ranges.to_vec() }
        }
        other => other,
    }
}

/// Chooses the endpoints of one port: the ready ones, or else those that still serve while they terminate; if
/// `only_local`, those on this node, and otherwise those that hints assign to it.
fn backend(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    protocol: Protocol,
    only_local: bool,
    here: &Place,
    affinity_seconds: Option<u32>,
) -> Backend {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    let mut hints = Hints::default();
    let mut anywhere = false;
    for slice in slices {
        let matching = |p: &&crate::model::EndpointPort| {
            p.name == port.name && Protocol::parse(&p.protocol) == Some(protocol)
        };
        for number in slice.ports.iter().filter(matching).filter_map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let Some(target) = target(endpoint, number) else { continue };
                let usable = endpoint.conditions.is_ready();
                let fallback = endpoint.conditions.is_serving_while_terminating();
                anywhere |= usable || fallback;
                if only_local && endpoint.node_name.as_deref() != Some(&here.node) {
                    continue;
                }
                if usable {
                    ready.insert(target);
                    hints.note(endpoint, target, here);
                } else if fallback {
                    serving.insert(target);
                }
            }
        }
    }
    let chosen = match (ready.is_empty(), only_local) {
        (true, _) => serving,
        (false, true) => ready,
        (false, false) => hints.choose().unwrap_or(ready),
    };
    match (chosen.is_empty(), anywhere) {
        (false, _) => {
            Backend::Targets { targets: chosen.into_iter().collect(), affinity_seconds, sources: Vec::new() }
        }
        (true, true) => Backend::Drop,
        (true, false) => Backend::Reject,
    }
}

/// Hints count only if every ready endpoint has one and some endpoint is meant for this node: a partial set would
/// overload or starve somebody (KEP-2433, KEP-3015).
#[derive(Default)]
struct Hints {
    without_zone: bool,
    without_node: bool,
    for_zone: BTreeSet<Target>,
    for_node: BTreeSet<Target>,
}

impl Hints {
    fn note(&mut self, endpoint: &Endpoint, target: Target, here: &Place) {
        let hints = &endpoint.hints;
        self.without_zone |= hints.for_zones.is_empty();
        self.without_node |= hints.for_nodes.is_empty();
        if !here.zone.is_empty() && hints.for_zones.iter().any(|zone| zone.name == here.zone) {
            self.for_zone.insert(target);
        }
        if hints.for_nodes.iter().any(|node| node.name == here.node) {
            self.for_node.insert(target);
        }
    }

    fn choose(self) -> Option<BTreeSet<Target>> {
        let near = (!self.without_node).then_some(self.for_node).filter(|chosen| !chosen.is_empty());
        near.or_else(|| (!self.without_zone).then_some(self.for_zone).filter(|chosen| !chosen.is_empty()))
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
            Some(address) => write!(f, "{:?} {}", self.protocol, SocketAddr::new(address, self.port)),
            None => write!(f, "{:?} node:{}", self.protocol, self.port),
        }?;
        if self.inside { write!(f, " from inside") } else { Ok(()) }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (frontend, backend) in &self.frontends {
            write!(f, "{frontend} ->")?;
            match backend {
                Backend::Targets { targets, affinity_seconds, sources } => {
                    for t in targets {
                        write!(f, " {}", SocketAddr::new(t.address, t.port))?;
                    }
                    if let Some(seconds) = affinity_seconds {
                        write!(f, " (same client, same target for {seconds} s)")?;
                    }
                    for (network, prefix) in sources {
                        write!(f, " from {network}/{prefix}")?;
                    }
                }
                Backend::Reject => write!(f, " reject")?,
                Backend::Drop => write!(f, " drop")?,
                Backend::DropOutside => write!(f, " drop from outside")?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
