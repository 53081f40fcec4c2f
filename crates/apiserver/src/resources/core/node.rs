//! Node.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use api::{FieldError, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::allocation;
use crate::resource::{Change, Extension, Reader, Strategy, WriteContext};
use crate::resources::check::{At, Errors};
use crate::resources::row::Hooks;
use crate::resources::{names, quantity};

const NODE: Hooks = Hooks { default, validate, validate_update, status_on_create: true, ..Hooks::NONE };

/// Pods of all nodes; each node gets a network of 256 addresses out of it.
pub(crate) const POD_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);
const POD_NETWORK_KEYS: &str = "/podium/nodes/pod-networks/";

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
                Change::Create(new) if pod_networks(new).is_empty() => assign(cx.reader, new, txn).await,
                Change::Create(new) => claim(cx.reader, new, &[], txn).await,
                Change::Update { new, old } => claim(cx.reader, new, &pod_networks(old), txn).await,
                Change::Delete(old) => {
                    for key in pod_networks(old).iter().filter_map(|cidr| network_key(cidr)) {
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

/// The private key of a node network; `None` for networks that are not given out here.
fn network_key(cidr: &str) -> Option<String> {
    let (IpAddr::V4(address), 24) = names::parse_cidr(cidr)? else { return None };
    let [a, b, c, _] = address.octets();
    (POD_NETWORK.octets()[..2] == [a, b]).then(|| format!("{POD_NETWORK_KEYS}{a}.{b}.{c}.0"))
}

/// Gives the first free network. Number 0 is the control plane's machine's, which asks for it by name. When none is
/// left the Node has none, as in Kubernetes.
async fn assign(reader: &dyn Reader, node: &mut Object, txn: &mut Extension) -> Result<(), Status> {
    let taken: HashSet<String> =
        reader.private_range(POD_NETWORK_KEYS).await?.into_iter().map(|entry| entry.key).collect();
    let [a, b, ..] = POD_NETWORK.octets();
    let free = (1..=255)
        .map(|c| format!("{a}.{b}.{c}.0"))
        .find(|n| !taken.contains(&format!("{POD_NETWORK_KEYS}{n}")));
    if let Some(network) = free {
        let cidr = format!("{network}/24");
        node.set(&["spec", "podCIDR"], cidr.as_str());
        node.set(&["spec", "podCIDRs"], json!([cidr]));
        txn.claim(&format!("{POD_NETWORK_KEYS}{network}"), node.name().to_owned());
    }
    Ok(())
}

/// Claims what the Node names and did not have before.
async fn claim(
    reader: &dyn Reader,
    node: &Object,
    before: &[String],
    txn: &mut Extension,
) -> Result<(), Status> {
    for cidr in pod_networks(node).iter().filter(|cidr| !before.contains(cidr)) {
        let Some(key) = network_key(cidr) else { continue };
        match reader.private(&key).await? {
            None => txn.claim(&key, node.name().to_owned()),
            Some(entry) if entry.value == node.name().as_bytes() => {}
            Some(_) => {
                let error = FieldError::invalid("spec.podCIDRs", cidr.as_str(), "belongs to another node");
                return Err(Status::invalid("", "Node", node.name(), &[error]));
            }
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
