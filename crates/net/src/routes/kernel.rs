//! What the kernel has, and making it what it should be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use tokio::io::unix::AsyncFd;

use super::{Backend, Peer, Peers, Routes, RoutesConfig, Way, note, ways};
use crate::address::{Family, Network, contains, gateway_of, network_in, octets};
use crate::netlink::route::{Conf, Link, Mac, Route, Via, Vxlan, route_of};
use crate::netlink::{NetlinkError, Socket, attributes, listen};
use crate::pod_net::{DEFAULT_MTU, link_prefix, tunnel_link};

/// Linux' own number for VXLAN, older than the one of RFC 7348 and used by most pod networks.
const PORT: u16 = 8472;
/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OVERHEAD: u32 = 50;
/// The smallest packet size that IPv4 allows a link to have; less is no measurement.
const SMALLEST_MTU: u32 = 68;

/// What is in the kernel, as far as it is ours.
pub(super) struct State {
    installed: Routes,
    /// The tunnel device and whom it knows.
    device: Option<(u32, BTreeMap<Network, IpAddr>)>,
}

impl State {
    /// What the last run left.
    pub(super) fn read(config: &RoutesConfig) -> Self {
        let installed = note::read(&config.state_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "the note of the ways to other nodes cannot be read");
            Routes::new()
        });
        Self { installed, device: None }
    }

    /// Changes what differs; false if something could not be done.
    pub(super) fn reconcile(&mut self, config: &RoutesConfig, peers: &Peers) -> bool {
        match self.try_reconcile(config, peers) {
            Ok(complete) => complete,
            Err(error) => {
                tracing::warn!(%error, "the ways to other nodes stay as they are");
                false
            }
        }
    }

    fn try_reconcile(&mut self, config: &RoutesConfig, peers: &Peers) -> Result<bool, Error> {
        let socket = Socket::route()?;
        let links = socket.links()?;
        let near = |address| neighbour(&socket, &links, address);
        let wanted = ways(peers, config.backend, &self.installed, near);
        if wanted != self.installed {
            // Noted before it is done: `down` finds every route, also after a crash in between.
            let both = self.installed.iter().chain(&wanted).map(|(n, to)| (*n, *to)).collect();
            note::write(&config.state_dir, &both).map_err(|source| Error::note(&config.state_dir, source))?;
        }
        let tunnels = wanted.values().any(|(_, way)| *way == Way::Tunnel);
        self.device(config, &socket, &links, tunnels)?;
        measure(config, tunnels || config.backend == Backend::Vxlan)?;
        let before = self.installed.clone();
        let mut complete = self.drop_unwanted(&socket, &wanted);
        let kernel = socket.routes()?;
        for (network, (address, way)) in &wanted {
            let done = match (way, &mut self.device) {
                (Way::Neighbour, _) => route_to(&socket, &kernel, *network, *address),
                (Way::Tunnel, Some((index, known))) => {
                    let peer = peers.get(network);
                    tunnel_to(&socket, &kernel, (*index, known), (*network, peer), config)
                }
                (Way::Tunnel, None) => continue,
            };
            match done {
                Ok(()) => drop(self.installed.insert(*network, (*address, *way))),
                Err(error) => {
                    complete = false;
                    tracing::warn!(?network, %address, ?way, %error, "the pods of another node cannot be reached");
                }
            }
        }
        if self.installed != before {
            note::write(&config.state_dir, &self.installed)
                .map_err(|source| Error::note(&config.state_dir, source))?;
        }
        Ok(complete && self.installed == wanted)
    }

    /// Makes the tunnel device if there are tunnels, and deletes it if there are none.
    fn device(
        &mut self,
        config: &RoutesConfig,
        socket: &Socket,
        links: &[Link],
        tunnels: bool,
    ) -> Result<(), Error> {
        let name = tunnel_link(&config.instance);
        let present = links.iter().find(|link| link.name == name);
        let IpAddr::V4(local) = config.node_ip else { return Ok(()) };
        if !tunnels {
            if present.is_some() {
                socket.delete_link(&name)?;
            }
            self.device = None;
            return Ok(());
        }
        let mtu = uplink_mtu(socket, links, local.into())? - OVERHEAD;
        let Some(own) = network_in(Family::V4, &config.pod_cidrs) else { return Ok(()) };
        let vxlan = Vxlan { id: config.cluster_tag, port: PORT, local, mac: tunnel_mac(own), mtu };
        let alias = format!("podium: {vxlan:?}");
        match (present, &self.device) {
            (Some(link), Some((index, _))) if link.alias == alias && link.index == *index => return Ok(()),
            (Some(link), _) if link.alias == alias => {}
            (found, _) => {
                if found.is_some() {
                    socket.delete_link(&name)?;
                }
                socket.add_vxlan(&name, &alias, &vxlan)?;
            }
        }
        if network_in(Family::V6, &config.pod_cidrs).is_some() {
            socket.without_own_addresses(&name)?;
        }
        socket.set_up(&name, &[(Conf::Forwarding, 1)])?;
        let index = socket.link_index(&name)?.ok_or(NetlinkError::NoAnswer)?;
        // What is masqueraded on its way into the tunnel must get an address that leads back here.
        for cidr in &config.pod_cidrs {
            socket.add_address(index, gateway_of(*cidr))?;
        }
        self.device = Some((index, BTreeMap::new()));
        Ok(())
    }

    fn drop_unwanted(&mut self, socket: &Socket, wanted: &Routes) -> bool {
        let mut complete = true;
        for (network, (_, way)) in self.installed.clone() {
            let kept = wanted.get(&network).map(|(_, way)| *way);
            if way == Way::Tunnel
                && kept != Some(Way::Tunnel)
                && let Some((index, known)) = &mut self.device
            {
                known.remove(&network);
                // The end of a tunnel is known by the IPv4 network.
                let end = match Family::of(network.0) {
                    Family::V4 => socket.set_tunnel(*index, tunnel_mac(network), None),
                    Family::V6 => Ok(()),
                };
                let gone = end.and_then(|()| socket.delete_neighbour(*index, gateway_of(network)));
                if let Err(error) = gone {
                    tracing::warn!(?network, %error, "a tunnel to another node was not forgotten");
                }
            }
            if kept.is_some() {
                continue;
            }
            match socket.delete_route(network, &Via::Any) {
                Ok(()) => drop(self.installed.remove(&network)),
                Err(error) => {
                    complete = false;
                    tracing::warn!(?network, %error, "route to another node's pods not deleted");
                }
            }
        }
        complete
    }
}

