//! Addresses of both families as numbers, so that ranges and prefixes are computed once for all widths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: an address in it and the length of its prefix in bits.
pub type Network = (IpAddr, u8);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bits of an address.
    pub fn width(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// `addressType` of an EndpointSlice, and the word of `ipFamilies`.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The number of the address family in system calls and netlink, which netfilter uses too.
    pub(crate) fn code(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    pub(crate) fn unspecified(self) -> IpAddr {
        self.address(0)
    }

    /// The highest address as a number.
    pub(crate) fn highest(self) -> u128 {
        u128::MAX >> (128 - self.width())
    }

    /// The address with a number; higher bits than the family has are cut off.
    pub(crate) fn address(self, number: u128) -> IpAddr {
        match self {
            Family::V4 => {
                let low = number & self.highest();
                Ipv4Addr::from(u32::try_from(low).expect("32 bits are left")).into()
            }
            Family::V6 => Ipv6Addr::from(number).into(),
        }
    }

    /// An address out of its bytes; `None` if they are not as many as the family has.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<IpAddr> {
        match self {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    }
}

pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// The bytes of an address as they lie in a packet.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The bits of a prefix that tell hosts apart, as a number.
fn host_bits(family: Family, prefix: u8) -> u128 {
    family.highest().checked_shr(prefix.into()).unwrap_or(0)
}

/// First and last address of a network, as numbers.
pub(crate) fn range((address, prefix): Network) -> (u128, u128) {
    let hosts = host_bits(Family::of(address), prefix);
    (number(address) & !hosts, number(address) | hosts)
}

/// The mask of a network, in the bytes of an address.
pub(crate) fn mask((address, prefix): Network) -> Vec<u8> {
    let family = Family::of(address);
    octets(family.address(family.highest() & !host_bits(family, prefix)))
}

/// Whether a network holds an address, which must be of its family.
pub fn contains(network: Network, address: IpAddr) -> bool {
    let (first, last) = range(network);
    Family::of(network.0) == Family::of(address) && (first..=last).contains(&number(address))
}

/// The network with its first address.
pub(crate) fn base_of(network: Network) -> Network {
    (Family::of(network.0).address(range(network).0), network.1)
}

/// First host address of a network: the node's own address among its pods.
pub fn gateway_of(network: Network) -> IpAddr {
    Family::of(network.0).address(range(network).0 + 1)
}

/// Reads `10.96.0.0/16` or `fd00:10:96::/112`.
pub fn parse_cidr(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    Some((address, prefix.parse().ok().filter(|p| *p <= Family::of(address).width())?))
}

/// The first of some networks that is of a family.
pub(crate) fn network_in(family: Family, networks: &[Network]) -> Option<Network> {
    networks.iter().copied().find(|(address, _)| Family::of(*address) == family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        parse_cidr(text).unwrap()
    }

    #[test]
    fn both_families_are_read_and_have_edges() {
        let show = |text: &str| {
            let n = network(text);
            let (first, last) = range(n);
            let family = Family::of(n.0);
            format!("{} {} {}", family.address(first), family.address(last), gateway_of(n))
        };
        assert_eq!(show("10.244.5.9/24"), "10.244.5.0 10.244.5.255 10.244.5.1");
        assert_eq!(show("0.0.0.0/0"), "0.0.0.0 255.255.255.255 0.0.0.1");
        assert_eq!(show("192.0.2.7/32"), "192.0.2.7 192.0.2.7 192.0.2.8");
        assert_eq!(
            show("fd00:10:244:3::7/64"),
            "fd00:10:244:3:: fd00:10:244:3:ffff:ffff:ffff:ffff fd00:10:244:3::1"
        );
        assert_eq!(show("::/0"), ":: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ::1");
        for bad in ["10.96.0.0/33", "fd00::/129", "10.96.0.0", "x/8", "10.0.0.0/"] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_hold_addresses_of_their_family_alone() {
        let holds = |text: &str, address: &str| contains(network(text), address.parse().unwrap());
        assert!(holds("10.244.0.0/16", "10.244.255.255") && !holds("10.244.0.0/16", "10.245.0.0"));
        assert!(holds("fd00::/64", "fd00::ffff:0:0:1") && !holds("fd00::/64", "fd00:0:0:1::"));
        assert!(!holds("0.0.0.0/0", "::1") && !holds("::/0", "10.0.0.1"));
        assert_eq!(mask(network("10.0.0.0/12")), [255, 240, 0, 0]);
        assert_eq!(mask(network("fd00::/9"))[..3], [255, 128, 0]);
        assert_eq!(base_of(network("10.244.5.9/24")), network("10.244.5.0/24"));
    }
}
