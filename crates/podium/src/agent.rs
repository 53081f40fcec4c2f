//! `podium agent`: a node of a cluster whose control plane runs elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use api::ObjectKey;
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
use crate::bootstrap::pki::Credential;
use crate::cli::{AgentArgs, outln};
use crate::config::{self, Networks, Paths};
use crate::host;
use crate::node_part::{NodeClients, NodePart, NodeSetup};
use crate::progress::Progress;

/// How long the parts have to finish what they are doing after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After a certificate could not be renewed; it is still good for a fifth of its life.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);
/// The identity of service proxies.
const PROXY: &str = "system:kube-proxy";
/// Timers of days are cut into pieces: a machine that slept, or a clock that was set, is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the machine can't join or a part can't start; each error is one line that says what to do.
pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    host::check_node()?;
    let name = args.node.node_name.clone().map_or_else(config::default_node_name, config::node_name)?;
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
    pool.block_on(serve(args, &paths, &name))
}

async fn serve(args: &AgentArgs, paths: &Paths, name: &str) -> Result<()> {
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
        node = start(args, paths, name, &mut tasks, stopping) => node?,
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
    name: &str,
    tasks: &mut JoinSet<()>,
    stop: watch::Receiver<bool>,
) -> Result<NodePart> {
    let mut progress = Progress::begin(&format!("podium {}", crate::cli::VERSION));
    let credentials = Arc::new(Credentials::open(join::dir(&paths.data))?);
    let (ca_pem, credential) = match (credentials.joined(), &args.token) {
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
    let client = Client::new(Arc::clone(&transport) as Arc<dyn client::Transport>, &agent);
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
        let renewal = Renewal {
            name: name.to_owned(),
            purpose,
            client: client.clone(),
            credentials: Arc::clone(&credentials),
            transports: [Arc::clone(&transport), Arc::clone(&proxy)],
            ca_pem: ca_pem.clone(),
            tls: tls.clone(),
        };
        tasks.spawn(renewal.run(cert_pem, stop.clone()));
    }
    let clients = NodeClients {
        agent: client.clone(),
        proxy: client.clone(),
        policies: Client::new(proxy as Arc<dyn client::Transport>, &agent),
        dns: client.clone(),
    };
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

/// Keeps a certificate young.
struct Renewal {
    name: String,
    purpose: Purpose,
    client: Client,
    credentials: Arc<Credentials>,
    transports: [Arc<NodeTransport>; 2],
    ca_pem: String,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl Renewal {
    async fn run(self, mut cert_pem: String, mut stop: watch::Receiver<bool>) {
        loop {
            let wait = match join::renewal_time(&cert_pem) {
                Ok(due) => u64::try_from(due - jiff::Timestamp::now().as_second()).unwrap_or(0),
                Err(_) => 0,
            };
            let pause = if wait > 0 {
                Duration::from_secs(wait).min(LONGEST_WAIT)
            } else {
                match self.renew().await {
                    Ok(fresh) => {
                        cert_pem = fresh;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the node's certificate was not renewed"
                        );
                        RENEWAL_RETRY
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn renew(&self) -> Result<String> {
        let fresh = join::request(&self.client, &self.name, self.purpose).await?;
        self.credentials.keep(self.purpose.name(), &fresh)?;
        match self.purpose {
            Purpose::Client => self.transports.iter().try_for_each(|transport| transport.exchange(&fresh))?,
            Purpose::Serving => drop(self.tls.send_replace(server_config(&self.ca_pem, &fresh)?)),
        }
        tracing::info!(purpose = self.purpose.name(), "a certificate of the node was renewed");
        Ok(fresh.cert_pem)
    }
}
