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

/// A pod's own address; without a port the first one that its containers name.
pub(super) fn pod(pod: &Object, target: &Target<'_>) -> Result<Destination, Status> {
    let address = address(pod.str(&["status", "podIP"]))?;
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
            let address = address(endpoint["addresses"][0].as_str().unwrap_or_default())?;
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

/// An address that a pod can have: link-local ones belong to the machine and its cloud.
fn address(text: &str) -> Result<IpAddr, Status> {
    let address: IpAddr = text.parse().map_err(|_| Status::unavailable("the pod has no address yet"))?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local || address.is_unspecified() || address.is_multicast() {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(address)
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
            assert_eq!(shown(pod(&p, &Target::parse(text).unwrap())), want, "{text}");
        }
        assert_eq!(Target::parse("ftp:p:21"), None);
        assert_eq!(Target::parse(":80"), None);
        let cloud = object(json!({"status": {"podIP": "169.254.169.254"}}));
        assert_eq!(shown(pod(&cloud, &Target::parse("p").unwrap())), "address not allowed");
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
