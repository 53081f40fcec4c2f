//! The pod's `/etc/resolv.conf`, by dnsPolicy and dnsConfig.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::observed::spec;

/// Limits of common resolvers, as Kubernetes applies them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

#[derive(Default)]
struct Dns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

/// The file's text; `host` is the node's own file.
pub fn resolv_conf(pod: &core::Pod, cluster_dns: &[IpAddr], domain: &str, host: &str) -> String {
    let spec = spec(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let on_host = spec.host_network.unwrap_or(false);
    let host = parse(host);
    let mut dns = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Dns::default(),
        "ClusterFirst" if !on_host && !cluster_dns.is_empty() => {
            cluster(cluster_dns, namespace, domain, host)
        }
        "ClusterFirstWithHostNet" if !cluster_dns.is_empty() => cluster(cluster_dns, namespace, domain, host),
        _ => host,
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.clone() else { continue };
            dns.options.retain(|(known, _)| *known != name);
            dns.options.push((name, option.value.clone()));
        }
    }
    render(dns)
}

fn cluster(servers: &[IpAddr], namespace: &str, domain: &str, host: Dns) -> Dns {
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    searches.extend(host.searches);
    Dns {
        servers: servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec![("ndots".into(), Some("5".into()))],
    }
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                dns.searches = words.filter(|w| *w != ".").map(str::to_owned).collect()
            }
            Some("options") => {
                let pair = |word: &str| match word.split_once(':') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                };
                dns.options.extend(words.map(pair));
            }
            _ => {}
        }
    }
    dns
}

fn render(mut dns: Dns) -> String {
    let mut seen = Vec::new();
    dns.searches.retain(|s| {
        let new = !seen.contains(s);
        seen.push(s.clone());
        new
    });
    dns.searches.truncate(MAX_SEARCHES);
    dns.servers.truncate(MAX_SERVERS);
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        let words =
            dns.options.iter().map(|(n, v)| v.as_ref().map_or_else(|| n.clone(), |v| format!("{n}:{v}")));
        text.push_str(&format!("options {}\n", words.collect::<Vec<_>>().join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::resolv_conf;

    #[test]
    fn policies() {
        let host = "# x\nnameserver 192.0.2.1\nsearch example.org\noptions rotate\n";
        let of = |spec: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
            resolv_conf(
                &serde_json::from_value(pod).unwrap(),
                &["10.96.0.10".parse().unwrap()],
                "cluster.local",
                host,
            )
        };
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.org\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let own = json!({"nameservers": ["192.0.2.7"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]});
        let table = [
            (json!({"containers": []}), cluster.to_owned()),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                cluster.to_owned(),
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                host[4..].replace(
                    "nameserver 192.0.2.1\nsearch example.org",
                    "search example.org\nnameserver 192.0.2.1",
                ),
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}),
                "search a\nnameserver 192.0.2.7\noptions ndots:2\n".into(),
            ),
        ];
        for (spec, wanted) in table {
            assert_eq!(of(spec.clone()), wanted, "{spec}");
        }
    }
}
