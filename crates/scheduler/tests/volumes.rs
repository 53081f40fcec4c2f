//! Where a pod can run because of its volumes.

#![allow(clippy::unwrap_used)]

mod common;

use api::ObjectKey;
use common::{cluster, merge, node, outcome, pod};
use scheduler::snapshot::Snapshot;
use scheduler::volumes::Step;
use serde_json::{Value, json};

fn world() -> Snapshot {
    let nodes = ["a", "b"].map(|name| node(name, json!({})));
    let mut snapshot = cluster(&nodes, &[]);
    let class = |mode: &str, provisioner: &str| {
        serde_json::from_value(json!({"provisioner": provisioner, "volumeBindingMode": mode})).unwrap()
    };
    let classes = &mut snapshot.volumes.classes;
    classes.insert("late".into(), class("WaitForFirstConsumer", "kubernetes.io/no-provisioner"));
    classes.insert("made".into(), class("WaitForFirstConsumer", "example.com/maker"));
    classes.insert("soon".into(), class("Immediate", "example.com/maker"));
    snapshot
}

fn add_volume(snapshot: &mut Snapshot, name: &str, on: &str, storage: &str, change: Value) {
    let term =
        json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [on]}]});
    let mut volume = json!({
        "metadata": {"name": name},
        "spec": {
            "storageClassName": "late", "capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
        "status": {"phase": "Available"},
    });
    merge(&mut volume, change);
    snapshot.volumes.volumes.insert(name.into(), serde_json::from_value(volume).unwrap());
}

fn add_claim(snapshot: &mut Snapshot, name: &str, class: &str, change: Value) {
    let mut claim = json!({
        "metadata": {"name": name, "uid": name},
        "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    merge(&mut claim, change);
    snapshot.volumes.claims.insert(ObjectKey::new("default", name), serde_json::from_value(claim).unwrap());
}

fn using(claims: &[&str]) -> std::sync::Arc<scheduler::pod::PodInfo> {
    let volume = |name: &&str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    pod("p", json!({"spec": {"volumes": claims.iter().map(volume).collect::<Vec<_>>()}}))
}

#[test]
fn a_bound_claim_ties_its_pod_to_its_volume() {
    let mut snapshot = world();
    add_volume(&mut snapshot, "v", "b", "1Gi", json!({}));
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"}});
    add_claim(&mut snapshot, "c", "late", bound);
    assert_eq!(outcome(&mut snapshot, &using(&["c"])), "b");
    snapshot.remove_node("b");
    let why = "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.";
    assert_eq!(outcome(&mut snapshot, &using(&["c"])), why);
}

#[test]
fn the_first_consumer_brings_claim_and_volume_together() {
    let mut snapshot = world();
    add_volume(&mut snapshot, "big", "b", "9Gi", json!({}));
    add_volume(&mut snapshot, "fits", "b", "2Gi", json!({}));
    add_volume(&mut snapshot, "small", "a", "1Mi", json!({}));
    add_claim(&mut snapshot, "c", "late", json!({}));
    add_claim(&mut snapshot, "d", "late", json!({}));
    assert_eq!(outcome(&mut snapshot, &using(&["c"])), "b");
    let on_b = node("b", json!({}));
    let reserve = |volume: &str, claim: &str| Step::Reserve {
        volume: volume.into(),
        claim: ObjectKey::new("default", claim),
    };
    let steps = snapshot.volumes.steps(&using(&["c", "d"]), &on_b).unwrap();
    assert_eq!(steps, [reserve("fits", "c"), reserve("big", "d")]);
    // What is reserved for one is not there for another, but still for the one.
    snapshot.volumes.reserve(&steps[..1]);
    assert_eq!(snapshot.volumes.steps(&using(&["d"]), &on_b).unwrap(), [reserve("big", "d")]);
    assert_eq!(snapshot.volumes.steps(&using(&["c"]), &on_b).unwrap(), [reserve("fits", "c")]);
    snapshot.volumes.release(&steps);
    assert_eq!(snapshot.volumes.steps(&using(&["d"]), &on_b).unwrap(), [reserve("fits", "d")]);
}

#[test]
fn pods_wait_for_their_claims() {
    let mut snapshot = world();
    let check = |snapshot: &mut Snapshot, claim: &str, why: &str| {
        assert_eq!(outcome(snapshot, &using(&[claim])), format!("0/2 nodes are available: 2 {why}."));
    };
    check(&mut snapshot, "none", "persistentvolumeclaim \"none\" not found");
    add_claim(&mut snapshot, "soon", "soon", json!({}));
    check(&mut snapshot, "soon", "pod has unbound immediate PersistentVolumeClaims");
    add_claim(&mut snapshot, "late", "late", json!({}));
    check(&mut snapshot, "late", "node(s) didn't find available persistent volumes to bind");
    add_claim(&mut snapshot, "made", "made", json!({}));
    let steps = snapshot.volumes.steps(&using(&["made"]), &node("a", json!({}))).unwrap();
    assert_eq!(steps, [Step::Provision { claim: ObjectKey::new("default", "made") }]);
}
