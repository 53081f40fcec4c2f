//! `metrics.k8s.io/v1beta1`: what nodes and pods use now. Nothing is stored: the nodes are asked when somebody asks.
//!
//! ```text
//!   GET …/nodes[/{name}], …/pods, …/namespaces/{ns}/pods[/{name}]
//!      ──▶ all nodes at once: their statistics ──▶ NodeMetrics, PodMetrics with labels from the cache
//! ```
//! A node that does not answer is left out: the others' numbers are of use without it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::{
    ApiRequest, ApiResponse, GroupVersionResource, LabelSelector, Object, ResponseBody, Status, Target, Verb,
};
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::registry::codec;
use crate::resource::{Durability, Reader, Resource, ResourceSet};
use crate::server::ApiServer;
use crate::url;

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
/// Longest statistics that are read of one node.
const SUMMARY_LIMIT: usize = 16 << 20;
/// The nodes' rates are of at least this time.
const WINDOW: &str = "1s";

/// Whether a request is about usage.
pub(crate) fn is_wanted(target: &Target) -> bool {
    matches!(target, Target::Resource { gvr, .. } if gvr.group == GROUP && gvr.version == VERSION)
}

/// The rows that discovery shows: those of all kinds, and two that nothing is stored of.
pub(crate) fn with_rows(resources: &ResourceSet) -> ResourceSet {
    let mut rows: Vec<Arc<Resource>> = resources.iter().cloned().collect();
    for (resource, kind) in [("nodes", "NodeMetrics"), ("pods", "PodMetrics")] {
        let Some(like) = resources.get(&GroupVersionResource::new("", "v1", resource)) else { continue };
        rows.push(Arc::new(Resource {
            gvr: GroupVersionResource::new(GROUP, VERSION, resource),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            singular: String::new(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: like.namespaced,
            schema: like.schema,
            table: Arc::clone(&like.table),
            selectable_fields: Vec::new(),
            columns: Vec::new(),
            subresources: Vec::new(),
            verbs: vec![Verb::Get, Verb::List],
            durability: Durability::OnDisk,
            strategy: Arc::clone(&like.strategy),
            stored_as: None,
        }));
    }
    ResourceSet::from_rows(rows)
}

/// Answers an authorized request.
///
/// # Errors
/// `NotFound` for what is not there or not measured, `MethodNotAllowed` for writes and watches.
pub(crate) async fn answer(server: &ApiServer, request: &ApiRequest) -> Result<ApiResponse, Status> {
    let Target::Resource { gvr, namespace, name, subresource } = &request.target else {
        return Err(crate::pipeline::no_such_path());
    };
    if subresource.is_some() || !matches!(gvr.resource.as_str(), "nodes" | "pods") {
        return Err(crate::pipeline::no_such_path());
    }
    if !matches!(request.verb, Verb::Get | Verb::List) {
        return Err(url::method_not_allowed());
    }
    let labels = request.options.label_selector.as_deref().unwrap_or_default();
    let labels = codec::label_selector(labels)?;
    let reader: &dyn Reader = &server.registry;
    let core = |resource: &str| GroupVersionResource::new("", "v1", resource);
    let nodes = reader.list(&core("nodes"), None).await?;
    let (kind, items) = if gvr.resource == "nodes" {
        let nodes = chosen(nodes, name.as_deref(), &labels);
        let summaries = summaries(server, nodes.iter().map(Object::name)).await;
        ("NodeMetrics", nodes.iter().filter_map(|node| of_node(node, summaries.get(node.name())?)).collect())
    } else {
        let pods = reader.list(&core("pods"), namespace.as_deref()).await?;
        let pods = chosen(pods, name.as_deref(), &labels);
        let on: HashSet<&str> = pods.iter().map(|pod| pod.str(&["spec", "nodeName"])).collect();
        let summaries =
            summaries(server, nodes.iter().map(Object::name).filter(|node| on.contains(node))).await;
        let of = |pod: &Object| of_pod(pod, summaries.get(pod.str(&["spec", "nodeName"]))?);
        ("PodMetrics", pods.iter().filter_map(of).collect::<Vec<Value>>())
    };
    let body = match name {
        None => json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"),
            "metadata": {}, "items": items}),
        Some(name) => {
            items.into_iter().next().ok_or_else(|| Status::not_found(GROUP, &gvr.resource, name))?
        }
    };
    let body = ResponseBody::Bytes(vec![body.to_string().into()]);
    Ok(ApiResponse { code: 200, content_type: "application/json".into(), body, warnings: Vec::new() })
}

