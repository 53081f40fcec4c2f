//! The server as a value: its configuration, how it opens, and the in-process door.

use std::net::SocketAddr;
use std::sync::Arc;

use api::metrics::Metrics;
use api::{ApiRequest, ApiResponse, SchemaTable, Status};
use futures_util::future::BoxFuture;
use store::Store;

use crate::admission::Admission;
use crate::aggregation::{self, Aggregation};
use crate::authn::jose::JoseError;
use crate::authn::token::ServiceAccountTokens;
use crate::authz::rbac::Rbac;
use crate::gateway::NodeGateway;
use crate::metrics::{self, Counters};
use crate::pipeline::{Incoming, Outcome};
use crate::registry::Registry;
use crate::resource::{ResourceSet, UserInfo};
use crate::watch_cache::WatchCaches;
use crate::{bootstrap, custom, housekeeping, resources};

/// What the API server has to be told.
#[derive(Clone)]
pub struct ServerConfig {
    /// ClusterIPs come from here, one network a family, the primary one first; its first address is the API server's
    /// own Service.
    pub service_cidrs: Vec<String>,
    /// Pods of all nodes, one network a family, in the same order; each node gets a share.
    pub cluster_cidrs: Vec<String>,
    /// Node ports, both ends included.
    pub node_port_range: (u16, u16),
    /// Where pods and nodes reach this server.
    pub advertise: SocketAddr,
    /// `iss` of service-account tokens.
    pub service_account_issuer: String,
    /// PKCS #8 PEM of an ECDSA P-256 key.
    pub service_account_key_pem: String,
    /// The authority of the serving certificate, for clients inside pods.
    pub root_ca_pem: String,
    /// The authority of client certificates.
    pub client_ca_pem: String,
    /// Who the server is towards the servers of other API groups; without it they get no client certificate.
    pub front_proxy: Option<FrontProxy>,
    /// How to reach containers.
    pub gateway: Arc<dyn NodeGateway>,
}

/// What vouches for the users that are named in the headers of a request that is passed on (Kubernetes, "Configure the
/// Aggregation Layer"). The authority is not that of client certificates: who has one of those is no proxy.
#[derive(Clone)]
pub struct FrontProxy {
    pub ca_pem: String,
    /// Of a client with the common name [`FrontProxy::NAME`].
    pub cert_pem: String,
    pub key_pem: String,
}

impl FrontProxy {
    /// The common name that other servers are told to expect.
    pub const NAME: &'static str = "front-proxy-client";
}

/// Why the server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the service-account key cannot be used")]
    Key(#[from] JoseError),
    #[error("the store cannot be read: {0}")]
    Store(Status),
    #[error("the object {what} that every cluster needs cannot be made: {status}")]
    Bootstrap { what: String, status: Status },
}

/// The API server.
pub struct ApiServer {
    pub(crate) config: ServerConfig,
    pub(crate) registry: Registry,
    /// Types of the built-in kinds.
    pub(crate) table: Arc<SchemaTable>,
    pub(crate) counters: Counters,
    pub(crate) aggregation: Aggregation,
}

impl ApiServer {
    /// Opens the server over a store and makes the objects every cluster starts with.
    ///
    /// # Errors
    /// When the store cannot be read or written, or the signing key is malformed.
    pub async fn open(store: Arc<dyn Store>, config: ServerConfig) -> Result<Arc<Self>, OpenError> {
        let table: Arc<SchemaTable> = schema::table();
        let resources =
            Arc::new(custom::Catalog::new(resources::builtin(Arc::clone(&table)), Arc::clone(&table)));
        let caches = WatchCaches::start(Arc::clone(&store)).await.map_err(OpenError::Store)?;
        let rbac = Arc::new(Rbac::new(Arc::clone(&caches), &resources.current()));
        let tokens =
            ServiceAccountTokens::new(&config.service_account_key_pem, &config.service_account_issuer)?;
        let registry = Registry {
            store,
            resources,
            caches,
            rbac,
            tokens: Arc::new(tokens),
            admission: Admission::builtin(),
            turns: Default::default(),
            service_cidrs: config.service_cidrs.clone(),
            cluster_cidrs: config.cluster_cidrs.clone(),
            node_port_range: config.node_port_range,
            messages: Arc::default(),
        };
        let server = Arc::new(Self {
            config,
            registry,
            table,
            counters: Counters::new(Metrics::default()),
            aggregation: Aggregation::default(),
        });
        bootstrap::run(&server).await?;
        let mut rows = server.registry.resources.hold().await;
        server.registry.refresh_custom(&mut rows).await.map_err(OpenError::Store)?;
        drop(rows);
        aggregation::start(&server).await.map_err(OpenError::Store)?;
        tokio::spawn(custom::run_cleanup(Arc::downgrade(&server)));
        tokio::spawn(housekeeping::run(Arc::downgrade(&server)));
        Ok(server)
    }

    /// The in-process door: the same pipeline as over HTTP, after decoding and authentication.
    pub fn call<'a>(
        &'a self,
        user: &'a UserInfo,
        request: ApiRequest,
    ) -> BoxFuture<'a, Result<ApiResponse, Status>> {
        Box::pin(async move {
            match metrics::measured(self, user, Incoming { request, impersonate: None, upgrade: None })
                .await?
            {
                Outcome::Response(response) => Ok(response),
                Outcome::Session(_) => Err(Status::internal("a session was opened without an upgrade")),
            }
        })
    }

    /// What the server counts, and whoever else is to appear on its page.
    pub fn metrics(&self) -> &Metrics {
        self.counters.page()
    }

    /// All rows that the server serves at this moment.
    pub fn resources(&self) -> Arc<ResourceSet> {
        self.registry.resources.current()
    }
}
