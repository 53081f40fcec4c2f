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
//! made from its pod network. Looked at again whenever a Node, or a link, address or route of this machine changes, so
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

use crate::pod_net::{PodMtu, parse_cidr};

pub(crate) use note::remove;

/// A refused change is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

type Network = (Ipv4Addr, u8);
/// Pod networks of other nodes and the nodes' own addresses.
type Peers = BTreeMap<Network, Ipv4Addr>;
type Routes = BTreeMap<Network, (Ipv4Addr, Way)>;

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
    /// This node's pods.
    pub pod_cidr: Network,
    /// Only networks inside this one are routed.
    pub cluster_cidr: Network,
    pub backend: Backend,
    /// Tells the tunnels of several clusters on the same machines apart (24 bits); the same on all nodes.
    pub cluster_tag: u32,
    /// Learns the size of packet that fits all ways.
    pub mtu: PodMtu,
}

/// The other nodes that have a pod network inside the cluster's, and an address outside.
fn peers<'a>(nodes: impl Iterator<Item = &'a Node>, own_name: &str, cluster_cidr: Network) -> Peers {
    let mut peers = Peers::new();
    for node in nodes.filter(|node| node.metadata.name.as_deref() != Some(own_name)) {
        let network = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).and_then(parse_cidr);
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let mut internal = addresses.filter(|a| a.type_ == "InternalIP");
        let address = internal.find_map(|a| a.address.parse::<Ipv4Addr>().ok());
        if let (Some(network), Some(address)) = (network, address)
            && network.1 >= cluster_cidr.1
            && contains(cluster_cidr, network.0)
            && !contains(cluster_cidr, address)
        {
            peers.insert(network, address);
        }
    }
    peers
}

/// How each peer is to be reached. `near` tells whether an address is a neighbour's; `None` while the machine has no
/// way to it at all: then what was before stays.
fn ways(peers: &Peers, backend: Backend, before: &Routes, near: impl Fn(Ipv4Addr) -> Option<bool>) -> Routes {
    let way = |network: &Network, address: Ipv4Addr| match backend {
        Backend::HostGateway => Way::Neighbour,
        Backend::Vxlan => Way::Tunnel,
        Backend::Auto => match near(address) {
            Some(true) => Way::Neighbour,
            Some(false) => Way::Tunnel,
            None => before.get(network).map_or(Way::Tunnel, |(_, way)| *way),
        },
    };
    peers.iter().map(|(network, address)| (*network, (*address, way(network, *address)))).collect()
}

fn contains((network, prefix): Network, address: Ipv4Addr) -> bool {
    let shift = 32 - u32::from(prefix);
    u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
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
        let peers = peers(all.iter().map(|c| &c.object), &config.node_name, config.cluster_cidr);
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

    const CLUSTER: Network = (Ipv4Addr::new(10, 244, 0, 0), 16);

    fn network(number: u8) -> Network {
        (Ipv4Addr::new(10, 244, number, 0), 24)
    }

    #[test]
    fn each_other_node_with_a_network_and_an_address_is_a_peer() {
        let node = |name: &str, cidr: &str, address: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"podCIDR": cidr},
                "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
            }))
            .unwrap()
        };
        let nodes = [
            node("own", "10.244.0.0/24", "192.168.0.1"),
            node("two", "10.244.1.0/24", "192.168.0.2"),
            node("addressless", "10.244.2.0/24", ""),
            node("foreign", "10.9.0.0/24", "192.168.0.4"),
            node("only-pod-network", "10.244.4.0/24", "10.244.4.1"),
            Node::default(),
        ];
        let found = peers(nodes.iter(), "own", CLUSTER);
        assert_eq!(found, Peers::from([(network(1), Ipv4Addr::new(192, 168, 0, 2))]));
    }

    #[test]
    fn neighbours_are_routed_and_the_others_tunnelled_unless_one_way_is_forced() {
        let address = |last| Ipv4Addr::new(192, 168, 0, last);
        let peers: Peers = (1..=4).map(|n| (network(n), address(n))).collect();
        // 1 is near, 2 is not, 3 and 4 can't be told at the moment
        let near = |a: Ipv4Addr| [None, Some(true), Some(false), None, None][usize::from(a.octets()[3])];
        let before = Routes::from([(network(3), (address(3), Way::Neighbour))]);
        let of = |backend| ways(&peers, backend, &before, near).values().map(|(_, w)| *w).collect::<Vec<_>>();
        use Way::{Neighbour, Tunnel};
        assert_eq!(of(Backend::Auto), [Neighbour, Tunnel, Neighbour, Tunnel]);
        assert_eq!(of(Backend::HostGateway), [Neighbour; 4]);
        assert_eq!(of(Backend::Vxlan), [Tunnel; 4]);
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
