//! Service: types, addresses, node ports.

mod families;
mod rules;
#[cfg(test)]
mod tests;

use api::{FieldError, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::allocation;
use crate::resource::{Change, Extension, Strategy, WriteContext};
use crate::resources::check::{At, Errors};
use crate::resources::defaults::{fill, fill_zero, items_mut};

pub(super) struct ServiceStrategy;

const HEADLESS: &str = "None";

/// The parts of a Service that decide about addresses.
fn type_of(o: &Object) -> &str {
    o.str(&["spec", "type"])
}

fn has_cluster_ip(o: &Object) -> bool {
    type_of(o) != "ExternalName" && o.str(&["spec", "clusterIP"]) != HEADLESS
}

fn has_node_ports(o: &Object) -> bool {
    match type_of(o) {
        "NodePort" => true,
        "LoadBalancer" => o.get(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn is_external(o: &Object) -> bool {
    matches!(type_of(o), "NodePort" | "LoadBalancer")
        || (type_of(o) == "ClusterIP" && !At::top(o, "spec").field("externalIPs").is_empty())
}

fn wants_health_check(o: &Object) -> bool {
    type_of(o) == "LoadBalancer" && o.str(&["spec", "externalTrafficPolicy"]) == "Local"
}

fn default(o: &mut Object) {
    if o.get(&["spec"]).is_none_or(|s| !s.is_object()) {
        o.set(&["spec"], json!({}));
    }
    let Some(spec) = o.0.get_mut("spec") else { return };
    fill(spec, "sessionAffinity", "None");
    fill(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        o.set_default(&["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"], 10_800);
    } else {
        o.remove(&["spec", "sessionAffinityConfig"]);
    }
    for port in items_mut(o.0.get_mut("spec").and_then(|s| s.get_mut("ports"))) {
        fill(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        let unset = port.get("targetPort").is_none_or(|t| t.is_null() || t == 0 || t == "");
        if unset && !number.is_null() {
            port["targetPort"] = number;
        }
    }
    if is_external(o) {
        o.set_default(&["spec", "externalTrafficPolicy"], "Cluster");
    }
    if type_of(o) != "ExternalName" {
        o.set_default(&["spec", "internalTrafficPolicy"], "Cluster");
    }
    if type_of(o) == "LoadBalancer" {
        o.set_default(&["spec", "allocateLoadBalancerNodePorts"], true);
    }
}

/// `clusterIP` and the first of `clusterIPs` are one value; whichever was set or changed wins.
fn join_cluster_ips(new: &mut Object, old: Option<&Object>) {
    let single = new.str(&["spec", "clusterIP"]).to_owned();
    let list: Vec<Value> =
        new.get(&["spec", "clusterIPs"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let old_single = old.map(|o| o.str(&["spec", "clusterIP"])).unwrap_or_default();
    if list.is_empty() {
        if !single.is_empty() {
            new.set(&["spec", "clusterIPs"], json!([single]));
        }
    } else if single.is_empty() && old_single.is_empty() {
        new.set(&["spec", "clusterIP"], list[0].clone());
    } else if old.is_some() && single != old_single && list[0] == old_single {
        match single.as_str() {
            "" => drop(new.remove(&["spec", "clusterIPs"])),
            _ => new.set(&["spec", "clusterIPs"], json!([single])),
        }
    }
}

/// What a client leaves out of an update keeps its allocated value.
fn keep_allocated(new: &mut Object, old: &Object) {
    if type_of(new) != "ExternalName" && type_of(old) != "ExternalName" {
        let cleared =
            new.str(&["spec", "clusterIP"]).is_empty() && At::top(new, "spec").field("clusterIPs").is_empty();
        if cleared && let Some(ip) = old.get(&["spec", "clusterIP"]).cloned() {
            new.set(&["spec", "clusterIP"], ip);
            if let Some(list) = old.get(&["spec", "clusterIPs"]).cloned() {
                new.set(&["spec", "clusterIPs"], list);
            }
        }
        for name in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old.get(&["spec", name]).cloned() {
                new.set_default(&["spec", name], value);
            }
        }
    }
    if has_node_ports(new) && has_node_ports(old) {
        let before = old.get(&["spec", "ports"]).and_then(Value::as_array).cloned().unwrap_or_default();
        let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
        let wished: Vec<Value> =
            At::top(new, "spec").field("ports").items().map(|p| p.field("nodePort").value.clone()).collect();
        for port in items_mut(new.0.get_mut("spec").and_then(|s| s.get_mut("ports"))) {
            let Some(old) = before.iter().find(|old| same(old, port)) else { continue };
            let number = old["nodePort"].as_i64().unwrap_or(0);
            if number != 0 && !wished.contains(&number.into()) {
                fill_zero(port, "nodePort", number);
            }
        }
    }
    if wants_health_check(new)
        && wants_health_check(old)
        && let Some(port) = old.get(&["spec", "healthCheckNodePort"]).cloned()
    {
        new.set_default(&["spec", "healthCheckNodePort"], port);
    }
}

/// Drops what the type has no use for and what came with the old type.
fn drop_unused(new: &mut Object, old: Option<&Object>) {
    let Some(old) = old else { return };
    let same = |new: &Object, path: &[&str]| new.get(path) == old.get(path);
    if type_of(new) == "ExternalName" && type_of(old) != "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, &["spec", name]) {
                new.remove(&["spec", name]);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let before: Vec<Value> =
            At::top(old, "spec").field("ports").items().map(|p| p.field("nodePort").value.clone()).collect();
        for port in items_mut(new.0.get_mut("spec").and_then(|s| s.get_mut("ports"))) {
            if before.contains(&port["nodePort"]) {
                port.as_object_mut().and_then(|p| p.remove("nodePort"));
            }
        }
    }
    if !is_external(new) && is_external(old) && same(new, &["spec", "externalTrafficPolicy"]) {
        new.remove(&["spec", "externalTrafficPolicy"]);
    }
    if !wants_health_check(new) && wants_health_check(old) && same(new, &["spec", "healthCheckNodePort"]) {
        new.remove(&["spec", "healthCheckNodePort"]);
    }
    if type_of(new) != "LoadBalancer" && type_of(old) == "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, &["spec", name]) {
                new.remove(&["spec", name]);
            }
        }
        new.set(&["status"], json!({"loadBalancer": {}}));
    }
}

impl Strategy for ServiceStrategy {
    fn default(&self, object: &mut Object) {
        default(object);
    }

    fn prepare_for_create(&self, _: &WriteContext<'_>, object: &mut Object) {
        object.set(&["status"], json!({"loadBalancer": {}}));
        join_cluster_ips(object, None);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        if cx.subresource.is_some() {
            return;
        }
        join_cluster_ips(new, Some(old));
        keep_allocated(new, old);
        drop_unused(new, Some(old));
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut e = Errors::new();
        rules::validate(object, &mut e);
        e
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut e = Errors::new();
        rules::validate_update(new, old, &mut e);
        e
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        txn: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            match change {
                Change::Create(new) => allocate(cx, new, None, txn).await,
                Change::Update { new, old } => {
                    allocate(cx, new, Some(old), txn).await?;
                    give_back(cx, old, Some(new), txn).await
                }
                Change::Delete(old) => give_back(cx, old, None, txn).await,
            }
        })
    }
}

