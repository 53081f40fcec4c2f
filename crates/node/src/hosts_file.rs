//! The pod's `/etc/hosts`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::observed::spec;

/// Host name of a pod and, with `subdomain`, its fully qualified name.
pub fn host_names(pod: &core::Pod, node_name: &str, domain: &str) -> (String, Option<String>) {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.into(), None);
    }
    if spec.host_network.unwrap_or(false) {
        return (node_name.into(), None);
    }
    let name = spec.hostname.as_deref().filter(|n| !n.is_empty()).or(pod.metadata.name.as_deref());
    // A host name has at most 63 characters and does not end in a dash or dot.
    let mut host: String = name.unwrap_or_default().chars().take(63).collect();
    host.truncate(host.trim_end_matches(['-', '.']).len());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let full = subdomain.map(|sub| format!("{host}.{sub}.{namespace}.svc.{domain}"));
    (host, full)
}

/// The file's text; programs tell a managed file by its first line. `host_file` is the host's own, used by pods on the host's network.
pub fn hosts_file(pod: &core::Pod, ips: &[IpAddr], node_name: &str, domain: &str, host_file: &str) -> String {
    let mut text = if spec(pod).host_network.unwrap_or(false) {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let (host, full) = host_names(pod, node_name, domain);
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            let names = full.as_ref().map_or_else(|| host.clone(), |full| format!("{full}\t{host}"));
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    use super::{host_names, hosts_file};

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn names_and_aliases() {
        let spec = json!({"containers": [], "subdomain": "web",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]});
        let text = hosts_file(&pod(spec), &["10.0.0.1".parse().unwrap()], "n1", "cluster.local", "");
        assert!(text.contains("\n10.0.0.1\tweb-0.web.ns.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("192.0.2.9\ta\tb\n"), "{text}");
        let on_host = pod(json!({"containers": [], "hostNetwork": true}));
        assert!(hosts_file(&on_host, &[], "n1", "cluster.local", "127.0.0.1 x\n").ends_with("127.0.0.1 x\n"));
        assert_eq!(host_names(&on_host, "n1", "cluster.local").0, "n1");
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(host_names(&long, "n1", "cluster.local").0, "a".repeat(62));
    }
}
