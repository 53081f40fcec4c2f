//! The records of the cluster's domain, by namespace and service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use api::ObjectKey;
use hickory_proto::rr::Name;

use crate::address::{Network, contains};
use crate::model::{Endpoint, EndpointSlice, Service};

/// Everything below one domain. Changes are per service, look-ups by label.
#[derive(Debug)]
pub struct Zone {
    /// `cluster.local.`, lower case
    pub(super) domain: Name,
    /// address ranges whose reverse names are ours
    reverse_ranges: Vec<Network>,
    namespaces: BTreeMap<String, BTreeMap<String, Records>>,
    /// names (below the domain) of an address, with the service each is from
    reverse: HashMap<IpAddr, BTreeSet<(String, ObjectKey)>>,
}

/// The records of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// the service's own name
    pub(super) addresses: BTreeSet<IpAddr>,
    /// `<host>.<service>…`
    pub(super) hosts: BTreeMap<String, BTreeSet<IpAddr>>,
    /// (port name, protocol), both lower case, to (port, host or "" for the service itself)
    pub(super) ports: BTreeMap<(String, String), BTreeSet<(u16, String)>>,
    /// an ExternalName service
    pub(super) alias: Option<Name>,
}

impl Zone {
    /// An empty zone. Reverse look-ups in `reverse_ranges` are answered here even if nobody has the address.
    pub fn new(domain: &str, reverse_ranges: Vec<Network>) -> Option<Self> {
        let mut domain = Name::from_ascii(domain).ok()?.to_lowercase();
        domain.set_fqdn(true);
        Some(Self { domain, reverse_ranges, namespaces: BTreeMap::new(), reverse: HashMap::new() })
    }

    /// Replaces the records of a service (`None`: there is none).
    pub fn set_service<'a>(
        &mut self,
        key: &ObjectKey,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) {
        if let Some(old) = self.namespaces.get_mut(&key.namespace).and_then(|n| n.remove(&key.name)) {
            self.forget_reverse(key, &old);
        }
        match service.map(|s| records(s, slices)) {
            Some(new) => {
                self.learn_reverse(key, &new);
                self.namespaces.entry(key.namespace.clone()).or_default().insert(key.name.clone(), new);
            }
            None => {
                if self.namespaces.get(&key.namespace).is_some_and(BTreeMap::is_empty) {
                    self.namespaces.remove(&key.namespace);
                }
            }
        }
    }

    /// True for names that are answered here and nowhere else.
    pub(super) fn contains(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    pub(super) fn records(&self, namespace: &str, service: &str) -> Option<&Records> {
        self.namespaces.get(namespace)?.get(service)
    }

    /// Names of an address, relative to the domain.
    pub(super) fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.reverse.get(&address).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    pub(super) fn owns_reverse(&self, address: IpAddr) -> bool {
        self.reverse_ranges.iter().any(|network| contains(*network, address))
    }

    /// A name below the domain.
    pub(super) fn name(&self, relative: &str) -> Option<Name> {
        Name::from_ascii(relative).ok()?.append_domain(&self.domain).ok()
    }

    fn learn_reverse(&mut self, key: &ObjectKey, records: &Records) {
        for (address, name) in reverse_names(key, records) {
            self.reverse.entry(address).or_default().insert((name, key.clone()));
        }
    }

    fn forget_reverse(&mut self, key: &ObjectKey, records: &Records) {
        for (address, name) in reverse_names(key, records) {
            if let Some(names) = self.reverse.get_mut(&address) {
                names.remove(&(name, key.clone()));
                if names.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
    }
}

/// A service with a cluster IP has a name for that; a headless one has a name for each endpoint.
fn reverse_names(key: &ObjectKey, records: &Records) -> Vec<(IpAddr, String)> {
    let service = format!("{}.{}.svc", key.name, key.namespace);
    if records.hosts.is_empty() {
        return records.addresses.iter().map(|a| (*a, service.clone())).collect();
    }
    let of_host = |(host, addresses): (&String, &BTreeSet<IpAddr>)| {
        let name = format!("{host}.{service}");
        addresses.iter().map(move |a| (*a, name.clone())).collect::<Vec<_>>()
    };
    records.hosts.iter().flat_map(of_host).collect()
}

fn records<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> Records {
    let spec = &service.spec;
    let mut out = Records::default();
    if spec.kind == "ExternalName" {
        out.alias = Name::from_ascii(&spec.external_name).ok().map(|mut name| {
            name.set_fqdn(true);
            name
        });
        return out;
    }
    if spec.cluster_ip != "None" {
        out.addresses =
            spec.cluster_ips.iter().chain([&spec.cluster_ip]).filter_map(|a| a.parse().ok()).collect();
        for port in spec.ports.iter().filter(|p| !p.name.is_empty()) {
            let targets = BTreeSet::from([(port.port, String::new())]);
            out.ports.insert((port.name.to_lowercase(), protocol(&port.protocol)), targets);
        }
        return out;
    }
    for slice in slices {
        let usable =
            slice.endpoints.iter().filter(|e| e.conditions.is_ready() || spec.publish_not_ready_addresses);
        for endpoint in usable {
            let addresses: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|a| a.parse().ok()).collect();
            let Some(first) = addresses.first() else { continue };
            let host = host_name(endpoint, *first);
            for port in slice.ports.iter().filter(|p| !p.name.is_empty()) {
                let Some(number) = port.port else { continue };
                let key = (port.name.to_lowercase(), protocol(&port.protocol));
                out.ports.entry(key).or_default().insert((number, host.clone()));
            }
            out.addresses.extend(&addresses);
            out.hosts.entry(host).or_default().extend(&addresses);
        }
    }
    out
}

fn protocol(word: &str) -> String {
    if word.is_empty() { "tcp".into() } else { word.to_lowercase() }
}

/// The endpoint's own host name, or one made from its address: `10-244-0-7`.
fn host_name(endpoint: &Endpoint, address: IpAddr) -> String {
    match endpoint.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(name) => name.to_lowercase(),
        None => address.to_string().replace(['.', ':'], "-"),
    }
}
