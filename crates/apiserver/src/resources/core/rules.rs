//! Defaults and rules of the smaller kinds of the core group.

use api::{FieldError, Object};
use serde_json::{Value, json};

use crate::resources::check::{At, Errors};
use crate::resources::defaults::{fill, items_mut};
use crate::resources::row::Hooks;
use crate::resources::{names, pod_spec, quantity, selectors};

pub(super) const BINDING: Hooks = Hooks {
    validate: |o, e| {
        let target = At::top(o, "target");
        if !target.field("kind").is_empty() && target.field("kind").str() != "Node" {
            e.push(FieldError::not_supported(
                "target.kind",
                target.field("kind").str(),
                &["Node", "<empty>"],
            ));
        }
        target.field("name").required(e);
    },
    ..Hooks::NONE
};

pub(super) const POD_TEMPLATE: Hooks = Hooks {
    create_on_update: true,
    default: |o| {
        if let Some(spec) = o.0.get_mut("template").and_then(|t| t.get_mut("spec")) {
            pod_spec::defaults::pod_spec(spec);
        }
    },
    validate: |o, e| {
        pod_spec::validate_template(&At::top(o, "template"), &["Always", "OnFailure", "Never"], e);
    },
    ..Hooks::NONE
};

pub(super) const REPLICATION_CONTROLLER: Hooks =
    Hooks { default: default_controller, validate: validate_controller, ..Hooks::NONE };

fn default_controller(o: &mut Object) {
    if let Some(labels) =
        o.get(&["spec", "template", "metadata", "labels"]).filter(|l| l.is_object()).cloned()
    {
        if At::top(o, "spec").field("selector").is_empty() {
            o.set(&["spec", "selector"], labels.clone());
        }
        if At::top(o, "metadata").field("labels").is_empty() {
            o.set(&["metadata", "labels"], labels);
        }
    }
    o.set_default(&["spec", "replicas"], 1);
    if let Some(spec) =
        o.0.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec"))
    {
        pod_spec::defaults::pod_spec(spec);
    }
}

