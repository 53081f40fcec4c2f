//! `net::PodNet` as the node agent's pod network.

use std::net::IpAddr;
use std::path::Path;

use futures_util::future::BoxFuture;
use net::PodNet;
use node::ports::{NetError, PodNetwork};

/// The pod network of this machine.
pub(crate) struct Network(pub(crate) PodNet);

impl PodNetwork for Network {
    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetError>> {
        Box::pin(
            async move { self.0.attach(pod_uid, netns).await.map_err(|error| NetError(error.to_string())) },
        )
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), NetError>> {
        Box::pin(async move { self.0.detach(pod_uid).await.map_err(|error| NetError(error.to_string())) })
    }

    fn addresses(&self, pod_uid: &str) -> Vec<IpAddr> {
        self.0.addresses(pod_uid)
    }
}
