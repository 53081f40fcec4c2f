//! `podium up` and `podium server`: one process, started in order, stopped in reverse.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use api::RequestOptions;
use api::metrics::Metrics;
use client::Client;
use k8s_openapi::api::core::v1::Node;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap::kubeconfig;
use crate::bootstrap::pki::{Leaf, Pki};
use crate::cli::{NodeArgs, ServerArgs, outln};
use crate::config::{self, Networks, Paths};
use crate::control_plane::ControlPlane;
use crate::node_part::{NodeClients, NodePart, NodeSetup};
use crate::progress::Progress;
use crate::{apply, cluster_dns, host};

/// How long the parts have to finish what they are doing after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What this process is.
pub(crate) enum Role {
    Server,
    ServerAndNode(NodeArgs),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a part can't start; each error is one line that says what to do.
pub(crate) fn run(args: &ServerArgs, role: Role) -> Result<()> {
    let node = match role {
        Role::Server => None,
        Role::ServerAndNode(node) => {
            host::check_node()?;
            node.housekeeping.check()?;
            Some(node)
        }
    };
    let manifests = apply::read(&args.apply)?;
    let paths = Paths::create(&args.data_dir)?;
    let pool =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    pool.block_on(serve(args, &paths, node, manifests))
}

async fn serve(
    args: &ServerArgs,
    paths: &Paths,
    node: Option<NodeArgs>,
    manifests: apply::Manifests,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (stop, stopping) = watch::channel(false);
    let mut parts = Parts { control: None, node: None };
    let outcome = tokio::select! {
        outcome = parts.start(args, paths, node, manifests, stopping) => outcome,
        () = stopped => Ok(()),
    };
    stop.send_replace(true);
    let finished = tokio::time::timeout(STOP_TIMEOUT, parts.stop()).await;
    if finished.is_err() {
        tracing::warn!("some parts did not stop within {} s", STOP_TIMEOUT.as_secs());
    }
    if outcome.is_ok() {
        outln("podium stopped; pods keep running and are adopted by the next start");
    }
    outcome
}

/// What has been started so far.
struct Parts {
    control: Option<ControlPlane>,
    node: Option<NodePart>,
}

impl Parts {
    /// Starts everything, then waits: only an error or a dropped future ends it.
    async fn start(
        &mut self,
        args: &ServerArgs,
        paths: &Paths,
        node: Option<NodeArgs>,
        manifests: apply::Manifests,
        stopping: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut progress = Progress::begin(&format!("podium {}", crate::cli::VERSION));
        let node = match node {
            None => None,
            Some(args) => {
                host::tell(paths, &progress);
                let kept = host::kept_name(paths)?;
                Some((host::node_name(args.node_name.clone(), kept, &progress)?, args))
            }
        };
        let ips = config::node_addresses(args.node_ip.addresses(), paths);
        let networks = Networks::new(ips.iter().any(IpAddr::is_ipv6));
        let pki = Arc::new(Pki::open(&paths.pki())?);
        let control =
            ControlPlane::start(paths, &pki, args, &ips, networks, &mut progress, stopping.clone()).await?;
        let control = self.control.insert(control);
        let url = local_url(control.address);
        let admin = Leaf::client("admin", "kubernetes-admin", &["system:masters"]);
        let (file, server, ca_pem) = (paths.admin_kubeconfig(), url.clone(), pki.ca_pem.clone());
        control.keep_young(&pki, admin, &stopping, move |admin| {
            kubeconfig::write(&file, &server, &ca_pem, admin)
        })?;
        let client = control.client("kubernetes-admin", &["system:masters"]);
        cluster_dns::begin(&client, node.as_ref().map(|(name, _)| name.as_str())).await?;
        if let Some((name, args)) = node {
            network_is_free(&client, &name).await?;
            let clients = NodeClients {
                agent: control.client(&format!("system:node:{name}"), &["system:nodes"]),
                proxy: control.client("system:kube-proxy", &[]),
                policies: control.client("system:kube-proxy", &[]),
                dns: control.client("system:kube-dns", &[]),
            }
            .with_metrics(&Metrics::default());
            let setup = NodeSetup {
                paths,
                name: &name,
                ips,
                pod_cidrs: networks.own_pods(),
                networks,
                ca_pem: &pki.ca_pem,
                args: &args,
                clients,
            };
            let node = NodePart::start(setup, &mut progress, stopping).await?;
            control.gateway.set(&name, Arc::clone(&node.agent));
            self.node.insert(node).ready(&client, &name, &mut progress).await?;
            host::keep_name(paths, &name)?;
        }
        let lines = [
            format!("export KUBECONFIG={}", paths.admin_kubeconfig().display()),
            "kubectl get pods -A".into(),
        ];
        progress.done(&format!("cluster ready at {url}"), &lines);
        apply::apply(&client, manifests).await;
        control.store_failed().await;
        bail!(
            "the store can no longer write to {}: nothing more is acknowledged, see the log",
            paths.data.display()
        )
    }

    async fn stop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stopped().await;
        }
        if let Some(control) = self.control.take() {
            control.stopped().await;
        }
    }
}

/// The pod network of the control plane's own node is always the same one: no other node may have it.
async fn network_is_free(client: &Client, own: &str) -> Result<()> {
    let cidr = Networks::new(false).own_pods().first().map(config::cidr_text).unwrap_or_default();
    let nodes = client.list::<Node>(None, RequestOptions::default()).await;
    let nodes = nodes.map_err(|status| anyhow!("cannot list the nodes: {status}"))?.items;
    let has_it = |node: &&Node| node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()) == Some(&cidr);
    let holder = nodes.iter().find(has_it).and_then(|node| node.metadata.name.as_deref());
    match holder.filter(|holder| *holder != own) {
        None => Ok(()),
        Some(holder) => bail!(
            "the control plane's own node was called {holder}: start with --node-name {holder}, or run `podium server` \
             and `kubectl delete node {holder}` to make it {own}"
        ),
    }
}

/// URL of the API server from this machine.
fn local_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(ip, address.port()))
}
