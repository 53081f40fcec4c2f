//! `podium agent`: a node of a cluster whose control plane runs elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use api::ObjectKey;
use api::metrics::Metrics;
use client::Client;
use k8s_openapi::api::core::v1::Node;
use net::Network;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use store::disk::RealDisk;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bootstrap::API_SERVER_TO_NODES;
use crate::bootstrap::join::{self, Credentials, JoinToken, NodeTransport, Purpose};
use crate::bootstrap::pki::{Credential, lifetime};
use crate::bootstrap::renewal::{self, Renew};
use crate::cli::{AgentArgs, outln};
use crate::config::{self, Networks, Paths};
use crate::host;
use crate::node_part::{NodeClients, NodePart, NodeSetup};
use crate::progress::Progress;

/// How long the parts have to finish what they are doing after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The identity of service proxies.
const PROXY: &str = "system:kube-proxy";

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the machine can't join or a part can't start; each error is one line that says what to do.
pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    host::check_node()?;
    args.node.housekeeping.check()?;
    let paths = Paths::create(&args.data_dir)?;
    // One Podium at a time on a data directory, also against `podium down`.
    let _lock = match RealDisk::open(&paths.store()) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            bail!("podium is already running on {}", paths.data.display())
        }
        other => other.with_context(|| format!("cannot lock {}", paths.store().display()))?,
    };
    let pool =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    pool.block_on(serve(args, &paths))
}

async fn serve(args: &AgentArgs, paths: &Paths) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let (stop, stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let node = tokio::select! {
        node = start(args, paths, &mut tasks, stopping) => node?,
        () = &mut stopped => return Ok(()),
    };
    stopped.await;
    stop.send_replace(true);
    let end = async {
        node.stopped().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the agent failed");
            }
        }
    };
    if tokio::time::timeout(STOP_TIMEOUT, end).await.is_err() {
        tracing::warn!("some parts did not stop within {} s", STOP_TIMEOUT.as_secs());
    }
    outln("podium agent stopped; pods keep running and are adopted by the next start");
    Ok(())
}

async fn start(
    args: &AgentArgs,
    paths: &Paths,
    tasks: &mut JoinSet<()>,
    stop: watch::Receiver<bool>,
) -> Result<NodePart> {
    let mut progress = Progress::begin(&format!("podium {}", crate::cli::VERSION));
    host::tell(paths, &progress);
    let credentials = Arc::new(Credentials::open(join::dir(&paths.data))?);
    let joined = credentials.joined();
    let kept = joined.as_ref().map(|(_, own)| join::node_of(&own.cert_pem)).transpose()?;
    let name = &*host::node_name(args.node.node_name.clone(), kept, &progress)?;
    let (ca_pem, credential) = match (joined, &args.token) {
        (Some(joined), _) => joined,
        (None, Some(token)) => credentials.join(&args.server, name, &JoinToken::parse(token)?).await?,
        (None, None) => {
            bail!(
                "this machine has no valid certificate: give --token, from `podium token create` on the server"
            )
        }
    };
    let transport = Arc::new(NodeTransport::new(&args.server, &ca_pem, &credential, None)?);
    // Network policies depend on all pods, which the node itself may not list.
    let proxy = Arc::new(NodeTransport::new(&args.server, &ca_pem, &credential, Some(PROXY))?);
    let agent = format!("podium-agent/{}", env!("CARGO_PKG_VERSION"));
    let page = Metrics::default();
    let client =
        Client::new(Arc::clone(&transport) as Arc<dyn client::Transport>, &agent).with_metrics(&page);
    progress.ready("joined", &args.server);

    let ips = own_addresses(args, paths).await?;
    let mut pod_cidrs = register(&client, name).await?;
    // A machine without IPv6 stays without it, also in a cluster that has it.
    let dual_stack = ips.iter().any(IpAddr::is_ipv6) && pod_cidrs.iter().any(|(base, _)| base.is_ipv6());
    pod_cidrs.retain(|(base, _)| dual_stack || base.is_ipv4());
    let serving = match credentials.serving() {
        Some(serving) => serving,
        None => {
            let fresh = join::request(&client, name, Purpose::Serving).await?;
            credentials.keep(Purpose::Serving.name(), &fresh)?;
            fresh
        }
    };
    let (tls, newest_tls) = watch::channel(server_config(&ca_pem, &serving)?);
    let at = SocketAddr::new(ips[0], node::node_status::SERVER_PORT);
    let listener = TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
    for (purpose, cert_pem) in [(Purpose::Client, credential.cert_pem), (Purpose::Serving, serving.cert_pem)]
    {
        let certificate = NodeCertificate {
            name: name.to_owned(),
            purpose,
            client: client.clone(),
            credentials: Arc::clone(&credentials),
            transports: [Arc::clone(&transport), Arc::clone(&proxy)],
            ca_pem: ca_pem.clone(),
            tls: tls.clone(),
            end: Arc::new(AtomicI64::new(end_of(&cert_pem))),
        };
        certificate.show(&page);
        tasks.spawn(renewal::keep_young(certificate, cert_pem, stop.clone()));
        tasks.spawn(crate::memory::give_back(stop.clone()));
    }
    let clients = NodeClients {
        agent: client.clone(),
        proxy: client.clone(),
        policies: Client::new(proxy as Arc<dyn client::Transport>, &agent),
        dns: client.clone(),
    }
    .with_metrics(&page);
    let networks = Networks::new(dual_stack);
    let setup =
        NodeSetup { paths, name, ips, pod_cidrs, networks, ca_pem: &ca_pem, args: &args.node, clients };
    let node = NodePart::start(setup, &mut progress, stop.clone()).await?;
    let streams = Arc::clone(&node.agent);
    tasks.spawn(async move {
        node::server::serve(streams, listener, newest_tls, API_SERVER_TO_NODES, stop).await;
    });
    node.ready(&client, name, &mut progress).await?;
    progress.done(&format!("node {name} is part of the cluster at {}", args.server), &[]);
    Ok(node)
}