/// Addresses, as far as there are any.
fn addresses(o: &Object) -> Vec<std::net::IpAddr> {
    if !has_cluster_ip(o) {
        return Vec::new();
    }
    At::top(o, "spec").field("clusterIPs").items().filter_map(|ip| ip.str().parse().ok()).collect()
}

/// Node ports in use, the health check's too.
fn node_ports(o: &Object) -> Vec<u16> {
    let spec = At::top(o, "spec");
    let number = |at: At<'_>| at.i64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let ports = spec.field("ports");
    let ports = ports.items().filter_map(|p| number(p.field("nodePort")));
    ports.chain(number(spec.field("healthCheckNodePort"))).collect()
}

fn owner(o: &Object) -> String {
    o.key().to_string()
}

async fn allocate(
    cx: &WriteContext<'_>,
    new: &mut Object,
    old: Option<&Object>,
    txn: &mut Extension,
) -> Result<(), Status> {
    let mut errors = families::settle(new, old, cx.service_cidrs);
    if errors.is_empty() {
        allocate_ips(cx, new, old, txn, &mut errors).await?;
    }
    allocate_ports(cx, new, old, txn, &mut errors).await?;
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "Service", new.name(), &errors)) }
}

/// An address for each of the families.
async fn allocate_ips(
    cx: &WriteContext<'_>,
    new: &mut Object,
    old: Option<&Object>,
    txn: &mut Extension,
    errors: &mut Errors,
) -> Result<(), Status> {
    if !has_cluster_ip(new) {
        return Ok(());
    }
    let held = old.map(addresses).unwrap_or_default();
    let list = At::top(new, "spec").field("clusterIPs");
    let mut wanted: Vec<Option<String>> = list.items().map(|ip| Some(ip.str().to_owned())).collect();
    let families = families::families(new);
    wanted.resize(families.len(), None);
    let mut ips = Vec::new();
    for (family, wanted) in families.iter().zip(wanted) {
        let wanted = wanted.as_deref().filter(|ip| !ip.is_empty());
        if let Some(ip) = wanted.filter(|ip| ip.parse().is_ok_and(|ip| held.contains(&ip))) {
            ips.push(ip.to_owned());
            continue;
        }
        let v6 = family == "IPv6";
        let Some(cidr) = cx.service_cidrs.iter().find(|cidr| cidr.contains(':') == v6) else {
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid("spec.ipFamilies", json!(families), &detail));
            return Ok(());
        };
        match allocation::claim_ip(cx.reader, cidr, wanted, &owner(new), txn).await? {
            Err(error) => errors.push(error),
            Ok(ip) => ips.push(ip.to_string()),
        }
    }
    if let Some(first) = ips.first() {
        new.set(&["spec", "clusterIP"], first.as_str());
        new.set(&["spec", "clusterIPs"], json!(ips));
    }
    Ok(())
}

