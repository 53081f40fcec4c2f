//! The way to the pods of other nodes: through the nodes' own addresses ("host gateway") in one segment, wrapped in
//! VXLAN across segments.
//!
//! ```text
//!   Nodes ─▶ peers: pod network ─▶ node address ─┐
//!   kernel: is the address a neighbour? ─────────┴▶ ways(): Neighbour | Tunnel ─▶ kernel: only what differs
//!                                                                                 (routes, and for tunnels who is where)
//! ```
//!
//! Everything that a tunnel needs to know of another node follows from its Node object: the MAC address of its end is
//! made from its IPv4 pod network. Tunnels go from IPv4 address to IPv4 address and carry IPv6 too, so a node needs no
//! IPv6 address of its own for its pods to have one. Looked at again whenever a Node, or a link, address or route of this machine changes, so
//! that a wire that was cut and mended works again. What is installed is noted in a file, for the next start and for
//! [`crate::down`].

mod kernel;
mod note;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use client::{Client, Informer, Scope};
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;

use crate::address::{Family, Network, contains, network_in, parse_cidr};
use crate::pod_net::PodMtu;

pub(crate) use note::remove;

/// A refused change is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// How the node of a pod network can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Peer {
    /// Its own address in the network's family.
    address: Option<IpAddr>,
    /// Where tunnels to it end: its IPv4 address, and its IPv4 pod network.
    end: Option<(Ipv4Addr, Network)>,
}

/// By pod networks of other nodes.
type Peers = BTreeMap<Network, Peer>;
/// The node's own address, or the end of its tunnel.
type Routes = BTreeMap<Network, (IpAddr, Way)>;

/// How packets get to the pods of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Routed: the node's address is in a segment that this machine is in too.
    Neighbour,
    /// Wrapped in packets from node to node.
    Tunnel,
}

/// Which ways are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Routes to neighbours, tunnels to all others.
    #[default]
    Auto,
    HostGateway,
    Vxlan,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Backend::Auto),
            "host-gw" => Ok(Backend::HostGateway),
            "vxlan" => Ok(Backend::Vxlan),
            other => Err(format!("{other:?} is none of auto, host-gw, vxlan")),
        }
    }
}

/// What the routes of a node need to know.
#[derive(Clone, Debug)]
pub struct RoutesConfig {
    pub node_name: String,
    /// This node's own address, where the others send tunnelled packets.
    pub node_ip: IpAddr,
    /// The same tag as the pod network's.
    pub instance: String,
    /// The pod network's state directory.
    pub state_dir: PathBuf,
    /// This node's pods, one network a family, that of IPv4 first.
    pub pod_cidrs: Vec<Network>,
    /// Only networks inside these are routed.
    pub cluster_cidrs: Vec<Network>,
    pub backend: Backend,
    /// Tells the tunnels of several clusters on the same machines apart (24 bits); the same on all nodes.
    pub cluster_tag: u32,
    /// Learns the size of packet that fits all ways.
    pub mtu: PodMtu,
}

/// The pod networks of other nodes inside the cluster's, and the nodes' addresses outside.
fn peers<'a>(nodes: impl Iterator<Item = &'a Node>, own_name: &str, cluster_cidrs: &[Network]) -> Peers {
    let mut peers = Peers::new();
    for node in nodes.filter(|node| node.metadata.name.as_deref() != Some(own_name)) {
        let networks = networks_of(node, cluster_cidrs);
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok());
        let outside = |address: &IpAddr| !cluster_cidrs.iter().any(|cidr| contains(*cidr, *address));
        let internal: Vec<IpAddr> = internal.filter(outside).collect();
        let v4 = internal.iter().find_map(|a| match a {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let end = v4.zip(network_in(Family::V4, &networks));
        for network in networks {
            let own = |a: &&IpAddr| Family::of(**a) == Family::of(network.0);
            let address = internal.iter().find(own).copied();
            if address.is_some() || end.is_some() {
                peers.insert(network, Peer { address, end });
            }
        }
    }
    peers
}

fn networks_of(node: &Node, cluster_cidrs: &[Network]) -> Vec<Network> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let inside = |network: &Network| {
        cluster_cidrs.iter().any(|cidr| network.1 >= cidr.1 && contains(*cidr, network.0))
    };
    let mut networks: Vec<Network> =
        all.filter_map(|cidr| parse_cidr(cidr)).filter(|network| inside(network)).collect();
    networks.dedup();
    networks
}

