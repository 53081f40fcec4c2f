//! How frontends become nftables data: a fixed program and maps, no chain per service.
//!
//! ```text
//!   prerouting, output ─▶ dispatch: address . protocol . port ─▶ verdict map `services`
//!                                   (then 0.0.0.0 . protocol . port, if the destination is local: node ports)
//!                                   (both first as a frontend for clients inside, if the client is one)
//!        goto pick-<kind>-<number of targets>[-<affinity seconds>]
//!             number = random below the count;  map `targets`: address . protocol . port . number ─▶ dnat
//!   affinity: map `sticky` (client . address . protocol . port ─▶ address of the target, expires), good while
//!             map `affine` (address . protocol . port . address of the target ─▶ target) has it
//!   postrouting: who must look like the node (hairpin, loopback, pods to the outside) is masqueraded
//! ```
//!
//! One such table for each address family. They differ in how many registers an address fills (`w`: 1 or 4, of 16).
//!
//! The number of chains is bounded by the distinct (kind, count, seconds), not by services. One changed endpoint
//! is a handful of elements. No packet leaves with another mark than it came with, so there is none to clash with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ruleset::{Backend, Frontend, Target};
use crate::address::{Family, Network, base_of, mask, octets, range};
use crate::nft::{
    Batch, Expr, Field, Hook, HookPoint, R, SetKind, SetSpec, SetValue, Value, Verdict, registers,
};
use crate::policy::PodRules;

use Field::{Address, Number, Port, Protocol};

/// The sets and maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    Services,
    Targets,
    Affine,
    Sticky,
    Closed,
    Hairpin,
    Restricted,
    Allowed,
    /// pods that may receive only what `AllowedIn` has
    IsolatedIn,
    AllowedIn,
    IsolatedOut,
    AllowedOut,
}

impl Set {
    pub(crate) const ALL: [Set; 12] = [
        Set::Services,
        Set::Targets,
        Set::Affine,
        Set::Sticky,
        Set::Closed,
        Set::Hairpin,
        Set::Restricted,
        Set::Allowed,
        Set::IsolatedIn,
        Set::AllowedIn,
        Set::IsolatedOut,
        Set::AllowedOut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Set::Services => "services",
            Set::Targets => "targets",
            Set::Affine => "affine",
            Set::Sticky => "sticky",
            Set::Closed => "closed",
            Set::Hairpin => "hairpin",
            Set::Restricted => "restricted",
            Set::Allowed => "allowed",
            Set::IsolatedIn => "isolated-in",
            Set::AllowedIn => "allowed-in",
            Set::IsolatedOut => "isolated-out",
            Set::AllowedOut => "allowed-out",
        }
    }

    fn spec(self) -> SetSpec {
        let (key, value): (&'static [Field], _) = match self {
            Set::Services | Set::Closed => (&[Address, Protocol, Port], SetValue::Verdict),
            Set::Targets => (&[Address, Protocol, Port, Number], SetValue::Data(&[Address, Port])),
            Set::Affine => (&[Address, Protocol, Port, Address], SetValue::Data(&[Address, Port])),
            Set::Sticky => (&[Address, Address, Protocol, Port], SetValue::Data(&[Address])),
            Set::Hairpin => (&[Address, Address], SetValue::Nothing),
            Set::Restricted => (&[Address, Protocol, Port], SetValue::Nothing),
            Set::Allowed => (&[Address, Protocol, Port, Address], SetValue::Nothing),
            Set::IsolatedIn | Set::IsolatedOut => (&[Address], SetValue::Nothing),
            Set::AllowedIn | Set::AllowedOut => (&[Address, Address, Protocol, Port], SetValue::Nothing),
        };
        let kind = match self {
            Set::Sticky => SetKind::Dynamic,
            Set::Allowed | Set::AllowedIn | Set::AllowedOut => SetKind::Ranges,
            _ => SetKind::Plain,
        };
        SetSpec { name: self.name(), key, value, kind }
    }
}

