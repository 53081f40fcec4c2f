//! `nslookup`: asks the resolver of `/etc/resolv.conf`.
//!
//! Names are resolved here and not by the C library, whose resolver needs files and modules that the image lacks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use super::fail;
use crate::cli::outln;

/// Types of records (RFC 1035, RFC 3596).
const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;

/// `nslookup NAME`: prints an address per line, those of IPv4 first; `nslookup ADDRESS`: prints its names.
pub(super) fn nslookup(arguments: &[String]) -> u8 {
    let Some(name) = arguments.first() else { return fail("nslookup", "usage: nslookup NAME|ADDRESS") };
    let found = match name.parse::<IpAddr>() {
        Ok(address) => names_of(address),
        Err(_) => lookup(name).map(|all| all.iter().map(ToString::to_string).collect()),
    };
    match found {
        Ok(lines) => {
            lines.iter().for_each(|line| outln(line));
            0
        }
        Err(error) => fail("nslookup", error),
    }
}

/// Names of an address.
fn names_of(address: IpAddr) -> Result<Vec<String>, String> {
    let resolver = Resolver::read()?;
    let names = resolver.ask(&reverse_name(address), &[PTR], names)?;
    if names.is_empty() { Err(format!("{address}: no such name")) } else { Ok(names) }
}

/// `10.0.0.1`: `1.0.0.10.in-addr.arpa`; an IPv6 address: its digits in `ip6.arpa`.
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", u128::from(address));
            digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

/// Addresses of a name, those of IPv4 first: from `/etc/hosts`, or else from DNS with the search list.
pub(super) fn lookup(name: &str) -> Result<Vec<IpAddr>, String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = from_hosts(&hosts, name);
    if !known.is_empty() {
        return Ok(known);
    }
    let resolver = Resolver::read()?;
    let mut error = format!("{name}: no such name");
    for candidate in resolver.candidates(name) {
        match resolver.ask(&candidate, &[A, AAAA], addresses) {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => {}
            Err(failure) => error = failure,
        }
    }
    Err(error)
}

fn from_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    };
    let mut found: Vec<IpAddr> = lines.filter_map(address).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

impl Resolver {
    fn read() -> Result<Self, String> {
        std::fs::read_to_string("/etc/resolv.conf").map(|text| Self::parse(&text)).map_err(|e| e.to_string())
    }

    fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["nameserver", server, ..] => resolver.servers.extend(server.parse::<IpAddr>()),
                ["search", domains @ ..] => {
                    resolver.search = domains.iter().map(|d| (*d).to_owned()).collect()
                }
                ["options", options @ ..] => {
                    let ndots = options.iter().find_map(|o| o.strip_prefix("ndots:")?.parse().ok());
                    resolver.ndots = ndots.unwrap_or(resolver.ndots);
                }
                _ => {}
            }
        }
        resolver
    }

    /// The order of resolv.conf(5): a name with fewer dots than `ndots` goes through the search list first.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        if name.matches('.').count() >= self.ndots {
            std::iter::once(name.to_owned()).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(name.to_owned())).collect()
        }
    }

    /// What the first server that answers has of some types; `read` takes it out of an answer.
    fn ask<T>(&self, name: &str, kinds: &[u16], read: fn(&[u8]) -> Option<Vec<T>>) -> Result<Vec<T>, String> {
        let mut failure = "no name server".to_owned();
        for server in &self.servers {
            let answers = kinds.iter().map(|kind| {
                let answer = exchange(*server, name, *kind)?;
                read(&answer).ok_or_else(|| "malformed answer".to_owned())
            });
            match answers.collect::<Result<Vec<_>, String>>() {
                Ok(found) => return Ok(found.into_iter().flatten().collect()),
                Err(error) => failure = format!("{server}: {error}"),
            }
        }
        Err(failure)
    }
}

