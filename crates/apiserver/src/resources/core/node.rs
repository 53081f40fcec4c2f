//! Node.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{FieldError, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::allocation;
use crate::resource::{Change, Extension, Strategy, WriteContext};
use crate::resources::check::{At, Errors};
use crate::resources::row::Hooks;
use crate::resources::{names, quantity};

const NODE: Hooks = Hooks { default, validate, validate_update, status_on_create: true, ..Hooks::NONE };

const POD_NETWORK_KEYS: &str = "/podium/nodes/pod-networks/";
/// How much of the pods' networks each node gets.
const NODE_PREFIX_V4: u8 = 24;
const NODE_PREFIX_V6: u8 = 64;

/// Node: hooks, and the allocation of pod networks as private keys in the Node's own commit.
pub(super) struct NodeStrategy;

impl Strategy for NodeStrategy {
    fn default(&self, object: &mut Object) {
        NODE.default(object);
    }

    fn keeps_status_on_create(&self) -> bool {
        NODE.keeps_status_on_create()
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        NODE.validate(object)
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        NODE.validate_update(new, old)
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        txn: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            match change {
                Change::Create(new) if pod_networks(new).is_empty() => assign(cx, new, txn).await,
                Change::Create(new) => claim(cx, new, &[], txn).await,
                Change::Update { new, old } => claim(cx, new, &pod_networks(old), txn).await,
                Change::Delete(old) => {
                    let numbered = NodeNetworks::new(cx.cluster_cidrs);
                    for number in pod_networks(old).iter().filter_map(|cidr| numbered.number_v4(cidr)) {
                        let key = numbered.key(number);
                        allocation::release(cx.reader, &key, old.name(), txn).await?;
                    }
                    Ok(())
                }
            }
        })
    }
}

