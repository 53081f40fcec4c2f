//! Allowed traffic as boxes (addresses × protocols × ports) that don't overlap, as the kernel wants its ranges.

use std::collections::BTreeMap;

/// Ports of one protocol, or (`None`) everything of every protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    pub protocol: Option<u8>,
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub const ALL: Ports = Ports { protocol: None, first: 0, last: u16::MAX };
}

/// Peers with addresses (as numbers, of one family) from `first` to `last` may use any of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    pub first: u128,
    pub last: u128,
    pub ports: Vec<Ports>,
}

/// One allowed box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub first: u128,
    pub last: u128,
    pub ports: Ports,
}

/// The same traffic in boxes that don't overlap. Takes the square of the number of allowances.
pub fn disjoint(allows: &[Allow]) -> Vec<Range> {
    // Where something begins, or begins to be over: between two of these all addresses are alike.
    let mut starts: Vec<u128> =
        allows.iter().flat_map(|a| [Some(a.first), a.last.checked_add(1)]).flatten().collect();
    starts.sort_unstable();
    starts.dedup();
    let mut strips: Vec<(u128, u128, Vec<Ports>)> = Vec::new();
    for (i, first) in starts.iter().copied().enumerate() {
        let last = starts.get(i + 1).map_or(u128::MAX, |next| next - 1);
        let covers = |a: &&Allow| a.first <= first && last <= a.last;
        let ports = merged(allows.iter().filter(covers).flat_map(|a| &a.ports));
        match strips.last_mut() {
            _ if ports.is_empty() => {}
            Some((_, end, same)) if end.checked_add(1) == Some(first) && *same == ports => *end = last,
            _ => strips.push((first, last, ports)),
        }
    }
    let boxes = |(first, last, ports): (u128, u128, Vec<Ports>)| {
        ports.into_iter().map(move |ports| Range { first, last, ports })
    };
    strips.into_iter().flat_map(boxes).collect()
}

/// Ports without overlaps, in order.
fn merged<'a>(all: impl Iterator<Item = &'a Ports>) -> Vec<Ports> {
    let mut by_protocol: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
    for ports in all {
        match ports.protocol {
            None => return vec![Ports::ALL],
            Some(protocol) => by_protocol.entry(protocol).or_default().push((ports.first, ports.last)),
        }
    }
    let mut out: Vec<Ports> = Vec::new();
    for (protocol, mut ranges) in by_protocol {
        ranges.sort_unstable();
        for (first, last) in ranges {
            match out.last_mut().filter(|before| before.protocol == Some(protocol)) {
                Some(before) if first <= before.last.saturating_add(1) => before.last = before.last.max(last),
                _ => out.push(Ports { protocol: Some(protocol), first, last }),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports() -> impl Strategy<Value = Ports> {
        (0u8..4, 0u16..12, 0u16..5).prop_map(|(protocol, first, more)| match protocol {
            0 => Ports::ALL,
            _ => Ports { protocol: Some(protocol), first, last: first + more },
        })
    }

    fn allow() -> impl Strategy<Value = Allow> {
        (0u128..12, 0u128..5, proptest::collection::vec(ports(), 1..4))
            .prop_map(|(first, more, ports)| Allow { first, last: first + more, ports })
    }

    fn has(ports: &Ports, protocol: u8, port: u16) -> bool {
        ports.protocol.is_none_or(|p| p == protocol) && (ports.first..=ports.last).contains(&port)
    }

    proptest! {
        /// Every packet is in one box if it is allowed, and in none if it is not.
        #[test]
        fn boxes_hold_the_same_and_do_not_overlap(allows in proptest::collection::vec(allow(), 0..6)) {
            let boxes = disjoint(&allows);
            for address in 0..18 {
                for protocol in 0..4 {
                    for port in 0..18 {
                        let allowed = allows.iter().any(|a| {
                            (a.first..=a.last).contains(&address) && a.ports.iter().any(|p| has(p, protocol, port))
                        });
                        let inside = boxes.iter().filter(|b| {
                            (b.first..=b.last).contains(&address) && has(&b.ports, protocol, port)
                        });
                        prop_assert_eq!(inside.count(), usize::from(allowed));
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_address_is_one_too() {
        for last in [u32::MAX.into(), u128::MAX] {
            let all = Allow { first: 0, last, ports: vec![Ports::ALL] };
            assert_eq!(disjoint(&[all.clone(), all]), [Range { first: 0, last, ports: Ports::ALL }]);
        }
    }
}
