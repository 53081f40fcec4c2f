//! Node lifecycle: a node whose lease expires is Unknown; taints follow from conditions.
//!
//! ```text
//!   Lease too old ──▶ conditions Unknown, its pods not ready
//!   conditions, unschedulable ──▶ taints (what taints do to pods is the business of taint eviction and the scheduler)
//! ```

use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, PatchType};
use client::{Action, Cached, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::node::Node;
use crate::pod::Pod;
use crate::workload::{event, whole_seconds};

const LEASES: &str = "kube-node-lease";
/// How long a node may be silent before it counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// Age of the lease (Kubernetes' `node-monitor-grace-period`).
    pub monitor: Duration,
    /// For a node that never reported (Kubernetes' `node-startup-grace-period`).
    pub startup: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        Self { monitor: Duration::from_secs(40), startup: Duration::from_secs(60) }
    }
}

/// Conditions that a node reports itself and that become Unknown with it.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taints by condition: while it is True, nothing new is placed there.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

#[derive(Default)]
pub struct NodeLifecycleController {
    pub grace: Grace,
}

impl Controller for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<Node>(),
            Watch::map::<Lease>(|_, lease| {
                let own = lease.key.namespace == LEASES;
                own.then(|| ObjectKey::new("", &lease.key.name)).into_iter().collect()
            }),
            Watch::cache_only::<Pod>(),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(node) = view.get::<Node>(key).filter(|node| !node.deleting) else { return Plan::nothing() };
        let lease = view.get::<Lease>(&ObjectKey::new(LEASES, &key.name));
        let (seen, grace) = last_seen(&node, lease.as_deref(), self.grace);
        let age = u64::try_from(now.as_millisecond() - seen.as_millisecond()).unwrap_or(0);
        let left = grace.saturating_sub(Duration::from_millis(age));
        if !left.is_zero() {
            return Plan::Do { actions: set_taints(&node, now), requeue_after: Some(left) };
        }
        let lost = lost_conditions(&node, now);
        if !lost.is_empty() {
            // The taints follow when the conditions have arrived.
            return Plan::actions(vec![
                patch_status::<Node>(&node.key, json!(lost)),
                event(
                    &*node,
                    EventType::Normal,
                    "NodeNotReady",
                    format!("Node {} status is now: NodeNotReady", key.name),
                ),
            ]);
        }
        let mut actions = set_taints(&node, now);
        actions.extend(pods_not_ready(view, &key.name, now));
        Plan::actions(actions)
    }
}