fn validate_controller(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("replicas").non_negative(e);
    spec.field("minReadySeconds").non_negative(e);
    let selector = spec.field("selector");
    selector.required(e);
    let template = spec.field("template");
    if !template.is_set() {
        e.push(FieldError::required(&template.path, ""));
        return;
    }
    let wanted = json!({"matchLabels": selector.value});
    let labels = template.field("metadata").field("labels");
    if !selectors::matches(&wanted, labels.value) {
        e.push(FieldError::invalid(
            labels.path,
            labels.value.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod_spec::validate_template(&template, &["Always"], e);
}

pub(super) const ENDPOINTS: Hooks = Hooks {
    create_on_update: true,
    default: |o| {
        for subset in items_mut(o.0.get_mut("subsets")) {
            for port in items_mut(subset.get_mut("ports")) {
                fill(port, "protocol", "TCP");
            }
        }
    },
    validate: |o, e| {
        for subset in At::top(o, "subsets").items() {
            let (ready, other) = (subset.field("addresses"), subset.field("notReadyAddresses"));
            if ready.is_empty() && other.is_empty() {
                let detail = "must specify `addresses` or `notReadyAddresses`";
                e.push(FieldError::required(&subset.path, detail));
            }
            for address in ready.items().chain(other.items()) {
                address.field("ip").required_text(e, names::ip);
                address.field("hostname").text(e, names::dns_label);
            }
            let ports = subset.field("ports");
            for port in ports.items() {
                if ports.len() > 1 {
                    port.field("name").required(e);
                }
                port.field("name").text(e, names::dns_label);
                port.field("port").port(e);
                port.field("protocol").required_one_of(e, &["SCTP", "TCP", "UDP"]);
            }
        }
    },
    ..Hooks::NONE
};

pub(super) const LIMIT_RANGE: Hooks = Hooks {
    create_on_update: true,
    validate: |o, e| {
        let limits = At::top(o, "spec").field("limits");
        limits.unique(e, "type");
        for limit in limits.items() {
            limit.field("type").required(e);
            for kind in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                for (_, amount) in limit.field(kind).entries() {
                    quantity::validate(&amount, e);
                }
            }
            for (name, min) in limit.field("min").entries() {
                let max = limit.field("max").field(name);
                if quantity::compare(&min, &max) == Some(std::cmp::Ordering::Greater) {
                    let detail = format!("min value {} is greater than max value {}", min.str(), max.str());
                    min.invalid(e, &detail);
                }
            }
        }
    },
    default: |o| {
        let limits = o.0.get_mut("spec").and_then(|s| s.get_mut("limits"));
        for limit in items_mut(limits) {
            if limit["type"] != "Container" {
                continue;
            }
            // What is missing is taken from its stronger neighbour: max → default → defaultRequest ← min.
            let max = limit.get("max").cloned();
            inherit(limit, "default", max);
            let default = limit.get("default").cloned();
            inherit(limit, "defaultRequest", default);
            let min = limit.get("min").cloned();
            inherit(limit, "defaultRequest", min);
        }
    },
    ..Hooks::NONE
};

fn inherit(limit: &mut Value, field: &str, from: Option<Value>) {
    let Some(Value::Object(from)) = from else { return };
    fill(limit, field, json!({}));
    for (name, amount) in from {
        fill(&mut limit[field], &name, amount);
    }
}

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &At<'_>, e: &mut Errors) {
    let modes = spec.field("accessModes");
    modes.required_because(e, "at least 1 access mode is required");
    for mode in modes.items() {
        mode.one_of(e, MODES);
    }
    if modes.len() > 1 && modes.items().any(|m| m.str() == "ReadWriteOncePod") {
        modes.forbidden(e, "may not use ReadWriteOncePod with other access modes");
    }
    spec.field("volumeMode").one_of(e, &["Block", "Filesystem"]);
}

pub(super) const CLAIM: Hooks = Hooks {
    default: |o| o.set_default(&["spec", "volumeMode"], "Filesystem"),
    create: |_, o| o.set(&["status"], json!({"phase": "Pending"})),
    validate: |o, e| {
        let spec = At::top(o, "spec");
        access_modes(&spec, e);
        selectors::validate(&spec.field("selector"), e);
        storage_request(&spec.field("resources").field("requests").field("storage"), e);
        spec.field("storageClassName").text(e, names::dns_subdomain);
    },
    validate_update: update_claim,
    ..Hooks::NONE
};

fn storage_request(at: &At<'_>, e: &mut Errors) {
    if at.required(e) && quantity::validate(at, e).is_some_and(|n| n.is_zero()) {
        at.invalid(e, "must be greater than zero");
    }
}

/// A claim's spec stays, but for the size, the volume it is bound to and its attributes class.
fn update_claim(new: &Object, old: &Object, e: &mut Errors) {
    let mut copy = new.get(&["spec"]).cloned().unwrap_or_default();
    let before = old.get(&["spec"]).cloned().unwrap_or_default();
    let bound = !old.str(&["spec", "volumeName"]).is_empty();
    for name in ["resources", "volumeAttributesClassName", "volumeName"] {
        if name == "volumeName" && bound {
            continue;
        }
        match before.get(name) {
            Some(value) => copy[name] = value.clone(),
            None => drop(copy.as_object_mut().and_then(|m| m.remove(name))),
        }
    }
    if copy != before {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
             bound claims";
        e.push(FieldError::forbidden("spec", detail));
    }
}

pub(super) const VOLUME: Hooks = Hooks {
    default: |o| {
        o.set_default(&["spec", "volumeMode"], "Filesystem");
        o.set_default(&["spec", "persistentVolumeReclaimPolicy"], "Retain");
        if o.get(&["spec", "hostPath"]).is_some_and(Value::is_object) {
            o.set_default(&["spec", "hostPath", "type"], "");
        }
    },
    create: |_, o| o.set(&["status"], json!({"phase": "Pending"})),
    validate: |o, e| {
        let spec = At::top(o, "spec");
        access_modes(&spec, e);
        let capacity = spec.field("capacity");
        capacity.required(e);
        if !capacity.is_empty() {
            storage_request(&capacity.field("storage"), e);
        }
        spec.field("persistentVolumeReclaimPolicy").one_of(e, &["Delete", "Recycle", "Retain"]);
        spec.field("storageClassName").text(e, names::dns_subdomain);
        for term in spec.field("nodeAffinity").field("required").field("nodeSelectorTerms").items() {
            pod_spec::validate::node_selector_term(&term, e);
        }
    },
    ..Hooks::NONE
};
