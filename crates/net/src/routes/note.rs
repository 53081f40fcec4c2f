//! The note of what is installed: `10.244.1.0/24 192.168.0.2`, and ` tunnel` where the way is one.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Routes, Way};
use crate::address::{Network, parse_cidr};
use crate::netlink::route::Via;
use crate::netlink::{NetlinkError, Socket};

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("node-routes")
}

pub(super) fn read(state_dir: &Path) -> io::Result<Routes> {
    let text = match std::fs::read_to_string(file(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Routes::new()),
        other => other?,
    };
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (network, node) = (parse_cidr(words.next()?)?, words.next()?.parse().ok()?);
        let way = if words.next() == Some("tunnel") { Way::Tunnel } else { Way::Neighbour };
        Some((network, (node, way)))
    };
    Ok(text.lines().filter_map(line).collect())
}

pub(super) fn write(state_dir: &Path, routes: &Routes) -> io::Result<()> {
    let line = |((network, prefix), (node, way)): (&Network, &(IpAddr, Way))| {
        let tunnel = if *way == Way::Tunnel { " tunnel" } else { "" };
        format!("{network}/{prefix} {node}{tunnel}\n")
    };
    std::fs::write(file(state_dir), routes.iter().map(line).collect::<String>())
}

/// Deletes the routes that were noted; one that is gone is fine. The tunnel device goes with the other links.
pub(crate) fn remove(socket: &Socket, state_dir: &Path) -> Result<(), NetlinkError> {
    let noted = read(state_dir).unwrap_or_default();
    noted.keys().try_for_each(|network| socket.delete_route(*network, &Via::Any))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Routes::new());
        let to = |network, node: &str, way| (parse_cidr(network).unwrap(), (node.parse().unwrap(), way));
        let routes = Routes::from([
            to("10.244.1.0/24", "192.168.0.1", Way::Neighbour),
            to("10.244.2.0/24", "192.168.0.2", Way::Tunnel),
            to("fd00:10:244:1::/64", "fd00::1", Way::Neighbour),
            to("fd00:10:244:2::/64", "192.168.0.2", Way::Tunnel),
        ]);
        write(dir.path(), &routes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), routes);
    }
}