/// How each peer is to be reached. `near` tells whether an address is a neighbour's; `None` while the machine has no
/// way to it at all: then what was before stays, unless a tunnel leads around that.
fn ways(peers: &Peers, backend: Backend, before: &Routes, near: impl Fn(IpAddr) -> Option<bool>) -> Routes {
    let way = |network: &Network, peer: &Peer| {
        let neighbour = peer.address.map(|address| (address, Way::Neighbour));
        let tunnel = peer.end.map(|(end, _)| (end.into(), Way::Tunnel));
        match backend {
            Backend::HostGateway => neighbour,
            Backend::Vxlan => tunnel,
            Backend::Auto => {
                let before = before.get(network).is_some_and(|(_, way)| *way == Way::Neighbour);
                // A tunnel is good as long as its end can be reached, whatever became of IPv6 between the machines.
                let tunnelled = |address| {
                    peer.end.is_some_and(|(end, _)| address != IpAddr::V4(end) && near(end.into()).is_some())
                };
                let stays = |address| before && !tunnelled(address);
                let routed = peer.address.is_some_and(|a| near(a).unwrap_or_else(|| stays(a)));
                if routed { neighbour } else { tunnel }
            }
        }
    };
    peers.iter().filter_map(|(network, peer)| Some((*network, way(network, peer)?))).collect()
}

/// Sets the size of packet for pods before the first one starts: that of the link with the node's address, less what
/// tunnels need if there were any when the node ran last.
pub async fn measure(config: &RoutesConfig) {
    let config = config.clone();
    let measured = tokio::task::spawn_blocking(move || {
        let tunnels = note::read(&config.state_dir).unwrap_or_default();
        let tunnels = config.backend == Backend::Vxlan || tunnels.values().any(|(_, w)| *w == Way::Tunnel);
        kernel::measure(&config, tunnels)
    });
    if !matches!(measured.await, Ok(Ok(()))) {
        tracing::warn!("the node's link could not be measured: pods use packets of 1500 bytes");
    }
}

