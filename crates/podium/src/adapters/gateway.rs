//! The API server's way to a node's streams: this process' own node agent.

use std::sync::{Arc, OnceLock};

use api::Status;
use api::stream::{ByteStream, ExecOptions, ExecSession, LogOptions};
use apiserver::NodeGateway;
use futures_util::future::BoxFuture;
use node::NodeAgent;

/// Serves the streams of one node, which is plugged in once its agent exists.
#[derive(Default)]
pub(crate) struct LocalNode {
    agent: OnceLock<(String, Arc<NodeAgent>)>,
}

impl LocalNode {
    /// Plugs the agent in; a second call changes nothing.
    pub(crate) fn set(&self, node_name: &str, agent: Arc<NodeAgent>) {
        self.agent.get_or_init(|| (node_name.to_owned(), agent));
    }

    fn agent(&self, node: &str) -> Result<&NodeAgent, Status> {
        match self.agent.get() {
            Some((name, agent)) if name == node => Ok(agent),
            Some(_) | None => {
                Err(Status::unavailable(format!("node {node:?} is not reachable from this server")))
            }
        }
    }
}

impl NodeGateway for LocalNode {
    fn logs<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        Box::pin(async move { self.agent(node)?.logs(namespace, pod, options).await })
    }

    fn exec<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async move { self.agent(node)?.exec(namespace, pod, options).await })
    }

    fn attach<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async move { self.agent(node)?.attach(namespace, pod, options).await })
    }
}
