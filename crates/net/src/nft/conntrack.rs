//! Forgetting tracked UDP flows. A UDP "connection" lasts as long as packets keep coming, so a client that talks
//! to an endpoint that is gone would be sent there for ever. Formats: linux/netfilter/nfnetlink_conntrack.h.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::io::Errno;

use crate::netlink::{NetlinkError, Socket, attributes, tolerate};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const HEADER: [u8; 4] = [2, 0, 0, 0];
const UDP: u8 = 17;

/// A tracked flow: where its client wanted to go and who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) to: SocketAddrV4,
    pub(crate) answered_by: SocketAddrV4,
}

/// Deletes every UDP flow for which `stale` holds; returns how many.
pub(crate) fn forget_udp(stale: impl Fn(&Flow) -> bool) -> Result<usize, NetlinkError> {
    let socket = Socket::netfilter()?;
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    socket.dump(
        GET,
        &HEADER,
        |_| {},
        |_, body| {
            let Some((flow, tuple)) = parse(body.get(4..).unwrap_or_default()) else { return };
            if stale(&flow) {
                doomed.push(tuple);
            }
        },
    )?;
    for tuple in &doomed {
        let gone = socket.request(DELETE, 0, &HEADER, |m| m.nest(1, |m| m.header(tuple)));
        tolerate(gone, &[Errno::NOENT])?;
    }
    Ok(doomed.len())
}

/// The flow and the raw bytes of its original tuple; `None` for other protocols.
fn parse(body: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let (mut to, mut answered_by, mut original) = (None, None, None);
    for (kind, value) in attributes(body) {
        match kind {
            1 => {
                let (protocol, _, destination) = tuple(value);
                if protocol != UDP {
                    return None;
                }
                to = Some(destination);
                original = Some(value.to_vec());
            }
            2 => answered_by = Some(tuple(value).1),
            _ => {}
        }
    }
    Some((Flow { to: to?, answered_by: answered_by? }, original?))
}

/// Protocol, source and destination of a tuple.
fn tuple(value: &[u8]) -> (u8, SocketAddrV4, SocketAddrV4) {
    let nothing = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let (mut protocol, mut source, mut destination) = (0, nothing, nothing);
    for (kind, part) in attributes(value) {
        for (field, bytes) in attributes(part) {
            match (kind, field) {
                (1, 1) => source.set_ip(number(bytes).into()),
                (1, 2) => destination.set_ip(number(bytes).into()),
                (2, 1) => protocol = bytes.first().copied().unwrap_or(0),
                (2, 2) => source.set_port(u16::try_from(number(bytes)).unwrap_or(0)),
                (2, 3) => destination.set_port(u16::try_from(number(bytes)).unwrap_or(0)),
                _ => {}
            }
        }
    }
    (protocol, source, destination)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b))
}
