//! Defaults and rules of the workloads.

use api::{FieldError, Object};
use serde_json::{Value, json};

use crate::resources::check::{At, Errors, immutable};
use crate::resources::defaults::{fill, items_mut};
use crate::resources::policy::count_or_percent;
use crate::resources::row::Hooks;
use crate::resources::{pod_spec, selectors};

pub(super) const DEPLOYMENT: Hooks = Hooks {
    default: default_deployment,
    validate: validate_deployment,
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "selector"]),
    ..Hooks::NONE
};
pub(super) const REPLICA_SET: Hooks = Hooks {
    default: |o| {
        o.set_default(&["spec", "replicas"], 1);
        template(o);
    },
    validate: |o, e| workload(o, e, "deployment"),
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "selector"]),
    ..Hooks::NONE
};
pub(super) const DAEMON_SET: Hooks = Hooks {
    default: default_daemon_set,
    validate: validate_daemon_set,
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "selector"]),
    ..Hooks::NONE
};
pub(super) const STATEFUL_SET: Hooks = Hooks {
    default: default_stateful_set,
    validate: validate_stateful_set,
    validate_update: update_stateful_set,
    ..Hooks::NONE
};
pub(super) const CONTROLLER_REVISION: Hooks = Hooks {
    validate: |o, e| At::top(o, "revision").non_negative(e),
    validate_update: |new, old, e| {
        if new.get(&["data"]) != old.get(&["data"]) {
            let value = new.get(&["data"]).cloned().unwrap_or(Value::Null);
            e.push(FieldError::invalid("data", value, "field is immutable"));
        }
    },
    ..Hooks::NONE
};

fn template(o: &mut Object) {
    if let Some(spec) =
        o.0.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec"))
    {
        pod_spec::defaults::pod_spec(spec);
    }
}

