//! `networking.k8s.io/v1`: Ingress, IngressClass, NetworkPolicy, ServiceCIDR, IPAddress.

use api::{FieldError, Object};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{At, Errors, immutable};
use super::row::{Hooks, Row, col, name_col};
use super::{defaults, names, selectors};
use crate::printing::cells;

const INGRESS: Hooks = Hooks { validate: validate_ingress, ..Hooks::NONE };
const INGRESS_CLASS: Hooks = Hooks {
    validate: |o, e| At::top(o, "spec").field("controller").text(e, names::qualified_name),
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "controller"]),
    ..Hooks::NONE
};
const NETWORK_POLICY: Hooks = Hooks { default: default_policy, validate: validate_policy, ..Hooks::NONE };
const SERVICE_CIDR: Hooks =
    Hooks { validate: validate_service_cidr, validate_update: validate_service_cidr_update, ..Hooks::NONE };
const IP_ADDRESS: Hooks = Hooks {
    validate: |o, e| {
        At::top(o, "spec").field("parentRef").required(e);
    },
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "parentRef"]),
    ..Hooks::NONE
};

fn validate_backend(at: &At<'_>, e: &mut Errors) {
    let (service, resource) = (at.field("service"), at.field("resource"));
    if service.is_set() == resource.is_set() {
        let detail = "exactly one of service or resource must be given";
        e.push(FieldError::invalid(&at.path, at.value.clone(), detail));
    }
    if service.is_set() {
        service.field("name").required_text(e, names::dns_1035_label);
        let port = service.field("port");
        match (port.field("name").is_empty(), port.field("number").i64().unwrap_or(0)) {
            (true, 0) => {
                e.push(FieldError::required(&port.path, "port name or number is required"));
            }
            (true, _) => port.field("number").port(e),
            (false, 0) => port.field("name").text(e, names::port_name),
            (false, _) => port.invalid(e, "cannot set both port name & port number"),
        }
    }
}