fn chosen(mut objects: Vec<Object>, name: Option<&str>, labels: &LabelSelector) -> Vec<Object> {
    objects.retain(|object| {
        name.is_none_or(|name| object.name() == name)
            && labels.matches_with(|key| {
                Some(object.str(&["metadata", "labels", key]))
                    .filter(|value| !value.is_empty() || object.get(&["metadata", "labels", key]).is_some())
            })
    });
    objects
}

/// The statistics of nodes, by name.
async fn summaries<'a>(server: &ApiServer, nodes: impl Iterator<Item = &'a str>) -> BTreeMap<String, Value> {
    let asked = nodes.map(|node| async move {
        match summary(server, node).await {
            Ok(summary) => Some((node.to_owned(), summary)),
            Err(status) => {
                tracing::info!(node, %status, "no statistics of a node");
                None
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn summary(server: &ApiServer, node: &str) -> Result<Value, Status> {
    let page = server.config.gateway.page(node, "/stats/summary").await?;
    let mut bytes = Vec::new();
    let mut body = page.body;
    while let Some(piece) = body.try_next().await.map_err(Status::internal)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > SUMMARY_LIMIT {
            return Err(Status::internal("statistics of a node are too long"));
        }
    }
    serde_json::from_slice(&bytes).map_err(Status::internal)
}

/// Statistics as quantities: `1234n` processors, `56Ki` bytes.
fn usage(stats: &Value) -> Option<Value> {
    let cpu = stats["cpu"]["usageNanoCores"].as_u64()?;
    let memory = stats["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}

fn metrics(kind: &str, of: &Object, stats: &Value) -> Option<Value> {
    let mut metadata =
        json!({"name": of.name(), "creationTimestamp": of.get(&["metadata", "creationTimestamp"])});
    if !of.namespace().is_empty() {
        metadata["namespace"] = of.namespace().into();
    }
    if let Some(labels) = of.get(&["metadata", "labels"]) {
        metadata["labels"] = labels.clone();
    }
    // Kubernetes' Time has no fractions of a second.
    let time: jiff::Timestamp = stats["cpu"]["time"].as_str()?.parse().ok()?;
    let time = jiff::Timestamp::from_second(time.as_second()).ok()?.to_string();
    Some(json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata,
        "timestamp": time, "window": WINDOW}))
}

fn of_node(node: &Object, summary: &Value) -> Option<Value> {
    let mut value = metrics("NodeMetrics", node, &summary["node"])?;
    value["usage"] = usage(&summary["node"])?;
    Some(value)
}

/// `None` for a pod of which nothing runs.
fn of_pod(pod: &Object, summary: &Value) -> Option<Value> {
    let mut pods = summary["pods"].as_array()?.iter();
    let stats = pods.find(|one| one["podRef"]["uid"] == pod.str(&["metadata", "uid"]))?;
    let containers = stats["containers"].as_array()?.iter();
    let containers: Vec<Value> =
        containers.filter_map(|c| Some(json!({"name": c["name"], "usage": usage(c)?}))).collect();
    if containers.is_empty() {
        return None;
    }
    let mut value = metrics("PodMetrics", pod, stats)?;
    value["containers"] = containers.into();
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_become_metrics() {
        let stats = |cpu: u64, memory: u64| {
            json!({"cpu": {"time": "2026-01-02T03:04:05.678Z", "usageNanoCores": cpu},
                "memory": {"workingSetBytes": memory}})
        };
        let mut container = stats(5_000_000, 2048);
        container["name"] = "c".into();
        let mut pod_stats = stats(5_000_000, 2048);
        pod_stats["podRef"] = json!({"uid": "u"});
        pod_stats["containers"] = json!([container]);
        let summary = json!({"node": stats(7, 4096), "pods": [pod_stats]});
        let pod = |uid: &str| {
            Object::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid,
                "labels": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z"}}))
            .unwrap()
        };
        let value = of_pod(&pod("u"), &summary).unwrap();
        assert_eq!(
            value,
            json!({"kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"},
                    "creationTimestamp": "2026-01-01T00:00:00Z"},
                "timestamp": "2026-01-02T03:04:05Z", "window": "1s",
                "containers": [{"name": "c", "usage": {"cpu": "5000000n", "memory": "2Ki"}}]})
        );
        assert_eq!(of_pod(&pod("other"), &summary), None);
        let node = of_node(&pod("n"), &summary).unwrap();
        assert_eq!(node["usage"], json!({"cpu": "7n", "memory": "4Ki"}));
    }
}
