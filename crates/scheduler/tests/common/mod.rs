//! Pods and nodes for tests, written as little JSON as possible.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::sync::Arc;

use scheduler::cycle::{Choice, Decision, schedule};
use scheduler::node::NodeSpec;
use scheduler::pod::PodInfo;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

/// A node with 4 cpu, 8Gi and 10 pods; `change` is merged into it.
pub fn node_json(name: &str, change: Value) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } },
    });
    merge(&mut node, change);
    node
}

pub fn node(name: &str, change: Value) -> NodeSpec {
    serde_json::from_value(node_json(name, change)).unwrap()
}

/// A pod `default/{name}` of one container; `change` is merged into it.
pub fn pod_json(name: &str, change: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": { "app": "web" } },
        "spec": { "schedulerName": "default-scheduler", "containers": [{ "name": "c" }] },
        "status": { "phase": "Pending" },
    });
    merge(&mut pod, change);
    pod
}

pub fn pod(name: &str, change: Value) -> Arc<PodInfo> {
    Arc::new(serde_json::from_value(pod_json(name, change)).unwrap())
}

/// A pod that asks for resources.
pub fn asking(name: &str, requests: Value) -> Arc<PodInfo> {
    pod(name, json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": requests } }] } }))
}

/// Merges objects key by key; anything else is replaced.
pub fn merge(target: &mut Value, change: Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change,
    }
}

/// A snapshot of nodes and pods.
pub fn cluster(nodes: &[NodeSpec], pods: &[Arc<PodInfo>]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node.clone());
    }
    for pod in pods {
        snapshot.set_pod(pod);
    }
    snapshot
}

/// The name of the chosen node, or the message.
pub fn outcome(snapshot: &mut Snapshot, pod: &PodInfo) -> String {
    snapshot.prepare(pod);
    match schedule(snapshot, pod, Choice::default()) {
        Decision::Bind { node } => node,
        Decision::Unschedulable(why) => why.to_string(),
    }
}
