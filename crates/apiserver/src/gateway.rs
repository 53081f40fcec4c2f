//! The way to the node agents, which the program plugs in.

use api::Status;
use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions, NodeAnswer};
use futures_util::future::{BoxFuture, ready};

/// The way to the node agents: logs and streams of containers.
pub trait NodeGateway: Send + Sync {
    /// Log of a container; with `follow` it ends when the container does.
    fn logs<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>>;

    /// Runs a command in a container.
    fn exec<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>>;

    /// Joins the streams of a container's own process.
    fn attach<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>>;

    /// Connects to a port of a pod, as seen from inside it.
    fn connect<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>>;

    /// Reads one of a node's own pages: health, metrics, statistics, logs. `target` is a path and perhaps a query.
    fn page<'a>(&'a self, node: &'a str, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>>;
}

/// For a server without nodes: nothing can be reached.
pub struct NoNodes;

fn none<T: Send + 'static>() -> BoxFuture<'static, Result<T, Status>> {
    Box::pin(ready(Err(Status::unavailable("there are no nodes"))))
}

impl NodeGateway for NoNodes {
    fn logs<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        _: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        none()
    }

    fn exec<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        _: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        none()
    }

    fn attach<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        _: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        none()
    }

    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        _: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>> {
        none()
    }

    fn page<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>> {
        none()
    }
}