/// Whether an address is that of a neighbour in a segment; `None` if there is no way to it now.
fn neighbour(socket: &Socket, links: &[Link], address: IpAddr) -> Option<bool> {
    match socket.way_to(address) {
        Ok(way) => way.map(|way| {
            let link = links.iter().find(|link| Some(link.index) == way.link);
            way.gateway.is_none() && link.is_some_and(|link| link.segment)
        }),
        Err(error) => {
            tracing::warn!(%address, %error, "cannot ask for the way to another node");
            None
        }
    }
}

fn route_to(
    socket: &Socket,
    kernel: &[Route],
    network: Network,
    gateway: IpAddr,
) -> Result<(), NetlinkError> {
    let there = |route: &Route| route.destination == network && route.gateway == Some(gateway);
    if kernel.iter().any(there) {
        return Ok(());
    }
    socket.set_route(network, &Via::Neighbour { gateway })
}

fn tunnel_to(
    socket: &Socket,
    kernel: &[Route],
    (index, known): (u32, &mut BTreeMap<Network, IpAddr>),
    (network, peer): (Network, Option<&Peer>),
    config: &RoutesConfig,
) -> Result<(), NetlinkError> {
    let gateway = gateway_of(network);
    let source = network_in(Family::of(network.0), &config.pod_cidrs).map(gateway_of);
    let (Some((node, primary)), Some(source)) = (peer.and_then(|peer| peer.end), source) else {
        // Pods of this node have no address in the family.
        return Ok(());
    };
    if known.get(&network) != Some(&node.into()) {
        socket.set_tunnel(index, tunnel_mac(primary), Some(node))?;
        socket.set_neighbour(index, gateway, tunnel_mac(primary))?;
        known.insert(network, node.into());
    }
    let there = |route: &Route| route.destination == network && route.link == Some(index);
    if kernel.iter().any(there) {
        return Ok(());
    }
    socket.set_route(network, &Via::Onlink { index, gateway, source })
}

