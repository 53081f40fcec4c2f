//! The pod network of one node: a routed point-to-point veth per pod, no bridge between pods.
//!
//! ```text
//!   pod netns                                   node netns
//!   eth0 10.244.0.7/32  ───────── veth ───────── p<tag>-<hash of pod>   route 10.244.0.7/32 dev …
//!   default via 169.254.1.1 (a permanent          permanent neighbour entry for 10.244.0.7
//!   neighbour: the MAC of the other end)
//!                                               p<tag>-gw: a bridge without ports, holds 10.244.0.1/32
//!                                               (DNS listens there; source of what the node sends to pods)
//! ```
//!
//! IPv6 is the same beside it, with fe80::1 as the pods' gateway: every neighbour is written down, so that nothing
//! depends on router advertisements, neighbour discovery or duplicate address detection.
//!
//! Invariants:
//! - Every interface of ours begins with the instance's prefix; nothing else is ever touched.
//! - An address goes back to the pool only after its interface is gone.
//! - `setns` happens on threads made for it. All threads start in the namespace of their caller, so the whole
//!   node network can live in a namespace of its own where at first only `lo` exists.
//! - What is written is level-triggered: attaching again repairs, detaching again is fine.

use std::collections::HashSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::address::{Family, Network, base_of, gateway_of, parse_cidr};
use crate::ipam::{Ipam, IpamError};
use crate::netlink::route::{Conf, Link, Mac, Via};
use crate::netlink::{NetlinkError, Socket, tolerate};
use crate::nft;

mod config;
mod forwarding;

pub(crate) use config::{DEFAULT_MTU, gateway_link, link_prefix, table_name, tunnel_link};
pub use config::{PodMtu, PodNetConfig};

use config::{cidr_file, lease_dir, link_group, macs, sysctl_dir};

/// What pods use as their default gateway; every pod's link has its own.
fn pod_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(169, 254, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

const POD_INTERFACE: &str = "eth0";

/// Why the pod network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// No address, or its file could not be written.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// The kernel refused a change.
    #[error("{step}")]
    Netlink { step: &'static str, source: NetlinkError },
    /// The pod's network namespace could not be entered.
    #[error("network namespace {path}")]
    Namespace { path: PathBuf, source: std::io::Error },
    /// A kernel setting could not be read or written.
    #[error("kernel setting {name}")]
    Sysctl { name: String, source: std::io::Error },
    /// State could not be removed.
    #[error("state directory {path}")]
    State { path: PathBuf, source: std::io::Error },
    /// An interface that was just made, or should be there, is not.
    #[error("interface {0} is missing")]
    Missing(String),
    /// A worker thread ended without an answer.
    #[error("network worker ended early")]
    Worker,
}

/// Names the step in which netlink failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, PodNetError>;
}

impl<T> Step<T> for Result<T, NetlinkError> {
    fn step(self, step: &'static str) -> Result<T, PodNetError> {
        self.map_err(|source| PodNetError::Netlink { step, source })
    }
}

/// The pod network of one node. Cheap to clone; every method may be called in parallel.
#[derive(Clone)]
pub struct PodNet {
    inner: Arc<Inner>,
    removals: mpsc::Sender<String>,
}

struct Inner {
    config: PodNetConfig,
    gateway_index: u32,
    leases: Mutex<Leases>,
    /// told whenever a removal is finished
    removed: Condvar,
}

struct Leases {
    /// One for each pod network, the primary first.
    pools: Vec<Ipam>,
    /// detached pods whose interface is still being deleted
    closing: HashSet<String>,
}

impl Leases {
    fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        self.pools.iter().filter_map(|pool| pool.address(pod)).collect()
    }

    fn lease(&mut self, pod: &str) -> Result<Vec<IpAddr>, IpamError> {
        self.pools.iter_mut().map(|pool| pool.lease(pod)).collect()
    }

    fn release(&mut self, pod: &str) -> Result<(), IpamError> {
        self.pools.iter_mut().try_for_each(|pool| pool.release(pod))
    }

    /// Every pod that holds an address.
    fn pods(&self) -> HashSet<String> {
        self.pools.iter().flat_map(Ipam::pods).collect()
    }
}

impl PodNet {
    /// Makes the gateway interface, turns forwarding on and reads the leases. Everything already there is kept.
    pub async fn open(config: PodNetConfig) -> Result<Self, PodNetError> {
        on_thread(move || Self::open_here(config)).await?
    }

