//! Addresses and node ports of Services, as private keys of the store.
//!
//! A key is claimed in the same commit that writes its Service, under the condition that nobody holds it; so two
//! Services can never get the same address, and nothing needs repairing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{FieldError, Status};

use crate::resource::{Extension, Reader};
use crate::resources::names;

/// Random picks before all keys are listed to find a free one.
const RANDOM_TRIES: usize = 16;

pub(crate) fn ip_key(ip: IpAddr) -> String {
    format!("/podium/services/ips/{ip}")
}

pub(crate) fn port_key(port: u16) -> String {
    format!("/podium/services/nodeports/{port}")
}

const IP_PREFIX: &str = "/podium/services/ips/";
const PORT_PREFIX: &str = "/podium/services/nodeports/";

/// A range of numbers to allocate from: `low` parts are kept for explicit wishes as long as others are free (KEP-3070).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Numbers below this are given at random only when all others are taken.
    pub(crate) band: u32,
}

impl Range {
    pub(crate) fn of_ports((first, last): (u16, u16)) -> Self {
        let (first, last) = (u32::from(first), u32::from(last));
        let size = last.saturating_sub(first) + 1;
        Self { first, last, band: first + (size / 32).clamp(16.min(size / 2), 128) }
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// All numbers, the preferred ones first, beginning at a random one.
    fn from(self, start: u32) -> impl Iterator<Item = u32> {
        let start = start.max(self.band);
        (start..=self.last).chain(self.band..start).chain(self.first..self.band)
    }

    /// A number above the band.
    fn pick(&self, random: u32) -> u32 {
        self.band + random % (self.last - self.band + 1)
    }
}

/// A network to allocate addresses from, which are numbers beyond its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    base: IpAddr,
    range: Range,
}

impl Network {
    /// As many addresses of an IPv6 network are used; more are none too few.
    const LARGEST_V6: u32 = 1 << 16;

    /// Hosts of a network: without the network's own address, and in IPv4 without the broadcast address.
    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix) = names::parse_cidr(cidr)?;
        let (base, size, last) = match address {
            IpAddr::V4(address) => {
                let size = u32::try_from((u64::from(u32::MAX) + 1) >> prefix).ok().filter(|n| *n >= 4)?;
                (Ipv4Addr::from_bits(address.to_bits() & !(size - 1)).into(), size, size - 2)
            }
            IpAddr::V6(address) => {
                let hosts = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let size = u32::try_from(hosts).map_or(Self::LARGEST_V6, |n| (n + 1).min(Self::LARGEST_V6));
                (
                    Ipv6Addr::from_bits(address.to_bits() & !hosts).into(),
                    Some(size).filter(|n| *n >= 4)?,
                    size - 1,
                )
            }
        };
        let range = Range { first: 1, last, band: (size / 16).clamp(16.min(size / 2), 256) };
        Some(Self { base, range })
    }

    fn address(&self, number: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + number).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(number)).into(),
        }
    }

    /// Whether an address may be asked for.
    fn holds(&self, address: IpAddr) -> bool {
        let number = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => address.to_bits().checked_sub(base.to_bits()),
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let beyond = address.to_bits().checked_sub(base.to_bits());
                beyond.and_then(|number| u32::try_from(number).ok())
            }
            _ => None,
        };
        number.is_some_and(|number| self.range.contains(number))
    }
}

fn random() -> Result<u32, Status> {
    let mut bytes = [0; 4];
    crate::ambient::fill(&mut bytes).map_err(|_| Status::internal("no random numbers"))?;
    Ok(u32::from_le_bytes(bytes))
}

/// A free number of a range, as far as the reader knows; the commit's condition decides.
pub(crate) async fn free(
    reader: &dyn Reader,
    range: Range,
    prefix: &str,
    key: impl Fn(u32) -> String,
    also_taken: &[u32],
) -> Result<Option<u32>, Status> {
    for _ in 0..RANDOM_TRIES {
        let number = range.pick(random()?);
        if !also_taken.contains(&number) && reader.private(&key(number)).await?.is_none() {
            return Ok(Some(number));
        }
    }
    let taken: std::collections::HashSet<String> =
        reader.private_range(prefix).await?.into_iter().map(|entry| entry.key).collect();
    let start = range.pick(random()?);
    Ok(range.from(start).find(|n| !also_taken.contains(n) && !taken.contains(&key(*n))))
}