/// A chain that picks one of `count` targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pick {
    /// keyed by 0.0.0.0 instead of the packet's destination
    node_port: bool,
    /// for clients inside the cluster
    inside: bool,
    count: u32,
    affinity_seconds: Option<u32>,
}

impl Pick {
    fn name(self) -> String {
        let kind = match (self.node_port, self.inside) {
            (true, false) => "node",
            (false, false) => "ip",
            (true, true) => "node-inside",
            (false, true) => "ip-inside",
        };
        match self.affinity_seconds {
            Some(seconds) => format!("pick-{kind}-{}-{seconds}s", self.count),
            None => format!("pick-{kind}-{}", self.count),
        }
    }

    /// Writes the chain and its rules. What lies in the registers, with addresses of `w` registers: without affinity
    /// the frontend (w+2), a number, the target (w+1); with affinity the client (w), the frontend (w+2), then the
    /// address of the target that the client had (w) or a number and the target (w+1).
    pub(crate) fn write(self, batch: &mut Batch) {
        let name = self.name();
        let family = batch.family();
        let w = registers(family);
        batch.chain(&name, None);
        let Some(seconds) = self.affinity_seconds else {
            let (number, target) = (w + 2, w + 3);
            let mut rule = self.frontend(0, family);
            rule.push(Expr::Random(R(number), self.count));
            rule.push(Expr::Map(Set::Targets.name(), R(0), R(target)));
            rule.push(Expr::Dnat(R(target), R(target + w)));
            batch.rule(&name, &rule);
            return;
        };
        let sticky = Set::Sticky.name();
        let (frontend, behind) = (w, 2 * w + 2);
        let mut known = vec![Expr::Source(R(0))];
        known.extend(self.frontend(frontend, family));
        known.push(Expr::Map(sticky, R(0), R(behind)));
        known.extend(by_way_of_mark(behind, w, behind + w));
        // If the target is gone the next rule writes another one.
        known.push(Expr::Remember(sticky, R(0), R(behind), seconds));
        // The client is not needed any more: the target takes its place.
        known.push(Expr::Map(Set::Affine.name(), R(frontend), R(0)));
        known.push(Expr::Dnat(R(0), R(w)));
        batch.rule(&name, &known);
        let target = behind + 1;
        let mut fresh = vec![Expr::Source(R(0))];
        fresh.extend(self.frontend(frontend, family));
        fresh.push(Expr::Random(R(behind), self.count));
        fresh.push(Expr::Map(Set::Targets.name(), R(frontend), R(target)));
        fresh.extend(by_way_of_mark(target, w, behind));
        // An entry for a target that is gone would only have its time refreshed.
        fresh.push(Expr::Forget(sticky, R(0), R(target)));
        fresh.push(Expr::Remember(sticky, R(0), R(target), seconds));
        fresh.push(Expr::Dnat(R(target), R(target + w)));
        batch.rule(&name, &fresh);
    }

    fn frontend(self, first: u32, family: Family) -> Vec<Expr> {
        frontend_key(first, self.node_port, self.inside, family)
    }
}

/// Copies registers onto themselves by way of the packet's mark, which is as before at the end (`spare` keeps it
/// meanwhile). That is for `nft list`: it aborts when what came out of a map is part of another key.
fn by_way_of_mark(first: u32, count: u32, spare: u32) -> Vec<Expr> {
    let copy = (first..first + count).flat_map(|r| [Expr::SetMark(R(r)), Expr::Mark(R(r))]);
    std::iter::once(Expr::Mark(R(spare))).chain(copy).chain([Expr::SetMark(R(spare))]).collect()
}

/// In the part of a key that holds the protocol, behind the protocol: the frontend is for clients inside.
const INSIDE: [u8; 4] = [0, 0, 0, 1];

/// Loads address, protocol and port of the packet's destination into registers.
fn frontend_key(first: u32, node_port: bool, inside: bool, family: Family) -> Vec<Expr> {
    let address = match node_port {
        true => Expr::Load(R(first), octets(family.unspecified())),
        false => Expr::Destination(R(first)),
    };
    let behind = first + registers(family);
    let mut key = vec![address, Expr::L4Protocol(R(behind))];
    key.extend(inside.then_some(Expr::Xor(R(behind), INSIDE)));
    key.push(Expr::DestinationPort(R(behind + 1)));
    key
}

