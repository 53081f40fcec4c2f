//! The kernel's forwarding settings: turned on for pods, put back by `down`.
//!
//! A machine that forwards IPv6 no longer listens to routers, and forgets the default route that one has told it,
//! unless an interface is told to listen all the same (`accept_ra` 2): that comes first.

use std::path::Path;

use super::{PodNetConfig, PodNetError, Step, sysctl_dir};
use crate::netlink::Socket;
use crate::netlink::route::Link;
use crate::sysctl;

/// Begins the note on a gateway interface that tells what forwarding was before Podium; what follows are the values.
/// By it the last of several instances on a machine knows what to put back.
const NOTE: &str = "podium: ip_forward was ";
const NOTE_V6: &str = "; ipv6 forwarding was ";

const V4: &str = "net/ipv4/ip_forward";
const V6: &str = "net/ipv6/conf/all/forwarding";

/// What forwarding was before Podium.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    v4: String,
    v6: Option<String>,
}

impl Before {
    pub(super) fn to_note(&self) -> String {
        let v6 = self.v6.as_ref().map(|value| format!("{NOTE_V6}{value}")).unwrap_or_default();
        format!("{NOTE}{}{v6}", self.v4)
    }

    fn parse(note: &str) -> Option<Self> {
        let values = note.strip_prefix(NOTE)?;
        let (v4, v6) = values.split_once(NOTE_V6).map_or((values, None), |(v4, v6)| (v4, Some(v6)));
        Some(Self { v4: v4.to_owned(), v6: v6.map(str::to_owned) })
    }
}

/// The note on the gateway interface of any instance.
fn note_of(link: &Link) -> Option<Before> {
    let gateway = link.name.starts_with('p') && link.name.ends_with("-gw");
    gateway.then(|| Before::parse(&link.alias)).flatten()
}

/// Turns forwarding on for the families that pods have.
pub(super) fn turn_on(config: &PodNetConfig) -> Result<Before, PodNetError> {
    let links = Socket::route().and_then(|s| s.links()).step("list links")?;
    let notes: Vec<Before> = links.iter().filter_map(note_of).collect();
    let dir = sysctl_dir(&config.state_dir);
    let set = |name: &str, value: &str, inherited| {
        sysctl::set(&dir, name, value, inherited)
            .map_err(|source| PodNetError::Sysctl { name: name.replace('/', "."), source })
    };
    let v4 = set(V4, "1", notes.first().map(|note| note.v4.clone()))?;
    if !config.has_v6() {
        return Ok(Before { v4, v6: None });
    }
    for link in &links {
        let name = format!("net/ipv6/conf/{}/accept_ra", link.name);
        // An interface without IPv6 has no such setting.
        if sysctl::get(&name).is_ok_and(|value| value == "1") {
            set(&name, "2", None)?;
        }
    }
    let v6 = set(V6, "1", notes.iter().find_map(|note| note.v6.clone()))?;
    Ok(Before { v4, v6: Some(v6) })
}

/// Puts back what was before, unless an instance among `others` still forwards packets.
pub(super) fn restore(state_dir: &Path, others: &[Link]) -> Result<(), PodNetError> {
    let shared = others.iter().any(|link| note_of(link).is_some());
    sysctl::restore(&sysctl_dir(state_dir), shared)
        .map_err(|source| PodNetError::Sysctl { name: "of forwarding".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        for v6 in [None, Some("0".to_owned())] {
            let before = Before { v4: "1".into(), v6 };
            assert_eq!(Before::parse(&before.to_note()), Some(before));
        }
        assert_eq!(Before::parse("somebody else's"), None);
    }
}
