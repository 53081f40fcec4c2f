//! The node: container engine, pod network, node agent, service proxy, DNS, wired to the API server in this process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use api::{EventKind, GroupVersionResource, ObjectKey, PatchType, RequestOptions};
use client::Client;
use futures_util::StreamExt as _;
use net::PodNet;
use node::{NodeAgent, NodeConfig};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::adapters::{network::Network, runtime::Containers};
use crate::config::{self, Paths};
use crate::control_plane::ControlPlane;
use crate::progress::Progress;
use crate::toolbox;

/// The image that is always there.
const TOOLBOX_IMAGE: &str = "podium.local/toolbox:latest";

/// A running node.
pub(crate) struct NodePart {
    tasks: JoinSet<()>,
}

impl NodePart {
    /// Starts all parts.
    ///
    /// # Errors
    /// When the engine or the network can't be set up on this machine.
    pub(crate) async fn start(
        control: &ControlPlane,
        paths: &Paths,
        node_name: &str,
        node_ip: IpAddr,
        progress: &mut Progress,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let engine =
            runtime::Engine::open(paths.engine()?).await.context("cannot start the container engine")?;
        let layout = toolbox::image_layout(&paths.engine()?.exe);
        engine.ensure_builtin_image(TOOLBOX_IMAGE, layout).await.context("cannot pack the toolbox image")?;
        progress.ready("runtime", &paths.run().display().to_string());

        let pod_net = PodNet::open(net::PodNetConfig {
            state_dir: paths.network(),
            pod_cidr: config::POD_CIDR,
            instance: paths.instance.clone(),
            mtu: None,
        })
        .await
        .context("cannot set up the pod network")?;
        let living = engine.list_sandboxes().into_iter().map(|sandbox| sandbox.pod_uid).collect();
        pod_net.cleanup(&living).await.context("cannot free the addresses of vanished pods")?;
        let mut tasks = JoinSet::new();
        dns_service(&control.client("kubernetes-admin", &["system:masters"])).await?;
        tasks.spawn(net::proxy::run(
            control.client("system:kube-proxy", &[]),
            proxy_config(paths, node_name),
            stop.clone(),
        ));
        tasks.spawn(net::dns::run(control.client("system:kube-dns", &[]), dns_config(), stop.clone()));
        let (network, prefix) = config::POD_CIDR;
        progress.ready("network", &format!("pods {network}/{prefix}, services {}", config::SERVICE_CIDR));

        let agent = NodeAgent::new(
            node_config(paths, node_name, node_ip),
            control.client(&format!("system:node:{node_name}"), &["system:nodes"]),
            Arc::new(Containers(engine)),
            Arc::new(Network(pod_net)),
        );
        control.gateway.set(node_name, Arc::clone(&agent));
        tasks.spawn(async move { agent.run(stop).await });
        Ok(Self { tasks })
    }

    /// Waits until the Node object is Ready.
    ///
    /// # Errors
    /// When the API server can't be watched.
    pub(crate) async fn ready(&self, client: &Client, name: &str, progress: &mut Progress) -> Result<()> {
        let nodes = GroupVersionResource::new("", "v1", "nodes");
        loop {
            let selector = Some(format!("metadata.name={name}"));
            let options = RequestOptions { field_selector: selector, ..RequestOptions::default() };
            let mut events = client.watch(&nodes, None, options).await.context("cannot watch the node")?;
            while let Some(event) = events.next().await {
                let node: Value = serde_json::from_slice(&event.object).unwrap_or_default();
                if matches!(event.kind, EventKind::Added | EventKind::Modified) && is_ready(&node) {
                    progress.ready("node", name);
                    return Ok(());
                }
            }
        }
    }

    /// Waits until everything has ended. Pods keep running.
    pub(crate) async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the node failed");
            }
        }
    }
}

fn node_config(paths: &Paths, node_name: &str, node_ip: IpAddr) -> NodeConfig {
    let (network, prefix) = config::POD_CIDR;
    NodeConfig {
        cluster_dns: vec![config::DNS_SERVICE_IP.into()],
        cluster_domain: config::CLUSTER_DOMAIN.into(),
        pod_cidr: Some(format!("{network}/{prefix}")),
        ..NodeConfig::new(node_name, paths.pods(), paths.logs(), node_ip)
    }
}

fn proxy_config(paths: &Paths, node_name: &str) -> net::proxy::ProxyConfig {
    net::proxy::ProxyConfig {
        node_name: node_name.to_owned(),
        instance: paths.instance.clone(),
        pod_cidr: config::POD_CIDR,
        cluster_cidr: config::POD_CIDR,
        service_cidr: net::parse_cidr(config::SERVICE_CIDR),
    }
}

fn dns_config() -> net::dns::DnsConfig {
    net::dns::DnsConfig {
        domain: config::CLUSTER_DOMAIN.into(),
        listen: vec![SocketAddr::new(config::gateway_address().into(), 53)],
        own_addresses: vec![config::gateway_address().into(), config::DNS_SERVICE_IP.into()],
        reverse_ranges: [Some(config::POD_CIDR), net::parse_cidr(config::SERVICE_CIDR)]
            .into_iter()
            .flatten()
            .collect(),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Service `kube-system/kube-dns` without a selector, and its one endpoint: the DNS server on this node.
async fn dns_service(client: &Client) -> Result<()> {
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {
            "clusterIP": config::DNS_SERVICE_IP.to_string(),
            "ports": ports.map(|(name, protocol)| json!({"name": name, "port": 53, "targetPort": 53, "protocol": protocol})),
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-node", "namespace": "kube-system", "labels": {
            "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "podium-bootstrap",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [config::gateway_address().to_string()], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": ports.map(|(name, protocol)| json!({"name": name, "port": 53, "protocol": protocol})),
    });
    let rows = [
        (GroupVersionResource::new("", "v1", "services"), "kube-dns", service),
        (GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices"), "kube-dns-node", slice),
    ];
    for (gvr, name, object) in rows {
        let options =
            RequestOptions { field_manager: Some("podium".into()), force: true, ..RequestOptions::default() };
        let key = ObjectKey::new("kube-system", name);
        let applied = client.patch(&gvr, &key, None, PatchType::Apply, &object, options).await;
        applied.map_err(|status| anyhow!("cannot make {gvr} {key}: {status}"))?;
    }
    Ok(())
}
