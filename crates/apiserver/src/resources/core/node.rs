//! Node.

use std::collections::HashSet;

use api::{FieldError, Object};
use serde_json::{Value, json};

use crate::resources::check::{At, Errors};
use crate::resources::row::Hooks;
use crate::resources::{names, quantity};

pub(super) const NODE: Hooks = Hooks { default, validate, validate_update, ..Hooks::NONE };

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
