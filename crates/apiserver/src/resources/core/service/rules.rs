//! Rules of Services.

use std::collections::HashSet;

use api::{FieldError, Object};

use super::{HEADLESS, families, is_external, type_of};
use crate::resources::check::{At, Errors};
use crate::resources::names;

pub(super) fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("type").required_one_of(e, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let headless = spec.field("clusterIP").str() == HEADLESS;
    if spec.field("ports").is_empty() && !headless && type_of(o) != "ExternalName" {
        e.push(FieldError::required("spec.ports", ""));
    }
    match type_of(o) {
        "ExternalName" => {
            let name = spec.field("externalName");
            let text = name.str().strip_suffix('.').unwrap_or(name.str());
            if text.is_empty() {
                e.push(FieldError::required(&name.path, ""));
            } else {
                for detail in names::dns_subdomain(text) {
                    name.invalid(e, &detail);
                }
            }
            if !spec.field("clusterIPs").is_empty() {
                spec.field("clusterIPs").forbidden(e, "may not be set when `type` is 'ExternalName'");
            }
        }
        kind @ ("NodePort" | "LoadBalancer") if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            e.push(FieldError::invalid("spec.clusterIPs[0]", HEADLESS, &detail));
        }
        _ => {}
    }
    addresses(&spec, e);
    ports(o, &spec, e);
    spec.field("selector").labels(e);
    affinity(&spec, e);
    policies(o, &spec, e);
}

fn addresses(spec: &At<'_>, e: &mut Errors) {
    let list = spec.field("clusterIPs");
    families::validate(spec, e);
    let (single, first) = (spec.field("clusterIP"), list.items().next());
    if first.is_some_and(|first| first.str() != single.str()) {
        e.push(FieldError::invalid(
            "spec.clusterIPs",
            list.value.clone(),
            "first value must match `clusterIP`",
        ));
    }
    for ip in spec.field("externalIPs").items() {
        ip.text(e, names::ip);
        let special =
            ip.str().parse::<std::net::IpAddr>().is_ok_and(|a| a.is_unspecified() || a.is_loopback());
        if special {
            ip.invalid(e, "may not be unspecified or in the loopback range");
        }
    }
    for range in spec.field("loadBalancerSourceRanges").items() {
        range.text(e, names::cidr);
    }
}

fn ports(o: &Object, spec: &At<'_>, e: &mut Errors) {
    let list = spec.field("ports");
    list.unique(e, "name");
    let (mut seen, mut nodes) = (HashSet::new(), HashSet::new());
    for port in list.items() {
        if list.len() > 1 {
            port.field("name").required(e);
        }
        port.field("name").text(e, names::dns_label);
        port.field("port").port(e);
        port.field("protocol").required_one_of(e, &["SCTP", "TCP", "UDP"]);
        port.field("targetPort").port_or_name(e);
        port.field("appProtocol").text(e, names::qualified_name);
        let protocol = port.field("protocol").str();
        let number = port.field("port").i64().unwrap_or(0);
        if !seen.insert((protocol, number)) {
            let value = serde_json::json!({"port": number, "protocol": protocol});
            e.push(FieldError::duplicate(&port.path, value));
        }
        let node = port.field("nodePort");
        let Some(number) = node.i64().filter(|n| *n != 0) else { continue };
        if matches!(type_of(o), "ClusterIP" | "ExternalName") {
            node.forbidden(e, &format!("may not be used when `type` is '{}'", type_of(o)));
        }
        if !nodes.insert((protocol, number)) {
            e.push(FieldError::duplicate(&node.path, number));
        }
    }
}

fn affinity(spec: &At<'_>, e: &mut Errors) {
    let affinity = spec.field("sessionAffinity");
    affinity.required_one_of(e, &["ClientIP", "None"]);
    let timeout = spec.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
    if affinity.str() == "ClientIP" && timeout.i64().is_some_and(|n| !(1..=86_400).contains(&n)) {
        timeout.invalid(e, "must be greater than 0 and less than 86400");
    }
}

fn policies(o: &Object, spec: &At<'_>, e: &mut Errors) {
    let external = spec.field("externalTrafficPolicy");
    external.one_of(e, &["Cluster", "Local"]);
    if external.is_set() && !external.is_empty() && !is_external(o) {
        external.invalid(e, "may only be set for externally-accessible services");
    }
    let internal = spec.field("internalTrafficPolicy");
    internal.one_of(e, &["Cluster", "Local"]);
    let health = spec.field("healthCheckNodePort");
    if health.i64().is_some_and(|n| n != 0) {
        health.port(e);
        if !super::wants_health_check(o) {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            health.invalid(e, detail);
        }
    }
    let load_balancer = type_of(o) == "LoadBalancer";
    for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.field(name).is_set() && !load_balancer {
            spec.field(name).forbidden(e, "may only be used when `type` is 'LoadBalancer'");
        }
    }
    spec.field("trafficDistribution").one_of(e, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
}

pub(super) fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    families::validate_update(new, old, e);
}