/// When a node was last heard of, and how long it may be silent.
fn last_seen(node: &Cached<Node>, lease: Option<&Cached<Lease>>, grace: Grace) -> (Timestamp, Duration) {
    let renewed = lease.and_then(|lease| lease.object.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
    let ready = node.object.status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let heartbeat =
        ready.filter(|ready| ready.status != "Unknown").and_then(|ready| ready.last_heartbeat_time);
    match renewed.max(heartbeat) {
        Some(seen) => (seen, grace.monitor),
        None => (node.object.metadata.creation_timestamp.unwrap_or(Timestamp::UNIX_EPOCH), grace.startup),
    }
}

/// The conditions that must change for a silent node.
fn lost_conditions(node: &Cached<Node>, now: Timestamp) -> Vec<Value> {
    let time = Time(whole_seconds(now));
    let lost = |type_: &&str| {
        let old = node.object.status.conditions.iter().find(|condition| condition.type_ == **type_);
        let (reason, message) = match old {
            Some(old) if old.status == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat = old.and_then(|old| old.last_heartbeat_time).map_or_else(|| time.clone(), Time);
        Some(json!({
            "type": type_, "status": "Unknown", "reason": reason, "message": message,
            "lastHeartbeatTime": heartbeat, "lastTransitionTime": time,
        }))
    };
    REPORTED.iter().filter_map(lost).collect()
}

/// Merges conditions into a status by their type.
pub(crate) fn patch_status<T: Kind>(key: &ObjectKey, conditions: Value) -> Action {
    Action::Patch {
        gvr: T::gvr(),
        key: key.clone(),
        subresource: Some("status".into()),
        kind: PatchType::Strategic,
        patch: json!({"status": {"conditions": conditions}}),
    }
}

/// Endpoints must not lead to pods of a silent node.
fn pods_not_ready(view: &View, node: &str, now: Timestamp) -> Vec<Action> {
    let pods = view.list::<Pod>().into_iter();
    let lost = pods.filter(|pod| pod.object.spec.node_name == node && pod.object.is_ready());
    let patch = |pod: Arc<Cached<Pod>>| {
        let condition = json!([{
            "type": "Ready", "status": "False", "reason": "NodeNotReady",
            "lastTransitionTime": Time(whole_seconds(now)),
        }]);
        patch_status::<Pod>(&pod.key, condition)
    };
    lost.map(patch).collect()
}

/// Taints that are ours to set and those a node must have: (key, effect).
fn wanted_taints(node: &Node) -> Vec<(&'static str, &'static str)> {
    let condition = |type_: &str| {
        let found = node.status.conditions.iter().find(|condition| condition.type_ == type_);
        found.map(|condition| condition.status.as_str())
    };
    let mut wanted = Vec::new();
    match condition("Ready") {
        Some("False") => wanted.extend([(NOT_READY, "NoExecute"), (NOT_READY, "NoSchedule")]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoExecute"), (UNREACHABLE, "NoSchedule")]),
        _ => {}
    }
    let pressed = PRESSURES.iter().filter(|(type_, _)| condition(type_) == Some("True"));
    wanted.extend(pressed.map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// Makes the taints follow from the conditions. Every NoExecute taint gets the time from which tolerations count.
fn set_taints(node: &Cached<Node>, now: Timestamp) -> Vec<Action> {
    let wanted = wanted_taints(&node.object);
    let ours = |taint: &Taint| {
        matches!(&*taint.key, NOT_READY | UNREACHABLE | UNSCHEDULABLE)
            || PRESSURES.iter().any(|(_, key)| *key == taint.key)
    };
    let mut taints = node.object.spec.taints.clone();
    taints.retain(|taint| {
        !ours(taint) || wanted.iter().any(|(key, effect)| *key == taint.key && *effect == taint.effect)
    });
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint { key: key.into(), effect: effect.into(), ..Taint::default() });
        }
    }
    for taint in taints.iter_mut().filter(|taint| taint.effect == "NoExecute") {
        taint.time_added.get_or_insert_with(|| Time(whole_seconds(now)));
    }
    if taints == node.object.spec.taints {
        return Vec::new();
    }
    let taints = if taints.is_empty() { Value::Null } else { json!(taints) };
    vec![Action::Patch {
        gvr: Node::gvr(),
        key: node.key.clone(),
        subresource: None,
        kind: PatchType::Merge,
        patch: json!({
            "metadata": {"uid": node.uid, "resourceVersion": node.revision.to_string()},
            "spec": {"taints": taints},
        }),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::{Expect, expect};

    fn node(ready: &str, taints: Value) -> Value {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"});
        json!({
            "metadata": {"name": "n1", "uid": "n1", "resourceVersion": "5", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"taints": taints},
            "status": {"conditions": [
                condition("Ready", ready), condition("MemoryPressure", if ready == "Unknown" { "Unknown" } else { "False" }),
                condition("DiskPressure", if ready == "Unknown" { "Unknown" } else { "False" }),
                condition("PIDPressure", if ready == "Unknown" { "Unknown" } else { "False" }),
            ]},
        })
    }

    fn check(node: &Value, renewed: &str, expected: Expect) {
        let lease = json!({"metadata": {"name": "n1", "namespace": "kube-node-lease"}, "spec": {"renewTime": renewed}});
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeName": "n1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let view = View::default()
            .with_objects::<Node>(std::slice::from_ref(node))
            .with_objects::<Lease>(&[lease])
            .with_objects::<Pod>(&[pod]);
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let plan = NodeLifecycleController::default().plan(&ObjectKey::new("", "n1"), &view, now);
        expected.assert_eq(&brief(&plan));
    }

    #[test]
    fn a_silent_node_becomes_unknown_then_tainted_and_comes_back() {
        check(
            &node("True", json!([])),
            "2026-01-01T00:01:30.000000Z",
            expect![[r#"
            again after 10s
        "#]],
        );
        check(
            &node("True", json!([])),
            "2026-01-01T00:01:19.000000Z",
            expect![[r#"
            patch nodes n1 {"status":{"conditions":[{"lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:02:00Z","message":"Kubelet stopped posting node status.","reason":"NodeStatusUnknown","status":"Unknown","type":"Ready"},{"lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:02:00Z","message":"Kubelet stopped posting node status.","reason":"NodeStatusUnknown","status":"Unknown","type":"MemoryPressure"},{"lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:02:00Z","message":"Kubelet stopped posting node status.","reason":"NodeStatusUnknown","status":"Unknown","type":"DiskPressure"},{"lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:02:00Z","message":"Kubelet stopped posting node status.","reason":"NodeStatusUnknown","status":"Unknown","type":"PIDPressure"}]}}
        "#]],
        );
        check(
            &node("Unknown", json!([])),
            "2026-01-01T00:01:19.000000Z",
            expect![[r#"
            patch nodes n1 {"metadata":{"resourceVersion":"5","uid":"n1"},"spec":{"taints":[{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","timeAdded":"2026-01-01T00:02:00Z"},{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable"}]}}
            patch pods default/p {"status":{"conditions":[{"lastTransitionTime":"2026-01-01T00:02:00Z","reason":"NodeNotReady","status":"False","type":"Ready"}]}}
        "#]],
        );
        let taints = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, {"key": "own", "effect": "NoExecute"}]);
        check(
            &node("True", taints),
            "2026-01-01T00:01:59.000000Z",
            expect![[r#"
            patch nodes n1 {"metadata":{"resourceVersion":"5","uid":"n1"},"spec":{"taints":[{"effect":"NoExecute","key":"own","timeAdded":"2026-01-01T00:02:00Z"}]}}
            again after 39s
        "#]],
        );
    }
}