    fn open_here(config: PodNetConfig) -> Result<Self, PodNetError> {
        let state_dir = &config.state_dir;
        let open = |cidr: &Network| Ipam::open(&lease_dir(state_dir, Family::of(cidr.0)), *cidr);
        let pools = config.pod_cidrs.iter().map(open).collect::<Result<_, _>>()?;
        let cidrs: String = config.pod_cidrs.iter().map(|(a, prefix)| format!("{a}/{prefix}\n")).collect();
        let file = cidr_file(state_dir);
        std::fs::write(&file, cidrs).map_err(|source| PodNetError::State { path: file, source })?;
        let before = forwarding::turn_on(&config)?;
        let gateway_index = make_gateway(&config, &before)?;
        let leases = Mutex::new(Leases { pools, closing: HashSet::new() });
        let inner = Arc::new(Inner { config, gateway_index, leases, removed: Condvar::new() });
        let (removals, queue) = mpsc::channel::<String>();
        let worker = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("net-removals".into())
            .spawn(move || worker.remove_links(&queue))
            .map_err(|_| PodNetError::Worker)?;
        Ok(Self { inner, removals })
    }

    /// Connects the namespace at `netns` and returns the pod's addresses. A pod that is attached already keeps
    /// its address; its link and routes are checked and repaired.
    pub async fn attach(&self, pod_id: &str, netns: &Path) -> Result<Vec<IpAddr>, PodNetError> {
        let (inner, pod, netns) = (Arc::clone(&self.inner), pod_id.to_owned(), netns.to_owned());
        on_thread(move || inner.attach(&pod, &netns)).await?
    }

    /// Disconnects a pod. Returns at once; the kernel needs tens of milliseconds to delete an interface, and the
    /// address is free only after that. A pod that is not attached is fine.
    pub async fn detach(&self, pod_id: &str) -> Result<(), PodNetError> {
        // A second removal in the queue could hit the pod's next sandbox.
        if !self.inner.lock().closing.insert(pod_id.to_owned()) {
            return Ok(());
        }
        self.removals.send(pod_id.to_owned()).map_err(|_| PodNetError::Worker)
    }

    /// The pod's addresses; empty if it is not attached.
    pub fn addresses(&self, pod_id: &str) -> Vec<IpAddr> {
        let leases = self.inner.lock();
        if leases.closing.contains(pod_id) {
            return Vec::new();
        }
        leases.addresses(pod_id)
    }

    /// Detaches every pod that is not in `living`, and deletes interfaces of ours that belong to no lease.
    pub async fn cleanup(&self, living: &HashSet<String>) -> Result<(), PodNetError> {
        let (known, wanted) = {
            let leases = self.inner.lock();
            let known = leases.pods();
            let names: HashSet<String> = known.iter().map(|p| self.inner.config.pod_link(p)).collect();
            (known, names)
        };
        for pod in known.iter().filter(|p| !living.contains(*p)) {
            self.detach(pod).await?;
        }
        let inner = Arc::clone(&self.inner);
        on_thread(move || inner.delete_strangers(&wanted)).await?
    }

