//! Addresses, networks and URLs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Opaque, failed};
use crate::eval::Eval;
use crate::value::{Key, Val};

/// An absolute URL, or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub(crate) text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

fn is_path_character(c: char) -> bool {
    !c.is_control() && c != ' ' && c != '<' && c != '>' && c != '"'
}

fn parse_url(text: &str) -> Option<Url> {
    if text.is_empty() || !text.chars().all(is_path_character) {
        return None;
    }
    let (text_without, _) = text.split_once('#').unwrap_or((text, ""));
    let (front, query) = text_without.split_once('?').unwrap_or((text_without, ""));
    let (scheme, rest) = match front.split_once("://") {
        Some((scheme, rest)) => {
            let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
            if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(letters) {
                return None;
            }
            (scheme.to_lowercase(), rest)
        }
        None if front.starts_with('/') => (String::new(), front),
        None => return None,
    };
    let (host, path) = if scheme.is_empty() {
        ("", rest)
    } else {
        rest.find('/').map_or((rest, ""), |at| rest.split_at(at))
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let port = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map(|(_, port)| port);
    if port.is_some_and(|port| !port.bytes().all(|b| b.is_ascii_digit())) || host.contains(' ') {
        return None;
    }
    Some(Url {
        text: text.to_owned(),
        scheme,
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

impl Url {
    fn split_host(&self) -> (&str, &str) {
        if let Some((host, port)) = self.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return (host, port.trim_start_matches(':'));
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }

    fn query<'a>(&self) -> Val<'a> {
        let mut map: BTreeMap<Key, Vec<Val<'a>>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = Key::String(unescape(name).into());
            map.entry(key).or_default().push(Val::text(&unescape(value)));
        }
        Val::Map(Arc::new(map.into_iter().map(|(key, values)| (key, Val::list(values))).collect()))
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    // An IPv4 address in IPv6 clothes, and zones, are no addresses here.
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    (!mapped && !text.contains('%')).then_some(ip)
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let ip = parse_ip(ip)?;
    let digits = !bits.is_empty()
        && bits.bytes().all(|b| b.is_ascii_digit())
        && (bits == "0" || !bits.starts_with('0'));
    let most = if ip.is_ipv4() { 32 } else { 128 };
    bits.parse().ok().filter(|bits| digits && *bits <= most).map(|bits| (ip, bits))
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::from((u32::from(v4) & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::from((u128::from(v6) & mask).to_be_bytes())
        }
    }
}

fn contains((network, bits): (IpAddr, u8), ip: IpAddr) -> bool {
    network.is_ipv4() == ip.is_ipv4() && masked(network, bits) == masked(ip, bits)
}

fn opaque<'a>(value: Opaque) -> Eval<'a> {
    Ok(Val::Opaque(Arc::new(value)))
}

/// The functions of this theme.
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    if !member {
        return globals(name, args);
    }
    let Some(Val::Opaque(target)) = args.first() else { return None };
    let text = |text: &str| Ok(Val::text(text));
    let arg = args.get(1);
    match &**target {
        Opaque::Url(url) => Some(match name {
            "getScheme" => text(&url.scheme),
            "getHost" => text(&url.host),
            "getHostname" => text(url.split_host().0),
            "getPort" => text(url.split_host().1),
            "getEscapedPath" => text(&url.path),
            "getQuery" => Ok(url.query()),
            _ => return None,
        }),
        Opaque::Ip(ip) => Some(Ok(match (name, ip) {
            ("family", IpAddr::V4(_)) => Val::Int(4),
            ("family", IpAddr::V6(_)) => Val::Int(6),
            ("isUnspecified", ip) => Val::Bool(ip.is_unspecified()),
            ("isLoopback", ip) => Val::Bool(ip.is_loopback()),
            ("isLinkLocalMulticast", ip) => Val::Bool(link_local_multicast(*ip)),
            ("isLinkLocalUnicast", IpAddr::V4(v4)) => Val::Bool(v4.is_link_local()),
            ("isLinkLocalUnicast", IpAddr::V6(v6)) => Val::Bool(v6.is_unicast_link_local()),
            ("isGlobalUnicast", ip) => Val::Bool(global_unicast(*ip)),
            _ => return None,
        })),
        Opaque::Cidr(ip, bits) => Some(match (name, arg) {
            ("ip", None) => opaque(Opaque::Ip(*ip)),
            ("masked", None) => opaque(Opaque::Cidr(masked(*ip, *bits), *bits)),
            ("prefixLength", None) => Ok(Val::Int((*bits).into())),
            ("containsIP", Some(other)) => match as_ip(other) {
                Some(other) => Ok(Val::Bool(contains((*ip, *bits), other))),
                None => failed("IP Address parse error during conversion from string"),
            },
            ("containsCIDR", Some(other)) => match as_cidr(other) {
                Some((other, length)) => Ok(Val::Bool(length >= *bits && contains((*ip, *bits), other))),
                None => failed("network address parse error during conversion from string"),
            },
            _ => return None,
        }),
        _ => None,
    }
}

fn as_ip(value: &Val<'_>) -> Option<IpAddr> {
    match value {
        Val::String(text) => parse_ip(text),
        Val::Opaque(opaque) => match **opaque {
            Opaque::Ip(ip) => Some(ip),
            _ => None,
        },
        _ => None,
    }
}

fn as_cidr(value: &Val<'_>) -> Option<(IpAddr, u8)> {
    match value {
        Val::String(text) => parse_cidr(text),
        Val::Opaque(opaque) => match **opaque {
            Opaque::Cidr(ip, bits) => Some((ip, bits)),
            _ => None,
        },
        _ => None,
    }
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn global_unicast(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
}

fn globals<'a>(name: &str, args: &[Val<'a>]) -> Option<Eval<'a>> {
    let [Val::String(text)] = args else { return None };
    Some(match name {
        "url" => match parse_url(text) {
            Some(url) => opaque(Opaque::Url(url)),
            None => failed(format!("URL parse error during conversion from string: {text:?}")),
        },
        "isURL" => Ok(Val::Bool(parse_url(text).is_some())),
        "ip" => match parse_ip(text) {
            Some(ip) => opaque(Opaque::Ip(ip)),
            None => failed(format!("IP Address {text:?} parse error during conversion from string")),
        },
        "isIP" => Ok(Val::Bool(parse_ip(text).is_some())),
        "ip.isCanonical" => match parse_ip(text) {
            Some(ip) => Ok(Val::Bool(ip.to_string() == **text)),
            None => failed(format!("IP Address {text:?} parse error during conversion from string")),
        },
        "cidr" => match parse_cidr(text) {
            Some((ip, bits)) => opaque(Opaque::Cidr(ip, bits)),
            None => failed(format!("network address parse error during conversion from string: {text}")),
        },
        "isCIDR" => Ok(Val::Bool(parse_cidr(text).is_some())),
        _ => return None,
    })
}