/// MAC address of a node's end of the tunnels, from its IPv4 pod network: nobody needs to be told it.
fn tunnel_mac(network: Network) -> Mac {
    let own = octets(gateway_of(network));
    let [a, b, c, d] = *own.last_chunk::<4>().expect("no address is shorter than four bytes");
    [0x0e, 0x59, a, b, c, d]
}

/// Tells the pod network which packets fit.
pub(super) fn measure(config: &RoutesConfig, tunnels: bool) -> Result<(), NetlinkError> {
    let socket = Socket::route()?;
    let mtu = uplink_mtu(&socket, &socket.links()?, config.node_ip)?;
    config.mtu.set(if tunnels { mtu - OVERHEAD } else { mtu });
    Ok(())
}

/// Packet size of the link with the node's address, if it is a real one.
fn uplink_mtu(socket: &Socket, links: &[Link], own: IpAddr) -> Result<u32, NetlinkError> {
    let index = socket.link_with(own)?;
    let link = links.iter().find(|link| Some(link.index) == index && link.name != "lo");
    Ok(link.map(|link| link.mtu).filter(|mtu| *mtu > SMALLEST_MTU + OVERHEAD).unwrap_or(DEFAULT_MTU))
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{path}: {source}")]
    Note { path: String, source: std::io::Error },
}

impl Error {
    fn note(path: &Path, source: std::io::Error) -> Self {
        Error::Note { path: path.display().to_string(), source }
    }
}

/// Hears of changes of this machine's links, addresses and routes.
pub(super) struct Listener {
    /// `None` when it could not be opened: then only Nodes are followed.
    socket: Option<AsyncFd<Socket>>,
    own_links: String,
    tunnel: String,
    pod_cidrs: Vec<Network>,
}

impl Listener {
    pub(super) fn open(config: &RoutesConfig) -> Self {
        let opened = Socket::route_changes().map_err(|e| e.to_string());
        let socket = opened.and_then(|socket| listen(socket).map_err(|e| e.to_string()));
        if let Err(error) = &socket {
            tracing::warn!(error, "changes of this machine's routes are not followed");
        }
        Self {
            socket: socket.ok(),
            own_links: link_prefix(&config.instance),
            tunnel: tunnel_link(&config.instance),
            pod_cidrs: config.pod_cidrs.clone(),
        }
    }

    /// Returns when something that may matter has changed.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some(socket) = &self.socket else { return std::future::pending().await };
            let heard = match socket.readable().await {
                Ok(mut ready) => {
                    let mut matters = false;
                    let heard = ready.get_inner().heard(|kind, body| matters |= self.matters(kind, body));
                    ready.clear_ready();
                    heard.map(|lost| lost || matters).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match heard {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error, "changes of this machine's routes are no longer followed");
                    self.socket = None;
                }
            }
        }
    }

    /// Pods' own links and routes come and go all the time and change nothing here.
    fn matters(&self, kind: u16, body: &[u8]) -> bool {
        const NEW_LINK: u16 = 16;
        const DELETED_LINK: u16 = 17;
        const NAME: u16 = 3;
        match kind {
            NEW_LINK | DELETED_LINK => {
                let name = attributes(body.get(16..).unwrap_or_default()).find(|(t, _)| *t == NAME);
                let name = name.map(|(_, v)| v.strip_suffix(b"\0").unwrap_or(v)).unwrap_or_default();
                !name.starts_with(self.own_links.as_bytes()) || name == self.tunnel.as_bytes()
            }
            _ => match route_of(kind, body) {
                Some(route) => !self.pod_cidrs.iter().any(|cidr| contains(*cidr, route.destination.0)),
                // addresses; routes of other tables and kinds don't lead to nodes
                None => matches!(kind, 20 | 21),
            },
        }
    }
}
