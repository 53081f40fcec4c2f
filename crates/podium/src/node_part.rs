//! The node: container engine, pod network, node agent, service proxy, DNS, wired to an API server, wherever it runs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::metrics::Metrics;
use api::{EventKind, GroupVersionResource, RequestOptions};
use client::{Client, EventRecorder, EventType};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use net::PodNet;
use node::{NodeAgent, NodeConfig};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::adapters::{network::Network, runtime::Containers};
use crate::bootstrap::join;
use crate::cli::NodeArgs;
use crate::config::{self, Networks, Paths};
use crate::progress::Progress;
use crate::toolbox;

/// The image that is always there.
const TOOLBOX_IMAGE: &str = "podium.local/toolbox:latest";

/// What a node is in its cluster.
pub(crate) struct NodeSetup<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) name: &'a str,
    /// Its own addresses, the primary one first.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<net::Network>,
    pub(crate) networks: Networks,
    /// The cluster's authority: what tells this cluster from others.
    pub(crate) ca_pem: &'a str,
    pub(crate) args: &'a NodeArgs,
    pub(crate) clients: NodeClients,
}

/// The identities of a node's parts.
pub(crate) struct NodeClients {
    pub(crate) agent: Client,
    pub(crate) proxy: Client,
    pub(crate) policies: Client,
    pub(crate) dns: Client,
}

impl NodeClients {
    /// All of them count on one page.
    pub(crate) fn with_metrics(self, page: &Metrics) -> Self {
        Self {
            agent: self.agent.with_metrics(page),
            proxy: self.proxy.with_metrics(page),
            policies: self.policies.with_metrics(page),
            dns: self.dns.with_metrics(page),
        }
    }
}

/// A running node.
pub(crate) struct NodePart {
    pub(crate) agent: Arc<NodeAgent>,
    tasks: JoinSet<()>,
    /// What rules of others do to the traffic of pods, if it is bad.
    blocked: Option<String>,
}