async fn allocate_ports(
    cx: &WriteContext<'_>,
    new: &mut Object,
    old: Option<&Object>,
    txn: &mut Extension,
    errors: &mut Errors,
) -> Result<(), Status> {
    let owner = owner(new);
    let held = old.map(node_ports).unwrap_or_default();
    let mut mine: Vec<u32> = held.iter().map(|p| u32::from(*p)).collect();
    let wishes: Vec<(String, Option<u16>)> = {
        let ports = At::top(new, "spec").field("ports");
        let number = |at: At<'_>| at.i64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        ports.items().map(|p| (p.field("nodePort").path, number(p.field("nodePort")))).collect()
    };
    if has_node_ports(new) {
        // Explicit wishes first, so that no random pick takes one of them.
        let mut order: Vec<usize> = (0..wishes.len()).collect();
        order.sort_by_key(|i| wishes[*i].1.is_none());
        for i in order {
            let (path, wanted) = &wishes[i];
            let mine = (owner.as_str(), path.as_str(), &mut mine);
            match allocation::claim_port(cx.reader, cx.node_port_range, *wanted, mine, txn).await? {
                Err(error) => errors.push(error),
                Ok(port) => {
                    if let Some(target) = new.0.get_mut("spec").and_then(|s| s.get_mut("ports")?.get_mut(i)) {
                        target["nodePort"] = port.into();
                    }
                }
            }
        }
    }
    if wants_health_check(new) {
        let wanted =
            new.i64(&["spec", "healthCheckNodePort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        let mine = (owner.as_str(), "spec.healthCheckNodePort", &mut mine);
        match allocation::claim_port(cx.reader, cx.node_port_range, wanted, mine, txn).await? {
            Err(error) => errors.push(error),
            Ok(port) => new.set(&["spec", "healthCheckNodePort"], port),
        }
    }
    Ok(())
}

/// Releases what the old Service held and the new one does not.
async fn give_back(
    cx: &WriteContext<'_>,
    old: &Object,
    new: Option<&mut Object>,
    txn: &mut Extension,
) -> Result<(), Status> {
    let (kept_ips, kept_ports) = new.map(|new| (addresses(new), node_ports(new))).unwrap_or_default();
    let owner = owner(old);
    for ip in addresses(old).into_iter().filter(|ip| !kept_ips.contains(ip)) {
        allocation::release(cx.reader, &allocation::ip_key(ip), &owner, txn).await?;
    }
    let mut ports = node_ports(old);
    ports.sort_unstable();
    ports.dedup();
    for port in ports.into_iter().filter(|port| !kept_ports.contains(port)) {
        allocation::release(cx.reader, &allocation::port_key(port), &owner, txn).await?;
    }
    Ok(())
}
