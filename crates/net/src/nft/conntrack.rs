//! Forgetting tracked UDP flows. A UDP "connection" lasts as long as packets keep coming, so a client that talks
//! to an endpoint that is gone would be sent there for ever. Formats: linux/netfilter/nfnetlink_conntrack.h.

use std::net::SocketAddr;

use rustix::io::Errno;

use crate::address::Family;
use crate::netlink::{NetlinkError, Socket, attributes, tolerate};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const UDP: u8 = 17;

/// A tracked flow: where its client wanted to go and who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) to: SocketAddr,
    pub(crate) answered_by: SocketAddr,
}

/// Deletes every UDP flow of a family for which `stale` holds; returns how many.
pub(crate) fn forget_udp(family: Family, stale: impl Fn(&Flow) -> bool) -> Result<usize, NetlinkError> {
    let header = [family.code(), 0, 0, 0];
    let socket = Socket::netfilter()?;
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    socket.dump(
        GET,
        &header,
        |_| {},
        |_, body| {
            let Some((flow, tuple)) = parse(family, body.get(4..).unwrap_or_default()) else { return };
            if stale(&flow) {
                doomed.push(tuple);
            }
        },
    )?;
    for tuple in &doomed {
        let gone = socket.request(DELETE, 0, &header, |m| m.nest(1, |m| m.header(tuple)));
        tolerate(gone, &[Errno::NOENT])?;
    }
    Ok(doomed.len())
}

/// The flow and the raw bytes of its original tuple; `None` for other protocols.
fn parse(family: Family, body: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let (mut to, mut answered_by, mut original) = (None, None, None);
    for (kind, value) in attributes(body) {
        match kind {
            1 => {
                let (protocol, _, destination) = tuple(family, value);
                if protocol != UDP {
                    return None;
                }
                to = Some(destination);
                original = Some(value.to_vec());
            }
            2 => answered_by = Some(tuple(family, value).1),
            _ => {}
        }
    }
    Some((Flow { to: to?, answered_by: answered_by? }, original?))
}

/// Protocol, source and destination of a tuple.
fn tuple(family: Family, value: &[u8]) -> (u8, SocketAddr, SocketAddr) {
    let nothing = SocketAddr::new(family.unspecified(), 0);
    let (mut protocol, mut source, mut destination) = (0, nothing, nothing);
    let address = |bytes| family.read(bytes).unwrap_or(family.unspecified());
    let port = |bytes: &[u8]| bytes.try_into().map_or(0, u16::from_be_bytes);
    for (kind, part) in attributes(value) {
        for (field, bytes) in attributes(part) {
            match (kind, field) {
                // the first of two numbers is that of IPv4
                (1, 1 | 3) => source.set_ip(address(bytes)),
                (1, 2 | 4) => destination.set_ip(address(bytes)),
                (2, 1) => protocol = bytes.first().copied().unwrap_or(0),
                (2, 2) => source.set_port(port(bytes)),
                (2, 3) => destination.set_port(port(bytes)),
                _ => {}
            }
        }
    }
    (protocol, source, destination)
}
