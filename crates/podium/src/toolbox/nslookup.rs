//! `nslookup`: asks the resolver of `/etc/resolv.conf`.
//!
//! Names are resolved here and not by the C library, whose resolver needs files and modules that the image lacks.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::fail;
use crate::cli::outln;

/// `nslookup NAME`: prints an IPv4 address per line.
pub(super) fn nslookup(arguments: &[String]) -> u8 {
    let Some(name) = arguments.first() else { return fail("nslookup", "usage: nslookup NAME") };
    match lookup(name) {
        Ok(addresses) => {
            for address in addresses {
                outln(&address.to_string());
            }
            0
        }
        Err(error) => fail("nslookup", error),
    }
}

struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

/// IPv4 addresses of a name: first `/etc/hosts`, then DNS with the search list.
pub(super) fn lookup(name: &str) -> Result<Vec<IpAddr>, String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    if let Some(address) = from_hosts(&hosts, name) {
        return Ok(vec![address]);
    }
    let resolver = Resolver::parse(&std::fs::read_to_string("/etc/resolv.conf").map_err(|e| e.to_string())?);
    let mut error = format!("{name}: no such name");
    for candidate in resolver.candidates(name) {
        match resolver.ask(&candidate) {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => {}
            Err(failure) => error = failure,
        }
    }
    Err(error)
}

fn from_hosts(hosts: &str, name: &str) -> Option<IpAddr> {
    hosts.lines().map(|line| line.split('#').next().unwrap_or_default()).find_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        (address.is_ipv4() && words.any(|word| word == name)).then_some(address)
    })
}

impl Resolver {
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

    fn ask(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let mut failure = "no name server".to_owned();
        for server in &self.servers {
            match exchange(*server, name) {
                Ok(addresses) => return Ok(addresses),
                Err(error) => failure = format!("{server}: {error}"),
            }
        }
        Err(failure)
    }
}

fn exchange(server: IpAddr, name: &str) -> Result<Vec<IpAddr>, String> {
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    let ask = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect((server, 53))?;
        socket.send(&question(id, name))?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    addresses(&ask().map_err(|e| e.to_string())?).ok_or_else(|| "malformed answer".to_owned())
}

/// A question for A records, recursion desired (RFC 1035, section 4).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = label.as_bytes().get(..label.len().min(63)).unwrap_or_default();
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label);
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The A records of an answer; empty for an error code of the server; `None` when malformed.
fn addresses(message: &[u8]) -> Option<Vec<IpAddr>> {
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
        let data = message.get(at + 10..at + 10 + length)?;
        if let (1, [a, b, c, d]) = (kind, data) {
            found.push(IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)));
        }
        at += 10 + length;
    }
    Some(found)
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
        let mut message = question(7, "web.x");
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 3, 4]);
        assert_eq!(addresses(&message), Some(vec!["10.96.3.4".parse().unwrap()]));
        message.truncate(message.len() - 1);
        assert_eq!(addresses(&message), None);
    }
}