impl NodePart {
    /// Starts all parts.
    ///
    /// # Errors
    /// When the engine or the network can't be set up on this machine.
    pub(crate) async fn start(
        setup: NodeSetup<'_>,
        progress: &mut Progress,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let NodeSetup { paths, clients, .. } = &setup;
        let node_config = node_config(&setup)?;
        let engine =
            runtime::Engine::open(paths.engine()?).await.context("cannot start the container engine")?;
        let layout = toolbox::image_layout(&paths.engine()?.exe);
        engine.ensure_builtin_image(TOOLBOX_IMAGE, layout).await.context("cannot pack the toolbox image")?;
        progress.ready("runtime", &paths.run().display().to_string());

        let routes = routes_config(&setup);
        net::routes::measure(&routes).await;
        let pod_net = PodNet::open(net::PodNetConfig {
            state_dir: paths.network(),
            pod_cidrs: setup.pod_cidrs.clone(),
            instance: paths.instance.clone(),
            mtu: routes.mtu.clone(),
        })
        .await
        .context("cannot set up the pod network")?;
        let living = engine.list_sandboxes().into_iter().map(|sandbox| sandbox.pod_uid).collect();
        pod_net.cleanup(&living).await.context("cannot free the addresses of vanished pods")?;
        let blocked = match net::foreign::check(&pod_net, "podium-").await {
            Ok(report) => Some(report).filter(net::foreign::Report::is_blocked).map(|r| r.to_string()),
            Err(error) => {
                tracing::warn!(%error, "could not find out whether other packet rules drop the traffic of pods");
                None
            }
        };
        if let Some(blocked) = &blocked {
            progress.warn("network", blocked);
        }
        let mut tasks = JoinSet::new();
        let (rules, policies) = watch::channel(None);
        let name = setup.name.to_owned();
        tasks.spawn(net::policy::follow(clients.policies.clone(), name, rules, stop.clone()));
        let proxy = proxy_config(&setup);
        tasks.spawn(net::proxy::run(clients.proxy.clone(), policies, proxy, stop.clone()));
        tasks.spawn(net::dns::run(clients.dns.clone(), dns_config(&setup), stop.clone()));
        tasks.spawn(net::routes::run(clients.agent.clone(), routes, stop.clone()));
        let text = |networks: &[net::Network]| {
            networks.iter().map(config::cidr_text).collect::<Vec<_>>().join(" and ")
        };
        let (pods, services) = (text(&setup.pod_cidrs), text(&setup.networks.services()));
        progress.ready("network", &format!("pods {pods}, services {services}"));

        let agent = NodeAgent::new(
            node_config,
            clients.agent.clone(),
            Arc::new(Containers(engine, setup.paths.registries(), setup.paths.seccomp())),
            Arc::new(Network(pod_net)),
        );
        let running = Arc::clone(&agent);
        tasks.spawn(async move { running.run(stop).await });
        Ok(Self { agent, tasks, blocked })
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
                    if let Some(blocked) = &self.blocked {
                        report_blocked(client, name, blocked);
                    }
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

/// Says on the Node that its network does not work.
fn report_blocked(client: &Client, node: &str, blocked: &str) {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        // as the events of node agents have it
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    let recorder = EventRecorder::new(client.clone(), "podium-network", node);
    recorder.event(&about, EventType::Warning, "PodTrafficBlocked", blocked);
}

fn node_config(setup: &NodeSetup<'_>) -> Result<NodeConfig> {
    Ok(NodeConfig {
        eviction: setup.args.housekeeping.eviction()?,
        image_gc: setup.args.housekeeping.image_gc()?,
        image_dir: setup.paths.images(),
        cluster_dns: vec![config::DNS_SERVICE_IP.into()],
        cluster_domain: config::CLUSTER_DOMAIN.into(),
        pod_cidrs: setup.pod_cidrs.iter().map(config::cidr_text).collect(),
        lease_duration: Duration::from_secs(setup.args.node_lease_duration_seconds.into()),
        manifests: Some(setup.args.pod_manifest_path.clone().unwrap_or_else(|| setup.paths.manifests())),
        ..NodeConfig::new(setup.name, setup.paths.pods(), setup.paths.logs(), setup.ips.clone())
    })
}

fn routes_config(setup: &NodeSetup<'_>) -> net::routes::RoutesConfig {
    net::routes::RoutesConfig {
        node_name: setup.name.to_owned(),
        node_ip: setup.ips.first().copied().unwrap_or_else(config::gateway_address),
        instance: setup.paths.instance.clone(),
        state_dir: setup.paths.network(),
        pod_cidrs: setup.pod_cidrs.clone(),
        cluster_cidrs: setup.networks.cluster(),
        backend: setup.args.network_backend,
        cluster_tag: cluster_tag(setup.ca_pem),
        mtu: net::PodMtu::default(),
    }
}

/// 24 bits out of the hash of the cluster's authority, which is the same on all nodes.
fn cluster_tag(ca_pem: &str) -> u32 {
    let hash = join::authority_hash(ca_pem).unwrap_or_default();
    hash.get(..6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0).max(1)
}

fn proxy_config(setup: &NodeSetup<'_>) -> net::proxy::ProxyConfig {
    net::proxy::ProxyConfig {
        node_name: setup.name.to_owned(),
        instance: setup.paths.instance.clone(),
        pod_cidrs: setup.pod_cidrs.clone(),
        cluster_cidrs: setup.networks.cluster(),
        service_cidrs: setup.networks.services(),
    }
}

fn dns_config(setup: &NodeSetup<'_>) -> net::dns::DnsConfig {
    let gateways: Vec<IpAddr> = setup.pod_cidrs.iter().map(|cidr| net::gateway_of(*cidr)).collect();
    net::dns::DnsConfig {
        domain: config::CLUSTER_DOMAIN.into(),
        listen: gateways.iter().map(|gateway| SocketAddr::new(*gateway, 53)).collect(),
        own_addresses: gateways.into_iter().chain([config::DNS_SERVICE_IP.into()]).collect(),
        reverse_ranges: [setup.networks.cluster(), setup.networks.services()].concat(),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
