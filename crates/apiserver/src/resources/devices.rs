//! `resource.k8s.io/v1`: DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice.

use api::{FieldError, Object};
use jiff::Timestamp;
use serde_json::Value;

use super::check::{At, Errors, immutable};
use super::defaults::{fill, items_mut, object_mut, text};
use super::names;
use super::row::{Hooks, Row, col};
use crate::printing::cells;
use crate::resource::WriteContext;

const CLASS: Hooks = Hooks {
    validate: |o, e| {
        let spec = At::top(o, "spec");
        selectors(&spec.field("selectors"), e);
        spec.field("extendedResourceName").text(e, names::qualified_name);
    },
    ..Hooks::NONE
};
const CLAIM: Hooks = Hooks {
    default: |o| {
        if let Some(spec) = o.0.get_mut("spec") {
            default_claim(spec);
        }
    },
    validate: |o, e| validate_claim(&At::top(o, "spec"), e),
    validate_update: |new, old, e| {
        immutable(e, new, old, &["spec"]);
        if old.get(&["status", "allocation"]).is_some() && new.get(&["status", "allocation"]).is_some() {
            immutable(e, new, old, &["status", "allocation"]);
        }
    },
    ..Hooks::NONE
};
const TEMPLATE: Hooks = Hooks {
    default: |o| {
        if let Some(spec) = o.0.get_mut("spec").and_then(|spec| spec.get_mut("spec")) {
            default_claim(spec);
        }
    },
    validate: |o, e| validate_claim(&At::top(o, "spec").field("spec"), e),
    validate_update: |new, old, e| immutable(e, new, old, &["spec"]),
    ..Hooks::NONE
};
const SLICE: Hooks = Hooks {
    create: |cx, o| stamp_devices(cx, o),
    update: |cx, o, _| stamp_devices(cx, o),
    validate: validate_slice,
    validate_update: |new, old, e| {
        for field in ["driver", "nodeName", "nodeSelector", "allNodes"] {
            immutable(e, new, old, &["spec", field]);
        }
        immutable(e, new, old, &["spec", "pool", "name"]);
    },
    ..Hooks::NONE
};
const TAINT_RULE: Hooks = Hooks {
    create: |cx, o| stamp_rule(cx, o),
    update: |cx, o, _| stamp_rule(cx, o),
    validate: |o, e| validate_taint(&At::top(o, "spec").field("taint"), e),
    ..Hooks::NONE
};

fn default_claim(spec: &mut Value) {
    let Some(devices) = object_mut(spec, "devices") else { return };
    for request in items_mut(devices.get_mut("requests")) {
        if let Some(exactly) = object_mut(request, "exactly") {
            default_count(exactly);
        }
        for choice in items_mut(request.get_mut("firstAvailable")) {
            default_count(choice);
        }
    }
}

fn default_count(request: &mut Value) {
    fill(request, "allocationMode", "ExactCount");
    if text(request, "allocationMode") == "ExactCount" {
        super::defaults::fill_zero(request, "count", 1);
    }
}

fn stamp(taint: &mut Value, now: Timestamp) {
    fill(taint, "timeAdded", crate::registry::meta::timestamp(now));
}

fn stamp_rule(cx: &WriteContext<'_>, o: &mut Object) {
    if let Some(taint) = o.0.get_mut("spec").and_then(|spec| object_mut(spec, "taint")) {
        stamp(taint, cx.now);
    }
}

fn stamp_devices(cx: &WriteContext<'_>, o: &mut Object) {
    for device in items_mut(o.0.get_mut("spec").and_then(|spec| spec.get_mut("devices"))) {
        for taint in items_mut(device.get_mut("taints")) {
            stamp(taint, cx.now);
        }
    }
}

fn selectors(list: &At<'_>, e: &mut Errors) {
    for selector in list.items() {
        selector.field("cel").required(e);
    }
}

