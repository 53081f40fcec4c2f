//! Where a proxied request goes: pure decisions on a pod, or a Service and its EndpointSlices.

use std::net::{IpAddr, SocketAddr};

use api::{Object, Status};
use serde_json::Value;

/// `[{scheme}:]{name}[:{port}]`
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    tls: bool,
    pub(super) name: &'a str,
    /// A number, a name, or "" for the only one.
    port: &'a str,
}

/// Whom to dial, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Server(Destination),
    /// The server of this node itself.
    Node(String),
}

impl<'a> Target<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https");
        (known && !name.is_empty()).then_some(Self { tls: scheme == "https", name, port })
    }

    /// The port when nothing names one.
    fn usual_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }
}

/// A pod's own address; without a port the first one that its containers name. Whoever may write a pod's status must not
/// lead the API server to a machine by it, unless the pod lives in that machine's network.
pub(super) fn pod(pod: &Object, nodes: &[Object], target: &Target<'_>) -> Result<Destination, Status> {
    let address = parse(pod.str(&["status", "podIP"]))?;
    let owners: Vec<&Object> =
        nodes.iter().filter(|node| addresses(node).any(|own| own == address)).collect();
    let at_home = pod.get(&["spec", "hostNetwork"]) == Some(&Value::Bool(true))
        && owners.iter().any(|node| node.name() == pod.str(&["spec", "nodeName"]));
    if !at_home && (!owners.is_empty() || is_of_this_machine(address)) {
        return Err(not_allowed());
    }
    let containers = pod.get(&["spec", "containers"]).and_then(Value::as_array).into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let number = |port: &Value| port["containerPort"].as_u64().and_then(|n| u16::try_from(n).ok());
    let port = match target.port {
        "" => ports.find_map(number).unwrap_or_else(|| target.usual_port()),
        text => match text.parse::<u16>() {
            Ok(port) => port,
            Err(_) => ports
                .find(|port| port["name"] == text)
                .and_then(number)
                .ok_or_else(|| Status::bad_request(format!("pod {:?} has no port {text:?}", target.name)))?,
        },
    };
    Ok(Destination { address: SocketAddr::new(address, port), tls: target.tls })
}

/// A port of a node, or the node's own server.
pub(super) fn node(node: &Object, target: &Target<'_>) -> Result<Place, Status> {
    let own = node.get(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).and_then(Value::as_u64);
    if target.port.is_empty() || own.is_some_and(|own| own.to_string() == target.port) {
        return Ok(Place::Node(node.name().to_owned()));
    }
    let port = target.port.parse();
    let port = port.map_err(|_| Status::bad_request(format!("a node has no port {:?}", target.port)))?;
    let list = node.get(&["status", "addresses"]).and_then(Value::as_array);
    let internal = list.into_iter().flatten().find(|one| one["type"] == "InternalIP");
    let address = parse(internal.and_then(|one| one["address"].as_str()).unwrap_or_default())?;
    Ok(Place::Server(Destination { address: SocketAddr::new(address, port), tls: target.tls }))
}

/// What a node says its addresses are.
fn addresses(node: &Object) -> impl Iterator<Item = IpAddr> {
    let list = node.get(&["status", "addresses"]).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|one| one["address"].as_str()?.parse().ok())
}

/// A ready endpoint of a Service's port.
pub(super) fn service(
    service: &Object,
    slices: &[Object],
    target: &Target<'_>,
) -> Result<Destination, Status> {
    let name = port_name(service, target)?;
    for slice in slices {
        let owner = slice.str(&["metadata", "labels", "kubernetes.io/service-name"]);
        if owner != service.name() || slice.str(&["addressType"]) == "FQDN" {
            continue;
        }
        let ports = slice.get(&["ports"]).and_then(Value::as_array).into_iter().flatten();
        let port = ports
            .filter(|port| port["name"].as_str().unwrap_or_default() == name)
            .find_map(|port| port["port"].as_u64().and_then(|n| u16::try_from(n).ok()));
        let endpoints = slice.get(&["endpoints"]).and_then(Value::as_array).into_iter().flatten();
        let mut ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != Value::Bool(false));
        if let (Some(port), Some(endpoint)) = (port, ready.next()) {
            let address = parse(endpoint["addresses"][0].as_str().unwrap_or_default())?;
            if is_of_this_machine(address) {
                return Err(not_allowed());
            }
            return Ok(Destination { address: SocketAddr::new(address, port), tls: target.tls });
        }
    }
    Err(Status::unavailable(format!("no endpoints available for service {:?}", target.name)))
}