/// What a frontend puts into the maps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) elements: BTreeMap<(Set, Vec<u8>), Value>,
    pub(crate) picks: BTreeSet<Pick>,
}

/// The map elements of one frontend, without the hairpin set (which is shared by frontends).
pub(crate) fn entries(family: Family, frontend: &Frontend, backend: &Backend) -> Entries {
    let mut out = Entries::default();
    let key = frontend_bytes(family, frontend);
    match backend {
        Backend::Reject => {
            out.elements.insert((Set::Closed, key), Value::Verdict(Verdict::Goto("refuse".into())));
        }
        Backend::Drop => {
            out.elements.insert((Set::Closed, key), Value::Verdict(Verdict::Drop));
        }
        Backend::DropOutside => {
            out.elements.insert((Set::Closed, key), Value::Verdict(Verdict::Goto("drop-outside".into())));
        }
        Backend::Targets { targets, affinity_seconds, sources } => {
            if !sources.is_empty() {
                out.elements.insert((Set::Restricted, key.clone()), Value::Nothing);
            }
            for (first, last) in merged(family, sources) {
                let from = [&key[..], &octets(first)].concat();
                let to = [&key[..], &octets(last)].concat();
                out.elements.insert((Set::Allowed, from), Value::Until(to));
            }
            let count = u32::try_from(targets.len()).expect("fewer than 2^32 endpoints");
            let pick = Pick {
                node_port: frontend.address.is_none(),
                inside: frontend.inside,
                count,
                affinity_seconds: *affinity_seconds,
            };
            for (number, target) in (0u32..).zip(targets) {
                let numbered = [&key[..], &number.to_ne_bytes()].concat();
                out.elements.insert((Set::Targets, numbered), Value::Data(target_bytes(*target)));
                if affinity_seconds.is_some() {
                    let affine = [&key[..], &octets(target.address)].concat();
                    // Two targets of one address differ in port only; a client stays with the first.
                    out.elements.entry((Set::Affine, affine)).or_insert(Value::Data(target_bytes(*target)));
                }
            }
            out.elements.insert((Set::Services, key), Value::Verdict(Verdict::Goto(pick.name())));
            out.picks.insert(pick);
        }
    }
    out
}

/// First and last addresses of a family's networks, without overlaps, which the kernel refuses.
fn merged(family: Family, networks: &[Network]) -> Vec<(IpAddr, IpAddr)> {
    let mut ranges: Vec<(u128, u128)> = networks.iter().map(|network| range(*network)).collect();
    ranges.sort_unstable();
    let mut out: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out.into_iter().map(|(first, last)| (family.address(first), family.address(last))).collect()
}

/// The set elements of an isolated pod.
pub(crate) fn policy_entries(address: IpAddr, rules: &PodRules) -> BTreeMap<(Set, Vec<u8>), Value> {
    let mut out = BTreeMap::new();
    let directions = [
        (&rules.ingress, Set::IsolatedIn, Set::AllowedIn),
        (&rules.egress, Set::IsolatedOut, Set::AllowedOut),
    ];
    for (allowed, isolated, set) in directions {
        let Some(allowed) = allowed else { continue };
        out.insert((isolated, octets(address)), Value::Nothing);
        for range in allowed {
            let (first, last) = range.ports.protocol.map_or((0, u8::MAX), |p| (p, p));
            let key = |peer: u128, protocol: u8, port: u16| {
                let peer = octets(Family::of(address).address(peer));
                let port = port.to_be_bytes();
                [&octets(address)[..], &peer, &[protocol, 0, 0, 0], &port, &[0; 2]].concat()
            };
            let until = key(range.last, last, range.ports.last);
            out.insert((set, key(range.first, first, range.ports.first)), Value::Until(until));
        }
    }
    out
}

