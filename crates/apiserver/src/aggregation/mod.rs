//! The aggregation layer: groups of the API that other servers serve (Kubernetes, "Kubernetes API Aggregation Layer").
//!
//! ```text
//!   APIService ─▶ Routes ─▶ a request for its group and version ─▶ authenticate, authorize ─▶ forward over TLS
//!      ▲  ▲                                                                   to a ready endpoint of its Service
//!      │  └── availability: asks those servers for their documents, and writes into the status what came of it
//!      └── upkeep: one APIService for each group and version of the table
//! ```
//!
//! Invariants: routes are those of the newest APIServices that the watch cache shows, and a write of one is acknowledged
//! only when it shows it; the own table wins over nobody: where an APIService names a Service, that Service is asked.

mod availability;
mod document;
mod forward;
mod listing;
mod routes;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{ApiRequest, ApiResponse, GroupVersionResource, Status, Target};

use self::document::Document;
pub(crate) use self::forward::{call, pass};
pub(crate) use self::listing::listing;
pub(crate) use self::routes::{ApiService, Routes};
use crate::authz::MASTERS;
use crate::resource::UserInfo;
use crate::server::ApiServer;

/// Who asks other servers on nobody's behalf.
fn user() -> UserInfo {
    UserInfo::new("system:kube-aggregator", &[MASTERS])
}

/// The resource of APIServices.
fn api_services() -> GroupVersionResource {
    GroupVersionResource::new("apiregistration.k8s.io", "v1", "apiservices")
}

/// What is known of other servers.
#[derive(Default)]
pub(crate) struct Aggregation {
    routes: Mutex<Arc<Routes>>,
    /// What they serve as they said last, by the APIService's name.
    documents: Mutex<BTreeMap<String, Arc<Document>>>,
}

impl Aggregation {
    fn documents(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Document>>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn document(&self, name: &str) -> Option<Arc<Document>> {
        self.documents().get(name).cloned()
    }
}

/// Makes the APIServices of the table, and lets them and those of others be kept.
///
/// # Errors
/// When the store cannot be read or written.
pub(crate) async fn start(server: &Arc<ApiServer>) -> Result<(), Status> {
    upkeep::keep(server).await?;
    tokio::spawn(upkeep::run(Arc::downgrade(server)));
    tokio::spawn(availability::run(Arc::downgrade(server)));
    Ok(())
}

/// The routes of this moment.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn routes(server: &ApiServer) -> Result<Arc<Routes>, Status> {
    let Some(row) = server.registry.resources.get(&api_services()) else { return Ok(Arc::default()) };
    let cache = server.registry.cache(&row, None).await?;
    let mut routes = server.aggregation.routes.lock().unwrap_or_else(PoisonError::into_inner);
    if routes.revision != cache.revision() {
        let (objects, revision) = cache.snapshot();
        *routes = Arc::new(Routes::of(&objects, revision, server.config.front_proxy.as_ref()));
    }
    Ok(Arc::clone(&routes))
}

/// The other server that a path is for: one of its resources, its document, its part of OpenAPI.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn route(server: &ApiServer, path: &str) -> Result<Option<Arc<ApiService>>, Status> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(""), Some("apis"), Some(group), Some(version)) => {
            Ok(routes(server).await?.remote(group, version).cloned())
        }
        _ => Ok(None),
    }
}

/// Answers an authorized request of a caller in this process if it is for another server.
///
/// # Errors
/// Whatever the other server answers but success, `ServiceUnavailable` when it does not answer.
pub(crate) async fn answer(
    server: &ApiServer,
    user: &UserInfo,
    request: &ApiRequest,
) -> Option<Result<ApiResponse, Status>> {
    let found = match &request.target {
        Target::Path(path) => route(server, path).await,
        Target::Resource { gvr, .. } => {
            routes(server).await.map(|routes| routes.remote(&gvr.group, &gvr.version).cloned())
        }
    };
    match found {
        Ok(None) => None,
        Ok(Some(service)) => Some(call(server, user, &service, request).await),
        Err(status) => Some(Err(status)),
    }
}