fn validate_ingress(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let default_backend = spec.field("defaultBackend");
    if spec.field("rules").is_empty() && !default_backend.is_set() {
        e.push(FieldError::invalid(
            "spec",
            spec.value.clone(),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if default_backend.is_set() {
        validate_backend(&default_backend, e);
    }
    spec.field("ingressClassName").text(e, names::dns_subdomain);
    for rule in spec.field("rules").items() {
        let host = rule.field("host");
        if host.str().contains('*') {
            host.text(e, names::wildcard_subdomain);
        } else {
            host.text(e, names::dns_subdomain);
        }
        if host.str().parse::<std::net::IpAddr>().is_ok() {
            host.invalid(e, "must be a DNS name, not an IP address");
        }
        let paths = rule.field("http").field("paths");
        if rule.field("http").is_set() {
            paths.required(e);
        }
        for path in paths.items() {
            path.field("pathType").required_one_of(e, &["Exact", "ImplementationSpecific", "Prefix"]);
            let text = path.field("path");
            let free = path.field("pathType").str() == "ImplementationSpecific" && text.is_empty();
            if !free && !text.str().starts_with('/') {
                e.push(FieldError::invalid(&text.path, text.str(), "must be an absolute path"));
            }
            validate_backend(&path.field("backend"), e);
        }
    }
}

fn default_policy(o: &mut Object) {
    if o.get(&["spec", "policyTypes"]).is_none_or(Value::is_null) {
        let egress = o.get(&["spec", "egress"]).and_then(Value::as_array).is_some_and(|a| !a.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        o.set(&["spec", "policyTypes"], types);
    }
    for direction in ["ingress", "egress"] {
        let rules = o.0.get_mut("spec").and_then(|s| s.get_mut(direction));
        for rule in defaults::items_mut(rules) {
            for port in defaults::items_mut(rule.get_mut("ports")) {
                defaults::fill(port, "protocol", "TCP");
            }
        }
    }
}

fn validate_peer(peer: &At<'_>, e: &mut Errors) {
    let (pods, namespaces, block) =
        (peer.field("podSelector"), peer.field("namespaceSelector"), peer.field("ipBlock"));
    selectors::validate(&pods, e);
    selectors::validate(&namespaces, e);
    if block.is_set() && (pods.is_set() || namespaces.is_set()) {
        peer.forbidden(e, "may not specify both ipBlock and another peer");
    } else if !block.is_set() && !pods.is_set() && !namespaces.is_set() {
        e.push(FieldError::required(&peer.path, "must specify a peer"));
    }
    if !block.is_set() {
        return;
    }
    let cidr = block.field("cidr");
    cidr.required_text(e, names::cidr);
    for except in block.field("except").items() {
        except.text(e, names::cidr);
        let inside = names::parse_cidr(cidr.str()).zip(names::parse_cidr(except.str()));
        if inside.is_some_and(|(outer, inner)| inner.1 <= outer.1 || !names::cidr_contains(outer, inner.0)) {
            except.invalid(e, &format!("must be a strict subset of `cidr`: {:?}", cidr.str()));
        }
    }
}

fn validate_policy(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    selectors::validate(&spec.field("podSelector"), e);
    for item in spec.field("policyTypes").items() {
        item.one_of(e, &["Egress", "Ingress"]);
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(direction).items() {
            for peer in rule.field(peers).items() {
                validate_peer(&peer, e);
            }
            for port in rule.field("ports").items() {
                port.field("protocol").one_of(e, &["SCTP", "TCP", "UDP"]);
                let number = port.field("port");
                if number.is_set() {
                    number.port_or_name(e);
                }
                let end = port.field("endPort");
                if end.is_set() {
                    match number.i64() {
                        None => {
                            end.forbidden(e, "may not be specified when `port` is not specified or is a name")
                        }
                        Some(first) if end.i64().is_some_and(|last| last < first) => {
                            end.invalid(e, "must be greater than or equal to `port`");
                        }
                        Some(_) => end.port(e),
                    }
                }
            }
        }
    }
}

fn validate_service_cidr(o: &Object, e: &mut Errors) {
    let cidrs = At::top(o, "spec").field("cidrs");
    cidrs.required_because(e, "at least one CIDR required");
    if cidrs.len() > 2 {
        cidrs.invalid(e, "may only hold up to 2 values");
    }
    if names::same_family_twice(&cidrs) {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        cidrs.invalid(e, detail);
    }
    for cidr in cidrs.items() {
        cidr.text(e, names::cidr);
    }
}

/// A second family may be added; what is there stays (KEP-1880).
fn validate_service_cidr_update(new: &Object, old: &Object, e: &mut Errors) {
    let list = |o: &Object| cells::list(o, &["spec", "cidrs"]).to_vec();
    let (before, after) = (list(old), list(new));
    let grown = before.len() == 1 && after.len() == 2 && after.first() == before.first();
    if !grown {
        immutable(e, new, old, &["spec", "cidrs"]);
    }
}

fn hosts(o: &Object, _: Timestamp) -> Value {
    let rules = cells::list(o, &["spec", "rules"]);
    let texts: Vec<String> =
        rules.iter().map(|r| cells::sub(r, "host").to_owned()).filter(|h| !h.is_empty()).collect();
    if texts.is_empty() { "*".into() } else { cells::at_most_three(&texts).into() }
}

fn class_parameters(o: &Object, _: Timestamp) -> Value {
    let text = |name| o.str(&["spec", "parameters", name]);
    if text("name").is_empty() {
        return "<none>".into();
    }
    let group = if text("apiGroup").is_empty() { String::new() } else { format!(".{}", text("apiGroup")) };
    format!("{}{group}/{}", text("kind"), text("name")).into()
}

fn parent(o: &Object, _: Timestamp) -> Value {
    let text = |name| o.str(&["spec", "parentRef", name]);
    let mut out = text("resource").to_owned();
    if !text("group").is_empty() {
        out = format!("{out}.{}", text("group"));
    }
    let parts = [out.as_str(), text("namespace"), text("name")];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/").into()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("ingressclasses", "IngressClass").cluster().strategy(INGRESS_CLASS).columns(
            vec![
                col("Controller", "string", "Who serves the class.", |o, _| {
                    o.str(&["spec", "controller"]).into()
                }),
                col("Parameters", "string", "Object with further settings.", class_parameters),
            ],
            Vec::new(),
        ),
        Row::new("ingresses", "Ingress").short(&["ing"]).status().strategy(INGRESS).columns(
            vec![
                col("Class", "string", "The IngressClass.", |o, _| {
                    cells::or_none(o.str(&["spec", "ingressClassName"])).into()
                }),
                col("Hosts", "string", "Host names that are matched.", hosts),
                col("Address", "string", "Addresses of the load balancer.", |o, _| {
                    cells::load_balancer(o).into()
                }),
                col("Ports", "string", "Open ports.", |o, _| {
                    if cells::size(o, &["spec", "tls"]) > 0 { "80, 443".into() } else { "80".into() }
                }),
            ],
            Vec::new(),
        ),
        Row::new("ipaddresses", "IPAddress")
            .short(&["ip"])
            .cluster()
            .named(names::ip)
            .strategy(IP_ADDRESS)
            .exact_columns(vec![
                name_col(),
                col("ParentRef", "string", "The object that uses the address.", parent),
            ]),
        Row::new("networkpolicies", "NetworkPolicy").short(&["netpol"]).strategy(NETWORK_POLICY).columns(
            vec![col("Pod-Selector", "string", "Which pods the policy is for.", |o, _| {
                cells::selector(o.get(&["spec", "podSelector"])).into()
            })],
            Vec::new(),
        ),
        Row::new("servicecidrs", "ServiceCIDR").cluster().status().strategy(SERVICE_CIDR).columns(
            vec![col("CIDRs", "string", "Networks that Service addresses come from.", |o, _| {
                cells::joined(cells::list(o, &["spec", "cidrs"])).into()
            })],
            Vec::new(),
        ),
    ]
}