/// Claims an address, the wanted one or any.
pub(crate) async fn claim_ip(
    reader: &dyn Reader,
    cidr: &str,
    wanted: Option<&str>,
    owner: &str,
    txn: &mut Extension,
) -> Result<Result<IpAddr, FieldError>, Status> {
    let network =
        Network::parse(cidr).ok_or_else(|| Status::internal(format!("bad service network {cidr}")))?;
    let Some(text) = wanted else {
        let key = |n: u32| ip_key(network.address(n));
        let Some(number) = free(reader, network.range, IP_PREFIX, key, &[]).await? else {
            return Err(Status::internal("failed to allocate a serviceIP: range is full"));
        };
        let ip = network.address(number);
        txn.claim(&ip_key(ip), owner.to_owned());
        return Ok(Ok(ip));
    };
    let refuse = |why: String| {
        let detail = format!("failed to allocate IP {text}: {why}");
        Ok(Err(FieldError::invalid("spec.clusterIPs", serde_json::json!([text]), &detail)))
    };
    match text.parse::<IpAddr>() {
        Ok(ip) if network.holds(ip) => {
            let key = ip_key(ip);
            if reader.private(&key).await?.is_some() {
                return refuse("provided IP is already allocated".to_owned());
            }
            txn.claim(&key, owner.to_owned());
            Ok(Ok(ip))
        }
        _ => refuse(format!(
            "the provided IP ({text}) is not in the valid range. The range of valid IPs is {cidr}"
        )),
    }
}

/// Claims a node port, the wanted one or any. `mine` are ports this Service has claimed already.
pub(crate) async fn claim_port(
    reader: &dyn Reader,
    ports: (u16, u16),
    wanted: Option<u16>,
    (owner, path, mine): (&str, &str, &mut Vec<u32>),
    txn: &mut Extension,
) -> Result<Result<u16, FieldError>, Status> {
    let range = Range::of_ports(ports);
    let port = match wanted {
        None => {
            let key = |n: u32| format!("{PORT_PREFIX}{n}");
            let Some(number) = free(reader, range, PORT_PREFIX, key, mine).await? else {
                return Err(Status::internal("failed to allocate a nodePort: range is full"));
            };
            u16::try_from(number).map_err(Status::internal)?
        }
        Some(port) => {
            if !range.contains(u32::from(port)) {
                let (first, last) = ports;
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                );
                return Ok(Err(FieldError::invalid(path, port, &detail)));
            }
            if mine.contains(&u32::from(port)) {
                return Ok(Ok(port));
            }
            if reader.private(&port_key(port)).await?.is_some() {
                return Ok(Err(FieldError::invalid(path, port, "provided port is already allocated")));
            }
            port
        }
    };
    mine.push(u32::from(port));
    txn.claim(&port_key(port), owner.to_owned());
    Ok(Ok(port))
}

/// Gives a key back, if this owner holds it.
pub(crate) async fn release(
    reader: &dyn Reader,
    key: &str,
    owner: &str,
    txn: &mut Extension,
) -> Result<(), Status> {
    if reader.private(key).await?.is_some_and(|entry| entry.value == owner.as_bytes()) {
        txn.release(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let show = |cidr: &str| {
            let network = Network::parse(cidr)?;
            let Range { first, last, band } = network.range;
            Some([first, last, band].map(|n| network.address(n).to_string()).join(" "))
        };
        assert_eq!(show("10.96.0.0/16").as_deref(), Some("10.96.0.1 10.96.255.254 10.96.1.0"));
        let v6 = "fd00:10:96::1 fd00:10:96::ffff fd00:10:96::100";
        assert_eq!(show("fd00:10:96::/112").as_deref(), Some(v6));
        assert_eq!(show("fd00:10:96::/64").as_deref(), Some(v6), "more than enough");
        assert_eq!((show("10.0.0.0/31"), show("fd00::/127")), (None, None));
        let network = Network::parse("fd00:10:96::/120").unwrap();
        let holds = |text: &str| network.holds(text.parse().unwrap());
        assert!(holds("fd00:10:96::1") && holds("fd00:10:96::ff"));
        assert!(!holds("fd00:10:96::") && !holds("fd00:10:96::100") && !holds("10.96.0.1"));
        let small = Network::parse("10.0.0.0/29").unwrap().range;
        assert_eq!((small.last - small.first, small.band - small.first), (5, 3));
        for start in small.band..=small.last {
            let mut all: Vec<u32> = small.from(start).collect();
            assert_eq!(all[0], start);
            all.sort_unstable();
            assert_eq!(all, (small.first..=small.last).collect::<Vec<_>>());
        }
        let range = Network::parse("10.96.0.0/16").unwrap().range;
        assert_eq!(Range::of_ports((30000, 32767)).band, 30086);
        for random in [0, 1, 77, u32::MAX] {
            assert!(range.contains(range.pick(random)));
        }
    }
}
