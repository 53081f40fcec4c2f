//! The control plane: store, API server, controllers, scheduler, wired in one process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use apiserver::{ApiServer, ServerConfig};
use client::Client;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use store::EmbeddedStore;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::adapters::gateway::Nodes;
use crate::adapters::local;
use crate::adapters::remote::RemoteNodes;
use crate::bootstrap::pki::{Credential, Leaf, Pki};
use crate::bootstrap::renewal::{self, LiveCertificate, OwnLeaf};
use crate::bootstrap::{API_SERVER_TO_NODES, signer};
use crate::cli::ServerArgs;
use crate::cluster_dns;
use crate::config::{self, Networks, Paths};
use crate::progress::Progress;

/// A running control plane.
pub(crate) struct ControlPlane {
    /// Where the API server listens.
    pub(crate) address: SocketAddr,
    pub(crate) gateway: Arc<Nodes>,
    server: Arc<ApiServer>,
    store: Arc<EmbeddedStore>,
    tasks: JoinSet<()>,
}

impl ControlPlane {
    /// Starts all parts.
    ///
    /// # Errors
    /// When the store can't be opened (in use, damaged, newer) or the address can't be listened on.
    pub(crate) async fn start(
        paths: &Paths,
        pki: &Arc<Pki>,
        args: &ServerArgs,
        node_ips: &[IpAddr],
        networks: Networks,
        progress: &mut Progress,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let store = EmbeddedStore::open(&paths.store(), store::Options::default())
            .with_context(|| format!("cannot open the store in {}", paths.data.display()))?;
        progress.ready("store", &paths.data.display().to_string());

        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = listener.local_addr().context("the listening socket has no address")?;
        let gateway = Arc::new(Nodes::default());
        // What listens on every address is advertised at the primary one.
        let primary = node_ips.first().copied().unwrap_or_else(config::gateway_address);
        let ip = if address.ip().is_unspecified() { primary } else { address.ip() };
        let advertise = SocketAddr::new(ip, address.port());
        let server = open_server(&store, pki, advertise, networks, &gateway).await?;
        let mut addresses: Vec<IpAddr> =
            vec![Ipv4Addr::LOCALHOST.into(), config::API_SERVICE_IP.into(), config::gateway_address()];
        addresses.extend(node_ips.iter().copied().chain([address.ip()]).filter(|ip| !ip.is_unspecified()));
        addresses.sort();
        addresses.dedup();
        let serving = Arc::clone(&server);
        let mut control = Self { address, gateway, server, store, tasks: JoinSet::new() };
        let leaf = Leaf::server(server_names(), addresses);
        // The authority comes along: a machine that joins knows it by its hash.
        let tls = tls_config(control.live(pki, leaf, Some(&pki.ca_pem), &stop)?, &pki.ca_pem)?;
        let serve_stop = stop.clone();
        control.tasks.spawn(async move { serving.serve(listener, tls, serve_stop).await });
        progress.ready("api server", &address.to_string());

        let client = control.client("system:kube-controller-manager", &[]);
        let config = controllers::ControllersConfig {
            root_ca_pem: pki.ca_pem.clone(),
            node_grace: controllers::node_lifecycle::Grace {
                monitor: args.node_monitor_grace_period.0,
                startup: args.node_startup_grace_period.0,
            },
        };
        control.tasks.spawn(controllers::run(client, config, stop.clone()));
        progress.ready("controllers", "");
        let nodes = control.client("kubernetes-admin", &["system:masters"]);
        let to_nodes = Leaf::client("apiserver-to-nodes", API_SERVER_TO_NODES, &[]);
        let to_nodes = control.live(pki, to_nodes, None, &stop)?;
        control.gateway.set_remote(RemoteNodes::new(nodes.clone(), &pki.ca_pem, to_nodes)?);
        control.tasks.spawn(cluster_dns::run(nodes, stop.clone()));
        control.tasks.spawn(crate::memory::give_back(stop.clone()));
        let requests = control.client("system:kube-controller-manager", &[]);
        control.tasks.spawn(signer::run(requests, pki.authority(), stop.clone()));
        control.tasks.spawn(scheduler::run(control.client("system:kube-scheduler", &[]), stop));
        progress.ready("scheduler", "");
        Ok(control)
    }

    /// Installs a certificate, and each younger one while the process runs.
    ///
    /// # Errors
    /// When it can't be made or installed.
    pub(crate) fn keep_young(
        &mut self,
        pki: &Arc<Pki>,
        leaf: Leaf,
        stop: &watch::Receiver<bool>,
        install: impl Fn(&Credential) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let credential = pki.issue(&leaf)?;
        install(&credential)?;
        let own = OwnLeaf { pki: Arc::clone(pki), leaf, install };
        self.tasks.spawn(renewal::keep_young(own, credential.cert_pem, stop.clone()));
        Ok(())
    }

    /// A certificate that is exchanged under whoever uses it. What `issuer` says is shown behind it.
    fn live(
        &mut self,
        pki: &Arc<Pki>,
        leaf: Leaf,
        issuer: Option<&str>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Arc<LiveCertificate>> {
        let live = Arc::new(LiveCertificate::new(&pki.issue(&leaf)?, issuer)?);
        let (shown, issuer) = (Arc::clone(&live), issuer.map(str::to_owned));
        self.keep_young(pki, leaf, stop, move |fresh| shown.exchange(fresh, issuer.as_deref()))?;
        Ok(live)
    }

    /// An in-process client with an identity.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Client {
        local::client(&self.server, user, groups)
    }

    /// Returns when the store has stopped because its disk failed.
    pub(crate) async fn store_failed(&self) {
        self.store.closed().await;
    }

    /// Waits until everything has ended, and closes the store last.
    pub(crate) async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the control plane failed");
            }
        }
        self.store.close();
    }
}

async fn open_server(
    store: &Arc<EmbeddedStore>,
    pki: &Pki,
    advertise: SocketAddr,
    networks: Networks,
    gateway: &Arc<Nodes>,
) -> Result<Arc<ApiServer>> {
    let config = ServerConfig {
        service_cidrs: networks.services().iter().map(config::cidr_text).collect(),
        cluster_cidrs: networks.cluster().iter().map(config::cidr_text).collect(),
        node_port_range: (30000, 32767),
        advertise,
        service_account_issuer: format!("https://kubernetes.default.svc.{}", config::CLUSTER_DOMAIN),
        service_account_key_pem: pki.service_account_key_pem.clone(),
        root_ca_pem: pki.ca_pem.clone(),
        client_ca_pem: pki.ca_pem.clone(),
        front_proxy: Some(pki.front_proxy()?),
        gateway: Arc::clone(gateway) as Arc<dyn apiserver::NodeGateway>,
    };
    let store: Arc<dyn store::Store> = Arc::clone(store) as _;
    ApiServer::open(store, config).await.map_err(|error| anyhow!("cannot start the API server: {error}"))
}

/// Names by which pods and people reach the API server.
fn server_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "kubernetes".to_owned()];
    for suffix in ["default", "default.svc", &format!("default.svc.{}", config::CLUSTER_DOMAIN)] {
        names.push(format!("kubernetes.{suffix}"));
    }
    names.extend(config::default_node_name());
    names
}

/// TLS 1.2 and 1.3; client certificates are optional and must come from the cluster's authority.
fn tls_config(certificate: Arc<LiveCertificate>, client_ca_pem: &str) -> Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
        roots.add(certificate.context("malformed authority certificate")?)?;
    }
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