/// The name of the Service's port that is meant: slices know names only.
fn port_name(service: &Object, target: &Target<'_>) -> Result<String, Status> {
    let ports =
        service.get(&["spec", "ports"]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    match (target.port, target.port.parse::<u64>()) {
        ("", _) => Ok(match ports {
            [only] => name(only),
            _ => String::new(),
        }),
        (_, Ok(number)) => ports.iter().find(|port| port["port"] == number).map(name).ok_or_else(|| {
            let what = format!("no service port {number} found for service {:?}", target.name);
            Status::unavailable(&what)
        }),
        (text, Err(_)) => Ok(text.to_owned()),
    }
}

fn parse(text: &str) -> Result<IpAddr, Status> {
    let address: IpAddr = text.parse().map_err(|_| Status::unavailable("there is no address yet"))?;
    Ok(address.to_canonical())
}

/// Loopback and link-local addresses belong to this machine and its cloud; the others to nobody.
fn is_of_this_machine(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn shown(result: Result<Destination, Status>) -> String {
        match result {
            Ok(to) => format!("{} {}", if to.tls { "https" } else { "http" }, to.address),
            Err(status) => status.message,
        }
    }

    #[test]
    fn pods_are_found_by_number_name_or_first_port() {
        let p = object(
            json!({"metadata": {"name": "p"}, "status": {"podIP": "10.1.0.2"}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}, {"name": "web", "containerPort": 81}]}]}}),
        );
        for (text, want) in [
            ("p", "http 10.1.0.2:8080"),
            ("p:9", "http 10.1.0.2:9"),
            ("p:web", "http 10.1.0.2:81"),
            ("https:p:443", "https 10.1.0.2:443"),
            ("http:p:", "http 10.1.0.2:8080"),
            ("p:none", "pod \"p\" has no port \"none\""),
        ] {
            assert_eq!(shown(pod(&p, &[], &Target::parse(text).unwrap())), want, "{text}");
        }
        assert_eq!(Target::parse("ftp:p:21"), None);
        assert_eq!(Target::parse(":80"), None);
    }

    #[test]
    fn a_status_does_not_lead_to_machines() {
        let nodes = ["192.0.2.1", "127.0.0.1"].into_iter().zip(["far", "near"]).map(|(address, name)| {
            object(json!({"metadata": {"name": name}, "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}}))
        });
        let nodes: Vec<Object> = nodes.collect();
        let to = |address: &str, host: bool, node: &str| {
            let p = object(json!({"metadata": {"name": "p"}, "status": {"podIP": address},
                "spec": {"hostNetwork": host, "nodeName": node, "containers": []}}));
            shown(pod(&p, &nodes, &Target::parse("p").unwrap()))
        };
        assert_eq!(to("10.1.0.2", false, "far"), "http 10.1.0.2:80");
        assert_eq!(to("192.0.2.1", true, "far"), "http 192.0.2.1:80", "its own machine");
        assert_eq!(to("127.0.0.1", true, "near"), "http 127.0.0.1:80", "its own machine");
        for (address, host, node) in [
            ("169.254.169.254", false, "far"),
            ("127.0.0.1", true, "far"),
            ("127.0.0.1", false, "near"),
            ("::1", true, "near"),
            ("::ffff:127.0.0.1", false, "far"),
            ("192.0.2.1", false, "far"),
            ("192.0.2.1", true, "near"),
        ] {
            assert_eq!(to(address, host, node), "address not allowed", "{address} {host} {node}");
        }
        let place = |text| node(&nodes[0], &Target::parse(text).unwrap());
        assert_eq!(place("far"), Ok(Place::Node("far".into())));
        assert_eq!(place("far:10250"), Ok(Place::Node("far".into())));
        let address = "192.0.2.1:9100".parse().unwrap();
        assert_eq!(place("far:9100"), Ok(Place::Server(Destination { address, tls: false })));
    }

    #[test]
    fn services_resolve_through_their_slices() {
        let s = object(json!({"metadata": {"name": "s"}, "spec": {"ports": [
            {"name": "a", "port": 80}, {"name": "b", "port": 81}]}}));
        let slice = |name: &str, ready: bool| {
            object(json!({"metadata": {"labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
                "endpoints": [{"addresses": ["10.1.0.3"], "conditions": {"ready": ready}}]}))
        };
        let slices = [slice("other", true), slice("s", false), slice("s", true)];
        for (text, want) in [
            ("s:80", "http 10.1.0.3:8080"),
            ("s:b", "http 10.1.0.3:8081"),
            ("https:s:b", "https 10.1.0.3:8081"),
            ("s", "no endpoints available for service \"s\""),
            ("s:7", "no service port 7 found for service \"s\""),
        ] {
            assert_eq!(shown(service(&s, &slices, &Target::parse(text).unwrap())), want, "{text}");
        }
        let none = shown(service(&s, &slices[..2], &Target::parse("s:80").unwrap()));
        assert_eq!(none, "no endpoints available for service \"s\"");
    }
}
