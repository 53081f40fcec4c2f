//! Where things are: folders, names and addresses, all derived from the data directory and the flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use net::Network;

use crate::registries::RegistriesFile;

/// DNS suffix of the cluster.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";
/// First address of the service range: Service `default/kubernetes`.
pub(crate) const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Tenth address of the service range, by Kubernetes' custom: Service `kube-system/kube-dns`.
pub(crate) const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Folder in the data directory while a restore is under way.
pub(crate) const UNFINISHED: &str = "restoring";
/// Addresses of Services.
const SERVICE_CIDRS: [Network; 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0)), 112),
];
/// Pod addresses of all nodes; the API server gives each node networks out of them.
const CLUSTER_CIDRS: [Network; 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0)), 56),
];
/// How much of [`CLUSTER_CIDRS`] each node gets. The first share is that of the control plane's own node.
const NODE_PREFIXES: [u8; 2] = [24, 64];

/// The address ranges of a cluster, one network a family, IPv4 first.
///
/// They are the same in every cluster (unique local addresses in IPv6), as other machines must find them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Networks {
    families: usize,
}

impl Networks {
    pub(crate) fn new(dual_stack: bool) -> Self {
        Self { families: if dual_stack { 2 } else { 1 } }
    }

    pub(crate) fn services(self) -> Vec<Network> {
        SERVICE_CIDRS.into_iter().take(self.families).collect()
    }

    /// Pods of all nodes.
    pub(crate) fn cluster(self) -> Vec<Network> {
        CLUSTER_CIDRS.into_iter().take(self.families).collect()
    }

    /// Pods of the control plane's own node.
    pub(crate) fn own_pods(self) -> Vec<Network> {
        let first = |((base, _), prefix)| (base, prefix);
        CLUSTER_CIDRS.into_iter().zip(NODE_PREFIXES).map(first).take(self.families).collect()
    }
}

/// `10.96.0.0/16`
pub(crate) fn cidr_text((address, prefix): &Network) -> String {
    format!("{address}/{prefix}")
}

/// First address of the IPv4 pod range: the control plane's node's own address in the pod network, where DNS listens.
pub(crate) fn gateway_address() -> IpAddr {
    net::gateway_of(CLUSTER_CIDRS[0])
}

/// All paths of one cluster on one machine.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) data: PathBuf,
    /// Six hex digits from the data directory's path: several clusters can live on one machine.
    pub(crate) instance: String,
}

impl Paths {
    /// Makes the data directory (mode 0700) if need be.
    ///
    /// # Errors
    /// When the directory can't be made or resolved.
    pub(crate) fn create(data_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make data directory {}", data_dir.display()))?;
        restrict(data_dir)?;
        anyhow::ensure!(
            !data_dir.join(UNFINISHED).exists(),
            "{} holds an unfinished restore: empty the directory and restore again",
            data_dir.display()
        );
        Self::existing(data_dir)
    }

    /// Paths of a data directory that is there.
    ///
    /// # Errors
    /// When it isn't.
    pub(crate) fn existing(data_dir: &Path) -> Result<Self> {
        let data =
            data_dir.canonicalize().with_context(|| format!("no data directory {}", data_dir.display()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, data.as_os_str().as_encoded_bytes());
        let instance = digest.as_ref().iter().take(3).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { data, instance })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    /// Images and container layers.
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("runtime")
    }

    /// What the machine's owner says of image registries.
    pub(crate) fn registries(&self) -> RegistriesFile {
        RegistriesFile(self.data.join("registries.yaml"))
    }

    /// Pod volumes.
    pub(crate) fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Seccomp profiles that pods name (`localhostProfile`).
    pub(crate) fn seccomp(&self) -> PathBuf {
        self.data.join("seccomp")
    }

    /// Manifests of static pods, unless a flag says where they are.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.data.join("manifests")
    }

    /// Address leases and the old values of changed sysctls.
    pub(crate) fn network(&self) -> PathBuf {
        self.data.join("network")
    }

    /// Sockets and container state: lost at a reboot, like the containers.
    pub(crate) fn run(&self) -> PathBuf {
        PathBuf::from("/run/podium").join(&self.instance)
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        format!("podium-{}", self.instance)
    }

    /// Configuration of the container engine.
    pub(crate) fn engine(&self) -> Result<runtime::EngineConfig> {
        Ok(runtime::EngineConfig {
            data_dir: self.images(),
            run_dir: self.run(),
            cgroup_parent: self.cgroup_parent(),
            exe: std::env::current_exe().context("cannot find the running program's file")?,
        })
    }
}

/// Takes away group's and others' access to a folder or file.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Addresses of the machine towards others, that of IPv4 first: those that were asked for; else in each family the
/// source address of the default route, in IPv4 else the gateway address, in IPv6 else any that is not only good for
/// one link. No IPv6 address: the machine has no IPv6, and neither has a new cluster.
pub(crate) fn node_addresses(asked: &[IpAddr], paths: &Paths) -> Vec<IpAddr> {
    let asked_v6 = asked.iter().copied().find(IpAddr::is_ipv6);
    let v4 = asked.iter().copied().find(IpAddr::is_ipv4).unwrap_or_else(node_address);
    let v6 = asked_v6.or_else(|| node_address_v6(paths));
    if v6.is_none() {
        tracing::info!(
            "this machine has no IPv6 address beyond its links: pods and services have IPv4 alone"
        );
    }
    std::iter::once(v4).chain(v6).collect()
}