    /// The node's own address in the pod network of a family, if pods have that family.
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        self.inner.config.gateway(family)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().expect("no holder of the lease lock panics")
    }

    fn attach(&self, pod: &str, netns_path: &Path) -> Result<Vec<IpAddr>, PodNetError> {
        let addresses = {
            let mut leases = self.lock();
            while leases.closing.contains(pod) {
                leases = self.removed.wait(leases).expect("no holder of the lease lock panics");
            }
            leases.lease(pod)?
        };
        let entry = |source| PodNetError::Namespace { path: netns_path.to_owned(), source };
        let netns = File::open(netns_path).map_err(entry)?;
        let link = self.config.pod_link(pod);
        let primary = addresses.first().copied().unwrap_or(Family::V4.unspecified());
        let (host_mac, pod_mac) = macs(pod, primary);
        let host = Socket::route().step("open a netlink socket")?;
        let made = host.add_veth(&link, host_mac, POD_INTERFACE, pod_mac, netns.as_fd(), self.mtu());
        match made {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                // Either an adopted pod, or the same pod with a new namespace while the old one lingers.
                if !in_namespace(&netns, netns_path, has_pod_interface)?.step("look for eth0")? {
                    host.delete_link(&link).step("delete the link of an older sandbox")?;
                    host.add_veth(&link, host_mac, POD_INTERFACE, pod_mac, netns.as_fd(), self.mtu())
                        .step("make the veth pair again")?;
                }
            }
            other => other.step("make the veth pair")?,
        }
        let index = host
            .link_index(&link)
            .step("find the veth")?
            .ok_or_else(|| PodNetError::Missing(link.clone()))?;
        if self.config.has_v6() {
            host.without_own_addresses(&link).step("keep the veth from taking addresses")?;
        }
        // Node ports on 127.0.0.1 send packets with a loopback source to pods before they are masqueraded; the
        // table drops loopback addresses that come from a pod.
        let conf = [(Conf::Forwarding, 1), (Conf::RouteLocalnet, 1), (Conf::SendRedirects, 0)];
        host.set_up(&link, &conf).step("bring the veth up")?;
        for address in &addresses {
            let family = Family::of(*address);
            host.set_neighbour(index, *address, pod_mac).step("write the pod's neighbour entry")?;
            let source = self.config.gateway(family);
            host.set_route((*address, family.width()), &Via::Link { index, source })
                .step("route the pod's address")?;
        }
        in_namespace(&netns, netns_path, |socket| configure_pod(socket, &addresses, host_mac))?
            .step("configure eth0 in the pod")?;
        Ok(addresses)
    }

    fn mtu(&self) -> u32 {
        self.config.mtu.get()
    }

    /// Runs until the last [`PodNet`] is dropped. Whatever has gathered meanwhile is removed together.
    fn remove_links(&self, queue: &mpsc::Receiver<String>) {
        while let Ok(first) = queue.recv() {
            let pods: Vec<String> = std::iter::once(first).chain(queue.try_iter()).collect();
            let links: Vec<String> = pods.iter().map(|p| self.config.pod_link(p)).collect();
            let group = link_group(&self.config.instance);
            let gone = Socket::route().and_then(|s| s.delete_links(&links, group));
            let mut leases = self.lock();
            // If it failed, the leases stay, so nobody gets the addresses; the next cleanup tries again.
            if let Err(error) = &gone {
                tracing::warn!(?pods, %error, "pod interfaces not deleted");
            }
            for pod in pods {
                if gone.is_ok()
                    && let Err(error) = leases.release(&pod)
                {
                    tracing::warn!(pod, %error, "pod address not released");
                }
                leases.closing.remove(&pod);
            }
            drop(leases);
            self.removed.notify_all();
        }
    }

    fn delete_strangers(&self, wanted: &HashSet<String>) -> Result<(), PodNetError> {
        let socket = Socket::route().step("open a netlink socket")?;
        let prefix = link_prefix(&self.config.instance);
        for link in socket.links().step("list links")? {
            let fixed = link.index == self.gateway_index || link.name == tunnel_link(&self.config.instance);
            let ours = link.name.starts_with(&prefix) && !fixed;
            if !ours || wanted.contains(&link.name) {
                continue;
            }
            // A pod may have been attached since `wanted` was gathered.
            let leases = self.lock();
            if leases.pods().iter().all(|p| self.config.pod_link(p) != link.name) {
                tracing::info!(link = link.name, "deleting a pod interface that belongs to no pod");
                socket.delete_link(&link.name).step("delete a stray link")?;
            }
        }
        Ok(())
    }
}

fn make_gateway(config: &PodNetConfig, before: &forwarding::Before) -> Result<u32, PodNetError> {
    let socket = Socket::route().step("open a netlink socket")?;
    socket.set_up("lo", &[]).step("bring lo up")?;
    let name = gateway_link(&config.instance);
    socket.ensure_bridge(&name).step("make the gateway interface")?;
    socket.set_alias(&name, &before.to_note()).step("note the forwarding setting")?;
    if config.has_v6() {
        socket.without_own_addresses(&name).step("keep the gateway interface from taking addresses")?;
    }
    socket.set_up(&name, &[(Conf::Forwarding, 1)]).step("bring the gateway interface up")?;
    let index =
        socket.link_index(&name).step("find the gateway interface")?.ok_or(PodNetError::Missing(name))?;
    for cidr in &config.pod_cidrs {
        socket.add_address(index, gateway_of(*cidr)).step("give the gateway its address")?;
        // Without this, packets to a pod that is gone would leave by the default route.
        socket.set_route(base_of(*cidr), &Via::Unreachable).step("close the pod CIDR")?;
    }
    Ok(index)
}

