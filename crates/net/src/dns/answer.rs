//! Query in, reply out. Pure: what a query deserves depends on the zone alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{Records, Zone};

/// Seconds a client may keep an answer, positive or negative. Short: endpoints come and go.
const TTL: u32 = 5;
/// Version of the specification, as `dns-version` tells it.
const SPECIFICATION: &str = "1.1.0";
/// Largest UDP reply we announce; fits every common path without fragments (DNS flag day 2020).
pub(super) const UDP_BYTES: u16 = 1232;

/// What the zone has for a name.
enum Found {
    /// The name exists; the records of the type asked for, maybe none. Helpful further records with it.
    Records {
        answers: Vec<RData>,
        additional: Vec<Record>,
    },
    Alias(Name),
    Nothing,
}

/// The reply to a request, or `None` if the name is not ours and has to be forwarded. A reply that ends with an
/// alias to a name outside the zone lets the caller look that up too.
pub fn answer(request: &Message, zone: &Zone) -> Option<Message> {
    let mut reply = empty_reply(request);
    let refuse = |mut reply: Message, code| {
        reply.metadata.response_code = code;
        Some(reply)
    };
    if request.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return refuse(reply, ResponseCode::BADVERS);
    }
    let [query] = &request.queries[..] else {
        return refuse(reply, ResponseCode::FormErr);
    };
    let ours = zone.contains(query.name());
    if query.query_class() != DNSClass::IN {
        return refuse(reply, ResponseCode::Refused);
    }
    let found = if ours {
        // Everything about a name at once only helps attackers (RFC 8482).
        if query.query_type() == RecordType::ANY {
            return refuse(reply, ResponseCode::Refused);
        }
        look_up(zone, query)
    } else {
        reverse(zone, query)?
    };
    reply.metadata.authoritative = true;
    fill(&mut reply, zone, query, found);
    // Clients often take the first address: let it differ from query to query.
    if !reply.answers.is_empty() && query.query_type() != RecordType::CNAME {
        let by = usize::from(request.metadata.id) % reply.answers.len();
        if reply.answers.iter().all(|r| r.record_type() == query.query_type()) {
            reply.answers.rotate_left(by);
        }
    }
    Some(reply)
}

/// A reply with nothing but the question.
pub(super) fn empty_reply(request: &Message) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES);
        reply.set_edns(edns);
    }
    reply
}

fn fill(reply: &mut Message, zone: &Zone, query: &Query, found: Found) {
    let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
    match found {
        Found::Nothing => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authorities(soa(zone));
        }
        Found::Records { answers, additional } => {
            if answers.is_empty() {
                reply.add_authorities(soa(zone));
            }
            reply.add_answers(answers.into_iter().map(record));
            reply.add_additionals(additional);
        }
        Found::Alias(target) => {
            reply.add_answer(record(RData::CNAME(CNAME(target.clone()))));
            if query.query_type() != RecordType::CNAME && zone.contains(&target) {
                let next = Query::query(target.clone(), query.query_type());
                // One step: an alias of an alias is left to the client.
                if let Found::Records { answers, .. } = look_up(zone, &next) {
                    let owned = |data| Record::from_rdata(target.clone(), TTL, data);
                    reply.add_answers(answers.into_iter().map(owned));
                }
            }
        }
    }
}

/// The zone's SOA, for negative answers (RFC 2308).
fn soa(zone: &Zone) -> Option<Record> {
    Some(Record::from_rdata(zone.domain.clone(), TTL, soa_data(zone)?))
}

fn soa_data(zone: &Zone) -> Option<RData> {
    let (server, contact) = (zone.name("ns.dns")?, zone.name("hostmaster")?);
    // The serial number matters to secondary servers only; there are none.
    Some(RData::SOA(SOA::new(server, contact, 1, 7200, 1800, 86400, TTL)))
}