fn exchange(server: IpAddr, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    let ask = || -> std::io::Result<Vec<u8>> {
        let any: IpAddr = match server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect((server, 53))?;
        socket.send(&question(id, name, kind))?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    ask().map_err(|e| e.to_string())
}

/// A question for records of a type, recursion desired (RFC 1035, section 4).
fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = label.as_bytes().get(..label.len().min(63)).unwrap_or_default();
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label);
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// The addresses of an answer.
fn addresses(message: &[u8]) -> Option<Vec<IpAddr>> {
    let address = |(kind, at, length): (u16, usize, usize)| {
        let data = message.get(at..at + length)?;
        match kind {
            A => <[u8; 4]>::try_from(data).map(IpAddr::from).ok(),
            AAAA => <[u8; 16]>::try_from(data).map(IpAddr::from).ok(),
            _ => None,
        }
    };
    Some(records(message)?.into_iter().filter_map(address).collect())
}

/// The names that an answer leads to.
fn names(message: &[u8]) -> Option<Vec<String>> {
    let pointers = records(message)?.into_iter().filter(|(kind, ..)| *kind == PTR);
    pointers.map(|(_, at, _)| name_at(message, at)).collect()
}

/// Type, place and length of the data of an answer's records; empty for an error code of the server; `None` when
/// malformed.
fn records(message: &[u8]) -> Option<Vec<(u16, usize, usize)>> {
    let number = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    if message.get(3)? & 0x0f != 0 {
        return Some(Vec::new());
    }
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = skip_name(message, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        message.get(at + 10..at + 10 + length)?;
        found.push((kind, at + 10, length));
        at += 10 + length;
    }
    Some(found)
}

/// A name, with its pointers followed (as many as a name may have labels).
fn name_at(message: &[u8], mut at: usize) -> Option<String> {
    let mut name = String::new();
    for _ in 0..128 {
        match usize::from(*message.get(at)?) {
            0 => return Some(name),
            high if high & 0xc0 == 0xc0 => at = (high & 0x3f) << 8 | usize::from(*message.get(at + 1)?),
            length => {
                name += std::str::from_utf8(message.get(at + 1..at + 1 + length)?).ok()?;
                name.push('.');
                at += 1 + length;
            }
        }
    }
    None
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_comes_first_for_short_names() {
        let resolver = Resolver::parse(
            "nameserver 10.96.0.10\nsearch a.svc.cluster.local svc.cluster.local\noptions ndots:5\n",
        );
        assert_eq!(resolver.candidates("web"), ["web.a.svc.cluster.local", "web.svc.cluster.local", "web"]);
        assert_eq!(resolver.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(resolver.candidates("web."), ["web"]);
    }

    #[test]
    fn addresses_are_read_past_compressed_names() {
        let mut message = question(7, "web.x", A);
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 3, 4]);
        assert_eq!(addresses(&message), Some(vec!["10.96.3.4".parse().unwrap()]));
        message.truncate(message.len() - 1);
        assert_eq!(addresses(&message), None);
        let mut message = question(7, "web.x", AAAA);
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        message.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 5, 0, 16, 0xfd]);
        message.extend([0; 14]);
        message.push(9);
        assert_eq!(addresses(&message), Some(vec!["fd00::9".parse().unwrap()]));
    }

    #[test]
    fn addresses_have_names() {
        assert_eq!(reverse_name("10.0.0.1".parse().unwrap()), "1.0.0.10.in-addr.arpa");
        let name = reverse_name("fd00:10::1".parse().unwrap());
        assert!(name.starts_with("1.0.0.") && name.ends_with(".0.1.0.0.0.0.d.f.ip6.arpa"), "{name}");
        assert_eq!(name.split('.').count(), 34);
        let mut message = question(7, "x.local", PTR);
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        message.extend([0xc0, 12, 0, 12, 0, 1, 0, 0, 0, 5, 0, 6, 3]);
        message.extend(b"web\xc0\x0e");
        assert_eq!(names(&message), Some(vec!["web.local.".to_owned()]));
        // a pointer to itself
        let end = u8::try_from(message.len() - 2).unwrap();
        *message.last_mut().unwrap() = end;
        assert_eq!(names(&message), None);
    }

    #[test]
    fn names_in_the_hosts_file_may_have_both_families() {
        let hosts = "127.0.0.1 localhost\n::1 localhost\nfd00::7 web\n10.0.0.7 web # x\n";
        let found: Vec<String> = from_hosts(hosts, "web").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.7", "fd00::7"]);
        assert!(from_hosts(hosts, "x").is_empty());
    }
}
