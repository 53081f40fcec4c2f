//! No container can be reached in the simulator.

use api::Status;
use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions, NodeAnswer};
use apiserver::NodeGateway;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

pub(crate) struct NoContainers;

fn none<T: Send + 'static>() -> BoxFuture<'static, Result<T, Status>> {
    async { Err(Status::unavailable("simulated nodes have no containers")) }.boxed()
}

impl NodeGateway for NoContainers {
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