/// The element that lets a pod reach itself through a service.
pub(crate) fn hairpin(address: IpAddr) -> (Set, Vec<u8>) {
    (Set::Hairpin, octets(address).repeat(2))
}

fn frontend_bytes(family: Family, frontend: &Frontend) -> Vec<u8> {
    let mut out = octets(frontend.address.unwrap_or(family.unspecified()));
    out.extend([frontend.protocol.number(), 0, 0, u8::from(frontend.inside)]);
    out.extend(frontend.port.to_be_bytes());
    out.extend([0; 2]);
    out
}

fn target_bytes(target: Target) -> Vec<u8> {
    let mut out = octets(target.address);
    out.extend(target.port.to_be_bytes());
    out.extend([0; 2]);
    out
}

/// Addresses the fixed part of the program depends on, all of one family.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) pod_cidr: Network,
    /// all pods of the cluster, reached without masquerading
    pub(crate) cluster_cidr: Network,
    pub(crate) gateway: IpAddr,
    /// cluster IPs: nothing answers there but services
    pub(crate) service_cidr: Option<Network>,
}

impl Addresses {
    pub(crate) fn family(&self) -> Family {
        Family::of(self.pod_cidr.0)
    }

    fn loopback(&self) -> Network {
        match self.family() {
            Family::V4 => (Ipv4Addr::LOCALHOST.into(), 8),
            Family::V6 => (Ipv6Addr::LOCALHOST.into(), 128),
        }
    }
}

/// The sets and the chains that no picking chain leads to; comes before picks and elements.
pub(crate) fn write_sets_and_leaves(batch: &mut Batch) {
    for set in Set::ALL {
        batch.set(&set.spec());
    }
    batch.chain("drop-outside", None);
    batch.chain("refuse", None);
    batch.rule("refuse", &[Expr::L4Protocol(R(0)), Expr::Equal(R(0), vec![6]), Expr::RejectTcpReset]);
    batch.rule("refuse", &[Expr::RejectPortUnreachable]);
}

/// The chains that look into the maps and the hooks; comes after the elements, so that no packet meets a map
/// that is half full.
pub(crate) fn write_hooks(batch: &mut Batch, at: &Addresses) {
    drop_outside(batch, at);
    look_up(batch, "dispatch-inside", Set::Services, true);
    look_up(batch, "dispatch", Set::Services, false);
    look_up(batch, "check-closed", Set::Closed, false);
    check_sources(batch);

    const RAW: i32 = -300;
    const BEFORE_DNAT: i32 = -110;
    const DNAT: i32 = -100;
    const SNAT: i32 = 100;
    let hook = |kind, point, priority| Some(Hook { kind, point, priority });
    // Pods' links may carry loopback addresses for node ports; nobody outside may use that.
    batch.chain("guard-loopback", hook("filter", HookPoint::Prerouting, RAW));
    for load in [Expr::Destination(R(4)), Expr::Source(R(4))] {
        let mut name = b"lo".to_vec();
        name.resize(16, 0);
        let foreign = [Expr::InterfaceInName(R(0)), Expr::NotEqual(R(0), name), load];
        let rule = [&foreign[..], &in_range(4, at.loopback(), true), &[Expr::Do(Verdict::Drop)]];
        batch.rule("guard-loopback", &rule.concat());
    }
    for (closed, nat, point) in [
        ("closed-prerouting", "nat-prerouting", HookPoint::Prerouting),
        ("closed-output", "nat-output", HookPoint::Output),
    ] {
        batch.chain(closed, hook("filter", point, BEFORE_DNAT));
        batch.rule(closed, &[&new_flow()[..], &[Expr::Do(Verdict::Jump("check-closed".into()))]].concat());
        batch.chain(nat, hook("nat", point, DNAT));
        let mut from_inside = match point {
            HookPoint::Output => Vec::new(),
            _ => [&[Expr::Source(R(4))][..], &in_range(4, at.cluster_cidr, true)].concat(),
        };
        from_inside.push(Expr::Do(Verdict::Jump("dispatch-inside".into())));
        batch.rule(nat, &from_inside);
        batch.rule(nat, &[Expr::Do(Verdict::Jump("dispatch".into()))]);
    }
    let new_flows = [&new_flow()[..], &[Expr::Do(Verdict::Jump("check-sources".into()))]].concat();
    batch.rule("closed-prerouting", &new_flows);
    if let Some(services) = at.service_cidr {
        const FILTER: i32 = 0;
        // What is still on its way to a cluster IP after the rewriting has no service.
        for (chain, point) in [("strays-forward", HookPoint::Forward), ("strays-output", HookPoint::Output)] {
            batch.chain(chain, hook("filter", point, FILTER));
            let to_nobody = [&[Expr::Destination(R(4))][..], &in_range(4, services, true)].concat();
            batch.rule(chain, &[&to_nobody[..], &[Expr::Do(Verdict::Goto("refuse".into()))]].concat());
        }
    }
    policies(batch);
    batch.chain("nat-postrouting", hook("nat", HookPoint::Postrouting, SNAT));
    postrouting(batch, at);
}

