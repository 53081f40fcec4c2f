//! Links, addresses, neighbours and routes: the handful of requests the pod network makes.
//!
//! Numbers are from linux/if_link.h, if_addr.h, neighbour.h, rtnetlink.h.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::writer::flags::{CREATE, EXCLUSIVE, REPLACE};
use super::{NetlinkError, Socket, attributes, tolerate};
use crate::address::{Family, Network, octets};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
pub(crate) const NEWROUTE: u16 = 24;
pub(crate) const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;

const AF_UNSPEC: u8 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const IFF_POINTOPOINT: u32 = 1 << 4;
const IFF_NOARP: u32 = 1 << 7;
const MAIN_TABLE: u8 = 254;
const DST: u16 = 1;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PREFSRC: u16 = 7;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;

/// Per-interface IPv4 settings that netlink can write (linux/ip.h, IPV4_DEVCONF_*).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conf {
    Forwarding = 1,
    SendRedirects = 6,
    RouteLocalnet = 26,
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// free text of its owner
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    /// Neighbours on it are found by address resolution: an ordinary segment, no tunnel.
    pub(crate) segment: bool,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Network,
    pub(crate) link: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
}

/// A tunnel device: packets to the MAC address of another node are wrapped and sent to that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) id: u32,
    pub(crate) port: u16,
    /// source of the wrapped packets
    pub(crate) local: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// Where a route leads.
pub(crate) enum Via {
    /// straight onto the link
    Link { index: u32, source: Option<IpAddr> },
    /// through a neighbour on the link
    Gateway { index: u32, gateway: IpAddr, source: Option<IpAddr> },
    /// through a neighbour that the link is told of, whatever the addresses on it
    Onlink { index: u32, gateway: IpAddr, source: IpAddr },
    /// through a neighbour on whatever link it is
    Neighbour { gateway: IpAddr },
    /// nowhere: answered with "host unreachable"
    Unreachable,
    /// for deletion: a route to the destination through any neighbour
    Any,
}

fn if_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let bits = if up { IFF_UP } else { 0 };
    header[8..12].copy_from_slice(&bits.to_ne_bytes());
    header[12..16].copy_from_slice(&bits.to_ne_bytes());
    header
}

