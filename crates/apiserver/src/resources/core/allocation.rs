//! Addresses and node ports of Services, as private keys of the store.
//!
//! A key is claimed in the same commit that writes its Service, under the condition that nobody holds it; so two
//! Services can never get the same address, and nothing needs repairing.

use std::net::{IpAddr, Ipv4Addr};

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
    /// Hosts of an IPv4 network, without network and broadcast address.
    pub(crate) fn of_network(cidr: &str) -> Option<Self> {
        let (IpAddr::V4(address), length) = names::parse_cidr(cidr)? else { return None };
        let size = u64::from(u32::MAX) + 1;
        let size = u32::try_from(size >> length).ok().filter(|n| *n >= 4)?;
        let base = address.to_bits() & !(size - 1);
        Some(Self {
            first: base + 1,
            last: base + size - 2,
            band: base + (size / 16).clamp(16.min(size / 2), 256),
        })
    }

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
    let range =
        Range::of_network(cidr).ok_or_else(|| Status::internal(format!("bad service network {cidr}")))?;
    let key = |n: u32| ip_key(IpAddr::V4(Ipv4Addr::from_bits(n)));
    let Some(text) = wanted else {
        let Some(number) = free(reader, range, IP_PREFIX, key, &[]).await? else {
            return Err(Status::internal("failed to allocate a serviceIP: range is full"));
        };
        let ip = IpAddr::V4(Ipv4Addr::from_bits(number));
        txn.claim(&ip_key(ip), owner.to_owned());
        return Ok(Ok(ip));
    };
    let refuse = |why: String| {
        let detail = format!("failed to allocate IP {text}: {why}");
        Ok(Err(FieldError::invalid("spec.clusterIPs", serde_json::json!([text]), &detail)))
    };
    match text.parse() {
        Ok(IpAddr::V4(ip)) if range.contains(ip.to_bits()) => {
            let key = ip_key(IpAddr::V4(ip));
            if reader.private(&key).await?.is_some() {
                return refuse("provided IP is already allocated".to_owned());
            }
            txn.claim(&key, owner.to_owned());
            Ok(Ok(IpAddr::V4(ip)))
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
        let range = Range::of_network("10.96.0.0/16").unwrap();
        assert_eq!(Ipv4Addr::from_bits(range.first), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(Ipv4Addr::from_bits(range.last), Ipv4Addr::new(10, 96, 255, 254));
        assert_eq!(Ipv4Addr::from_bits(range.band), Ipv4Addr::new(10, 96, 1, 0));
        assert_eq!(Range::of_network("10.0.0.0/31"), None);
        let small = Range::of_network("10.0.0.0/29").unwrap();
        assert_eq!((small.last - small.first, small.band - small.first), (5, 3));
        for start in small.band..=small.last {
            let mut all: Vec<u32> = small.from(start).collect();
            assert_eq!(all[0], start);
            all.sort_unstable();
            assert_eq!(all, (small.first..=small.last).collect::<Vec<_>>());
        }
        assert_eq!(Range::of_ports((30000, 32767)).band, 30086);
        for random in [0, 1, 77, u32::MAX] {
            assert!(range.contains(range.pick(random)));
        }
    }
}