fn node_address() -> IpAddr {
    match address_towards((Ipv4Addr::new(192, 0, 2, 254), 9).into()) {
        Ok(address) if !address.is_loopback() && !address.is_unspecified() => address,
        Ok(_) | Err(_) => gateway_address(),
    }
}

/// The machine's IPv6 address for others. Where pods had IPv6 already it is the gateway address in need: at boot a
/// router may tell the machine its address only later.
pub(crate) fn node_address_v6(paths: &Paths) -> Option<IpAddr> {
    let usable = |address: &Ipv6Addr| {
        let inside =
            CLUSTER_CIDRS.iter().chain(&SERVICE_CIDRS).any(|cidr| net::contains(*cidr, (*address).into()));
        let narrow = address.is_loopback() || address.is_unspecified() || address.is_unicast_link_local();
        !inside && !narrow && !address.is_multicast()
    };
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
    let routed = match address_towards((documentation, 9).into()) {
        Ok(IpAddr::V6(address)) => Some(address).filter(usable),
        Ok(IpAddr::V4(_)) | Err(_) => None,
    };
    let listed = || {
        // Absent where the kernel has no IPv6.
        let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
        text.lines().filter_map(listed_address).find(usable)
    };
    let gateway = || {
        let enabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
        let networks = net::recorded_networks(&paths.network()).into_iter();
        let mut gateways = networks.map(net::gateway_of).filter(IpAddr::is_ipv6);
        enabled.is_ok_and(|value| value.trim() == "0").then(|| gateways.next()).flatten()
    };
    routed.or_else(listed).map(IpAddr::V6).or_else(gateway)
}

/// An address of the kernel's list (address, interface, prefix, scope, flags, name) that is good for all destinations
/// and for a long time (if_inet6; flags: linux/if_addr.h).
fn listed_address(line: &str) -> Option<Ipv6Addr> {
    const TEMPORARY: u32 = 0x01;
    const DUPLICATE: u32 = 0x08;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;
    let mut words = line.split_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
    (flags & (TEMPORARY | DUPLICATE | DEPRECATED | TENTATIVE) == 0).then(|| Ipv6Addr::from_bits(address))
}

/// Address of this machine on its way to a server: the source address of the route.
///
/// Connecting a UDP socket sends nothing; the kernel only picks the route.
///
/// # Errors
/// When there is no route.
pub(crate) fn address_towards(server: SocketAddr) -> Result<IpAddr> {
    let probe = || -> std::io::Result<IpAddr> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        Ok(socket.local_addr()?.ip())
    };
    probe().with_context(|| format!("no route to {server}"))
}

/// A Node name that was asked for (RFC 1123 subdomain).
///
/// # Errors
/// When the API would refuse it.
pub(crate) fn node_name(name: String) -> Result<String> {
    let label = |part: &str| {
        let inner = part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        inner && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    anyhow::ensure!(
        name.len() <= 253 && name.split('.').all(label),
        "{name:?} is no node name: use lower case letters, digits, '-' and '.'"
    );
    Ok(name)
}

/// Host name in the form of a Node name (RFC 1123 subdomain).
///
/// # Errors
/// When nothing usable is left of the host name.
pub(crate) fn default_node_name() -> Result<String> {
    let raw = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name: String =
        raw.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    anyhow::ensure!(!name.is_empty(), "the host name {raw:?} makes no node name: give --node-name");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_addresses_are_read() {
        let list = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                    00000000000000000000000000000001 01 80 10 80       lo\n\
                    20010db8000000000000000000000005 04 40 00 01     eth0\n\
                    fd000000000000000000000000000002 04 40 00 82     eth0\n\
                    20010db8000000000000000000000006 04 40 00 40     eth0\nnonsense\n";
        let found: Vec<String> = list.lines().filter_map(listed_address).map(|a| a.to_string()).collect();
        assert_eq!(found, ["fe80::fc:ff:fe00:1", "::1", "fd00::2"]);
    }

    #[test]
    fn nodes_get_shares_of_the_cluster_s_networks() {
        let text = |list: Vec<Network>| list.iter().map(cidr_text).collect::<Vec<_>>().join(" ");
        let dual = Networks::new(true);
        assert_eq!(text(dual.cluster()), "10.244.0.0/16 fd00:10:244::/56");
        assert_eq!(text(dual.own_pods()), "10.244.0.0/24 fd00:10:244::/64");
        assert_eq!(text(dual.services()), "10.96.0.0/16 fd00:10:96::/112");
        assert_eq!(text(Networks::new(false).own_pods()), "10.244.0.0/24");
        assert_eq!(gateway_address().to_string(), "10.244.0.1");
    }

    #[test]
    fn node_names_are_those_that_the_api_accepts() {
        for good in ["n1", "a-b.c-1", "10"] {
            assert_eq!(node_name(good.into()).unwrap(), good);
        }
        for bad in ["", "Bad", "a b", "-a", "a-", "a..b", "ä", &"a".repeat(254)] {
            assert!(node_name(bad.into()).is_err(), "{bad:?}");
        }
    }
}
