//! Configuration of a node's pod network, and every name and number that is made from it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::address::{Family, Network, gateway_of, network_in, octets};
use crate::netlink::route::Mac;

pub(crate) const DEFAULT_MTU: u32 = 1500;

/// What the pod network of a node needs to know.
#[derive(Clone, Debug)]
pub struct PodNetConfig {
    /// Leases and old kernel settings live here; made if it is missing.
    pub state_dir: PathBuf,
    /// This node's share of the cluster's pod addresses, one network a family, the primary one first; the first
    /// address of each becomes the node's gateway address.
    pub pod_cidrs: Vec<Network>,
    /// Short tag that tells several Podium instances on one machine apart.
    pub instance: String,
    /// Largest packet in bytes; the routes to other nodes may change it.
    pub mtu: PodMtu,
}

impl PodNetConfig {
    /// The node's own address in the pod network of a family, if pods have that family.
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        network_in(family, &self.pod_cidrs).map(gateway_of)
    }

    pub(super) fn has_v6(&self) -> bool {
        network_in(Family::V6, &self.pod_cidrs).is_some()
    }

    pub(super) fn pod_link(&self, pod: &str) -> String {
        format!("{}{}", link_prefix(&self.instance), letters(pod, 8))
    }
}

/// `p<tag>-`: begins the name of every interface of an instance.
pub(crate) fn link_prefix(instance: &str) -> String {
    let plain = instance.len() <= 5 && instance.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { format!("p{instance}-") } else { format!("p{}-", letters(instance, 5)) }
}

/// Marks links of an instance that are to be deleted. People number their groups from 1 up.
pub(super) fn link_group(instance: &str) -> u32 {
    let hash = fnv1a(instance.as_bytes());
    u32::try_from(hash >> 32).expect("half of 64 bits") | 1 << 31
}

/// Name of the interface that holds the node's address in the pod network.
pub(crate) fn gateway_link(instance: &str) -> String {
    format!("{}gw", link_prefix(instance))
}

/// Name of the device that wraps packets for nodes in other segments.
pub(crate) fn tunnel_link(instance: &str) -> String {
    format!("{}vx", link_prefix(instance))
}

/// Largest packet, in bytes, for the links of pods that are still to come. Shared: clones see the same number.
#[derive(Clone, Debug)]
pub struct PodMtu(Arc<AtomicU32>);

impl PodMtu {
    pub fn new(bytes: u32) -> Self {
        Self(Arc::new(AtomicU32::new(bytes)))
    }

    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, bytes: u32) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

impl Default for PodMtu {
    fn default() -> Self {
        Self::new(DEFAULT_MTU)
    }
}

/// Name of the nftables table of an instance.
pub(crate) fn table_name(instance: &str) -> String {
    format!("podium-{instance}")
}

pub(super) fn sysctl_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctl")
}

pub(super) fn lease_dir(state_dir: &Path, family: Family) -> PathBuf {
    state_dir.join(match family {
        Family::V4 => "leases",
        Family::V6 => "leases-v6",
    })
}

/// Holds the pod CIDRs, one a line, for a [`down`] that knows nothing else.
pub(super) fn cidr_file(state_dir: &Path) -> PathBuf {
    state_dir.join("pod-cidr")
}

/// Locally administered MAC addresses of the two ends.
pub(super) fn macs(pod: &str, address: IpAddr) -> (Mac, Mac) {
    let a = octets(address);
    let a = a.last_chunk::<4>().expect("no address is shorter than four bytes");
    let h = fnv1a(pod.as_bytes()).to_be_bytes();
    ([0x0a, h[0], h[1], h[2], h[3], h[4]], [0x0e, 0x58, a[0], a[1], a[2], a[3]])
}

/// FNV-1a, 64 bits: names must stay the same across versions, which the standard hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// `count` letters and digits made from a hash.
fn letters(text: &str, count: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = fnv1a(text.as_bytes());
    // FNV mixes its low bits best; fold the high ones in.
    hash ^= hash >> 32;
    (0..count)
        .map(|i| char::from(ALPHABET[usize::try_from((hash >> (5 * i)) & 31).expect("below 32")]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_tell_instances_apart() {
        let cidr = crate::parse_cidr("10.244.5.9/24").unwrap();
        for instance in ["a", "main0", "a-rather-long-instance"] {
            let (state_dir, instance) = ("/x".into(), instance.to_owned());
            let config = PodNetConfig { state_dir, pod_cidrs: vec![cidr], instance, mtu: PodMtu::default() };
            assert!(config.pod_link("0c7a2b1e-uid").len() <= 15, "{}", config.pod_link("x"));
            assert_ne!(config.pod_link("pod-1"), config.pod_link("pod-2"));
            assert!(gateway_link(&config.instance).starts_with(&link_prefix(&config.instance)));
            assert_eq!(config.gateway(Family::V4), Some(IpAddr::from([10, 244, 5, 1])));
            assert_eq!(config.gateway(Family::V6), None);
        }
        assert_ne!(link_prefix("a"), link_prefix("ab"));
    }
}
