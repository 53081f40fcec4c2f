//! `discovery.k8s.io/v1`: EndpointSlice.

use api::{FieldError, Object};
use jiff::Timestamp;
use serde_json::Value;

use super::check::{At, Errors, immutable};
use super::row::{Hooks, Row, col};
use super::{defaults, names};
use crate::printing::cells;

const ENDPOINT_SLICE: Hooks = Hooks { default, validate, validate_update, ..Hooks::NONE };

fn default(o: &mut Object) {
    for port in defaults::items_mut(o.0.get_mut("ports")) {
        defaults::fill(port, "name", "");
        defaults::fill(port, "protocol", "TCP");
    }
    if o.get(&["endpoints"]).is_none_or(Value::is_null) {
        o.set(&["endpoints"], Value::Array(Vec::new()));
    }
}

fn validate(o: &Object, e: &mut Errors) {
    let family = At::top(o, "addressType");
    family.required_one_of(e, &["FQDN", "IPv4", "IPv6"]);
    let endpoints = At::top(o, "endpoints");
    if endpoints.len() > 1000 {
        e.push(too_many("endpoints", endpoints.len(), 1000));
    }
    for endpoint in endpoints.items() {
        validate_endpoint(&endpoint, family.str(), e);
    }
    let ports = At::top(o, "ports");
    if ports.len() > 20_000 {
        e.push(too_many("ports", ports.len(), 20_000));
    }
    ports.unique(e, "name");
    for port in ports.items() {
        port.field("name").text(e, names::port_name);
        port.field("protocol").required_one_of(e, &["SCTP", "TCP", "UDP"]);
        if port.field("port").is_set() {
            port.field("port").port(e);
        }
        port.field("appProtocol").text(e, names::qualified_name);
    }
}

fn validate_endpoint(endpoint: &At<'_>, family: &str, e: &mut Errors) {
    let addresses = endpoint.field("addresses");
    if addresses.is_empty() {
        e.push(FieldError::required(&addresses.path, "must contain at least 1 address"));
    }
    if addresses.len() > 100 {
        e.push(too_many(&addresses.path, addresses.len(), 100));
    }
    for address in addresses.items() {
        let parsed = address.str().parse::<std::net::IpAddr>().ok();
        match family {
            "IPv4" if !parsed.is_some_and(|a| a.is_ipv4()) => {
                address.invalid(e, "must be a valid IPv4 address")
            }
            "IPv6" if !parsed.is_some_and(|a| a.is_ipv6()) => {
                address.invalid(e, "must be a valid IPv6 address")
            }
            "FQDN" => address.text(e, names::dns_subdomain),
            _ => {}
        }
        if matches!(family, "IPv4" | "IPv6") && parsed.is_some_and(special) {
            address.invalid(e, "may not be in the loopback, link-local or multicast range");
        }
    }
    endpoint.field("nodeName").text(e, names::dns_subdomain);
    endpoint.field("hostname").text(e, names::dns_label);
    let topology = endpoint.field("deprecatedTopology");
    topology.labels(e);
}

fn special(address: std::net::IpAddr) -> bool {
    let link_local = match address {
        std::net::IpAddr::V4(a) => a.is_link_local(),
        std::net::IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
}

fn too_many(path: &str, actual: usize, max: usize) -> FieldError {
    FieldError {
        field: path.to_owned(),
        kind: api::FieldErrorKind::TooMany,
        message: format!("Too many: {actual}: must have at most {max} items"),
    }
}

fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    immutable(e, new, old, &["addressType"]);
}

fn ports(o: &Object, _: Timestamp) -> Value {
    let ports = cells::list(o, &["ports"]);
    let texts: Vec<String> = ports
        .iter()
        .map(|p| match p.get("port").and_then(Value::as_i64) {
            Some(port) => port.to_string(),
            None => "*".to_owned(),
        })
        .collect();
    if texts.is_empty() { "<unset>".into() } else { cells::at_most_three(&texts).into() }
}

fn endpoints(o: &Object, _: Timestamp) -> Value {
    let all = cells::list(o, &["endpoints"]).iter();
    let texts: Vec<String> =
        all.flat_map(|p| p["addresses"].as_array().into_iter().flatten().map(cells::plain)).collect();
    if texts.is_empty() { "<unset>".into() } else { cells::at_most_three(&texts).into() }
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new("endpointslices", "EndpointSlice").strategy(ENDPOINT_SLICE).columns(
        vec![
            col("AddressType", "string", "Kind of address of the endpoints.", |o, _| {
                o.str(&["addressType"]).into()
            }),
            col("Ports", "string", "Ports of the endpoints.", ports),
            col("Endpoints", "string", "Addresses of the endpoints.", endpoints),
        ],
        Vec::new(),
    )]
}
