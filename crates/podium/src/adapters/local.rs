//! The in-process door to the API server: no TLS, no HTTP, the same pipeline from authorization on.

use std::sync::Arc;

use api::{ApiRequest, ApiResponse, Status};
use apiserver::{ApiServer, UserInfo};
use client::{Client, Transport};
use futures_util::future::BoxFuture;

struct Local {
    server: Arc<ApiServer>,
    user: UserInfo,
}

impl Transport for Local {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        Box::pin(self.server.call(&self.user, request))
    }
}

/// A client of the API server in this process, with the identity that the wiring gives it.
pub(crate) fn client(server: &Arc<ApiServer>, user: &str, groups: &[&str]) -> Client {
    let groups = groups.iter().chain(&["system:authenticated"]).map(|group| (*group).to_owned()).collect();
    let user = UserInfo { name: user.to_owned(), groups, ..UserInfo::default() };
    let agent = format!("podium/{}", env!("CARGO_PKG_VERSION"));
    Client::new(Arc::new(Local { server: Arc::clone(server), user }), &agent).with_metrics(server.metrics())
}