/// Routes the cluster IPs to the gateway interface, so that processes of the node reach services (whose address
/// is rewritten before the packet leaves) even when the node has no default route.
pub fn route_services(instance: &str, pod_cidr: Network, services: Network) -> Result<(), NetlinkError> {
    let socket = Socket::route()?;
    let index = socket.link_index(&gateway_link(instance))?.ok_or(NetlinkError::NoAnswer)?;
    socket.set_route(services, &Via::Link { index, source: Some(gateway_of(pod_cidr)) })
}

fn configure_pod(socket: &Socket, addresses: &[IpAddr], gateway_mac: Mac) -> Result<(), NetlinkError> {
    socket.set_up("lo", &[])?;
    let index = socket.link_index(POD_INTERFACE)?.ok_or(NetlinkError::NoAnswer)?;
    if addresses.iter().any(IpAddr::is_ipv6) {
        // An address that policies don't know of must not exist.
        socket.without_own_addresses(POD_INTERFACE)?;
    }
    socket.set_up(POD_INTERFACE, &[])?;
    for address in addresses {
        let family = Family::of(*address);
        let gateway = pod_gateway(family);
        socket.add_address(index, *address)?;
        socket.set_neighbour(index, gateway, gateway_mac)?;
        if family == Family::V4 {
            socket.set_route((gateway, family.width()), &Via::Link { index, source: None })?;
        }
        let default = Via::Gateway { index, gateway, source: Some(*address) };
        socket.set_route((family.unspecified(), 0), &default)?;
    }
    Ok(())
}

fn has_pod_interface(socket: &Socket) -> Result<bool, NetlinkError> {
    Ok(socket.link_index(POD_INTERFACE)?.is_some())
}

/// Runs `work` with a socket of another namespace, on a thread that lives only for that.
fn in_namespace<T: Send>(
    netns: &File,
    path: &Path,
    work: impl FnOnce(&Socket) -> Result<T, NetlinkError> + Send,
) -> Result<Result<T, NetlinkError>, PodNetError> {
    let inside = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| PodNetError::Namespace { path: path.to_owned(), source: e.into() })?;
        Ok(Socket::route().and_then(|s| work(&s)))
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| PodNetError::Worker)?
}

/// Runs blocking work on a thread of its own, which starts in the caller's network namespace.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PodNetError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let run = move || {
        if answer.send(work()).is_err() {
            tracing::debug!("nobody waits for the network worker any more");
        }
    };
    std::thread::Builder::new().name("net-worker".into()).spawn(run).map_err(|_| PodNetError::Worker)?;
    answered.await.map_err(|_| PodNetError::Worker)
}

/// The networks that pods had when the node ran last; none if it never did, or after [`down`].
pub fn recorded_networks(state_dir: &Path) -> Vec<Network> {
    let recorded = std::fs::read_to_string(cidr_file(state_dir)).unwrap_or_default();
    recorded.lines().filter_map(parse_cidr).collect()
}

/// Removes every interface, route and the nftables tables of an instance from the network namespace of the calling
/// thread, puts kernel settings back and deletes the state. Works without a running agent; anything already gone
/// is fine.
pub async fn down(state_dir: &Path, instance: &str) -> Result<(), PodNetError> {
    let (state_dir, instance) = (state_dir.to_owned(), instance.to_owned());
    on_thread(move || down_here(&state_dir, &instance)).await?
}

fn down_here(state_dir: &Path, instance: &str) -> Result<(), PodNetError> {
    for family in [Family::V4, Family::V6] {
        let gone = nft::delete_table(&table_name(instance), family);
        tolerate(gone, &[Errno::NOENT, Errno::AFNOSUPPORT, Errno::OPNOTSUPP])
            .step("delete the nftables table")?;
    }
    let socket = Socket::route().step("open a netlink socket")?;
    let prefix = link_prefix(instance);
    let links = socket.links().step("list links")?;
    let (ours, others): (Vec<Link>, Vec<Link>) = links.into_iter().partition(|l| l.name.starts_with(&prefix));
    let ours: Vec<String> = ours.into_iter().map(|l| l.name).collect();
    socket.delete_links(&ours, link_group(instance)).step("delete the links")?;
    for cidr in recorded_networks(state_dir) {
        socket.delete_route(base_of(cidr), &Via::Unreachable).step("delete the route of the pod CIDR")?;
    }
    crate::routes::remove(&socket, state_dir).step("delete the routes to other nodes")?;
    forwarding::restore(state_dir, &others)?;
    match std::fs::remove_dir_all(state_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PodNetError::State { path: state_dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}
