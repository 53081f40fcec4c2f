//! The API server's way to a node's streams: this process' own node agent, and the servers of all other nodes.

use std::sync::{Arc, OnceLock};

use api::Status;
use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions, NodeAnswer};
use apiserver::NodeGateway;
use futures_util::future::BoxFuture;
use node::NodeAgent;
use node::server::wire::Verb;

use super::remote::RemoteNodes;

/// Finds the streams of a node. Both ways are plugged in once the API server, which needs this, is there.
#[derive(Default)]
pub(crate) struct Nodes {
    agent: OnceLock<(String, Arc<NodeAgent>)>,
    remote: OnceLock<RemoteNodes>,
}

impl Nodes {
    /// Plugs the agent in; a second call changes nothing.
    pub(crate) fn set(&self, node_name: &str, agent: Arc<NodeAgent>) {
        self.agent.get_or_init(|| (node_name.to_owned(), agent));
    }

    /// Plugs the way to the other nodes in; a second call changes nothing.
    pub(crate) fn set_remote(&self, remote: RemoteNodes) {
        self.remote.get_or_init(|| remote);
    }

    fn own(&self, node: &str) -> Option<&NodeAgent> {
        self.agent.get().filter(|(name, _)| name == node).map(|(_, agent)| &**agent)
    }

    fn remote(&self, node: &str) -> Result<&RemoteNodes, Status> {
        let early = || Status::unavailable(format!("node {node:?} is not reachable from this server yet"));
        self.remote.get().ok_or_else(early)
    }
}

impl NodeGateway for Nodes {
    fn logs<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        Box::pin(async move {
            match self.own(node) {
                Some(agent) => agent.logs(namespace, pod, options).await,
                None => self.remote(node)?.logs(node, namespace, pod, options).await,
            }
        })
    }

    fn exec<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async move {
            match self.own(node) {
                Some(agent) => agent.exec(namespace, pod, options).await,
                None => self.remote(node)?.streams(Verb::Exec, node, namespace, pod, options).await,
            }
        })
    }

    fn attach<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async move {
            match self.own(node) {
                Some(agent) => agent.attach(namespace, pod, options).await,
                None => self.remote(node)?.streams(Verb::Attach, node, namespace, pod, options).await,
            }
        })
    }

    fn connect<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>> {
        Box::pin(async move {
            match self.own(node) {
                Some(agent) => agent.port_forward(namespace, pod, port).await,
                None => self.remote(node)?.connect(node, namespace, pod, port).await,
            }
        })
    }

    fn page<'a>(&'a self, node: &'a str, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>> {
        Box::pin(async move {
            match self.own(node) {
                Some(agent) => agent.page(target).await,
                None => self.remote(node)?.page(node, target).await,
            }
        })
    }
}