impl Socket {
    /// All links of the namespace.
    pub(crate) fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut out = Vec::new();
        self.dump(
            GETLINK,
            &if_header(0, false),
            |_| {},
            |kind, body| {
                if kind != NEWLINK {
                    return;
                }
                let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
                let (Some(index), Some(flags)) = (number(4), number(8)) else { return };
                let value = |wanted| {
                    let found = attributes(body.get(16..).unwrap_or_default()).find(|(t, _)| *t == wanted);
                    found.map(|(_, v)| v).unwrap_or_default()
                };
                let text = |wanted| {
                    let bytes = value(wanted);
                    String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
                };
                let (name, alias) = (text(IFLA_IFNAME), text(IFLA_IFALIAS));
                let mtu = value(IFLA_MTU).try_into().map_or(0, u32::from_ne_bytes);
                let segment = flags & (IFF_POINTOPOINT | IFF_NOARP) == 0;
                out.push(Link { index, name, alias, mtu, segment });
            },
        )?;
        Ok(out)
    }

    /// Makes a veth pair: `host` here, `peer` directly in the namespace `peer_netns`.
    pub(crate) fn add_veth(
        &self,
        host: &str,
        host_mac: Mac,
        peer: &str,
        peer_mac: Mac,
        peer_netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let netns = u32::try_from(peer_netns.as_raw_fd()).expect("an open descriptor is not negative");
        self.request(NEWLINK, CREATE | EXCLUSIVE, &if_header(0, false), |m| {
            m.text(IFLA_IFNAME, host);
            m.raw(IFLA_ADDRESS, &host_mac);
            m.native(IFLA_MTU, mtu);
            m.nest(IFLA_LINKINFO, |m| {
                m.text(IFLA_INFO_KIND, "veth");
                m.nest(IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.header(&if_header(0, false));
                        m.text(IFLA_IFNAME, peer);
                        m.raw(IFLA_ADDRESS, &peer_mac);
                        m.native(IFLA_MTU, mtu);
                        m.native(IFLA_NET_NS_FD, netns);
                    });
                });
            });
        })
    }

    /// Makes a bridge without ports unless a link of that name exists.
    pub(crate) fn ensure_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        let made = self.request(NEWLINK, CREATE | EXCLUSIVE, &if_header(0, false), |m| {
            m.text(IFLA_IFNAME, name);
            m.nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "bridge"));
        });
        tolerate(made, &[Errno::EXIST])
    }

    /// Makes a tunnel device; one of that name must not exist.
    pub(crate) fn add_vxlan(&self, name: &str, alias: &str, vxlan: &Vxlan) -> Result<(), NetlinkError> {
        const ID: u16 = 1;
        const LOCAL: u16 = 4;
        const LEARNING: u16 = 7;
        const PORT: u16 = 15;
        self.request(NEWLINK, CREATE | EXCLUSIVE, &if_header(0, false), |m| {
            m.text(IFLA_IFNAME, name);
            m.raw(IFLA_ADDRESS, &vxlan.mac);
            m.native(IFLA_MTU, vxlan.mtu);
            m.nest(IFLA_LINKINFO, |m| {
                m.text(IFLA_INFO_KIND, "vxlan");
                m.nest(IFLA_INFO_DATA, |m| {
                    m.native(ID, vxlan.id);
                    m.raw(LOCAL, &vxlan.local.octets());
                    // Who is where is known from the API; nobody may teach it otherwise.
                    m.raw(LEARNING, &[0]);
                    m.raw(PORT, &vxlan.port.to_be_bytes());
                });
            });
        })?;
        self.set_alias(name, alias)
    }

    /// Brings a link up and writes its IPv4 settings in the same request.
    pub(crate) fn set_up(&self, name: &str, settings: &[(Conf, u32)]) -> Result<(), NetlinkError> {
        self.request(NEWLINK, 0, &if_header(0, true), |m| {
            m.text(IFLA_IFNAME, name);
            if !settings.is_empty() {
                m.nest(IFLA_AF_SPEC, |m| {
                    m.nest(AF_INET, |m| {
                        m.nest(IFLA_INET_CONF, |m| {
                            for (key, value) in settings {
                                m.native(*key as u16, *value);
                            }
                        });
                    });
                });
            }
        })
    }

    /// Keeps the kernel from giving a link an IPv6 address of its own making; before it comes up.
    pub(crate) fn without_own_addresses(&self, name: &str) -> Result<(), NetlinkError> {
        const NONE: u8 = 1;
        self.request(NEWLINK, 0, &if_header(0, false), |m| {
            m.text(IFLA_IFNAME, name);
            m.nest(IFLA_AF_SPEC, |m| {
                m.nest(AF_INET6, |m| m.raw(IFLA_INET6_ADDR_GEN_MODE, &[NONE]));
            });
        })
    }

    /// Writes a note that stays with the link.
    pub(crate) fn set_alias(&self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        self.request(NEWLINK, 0, &if_header(0, false), |m| {
            m.text(IFLA_IFNAME, name);
            m.raw(IFLA_IFALIAS, alias.as_bytes());
        })
    }

    /// Deletes a link; one that is not there is fine.
    pub(crate) fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let gone = self.request(DELLINK, 0, &if_header(0, false), |m| m.text(IFLA_IFNAME, name));
        tolerate(gone, &[Errno::NODEV])
    }

    /// Deletes links all at once: the kernel waits for its readers once, not per link. `group` marks them for that;
    /// no link of anybody else may carry it. Links that are not there are fine.
    pub(crate) fn delete_links(&self, names: &[String], group: u32) -> Result<(), NetlinkError> {
        for name in names {
            let marked = self.request(NEWLINK, 0, &if_header(0, false), |m| {
                m.text(IFLA_IFNAME, name);
                m.native(IFLA_GROUP, group);
            });
            tolerate(marked, &[Errno::NODEV])?;
        }
        let gone = self.request(DELLINK, 0, &if_header(0, false), |m| m.native(IFLA_GROUP, group));
        tolerate(gone, &[Errno::NODEV])
    }

    /// Index of a link by name.
    pub(crate) fn link_index(&self, name: &str) -> Result<Option<u32>, NetlinkError> {
        // The name-to-index call of the C library asks the kernel by ioctl on any socket of this namespace.
        let probe =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        match rustix::net::netdevice::name_to_index(&probe, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Adds an address to a link, as a network of its own; there already is fine. It can be used at once: nobody is
    /// asked whether somebody else has it.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        const WITHOUT_DUPLICATE_DETECTION: u8 = 2;
        let family = Family::of(address);
        let flags = if family == Family::V6 { WITHOUT_DUPLICATE_DETECTION } else { 0 };
        let mut header = [family.code(), family.width(), flags, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let added = self.request(NEWADDR, CREATE | EXCLUSIVE, &header, |m| {
            m.raw(1, &octets(address));
            m.raw(2, &octets(address));
        });
        tolerate(added, &[Errno::EXIST])
    }

    /// Writes a permanent neighbour entry, so that nobody needs to ask for the address.
    pub(crate) fn set_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        const PERMANENT: u16 = 0x80;
        let mut header = [0u8; 12];
        header[0] = Family::of(address).code();
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
        self.request(NEWNEIGH, CREATE | REPLACE, &header, |m| {
            m.raw(1, &octets(address));
            m.raw(2, &mac);
        })
    }

    /// Forgets a neighbour entry; one that is not there is fine.
    pub(crate) fn delete_neighbour(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut header = [0u8; 12];
        header[0] = Family::of(address).code();
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let gone = self.request(DELNEIGH, 0, &header, |m| m.raw(1, &octets(address)));
        tolerate(gone, &[Errno::NOENT])
    }

    /// Tells a tunnel device (`at`: `None` forgets it) to which node a MAC address belongs.
    pub(crate) fn set_tunnel(&self, index: u32, mac: Mac, at: Option<Ipv4Addr>) -> Result<(), NetlinkError> {
        const PERMANENT_NO_ARP: u16 = 0x80 | 0x40;
        const SELF: u8 = 2;
        let mut header = [0u8; 12];
        header[0] = AF_BRIDGE;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&PERMANENT_NO_ARP.to_ne_bytes());
        header[10] = SELF;
        match at {
            Some(node) => self.request(NEWNEIGH, CREATE | REPLACE, &header, |m| {
                m.raw(2, &mac);
                m.raw(1, &node.octets());
            }),
            None => {
                let gone = self.request(DELNEIGH, 0, &header, |m| m.raw(2, &mac));
                tolerate(gone, &[Errno::NOENT])
            }
        }
    }

    /// The routes of the main table that lead to networks (neither broken ones nor those to this host).
    pub(crate) fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut out = Vec::new();
        let header = [AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.dump(GETROUTE, &header, |_| {}, |kind, body| out.extend(route_of(kind, body)))?;
        Ok(out)
    }

    /// How the kernel would send a packet to an address; `None` if it has no way.
    pub(crate) fn way_to(&self, address: IpAddr) -> Result<Option<Route>, NetlinkError> {
        let mut found = None;
        let family = Family::of(address);
        let header = [family.code(), family.width(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let asked = self.get(
            GETROUTE,
            &header,
            |m| m.raw(DST, &octets(address)),
            |kind, body| found = route_of(kind, body).or(found),
        );
        match asked {
            Err(e) if matches!(e.errno(), Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Index of the link that carries an address.
    pub(crate) fn link_with(&self, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        let mut found = None;
        self.dump(
            GETADDR,
            &[Family::of(address).code(), 0, 0, 0, 0, 0, 0, 0],
            |_| {},
            |kind, body| {
                let value = |wanted| {
                    let all = attributes(body.get(8..).unwrap_or_default());
                    all.filter(|(t, _)| *t == wanted).map(|(_, v)| v).next()
                };
                // With a peer the first is the peer's; without one IPv6 has the first alone.
                let local = value(LOCAL).or_else(|| value(ADDRESS));
                if kind == NEWADDR && local.is_some_and(|v| v == octets(address)) {
                    found = body.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).or(found);
                }
            },
        )?;
        Ok(found)
    }

    /// Writes the route to `destination`/`prefix` in the main table, replacing one to the same destination.
    pub(crate) fn set_route(&self, destination: Network, via: &Via) -> Result<(), NetlinkError> {
        self.request(NEWROUTE, CREATE | REPLACE, &route_header(destination, via), |m| {
            route_body(m, destination, via);
        })
    }

    /// Deletes a route; one that is not there is fine.
    pub(crate) fn delete_route(&self, destination: Network, via: &Via) -> Result<(), NetlinkError> {
        let gone = self.request(DELROUTE, 0, &route_header(destination, via), |m| {
            route_body(m, destination, via);
        });
        tolerate(gone, &[Errno::SRCH, Errno::NODEV])
    }
}

/// A route to a network out of a message; `None` for other messages, tables and kinds of routes.
pub(crate) fn route_of(kind: u16, body: &[u8]) -> Option<Route> {
    const UNICAST: u8 = 1;
    let [code, prefix, _, _, table, _, _, type_] = *body.get(..8)?.first_chunk::<8>()?;
    let family = [Family::V4, Family::V6].into_iter().find(|f| f.code() == code)?;
    if !matches!(kind, NEWROUTE | DELROUTE) || table != MAIN_TABLE || type_ != UNICAST {
        return None;
    }
    let value = |wanted: u16| {
        let found = attributes(body.get(12..)?).find(|(t, _)| *t == wanted);
        found.map(|(_, v)| v)
    };
    let address = |wanted| value(wanted).and_then(|bytes| family.read(bytes));
    Some(Route {
        destination: (address(DST).unwrap_or(family.unspecified()), prefix),
        link: value(OIF).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes),
        gateway: address(GATEWAY),
    })
}

fn route_header((address, prefix): Network, via: &Via) -> [u8; 12] {
    const ONLINK: u32 = 4;
    const PROTOCOL_STATIC: u8 = 4;
    const SCOPE_UNIVERSE: u8 = 0;
    const SCOPE_LINK: u8 = 253;
    const UNICAST: u8 = 1;
    const UNREACHABLE: u8 = 7;
    let (scope, kind) = match via {
        Via::Link { .. } => (SCOPE_LINK, UNICAST),
        Via::Gateway { .. } | Via::Onlink { .. } | Via::Neighbour { .. } | Via::Any => {
            (SCOPE_UNIVERSE, UNICAST)
        }
        Via::Unreachable => (SCOPE_UNIVERSE, UNREACHABLE),
    };
    let mut flags = [0; 4];
    if matches!(via, Via::Onlink { .. }) {
        flags = ONLINK.to_ne_bytes();
    }
    let [a, b, c, d] = flags;
    [Family::of(address).code(), prefix, 0, 0, MAIN_TABLE, PROTOCOL_STATIC, scope, kind, a, b, c, d]
}

fn route_body(m: &mut super::Message<'_>, destination: Network, via: &Via) {
    if destination.1 > 0 {
        m.raw(DST, &octets(destination.0));
    }
    match via {
        Via::Link { index, source } => {
            m.native(OIF, *index);
            if let Some(source) = source {
                m.raw(PREFSRC, &octets(*source));
            }
        }
        Via::Gateway { index, gateway, source } => {
            m.native(OIF, *index);
            m.raw(GATEWAY, &octets(*gateway));
            if let Some(source) = source {
                m.raw(PREFSRC, &octets(*source));
            }
        }
        Via::Onlink { index, gateway, source } => {
            m.native(OIF, *index);
            m.raw(GATEWAY, &octets(*gateway));
            m.raw(PREFSRC, &octets(*source));
        }
        Via::Neighbour { gateway } => m.raw(GATEWAY, &octets(*gateway)),
        Via::Unreachable | Via::Any => {}
    }
}