/// Holds for the first packet of a flow.
fn new_flow() -> [Expr; 3] {
    const STATE_NEW: u32 = 8;
    [Expr::CtState(R(0)), Expr::And(R(0), STATE_NEW.to_ne_bytes().to_vec()), Expr::NotEqual(R(0), vec![0; 4])]
}

/// Kind of an address that the machine itself has (RTN_LOCAL).
const LOCAL: u32 = 2;

/// Drops what comes from neither a pod nor the node itself.
fn drop_outside(batch: &mut Batch, at: &Addresses) {
    const CHAIN: &str = "drop-outside";
    let from_pod = [&[Expr::Source(R(4))][..], &in_range(4, at.cluster_cidr, true)].concat();
    batch.rule(CHAIN, &[&from_pod[..], &[Expr::Do(Verdict::Return)]].concat());
    let own = [Expr::SourceType(R(0)), Expr::Equal(R(0), LOCAL.to_ne_bytes().to_vec())];
    batch.rule(CHAIN, &[&own[..], &[Expr::Do(Verdict::Return)]].concat());
    batch.rule(CHAIN, &[Expr::Do(Verdict::Drop)]);
}

/// `loadBalancerSourceRanges`: what goes to a restricted frontend must come from an allowed network.
fn check_sources(batch: &mut Batch) {
    const CHAIN: &str = "check-sources";
    batch.chain(CHAIN, None);
    let mut rule = frontend_key(0, false, false, batch.family());
    rule.push(Expr::InSet(Set::Restricted.name(), R(0)));
    rule.push(Expr::Source(R(registers(batch.family()) + 2)));
    rule.push(Expr::NotInSet(Set::Allowed.name(), R(0)));
    rule.push(Expr::Do(Verdict::Drop));
    batch.rule(CHAIN, &rule);
}

/// New flows of isolated pods must be among those that are allowed. Here addresses are those of pods, not of services:
/// destinations are rewritten already, sources not yet. What the node itself says to its pods does not pass.
fn policies(batch: &mut Batch) {
    const BEFORE_FILTERS: i32 = -10;
    let w = registers(batch.family());
    let ingress = [Expr::Destination(R(0)), Expr::InSet(Set::IsolatedIn.name(), R(0)), Expr::Source(R(w))];
    let egress = [Expr::Source(R(0)), Expr::InSet(Set::IsolatedOut.name(), R(0)), Expr::Destination(R(w))];
    for (chain, pod, set) in
        [("policy-ingress", ingress, Set::AllowedIn), ("policy-egress", egress, Set::AllowedOut)]
    {
        batch.chain(chain, None);
        let port = Expr::DestinationPort(R(2 * w + 1));
        let asked = [Expr::L4Protocol(R(2 * w)), port, Expr::NotInSet(set.name(), R(0))];
        batch.rule(chain, &[&pod[..], &asked, &[Expr::Do(Verdict::Drop)]].concat());
    }
    for (hook, point, chains) in [
        ("policy-forward", HookPoint::Forward, &["policy-ingress", "policy-egress"][..]),
        ("policy-input", HookPoint::Input, &["policy-egress"]),
    ] {
        batch.chain(hook, Some(Hook { kind: "filter", point, priority: BEFORE_FILTERS }));
        for chain in chains {
            let go = Expr::Do(Verdict::Jump((*chain).into()));
            batch.rule(hook, &[&new_flow()[..], &[go]].concat());
        }
    }
}