/// Selector and template, which every workload has.
fn workload(o: &Object, e: &mut Errors, what: &str) {
    let spec = At::top(o, "spec");
    spec.field("replicas").non_negative(e);
    spec.field("minReadySeconds").non_negative(e);
    spec.field("revisionHistoryLimit").non_negative(e);
    selectors::validate_with_template(&spec, e, what);
    pod_spec::validate_template(&spec.field("template"), &["Always"], e);
    let deadline = spec.field("template").field("spec").field("activeDeadlineSeconds");
    if deadline.is_set() {
        deadline.forbidden(e, "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

fn default_deployment(o: &mut Object) {
    o.set_default(&["spec", "replicas"], 1);
    o.set_default(&["spec", "revisionHistoryLimit"], 10);
    o.set_default(&["spec", "progressDeadlineSeconds"], 600);
    if o.str(&["spec", "strategy", "type"]).is_empty() {
        o.set(&["spec", "strategy", "type"], "RollingUpdate");
    }
    if o.str(&["spec", "strategy", "type"]) == "RollingUpdate" {
        o.set_default(&["spec", "strategy", "rollingUpdate", "maxUnavailable"], "25%");
        o.set_default(&["spec", "strategy", "rollingUpdate", "maxSurge"], "25%");
    }
    template(o);
}

fn is_zero(at: &At<'_>) -> bool {
    at.i64() == Some(0) || at.str().strip_suffix('%').and_then(|n| n.parse().ok()) == Some(0)
}

fn validate_deployment(o: &Object, e: &mut Errors) {
    workload(o, e, "deployment");
    let spec = At::top(o, "spec");
    let strategy = spec.field("strategy");
    strategy.field("type").one_of(e, &["Recreate", "RollingUpdate"]);
    let rolling = strategy.field("rollingUpdate");
    if strategy.field("type").str() == "Recreate" && rolling.is_set() {
        rolling.forbidden(e, "may not be specified when strategy `type` is 'Recreate'");
    } else if rolling.is_set() {
        let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
        count_or_percent(&unavailable, e);
        surge.non_negative(e);
        if is_zero(&unavailable) && is_zero(&surge) {
            unavailable.invalid(e, "may not be 0 when `maxSurge` is 0");
        }
    }
    let deadline = spec.field("progressDeadlineSeconds");
    deadline.non_negative(e);
    let ready = spec.field("minReadySeconds").i64().unwrap_or(0);
    if deadline.i64().is_some_and(|n| n <= ready) {
        deadline.invalid(e, "must be greater than minReadySeconds");
    }
}

fn default_daemon_set(o: &mut Object) {
    o.set_default(&["spec", "revisionHistoryLimit"], 10);
    if o.str(&["spec", "updateStrategy", "type"]).is_empty() {
        o.set(&["spec", "updateStrategy", "type"], "RollingUpdate");
    }
    if o.str(&["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        o.set_default(&["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"], 1);
        o.set_default(&["spec", "updateStrategy", "rollingUpdate", "maxSurge"], 0);
    }
    template(o);
}

fn validate_daemon_set(o: &Object, e: &mut Errors) {
    workload(o, e, "daemonset");
    let strategy = At::top(o, "spec").field("updateStrategy");
    strategy.field("type").one_of(e, &["OnDelete", "RollingUpdate"]);
    let rolling = strategy.field("rollingUpdate");
    let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
    count_or_percent(&unavailable, e);
    count_or_percent(&surge, e);
    if rolling.is_set() && is_zero(&unavailable) && is_zero(&surge) {
        unavailable.invalid(e, "cannot be 0 when maxSurge is 0");
    } else if rolling.is_set() && !is_zero(&unavailable) && surge.is_set() && !is_zero(&surge) {
        surge.invalid(e, "may not be set when maxUnavailable is non-zero");
    }
}

fn default_stateful_set(o: &mut Object) {
    if o.str(&["spec", "podManagementPolicy"]).is_empty() {
        o.set(&["spec", "podManagementPolicy"], "OrderedReady");
    }
    if o.str(&["spec", "updateStrategy", "type"]).is_empty() {
        o.set(&["spec", "updateStrategy", "type"], "RollingUpdate");
    }
    if o.str(&["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        o.set_default(&["spec", "updateStrategy", "rollingUpdate", "partition"], 0);
    }
    o.set_default(&["spec", "replicas"], 1);
    o.set_default(&["spec", "revisionHistoryLimit"], 10);
    for event in ["whenDeleted", "whenScaled"] {
        o.set_default(&["spec", "persistentVolumeClaimRetentionPolicy", event], "Retain");
    }
    let claims = o.0.get_mut("spec").and_then(|s| s.get_mut("volumeClaimTemplates"));
    for claim in items_mut(claims) {
        fill(claim, "apiVersion", "v1");
        fill(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = claim.get_mut("spec") {
            fill(spec, "volumeMode", "Filesystem");
        }
        fill(claim, "status", json!({"phase": "Pending"}));
    }
    template(o);
}

/// The claims of a StatefulSet are volumes of its pods too.
fn with_claims(o: &Object) -> Object {
    let mut copy = o.clone();
    let claims = At::top(o, "spec").field("volumeClaimTemplates");
    let names: Vec<Value> = claims.items().map(|c| c.field("metadata").field("name").value.clone()).collect();
    let mut volumes = o
        .get(&["spec", "template", "spec", "volumes"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    volumes.retain(|v| !names.contains(&v["name"]));
    volumes.extend(names.iter().map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}})));
    if !names.is_empty() {
        copy.set(&["spec", "template", "spec", "volumes"], volumes);
    }
    copy
}

fn validate_stateful_set(o: &Object, e: &mut Errors) {
    workload(&with_claims(o), e, "statefulset");
    let spec = At::top(o, "spec");
    spec.field("podManagementPolicy").required_one_of(e, &["OrderedReady", "Parallel"]);
    let strategy = spec.field("updateStrategy");
    strategy.field("type").required_one_of(e, &["OnDelete", "RollingUpdate"]);
    strategy.field("rollingUpdate").field("partition").non_negative(e);
    if strategy.field("type").str() == "OnDelete" && strategy.field("rollingUpdate").is_set() {
        strategy.field("rollingUpdate").invalid(e, "only allowed for updateStrategy 'RollingUpdate'");
    }
    for event in ["whenDeleted", "whenScaled"] {
        spec.field("persistentVolumeClaimRetentionPolicy").field(event).one_of(e, &["Delete", "Retain"]);
    }
}

const CHANGEABLE: [&str; 8] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    "selector",
];

fn update_stateful_set(new: &Object, old: &Object, e: &mut Errors) {
    let rest = |o: &Object| {
        let mut spec = o.get(&["spec"]).and_then(Value::as_object).cloned().unwrap_or_default();
        spec.retain(|name, value| !CHANGEABLE.contains(&name.as_str()) && !value.is_null());
        spec
    };
    let selector = |o: &Object| o.get(&["spec", "selector"]).cloned();
    if rest(new) != rest(old) || selector(new) != selector(old) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
             'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
             forbidden";
        e.push(FieldError::forbidden("spec", detail));
    }
}