fn pod_networks(o: &Object) -> Vec<String> {
    let list = o.get(&["spec", "podCIDRs"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// The networks of nodes, by number: number n of each family belongs to one node, so one private key stands for both.
#[derive(Clone, Copy, Debug)]
struct NodeNetworks {
    v4: Option<(Ipv4Addr, u8)>,
    v6: Option<(Ipv6Addr, u8)>,
}

impl NodeNetworks {
    fn new(cluster_cidrs: &[String]) -> Self {
        let mut out = Self { v4: None, v6: None };
        for cidr in cluster_cidrs {
            match names::parse_cidr(cidr) {
                Some((IpAddr::V4(base), prefix)) if prefix <= NODE_PREFIX_V4 => out.v4 = Some((base, prefix)),
                Some((IpAddr::V6(base), prefix)) if prefix <= NODE_PREFIX_V6 => out.v6 = Some((base, prefix)),
                _ => {}
            }
        }
        out
    }

    /// How many nodes have a network of every family.
    fn count(&self) -> u32 {
        let of = |node: u8, prefix: u8| 1u32.checked_shl(u32::from(node - prefix)).unwrap_or(u32::MAX);
        let v4 = self.v4.map_or(0, |(_, prefix)| of(NODE_PREFIX_V4, prefix));
        self.v6.map_or(v4, |(_, prefix)| of(NODE_PREFIX_V6, prefix).min(v4))
    }

    fn v4(&self, number: u32) -> Option<Ipv4Addr> {
        let (base, _) = self.v4?;
        Some(Ipv4Addr::from_bits(base.to_bits() + (number << (32 - NODE_PREFIX_V4))))
    }

    fn v6(&self, number: u32) -> Option<Ipv6Addr> {
        let (base, _) = self.v6?;
        Some(Ipv6Addr::from_bits(base.to_bits() + (u128::from(number) << (128 - NODE_PREFIX_V6))))
    }

    /// The number of an IPv4 network; `None` for networks that are not given out here.
    fn number_v4(&self, cidr: &str) -> Option<u32> {
        let (IpAddr::V4(address), NODE_PREFIX_V4) = names::parse_cidr(cidr)? else { return None };
        let number = address.to_bits().checked_sub(self.v4?.0.to_bits())? >> (32 - NODE_PREFIX_V4);
        (number < self.count()).then_some(number)
    }

    fn cidr_v6(&self, number: u32) -> Option<String> {
        self.v6(number).map(|network| format!("{network}/{NODE_PREFIX_V6}"))
    }

    fn key(&self, number: u32) -> String {
        let network = self.v4(number).unwrap_or(Ipv4Addr::UNSPECIFIED);
        format!("{POD_NETWORK_KEYS}{network}")
    }
}

/// Gives the first free number. Number 0 is the control plane's machine's, which asks for it by name. When none is
/// left the Node has no network, as in Kubernetes.
async fn assign(cx: &WriteContext<'_>, node: &mut Object, txn: &mut Extension) -> Result<(), Status> {
    let taken: HashSet<String> =
        cx.reader.private_range(POD_NETWORK_KEYS).await?.into_iter().map(|entry| entry.key).collect();
    let numbered = NodeNetworks::new(cx.cluster_cidrs);
    let free = (1..numbered.count()).find(|number| !taken.contains(&numbered.key(*number)));
    let Some((number, network)) = free.and_then(|number| Some((number, numbered.v4(number)?))) else {
        return Ok(());
    };
    let cidr = format!("{network}/{NODE_PREFIX_V4}");
    node.set(&["spec", "podCIDR"], cidr.as_str());
    node.set(&["spec", "podCIDRs"], json!([cidr]));
    complete(&numbered, node);
    txn.claim(&numbered.key(number), node.name().to_owned());
    Ok(())
}

/// A node that has a numbered network has that of the other family too, also one that is older than the family.
fn complete(numbered: &NodeNetworks, node: &mut Object) {
    let mut networks = pod_networks(node);
    let [single] = &networks[..] else { return };
    if let Some(cidr) = numbered.number_v4(single).and_then(|number| numbered.cidr_v6(number)) {
        networks.push(cidr);
        node.set(&["spec", "podCIDRs"], json!(networks));
    }
}

/// Claims what the Node names and did not have before.
async fn claim(
    cx: &WriteContext<'_>,
    node: &mut Object,
    before: &[String],
    txn: &mut Extension,
) -> Result<(), Status> {
    let numbered = NodeNetworks::new(cx.cluster_cidrs);
    complete(&numbered, node);
    let networks = pod_networks(node);
    let own = networks.iter().find_map(|cidr| numbered.number_v4(cidr));
    for cidr in networks.iter().filter(|cidr| !before.contains(cidr)) {
        let stranger = || {
            let error = FieldError::invalid("spec.podCIDRs", cidr.as_str(), "belongs to another node");
            Err(Status::invalid("", "Node", node.name(), &[error]))
        };
        if let (Some((IpAddr::V6(address), _)), Some((base, prefix))) = (names::parse_cidr(cidr), numbered.v6)
        {
            let inside = names::cidr_contains((base.into(), prefix), address.into());
            if inside && own.and_then(|number| numbered.cidr_v6(number)).as_ref() != Some(cidr) {
                return stranger();
            }
        }
        let Some(number) = numbered.number_v4(cidr) else { continue };
        let key = numbered.key(number);
        match cx.reader.private(&key).await? {
            None => txn.claim(&key, node.name().to_owned()),
            Some(entry) if entry.value == node.name().as_bytes() => {}
            Some(_) => return stranger(),
        }
    }
    Ok(())
}

/// `allocatable` is what `capacity` says where nobody says otherwise; `podCIDR` is the first of `podCIDRs`.
fn default(o: &mut Object) {
    let single = o.str(&["spec", "podCIDR"]).to_owned();
    let first = o.get(&["spec", "podCIDRs"]).and_then(|list| list.get(0)).cloned();
    match first {
        None if !single.is_empty() => o.set(&["spec", "podCIDRs"], json!([single])),
        Some(first) if single.is_empty() => o.set(&["spec", "podCIDR"], first),
        _ => {}
    }
    if let Some(capacity) = o.get(&["status", "capacity"]).filter(|c| c.is_object()).cloned() {
        o.set_default(&["status", "allocatable"], capacity);
    }
}

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    taints(&spec.field("taints"), e);
    let networks = spec.field("podCIDRs");
    for cidr in networks.items() {
        cidr.text(e, names::cidr);
    }
    if names::same_family_twice(&networks) {
        networks.invalid(e, "may specify no more than one CIDR for each IP family");
    }
    if let Some(first) = networks.items().next()
        && spec.field("podCIDR").is_set()
        && first.str() != spec.field("podCIDR").str()
    {
        networks.invalid(e, "podCIDR must be the first of podCIDRs");
    }
    let status = At::top(o, "status");
    for list in ["capacity", "allocatable"] {
        for (_, amount) in status.field(list).entries() {
            quantity::validate(&amount, e);
        }
    }
    let mut seen = HashSet::new();
    for address in status.field("addresses").items() {
        if !seen.insert((address.field("type").str(), address.field("address").str())) {
            e.push(FieldError::duplicate(&address.path, address.value.clone()));
        }
    }
}

fn taints(list: &At<'_>, e: &mut Errors) {
    let mut seen = HashSet::new();
    for taint in list.items() {
        taint.field("key").required_text(e, names::qualified_name);
        taint.field("value").text(e, names::label_value);
        taint.field("effect").required_one_of(e, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
        if !seen.insert((taint.field("key").str(), taint.field("effect").str())) {
            let mut error = FieldError::duplicate(&taint.path, taint.value.clone());
            error.message.push_str(": taints must be unique by key and effect pair");
            e.push(error);
        }
    }
}

/// Once given, the pod network and the provider id stay.
fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    let networks = |o: &Object| -> Vec<String> {
        let list = o.get(&["spec", "podCIDRs"]).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let (before, after) = (networks(old), networks(new));
    if !before.is_empty() && before != after {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        e.push(FieldError::forbidden("spec.podCIDRs", detail));
    } else if !old.str(&["spec", "podCIDR"]).is_empty()
        && old.str(&["spec", "podCIDR"]) != new.str(&["spec", "podCIDR"])
    {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        e.push(FieldError::forbidden("spec.podCIDR", detail));
    }
    let provider = |o: &Object| o.str(&["spec", "providerID"]).to_owned();
    if !provider(old).is_empty() && provider(old) != provider(new) {
        let detail = "node updates may not change providerID except from \"\" to valid";
        e.push(FieldError::forbidden("spec.providerID", detail));
    }
}