/// The machine's addresses for the other nodes, at least one, the primary one first: that on its way to the server.
async fn own_addresses(args: &AgentArgs, paths: &Paths) -> Result<Vec<IpAddr>> {
    let mut ips = args.node_ip.addresses().to_vec();
    if ips.is_empty() {
        ips.push(config::address_towards(resolve(&args.server).await?)?);
    }
    if ips.iter().all(IpAddr::is_ipv4) {
        ips.extend(config::node_address_v6(paths));
    }
    Ok(ips)
}

/// Makes the Node if need be and returns the pod networks that the API server gave it.
async fn register(client: &Client, name: &str) -> Result<Vec<Network>> {
    let node: Node = match client.get(&ObjectKey::new("", name)).await {
        Err(status) if status.is_not_found() => {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            client.create(None, &node).await
        }
        other => other,
    }
    .map_err(|status| anyhow!("cannot register the node {name}: {status}"))?;
    let spec = node.spec.unwrap_or_default();
    let all = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let cidrs: Vec<Network> = all.iter().filter_map(|cidr| net::parse_cidr(cidr)).collect();
    anyhow::ensure!(!cidrs.is_empty(), "node {name} was given no pod network");
    Ok(cidrs)
}

/// First address of a URL's host.
async fn resolve(url: &str) -> Result<SocketAddr> {
    let authority = url.trim_start_matches("https://").trim_end_matches('/');
    let mut found =
        tokio::net::lookup_host(authority).await.with_context(|| format!("cannot resolve {url}"))?;
    found.next().with_context(|| format!("{url} has no address"))
}

/// Only the cluster's own certificates get in; whose they are is the server's to check.
fn server_config(ca_pem: &str, serving: &Credential) -> Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.context("malformed authority certificate")?)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(serving.cert_pem.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes())?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// How one certificate of the node is renewed.
struct NodeCertificate {
    name: String,
    purpose: Purpose,
    client: Client,
    credentials: Arc<Credentials>,
    transports: [Arc<NodeTransport>; 2],
    ca_pem: String,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    /// When the newest one ends, in seconds since the epoch.
    end: Arc<AtomicI64>,
}

impl NodeCertificate {
    /// Shows on the node's page how long the certificate is still good.
    fn show(&self, page: &Metrics) {
        let (name, help) = match self.purpose {
            Purpose::Client => (
                "kubelet_certificate_manager_client_ttl_seconds",
                "Seconds until the node's client certificate ends.",
            ),
            Purpose::Serving => (
                "kubelet_certificate_manager_server_ttl_seconds",
                "Seconds until the node's serving certificate ends.",
            ),
        };
        let left = page.gauge(name, help, &[]).with(&[]);
        page.on_scrape(&self.end, move |end| {
            let seconds = end.load(Ordering::Relaxed) - jiff::Timestamp::now().as_second();
            left.set(seconds as f64);
        });
    }
}

fn end_of(cert_pem: &str) -> i64 {
    lifetime(cert_pem).map_or(0, |(_, end)| end)
}

impl Renew for NodeCertificate {
    fn name(&self) -> &str {
        self.purpose.name()
    }

    async fn renew(&self) -> Result<String> {
        let fresh = join::request(&self.client, &self.name, self.purpose).await?;
        self.credentials.keep(self.purpose.name(), &fresh)?;
        self.end.store(end_of(&fresh.cert_pem), Ordering::Relaxed);
        match self.purpose {
            Purpose::Client => self.transports.iter().try_for_each(|transport| transport.exchange(&fresh))?,
            Purpose::Serving => drop(self.tls.send_replace(server_config(&self.ca_pem, &fresh)?)),
        }
        Ok(fresh.cert_pem)
    }
}
