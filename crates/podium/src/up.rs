//! `podium up` and `podium server`: one process, started in order, stopped in reverse.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap::{kubeconfig, pki::Pki};
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
            let name = node.node_name.clone();
            Some((name.map_or_else(config::default_node_name, config::node_name)?, node))
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
    node: Option<(String, NodeArgs)>,
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
        node: Option<(String, NodeArgs)>,
        manifests: apply::Manifests,
        stopping: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut progress = Progress::begin(&format!("podium {}", crate::cli::VERSION));
        let ips = config::node_addresses(args.node_ip.addresses(), paths);
        let networks = Networks::new(ips.iter().any(IpAddr::is_ipv6));
        let pki = Pki::open(&paths.pki())?;
        let control =
            ControlPlane::start(paths, &pki, args, &ips, networks, &mut progress, stopping.clone()).await?;
        let control = self.control.insert(control);
        let admin = pki.client("admin", "kubernetes-admin", &["system:masters"])?;
        let url = local_url(control.address);
        kubeconfig::write(&paths.admin_kubeconfig(), &url, &pki.ca_pem, &admin)?;
        let client = control.client("kubernetes-admin", &["system:masters"]);
        cluster_dns::begin(&client, node.as_ref().map(|(name, _)| name.as_str())).await?;
        if let Some((name, args)) = node {
            let clients = NodeClients {
                agent: control.client(&format!("system:node:{name}"), &["system:nodes"]),
                proxy: control.client("system:kube-proxy", &[]),
                policies: control.client("system:kube-proxy", &[]),
                dns: control.client("system:kube-dns", &[]),
            };
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

/// URL of the API server from this machine.
fn local_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(ip, address.port()))
}