/// Runs until `stop` turns true. The routes stay in the kernel, so that pods go on talking while the agent restarts.
pub async fn run(client: Client, config: RoutesConfig, mut stop: watch::Receiver<bool>) {
    let nodes = Informer::<Node>::start(&client, Scope::default());
    let mut changes = nodes.subscribe();
    let mut listener = kernel::Listener::open(&config);
    let mut state = Some(kernel::State::read(&config));
    tokio::select! {
        () = nodes.synced() => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    loop {
        while changes.try_recv().is_ok() {}
        let all = nodes.list();
        let peers = peers(all.iter().map(|c| &c.object), &config.node_name, &config.cluster_cidrs);
        let (mut work, own) = (state.take().unwrap_or_else(|| kernel::State::read(&config)), config.clone());
        let done = tokio::task::spawn_blocking(move || {
            let complete = work.reconcile(&own, &peers);
            (work, complete)
        });
        let complete = match done.await {
            Ok((work, complete)) => {
                state = Some(work);
                complete
            }
            Err(_) => false,
        };
        let retry = async {
            if complete {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            change = changes.recv() => if change.is_none() { return },
            () = listener.changed() => {}
            () = retry => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn network(text: &str) -> Network {
        parse_cidr(text).unwrap()
    }

    fn numbered(number: u8) -> Network {
        network(&format!("10.244.{number}.0/24"))
    }

    fn cluster() -> [Network; 2] {
        [network("10.244.0.0/16"), network("fd00:10:244::/56")]
    }

    fn show(peers: &Peers) -> String {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let line = |((network, prefix), peer): (&Network, &Peer)| {
            let end = peer.end.map(|(address, (network, _))| format!("{address} ({network})"));
            format!("{network}/{prefix} {} {}\n", text(peer.address.map(|a| a.to_string())), text(end))
        };
        peers.iter().map(line).collect()
    }

    #[test]
    fn each_other_node_with_a_network_and_an_address_is_a_peer() {
        let node = |name: &str, cidrs: &[&str], addresses: &[&str]| -> Node {
            let internal = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a}));
            let mut all = vec![json!({"type": "Hostname", "address": name})];
            all.extend(internal);
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
                "status": {"addresses": all},
            }))
            .unwrap()
        };
        let nodes = [
            node("own", &["10.244.0.0/24"], &["192.168.0.1"]),
            node("two", &["10.244.1.0/24"], &["192.168.0.2"]),
            node("addressless", &["10.244.2.0/24"], &[""]),
            node("foreign", &["10.9.0.0/24"], &["192.168.0.4"]),
            node("only-pod-network", &["10.244.4.0/24"], &["10.244.4.1"]),
            node("both", &["10.244.5.0/24", "fd00:10:244:5::/64"], &["192.168.0.5", "fd00::5"]),
            node("without-v6-address", &["10.244.6.0/24", "fd00:10:244:6::/64"], &["192.168.0.6"]),
            Node::default(),
        ];
        expect_test::expect![[r#"
            10.244.1.0/24 192.168.0.2 192.168.0.2 (10.244.1.0)
            10.244.5.0/24 192.168.0.5 192.168.0.5 (10.244.5.0)
            10.244.6.0/24 192.168.0.6 192.168.0.6 (10.244.6.0)
            fd00:10:244:5::/64 fd00::5 192.168.0.5 (10.244.5.0)
            fd00:10:244:6::/64 - 192.168.0.6 (10.244.6.0)
        "#]]
        .assert_eq(&show(&peers(nodes.iter(), "own", &cluster())));
    }

    #[test]
    fn neighbours_are_routed_and_the_others_tunnelled_unless_one_way_is_forced() {
        let address = |last| Ipv4Addr::new(192, 168, 0, last);
        let peer = |n| Peer { address: Some(address(n).into()), end: Some((address(n), numbered(n))) };
        let mut peers: Peers = (1..=4).map(|n| (numbered(n), peer(n))).collect();
        let sixth = network("fd00:10:244:1::/64");
        peers.insert(sixth, Peer { address: None, ..peer(1) });
        let lost = network("fd00:10:244:3::/64");
        let [unreachable, sixth_way] = ["fd77::3", "fd77::1"].map(|a| a.parse::<IpAddr>().unwrap());
        peers.insert(lost, Peer { address: Some(unreachable), ..peer(1) });
        peers.insert(network("fd00:10:244:4::/64"), Peer { address: Some(unreachable), ..peer(3) });
        peers.insert(network("fd00:10:244:5::/64"), Peer { address: Some(sixth_way), ..peer(1) });
        // 1 is near, 2 is not, 3 and 4 can't be told at the moment
        let near = |a: IpAddr| match a {
            IpAddr::V4(a) => [None, Some(true), Some(false), None, None][usize::from(a.octets()[3])],
            IpAddr::V6(_) => (a == sixth_way).then_some(true),
        };
        let mut before = Routes::from([(numbered(3), (address(3).into(), Way::Neighbour))]);
        for network in [lost, network("fd00:10:244:4::/64")] {
            before.insert(network, (unreachable, Way::Neighbour));
        }
        let routes = |backend| ways(&peers, backend, &before, near);
        let of = |backend| routes(backend).values().map(|(_, w)| *w).collect::<Vec<_>>();
        use Way::{Neighbour, Tunnel};
        let fourth = [Neighbour, Tunnel, Neighbour, Tunnel];
        // no address; one that is lost while IPv4 works; the same while nothing works; a near one
        assert_eq!(of(Backend::Auto), [&fourth[..], &[Tunnel, Tunnel, Neighbour, Neighbour]].concat());
        assert_eq!(of(Backend::HostGateway), [Neighbour; 7], "nothing leads to a node without an address");
        assert_eq!(of(Backend::Vxlan), [Tunnel; 8]);
        assert_eq!(routes(Backend::Auto)[&sixth], (address(1).into(), Tunnel));
    }

    #[test]
    fn backends_have_their_usual_names() {
        for (text, backend) in
            [("auto", Backend::Auto), ("host-gw", Backend::HostGateway), ("vxlan", Backend::Vxlan)]
        {
            assert_eq!(text.parse(), Ok(backend));
        }
        assert!("ipip".parse::<Backend>().is_err());
    }
}