/// A chain that looks the destination up as it is and then, if it is a local address, as a node port.
fn look_up(batch: &mut Batch, chain: &str, set: Set, inside: bool) {
    batch.chain(chain, None);
    let mut direct = frontend_key(0, false, inside, batch.family());
    direct.push(Expr::VerdictMap(set.name(), R(0)));
    batch.rule(chain, &direct);
    let mut local = vec![Expr::DestinationType(R(0)), Expr::Equal(R(0), LOCAL.to_ne_bytes().to_vec())];
    if batch.family() == Family::V6 {
        // The kernel lets no answer from elsewhere in for a loopback address of IPv6.
        local.push(Expr::Destination(R(0)));
        local.push(Expr::NotEqual(R(0), octets(Ipv6Addr::LOCALHOST.into())));
    }
    local.extend(frontend_key(0, true, inside, batch.family()));
    local.push(Expr::VerdictMap(set.name(), R(0)));
    batch.rule(chain, &local);
}

fn postrouting(batch: &mut Batch, at: &Addresses) {
    const CHAIN: &str = "nat-postrouting";
    const DESTINATION_REWRITTEN: u32 = 1 << 5;
    let rewritten = Expr::And(R(0), DESTINATION_REWRITTEN.to_ne_bytes().to_vec());
    let balanced = [Expr::CtStatus(R(0)), rewritten, Expr::NotEqual(R(0), vec![0; 4])];
    let source = |range, inside| [&[Expr::Source(R(4))][..], &in_range(4, range, inside)].concat();
    let destination = |range, inside| [&[Expr::Destination(R(4))][..], &in_range(4, range, inside)].concat();
    let as_gateway = [Expr::Load(R(0), octets(at.gateway)), Expr::Snat(R(0))];
    let loopback = at.loopback();

    // A pod that reaches itself must get answers by way of the node, which undoes the rewriting.
    let destination_at = R(4 + registers(batch.family()));
    let itself =
        [Expr::Source(R(4)), Expr::Destination(destination_at), Expr::InSet(Set::Hairpin.name(), R(4))];
    batch.rule(CHAIN, &[&balanced[..], &itself, &as_gateway].concat());
    // Node ports on loopback addresses.
    let from_loopback = [&balanced[..], &source(loopback, true)].concat();
    batch.rule(CHAIN, &[&from_loopback[..], &destination(at.pod_cidr, true), &as_gateway].concat());
    batch.rule(CHAIN, &[&from_loopback[..], &[Expr::Masquerade]].concat());
    // Answers of this node's pods pass here anyway: the client's address can be kept.
    batch.rule(CHAIN, &[&destination(at.pod_cidr, true)[..], &[Expr::Do(Verdict::Accept)]].concat());
    // Answers from elsewhere would go straight to an outside client.
    batch.rule(CHAIN, &[&balanced[..], &source(at.cluster_cidr, false), &[Expr::Masquerade]].concat());
    // Pods (and the gateway address) to the world outside.
    let outside = [source(at.pod_cidr, true), destination(at.cluster_cidr, false)].concat();
    batch.rule(CHAIN, &[&outside[..], &[Expr::Masquerade]].concat());
}

/// Compares the address in registers with a range.
fn in_range(register: u32, network: Network, inside: bool) -> Vec<Expr> {
    let base = octets(base_of(network).0);
    let compare = if inside { Expr::Equal(R(register), base) } else { Expr::NotEqual(R(register), base) };
    vec![Expr::And(R(register), mask(network)), compare]
}