fn validate_claim(spec: &At<'_>, e: &mut Errors) {
    let requests = spec.field("devices").field("requests");
    requests.unique(e, "name");
    for request in requests.items() {
        request.field("name").required_text(e, names::dns_label);
        let (exactly, choices) = (request.field("exactly"), request.field("firstAvailable"));
        if exactly.is_empty() == choices.is_empty() {
            request.invalid(e, "exactly one of `exactly` or `firstAvailable` is required");
        }
        if exactly.is_set() {
            validate_request(&exactly, e);
        }
        for choice in choices.items() {
            choice.field("name").required_text(e, names::dns_label);
            validate_request(&choice, e);
        }
    }
}

fn validate_request(request: &At<'_>, e: &mut Errors) {
    request.field("deviceClassName").required_text(e, names::dns_subdomain);
    request.field("allocationMode").one_of(e, &["All", "ExactCount"]);
    let count = request.field("count");
    match request.field("allocationMode").str() {
        "ExactCount" => count.positive(e),
        "All" if count.i64().is_some_and(|n| n != 0) => {
            count.invalid(e, "must not be specified when allocationMode is 'All'");
        }
        _ => {}
    }
    selectors(&request.field("selectors"), e);
}

fn validate_taint(taint: &At<'_>, e: &mut Errors) {
    taint.field("key").required_text(e, names::qualified_name);
    taint.field("value").text(e, names::label_value);
    taint.field("effect").required_one_of(e, &["NoExecute", "NoSchedule", "None"]);
}

fn validate_slice(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("driver").required_text(e, names::dns_subdomain);
    spec.field("pool").field("name").required(e);
    spec.field("pool").field("resourceSliceCount").positive(e);
    spec.field("pool").field("generation").non_negative(e);
    let ways = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let given = ways.iter().filter(|way| {
        let at = spec.field(way);
        !at.is_empty() && at.value != &Value::Bool(false)
    });
    if given.count() != 1 && spec.field("sharedCounters").is_empty() {
        let detail = format!("exactly one of {} is required", ways.map(|way| format!("`{way}`")).join(", "));
        e.push(FieldError::required(&spec.path, &detail));
    }
    spec.field("devices").unique(e, "name");
    for device in spec.field("devices").items() {
        device.field("name").required_text(e, names::dns_label);
        for taint in device.field("taints").items() {
            validate_taint(&taint, e);
        }
    }
}

/// `allocated,reserved` and the like.
fn state(o: &Object, _: Timestamp) -> Value {
    let mut words = Vec::new();
    if o.is_deleting() {
        words.push("deleted");
    }
    if o.get(&["status", "allocation"]).is_none_or(Value::is_null) {
        if !o.is_deleting() {
            words.push("pending");
        }
    } else {
        words.push("allocated");
        let reserved = !cells::list(o, &["status", "reservedFor"]).is_empty();
        words.push(if reserved { "reserved" } else { "" });
    }
    words.retain(|word| !word.is_empty());
    words.join(",").into()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("deviceclasses", "DeviceClass").cluster().strategy(CLASS).columns(Vec::new(), Vec::new()),
        Row::new("devicetaintrules", "DeviceTaintRule")
            .cluster()
            .status()
            .strategy(TAINT_RULE)
            .columns(Vec::new(), Vec::new()),
        Row::new("resourceclaims", "ResourceClaim")
            .status()
            .strategy(CLAIM)
            .columns(vec![col("State", "string", "What has become of the claim.", state)], Vec::new()),
        Row::new("resourceclaimtemplates", "ResourceClaimTemplate")
            .strategy(TEMPLATE)
            .columns(Vec::new(), Vec::new()),
        Row::new("resourceslices", "ResourceSlice")
            .cluster()
            .fields(&["spec.driver", "spec.nodeName"])
            .strategy(SLICE)
            .columns(
                vec![
                    col("Node", "string", "The node with the devices.", |o, _| {
                        match o.str(&["spec", "nodeName"]) {
                            "" => "<unset>".into(),
                            node => node.into(),
                        }
                    }),
                    col("Driver", "string", "The driver of the devices.", |o, _| {
                        o.str(&["spec", "driver"]).into()
                    }),
                    col("Pool", "string", "The pool that the slice is a part of.", |o, _| {
                        o.str(&["spec", "pool", "name"]).into()
                    }),
                ],
                Vec::new(),
            ),
    ]
}
