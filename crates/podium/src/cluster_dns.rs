//! Service `kube-system/kube-dns`: selectorless, its endpoints are the DNS servers that run on every node.
//!
//! `internalTrafficPolicy: Local` makes each node use its own server, so names resolve as long as the node works.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions};
use client::{Client, Informer, Scope};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config;

const NAMESPACE: &str = "kube-system";
const SLICE: &str = "kube-dns-node";
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];
const RETRY: Duration = Duration::from_secs(5);

/// Makes the Service, with the server of this machine's node as its endpoint if there will be one: names resolve from
/// the first pod on.
///
/// # Errors
/// When the API server refuses.
pub(crate) async fn begin(client: &Client, own_node: Option<&str>) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"}},
        "spec": {
            "clusterIP": config::DNS_SERVICE_IP.to_string(),
            "internalTrafficPolicy": "Local",
            "ports": PORTS.map(|(name, protocol)| json!({"name": name, "port": 53, "targetPort": 53, "protocol": protocol})),
        },
    });
    apply(client, &GroupVersionResource::new("", "v1", "services"), "kube-dns", &service).await?;
    let known = client.list::<Node>(None, RequestOptions::default()).await;
    let known = known.map_err(|status| anyhow!("cannot list the nodes: {status}"))?;
    let mut all = endpoints(known.items.iter().filter(|node| node.metadata.name.as_deref() != own_node));
    all.extend(own_node.map(|name| endpoint(name, config::gateway_address())));
    publish(client, &all).await
}

/// Keeps the endpoints in step with the nodes until `stop` turns true.
pub(crate) async fn run(client: Client, mut stop: watch::Receiver<bool>) {
    let nodes = Informer::<Node>::start(&client, Scope::default());
    let mut changes = nodes.subscribe();
    let mut published: Option<Vec<Value>> = None;
    loop {
        while changes.try_recv().is_ok() {}
        let endpoints = endpoints(nodes.list().iter().map(|cached| &cached.object));
        let mut failed = false;
        // An empty list is that of a start: the endpoint of the own node must not go for a moment.
        if published.as_ref() != Some(&endpoints) && !endpoints.is_empty() {
            match publish(&client, &endpoints).await {
                Ok(()) => published = Some(endpoints),
                Err(error) => {
                    tracing::warn!(%error, "the endpoints of the cluster's DNS could not be written");
                    failed = true;
                }
            }
        }
        let retry = async {
            if !failed {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            change = changes.recv() => if change.is_none() { return },
            () = retry => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn endpoints<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Value> {
    let of = |node: &Node| {
        let network = net::parse_cidr(node.spec.as_ref()?.pod_cidr.as_deref()?)?;
        Some((node.metadata.name.clone()?, net::gateway_of(network)))
    };
    let mut all: Vec<(String, IpAddr)> = nodes.filter_map(of).collect();
    all.sort();
    all.iter().map(|(name, address)| endpoint(name, *address)).collect()
}

fn endpoint(node: &str, address: IpAddr) -> Value {
    json!({
        "addresses": [address.to_string()], "nodeName": node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

async fn publish(client: &Client, endpoints: &[Value]) -> Result<()> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": SLICE, "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "podium-bootstrap",
        }},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": PORTS.map(|(name, protocol)| json!({"name": name, "port": 53, "protocol": protocol})),
    });
    let slices = GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices");
    apply(client, &slices, SLICE, &slice).await
}

async fn apply(client: &Client, gvr: &GroupVersionResource, name: &str, object: &Value) -> Result<()> {
    let options =
        RequestOptions { field_manager: Some("podium".into()), force: true, ..RequestOptions::default() };
    let key = ObjectKey::new(NAMESPACE, name);
    let applied = client.patch(gvr, &key, None, PatchType::Apply, object, options).await;
    applied.map(drop).map_err(|status| anyhow!("cannot make {gvr} {key}: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_with_a_pod_network_serves_names() {
        let node = |name: &str, cidr: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr}})).unwrap()
        };
        let nodes =
            [node("b", "10.244.1.0/24".into()), node("a", "10.244.0.0/24".into()), node("c", Value::Null)];
        let found = endpoints(nodes.iter());
        let short: Vec<_> = found.iter().map(|e| (&e["nodeName"], &e["addresses"][0])).collect();
        assert_eq!(json!(short), json!([["a", "10.244.0.1"], ["b", "10.244.1.1"]]));
    }
}