/// A name in the domain.
fn look_up(zone: &Zone, query: &Query) -> Found {
    let depth = usize::from(query.name().num_labels() - zone.domain.num_labels());
    let labels: Option<Vec<String>> = query
        .name()
        .iter()
        .take(depth)
        .map(|l| std::str::from_utf8(l).ok().map(str::to_ascii_lowercase))
        .collect();
    let Some(labels) = labels else { return Found::Nothing };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let kind = query.query_type();
    match labels[..] {
        [] => apex(zone, kind),
        ["dns-version"] if kind == RecordType::TXT => {
            only(vec![RData::TXT(TXT::new(vec![SPECIFICATION.into()]))])
        }
        ["dns-version"] | ["svc"] | ["pod"] | ["dns"] => only(vec![]),
        // The name in NS and SOA records: wherever pods find DNS.
        ["ns", "dns"] => {
            let found = zone.records("kube-system", "kube-dns").into_iter();
            only(addresses(kind, found.flat_map(|r| r.addresses.iter().copied())))
        }
        [namespace, "svc"] if zone.has_namespace(namespace) => only(vec![]),
        [_, "pod"] => only(vec![]),
        [dashed, _, "pod"] => match dashed_address(dashed) {
            Some(address) => only(addresses(kind, [address])),
            None => Found::Nothing,
        },
        [service, namespace, "svc"] => match zone.records(namespace, service) {
            None => Found::Nothing,
            Some(Records { alias: Some(target), .. }) => Found::Alias(target.clone()),
            Some(records) => only(addresses(kind, records.addresses.iter().copied())),
        },
        [host, service, namespace, "svc"] => {
            let Some(records) = zone.records(namespace, service) else { return Found::Nothing };
            if let Some(found) = records.hosts.get(host) {
                return only(addresses(kind, found.iter().copied()));
            }
            let protocol = host.strip_prefix('_');
            let above_ports = records.ports.keys().any(|(_, p)| Some(p.as_str()) == protocol);
            if above_ports { only(vec![]) } else { Found::Nothing }
        }
        [port, protocol, service, namespace, "svc"] => {
            let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                return Found::Nothing;
            };
            let Some(records) = zone.records(namespace, service) else { return Found::Nothing };
            match records.ports.get(&(port.to_owned(), protocol.to_owned())) {
                None => Found::Nothing,
                Some(_) if kind != RecordType::SRV => only(vec![]),
                Some(targets) => ports(zone, &format!("{service}.{namespace}.svc"), records, targets),
            }
        }
        _ => Found::Nothing,
    }
}

fn only(answers: Vec<RData>) -> Found {
    Found::Records { answers, additional: Vec::new() }
}

fn apex(zone: &Zone, kind: RecordType) -> Found {
    let data = match kind {
        RecordType::SOA => soa_data(zone),
        RecordType::NS => zone.name("ns.dns").map(|n| RData::NS(NS(n))),
        _ => None,
    };
    only(data.into_iter().collect())
}

fn addresses(kind: RecordType, all: impl IntoIterator<Item = IpAddr>) -> Vec<RData> {
    let of_kind = |address| match (address, kind) {
        (IpAddr::V4(a), RecordType::A) => Some(RData::A(A(a))),
        (IpAddr::V6(a), RecordType::AAAA) => Some(RData::AAAA(AAAA(a))),
        _ => None,
    };
    all.into_iter().filter_map(of_kind).collect()
}

fn ports(zone: &Zone, service: &str, records: &Records, targets: &BTreeSet<(u16, String)>) -> Found {
    const PRIORITY: u16 = 0;
    let weight = 100 / u16::try_from(targets.len().clamp(1, 100)).expect("at most 100");
    let (mut answers, mut additional) = (Vec::new(), Vec::new());
    for (port, host) in targets {
        let relative = if host.is_empty() { service.to_owned() } else { format!("{host}.{service}") };
        let Some(name) = zone.name(&relative) else { continue };
        answers.push(RData::SRV(SRV::new(PRIORITY, weight, *port, name.clone())));
        let of_target = if host.is_empty() { Some(&records.addresses) } else { records.hosts.get(host) };
        for kind in [RecordType::A, RecordType::AAAA] {
            let data = addresses(kind, of_target.into_iter().flatten().copied());
            additional.extend(data.into_iter().map(|d| Record::from_rdata(name.clone(), TTL, d)));
        }
    }
    Found::Records { answers, additional }
}

/// `1-2-3-4`, or an IPv6 address with dashes for colons.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let four = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    four.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// A name below `in-addr.arpa` or `ip6.arpa` that is ours; `None` for all other names.
fn reverse(zone: &Zone, query: &Query) -> Option<Found> {
    let network = query.name().parse_arpa_name().ok()?;
    if network.prefix_len() != network.max_prefix_len() {
        return None;
    }
    let names: Vec<Name> = zone.names_of(network.addr()).filter_map(|n| zone.name(n)).collect();
    if names.is_empty() {
        return zone.owns_reverse(network.addr()).then_some(Found::Nothing);
    }
    if query.query_type() != RecordType::PTR {
        return Some(only(vec![]));
    }
    Some(only(names.into_iter().map(|n| RData::PTR(PTR(n))).collect()))
}

#[cfg(test)]
mod tests;
