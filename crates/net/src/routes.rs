//! Routes to the pods of other nodes, through the nodes' own addresses ("host gateway").
//!
//! ```text
//!   Nodes ─▶ wanted_routes(nodes, own name): pod network ─▶ node address ─▶ rtnetlink, only what differs
//! ```
//!
//! A node that is not in the same segment cannot be reached so; the kernel refuses the route, which is logged, and
//! its pods stay unreachable from here. What is installed is noted in a file, for the next start and for [`crate::down`].

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Client, Informer, Scope};
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;

use crate::netlink::route::Via;
use crate::netlink::{NetlinkError, Socket};
use crate::pod_net::parse_cidr;

/// A refused route is tried again after this time: the link it needs may come up.
const RETRY: Duration = Duration::from_secs(5);

type Network = (Ipv4Addr, u8);
type Routes = BTreeMap<Network, Ipv4Addr>;

/// What the routes of a node need to know.
#[derive(Clone, Debug)]
pub struct RoutesConfig {
    pub node_name: String,
    /// The pod network's state directory.
    pub state_dir: PathBuf,
    /// Only networks inside this one are routed.
    pub cluster_cidr: Network,
}

/// The routes that a node should have: one to the pod network of each other node.
pub fn wanted_routes<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    own_name: &str,
    cluster_cidr: Network,
) -> Routes {
    let mut routes = Routes::new();
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
            routes.insert(network, address);
        }
    }
    routes
}

fn contains((network, prefix): Network, address: Ipv4Addr) -> bool {
    let shift = 32 - u32::from(prefix);
    u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
}

/// Runs until `stop` turns true. The routes stay in the kernel, so that pods go on talking while the agent restarts.
pub async fn run(client: Client, config: RoutesConfig, mut stop: watch::Receiver<bool>) {
    let nodes = Informer::<Node>::start(&client, Scope::default());
    let mut changes = nodes.subscribe();
    let mut installed = match read(&config.state_dir) {
        Ok(routes) => routes,
        Err(error) => {
            tracing::warn!(%error, "the note of the routes to other nodes cannot be read");
            Routes::new()
        }
    };
    tokio::select! {
        () = nodes.synced() => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    loop {
        while changes.try_recv().is_ok() {}
        let all = nodes.list();
        let wanted = wanted_routes(all.iter().map(|c| &c.object), &config.node_name, config.cluster_cidr);
        let complete = wanted == installed || {
            let (dir, before, after) = (config.state_dir.clone(), installed.clone(), wanted.clone());
            let changed = tokio::task::spawn_blocking(move || change(&dir, before, &after)).await;
            installed = changed.unwrap_or_default();
            installed == wanted
        };
        let retry = async {
            if complete {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            change = changes.recv() => if change.is_none() { return },
            () = retry => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Changes the kernel's routes and returns what is installed now.
fn change(state_dir: &Path, mut installed: Routes, wanted: &Routes) -> Routes {
    let socket = match Socket::route() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(%error, "no netlink socket: routes to other nodes stay as they are");
            return installed;
        }
    };
    // Noted before it is done: `down` finds every route, also after a crash in between.
    let both: Routes = installed.iter().chain(wanted).map(|(n, a)| (*n, *a)).collect();
    if let Err(error) = write(state_dir, &both) {
        tracing::warn!(%error, "the routes to other nodes cannot be noted and stay as they are");
        return installed;
    }
    for network in installed.keys().copied().collect::<Vec<_>>() {
        if !wanted.contains_key(&network) {
            match socket.delete_route(network, &Via::Any) {
                Ok(()) => drop(installed.remove(&network)),
                Err(error) => tracing::warn!(?network, %error, "route to another node's pods not deleted"),
            }
        }
    }
    for (network, gateway) in wanted {
        if installed.get(network) == Some(gateway) {
            continue;
        }
        match socket.set_route(*network, &Via::Neighbour { gateway: *gateway }) {
            Ok(()) => drop(installed.insert(*network, *gateway)),
            Err(error) => {
                tracing::warn!(?network, %gateway, %error, "the pods of another node cannot be reached: no route to the node's segment");
            }
        }
    }
    if let Err(error) = write(state_dir, &installed) {
        tracing::warn!(%error, "the routes to other nodes cannot be noted");
    }
    installed
}

/// Deletes the routes that were noted; one that is gone is fine.
pub(crate) fn remove(socket: &Socket, state_dir: &Path) -> Result<(), NetlinkError> {
    let noted = read(state_dir).unwrap_or_default();
    noted.keys().try_for_each(|network| socket.delete_route(*network, &Via::Any))
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("node-routes")
}

fn read(state_dir: &Path) -> io::Result<Routes> {
    let text = match std::fs::read_to_string(file(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Routes::new()),
        other => other?,
    };
    let line = |line: &str| {
        let (network, gateway) = line.split_once(' ')?;
        Some((parse_cidr(network)?, gateway.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn write(state_dir: &Path, routes: &Routes) -> io::Result<()> {
    let line =
        |((network, prefix), gateway): (&Network, &Ipv4Addr)| format!("{network}/{prefix} {gateway}\n");
    std::fs::write(file(state_dir), routes.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_other_node_with_a_network_and_an_address_has_a_route() {
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
        let routes = wanted_routes(nodes.iter(), "own", (Ipv4Addr::new(10, 244, 0, 0), 16));
        let expected = ((Ipv4Addr::new(10, 244, 1, 0), 24), Ipv4Addr::new(192, 168, 0, 2));
        assert_eq!(routes, Routes::from([expected]));
    }

    #[test]
    fn the_note_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Routes::new());
        let routes = Routes::from([((Ipv4Addr::new(10, 244, 1, 0), 24), Ipv4Addr::new(192, 168, 0, 2))]);
        write(dir.path(), &routes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), routes);
    }
}
