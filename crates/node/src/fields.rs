//! Values of the downward API: pod fields and container resources.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::observed::{find_container, spec};
use crate::resources::{limits, milli, requests};

/// What a field may need beyond the pod.
#[derive(Clone, Debug, Default)]
pub struct FieldContext {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
    /// Stand in for absent limits.
    pub node_cpu_milli: i64,
    pub node_memory_bytes: i64,
}

/// Value of a `fieldRef` path.
///
/// # Errors
/// A path that the downward API does not know.
pub fn field(pod: &core::Pod, path: &str, cx: &FieldContext) -> Result<String, String> {
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let pod_ips: &[IpAddr] = if spec(pod).host_network.unwrap_or(false) { &cx.node_ips } else { &cx.pod_ips };
    let meta = &pod.metadata;
    if let Some((kind, key)) = subscript(path) {
        let map = if kind == "labels" { &meta.labels } else { &meta.annotations };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        "spec.nodeName" => Some(spec(pod).node_name.clone().unwrap_or_else(|| cx.node_name.clone())),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone(),
        "status.hostIP" => cx.node_ips.first().map(ToString::to_string),
        "status.hostIPs" => Some(join(&cx.node_ips)),
        "status.podIP" => pod_ips.first().map(ToString::to_string),
        "status.podIPs" => Some(join(pod_ips)),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    };
    Ok(value.unwrap_or_default())
}

/// `metadata.labels['key']` and `metadata.annotations['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("metadata.")?;
    let (kind, key) = rest.split_once("['")?;
    Some((kind, key.strip_suffix("']")?)).filter(|(kind, _)| matches!(*kind, "labels" | "annotations"))
}

/// `key="value"` lines, sorted by key.
fn lines(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", serde_json::Value::from(v.as_str())));
    lines.collect::<Vec<_>>().join("\n")
}

/// Value of a `resourceFieldRef`, divided by its divisor and rounded up.
///
/// # Errors
/// An unknown container, resource or divisor.
pub fn resource(
    pod: &core::Pod,
    own: Option<&core::Container>,
    selector: &core::ResourceFieldSelector,
    cx: &FieldContext,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let found = named.and_then(|name| find_container(pod, name)).map(|(_, c)| c);
    let container = found.as_ref().or(if named.is_none() { own } else { None });
    let container = container.ok_or_else(|| format!("container {} not found", named.unwrap_or_default()))?;
    let (kind, name) = selector.resource.split_once('.').unwrap_or(("", &selector.resource));
    let map = match kind {
        "limits" => limits(container),
        "requests" => requests(container),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let value = map.and_then(|m| m.get(name)).and_then(|q| milli(&q.0));
    let value = value.unwrap_or_else(|| match (kind, name) {
        ("limits", "cpu") => i128::from(cx.node_cpu_milli),
        ("limits", "memory") => i128::from(cx.node_memory_bytes) * 1000,
        _ => 0,
    });
    let divisor = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|q| !q.is_empty() && *q != "0");
    let divisor = milli(divisor.unwrap_or("1")).filter(|d| *d > 0).ok_or("invalid divisor")?;
    Ok(((value + divisor - 1) / divisor).to_string())
}
