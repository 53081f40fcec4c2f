//! Addresses out of one range, in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use crate::ports::{NetError, PodNetwork};

/// Gives pods 10.0.0.1, 10.0.0.2 and so on.
#[derive(Default)]
pub struct FakeNetwork {
    leases: Mutex<(u32, BTreeMap<String, IpAddr>)>,
}

impl PodNetwork for FakeNetwork {
    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        _netns: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetError>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let next = leases.0 + 1;
        let fresh = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + next));
        let ip = *leases.1.entry(pod_uid.to_owned()).or_insert(fresh);
        if ip == fresh {
            leases.0 = next;
        }
        ready(Ok(vec![ip])).boxed()
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), NetError>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).1.remove(pod_uid);
        ready(Ok(())).boxed()
    }

    fn addresses(&self, pod_uid: &str) -> Vec<IpAddr> {
        self.leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .get(pod_uid)
            .copied()
            .into_iter()
            .collect()
    }
}
