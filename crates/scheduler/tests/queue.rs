//! Order, back-off and hints of the queue.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{asking, cluster, node, pod};
use scheduler::cycle::{Choice, Decision, Unschedulable, fits, schedule};
use scheduler::hints::Hints;
use scheduler::queue::{Gathered, Queue};
use scheduler::snapshot::{Effect, Snapshot};
use serde_json::{Value, json};

const NOW: Duration = Duration::from_secs(1000);

fn names(queue: &mut Queue) -> Vec<String> {
    std::iter::from_fn(|| queue.pop().map(|queued| queued.pod.key.name.clone())).collect()
}

#[test]
fn priority_then_arrival() {
    let mut queue = Queue::default();
    for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10), ("e", -1)] {
        queue.set(&pod(name, json!({ "spec": { "priority": priority } })), Duration::ZERO);
    }
    queue.remove(&pod("c", json!({})).key);
    assert_eq!(names(&mut queue), ["b", "d", "a", "e"]);
    assert!(!queue.has_active());
}

#[test]
fn errors_back_off_longer_and_longer() {
    let mut queue = Queue::default();
    queue.set(&pod("a", json!({})), Duration::ZERO);
    for delay in [1, 2, 4, 8, 10, 10] {
        let queued = queue.pop().unwrap();
        queue.back_off(queued, NOW);
        let due = NOW + Duration::from_secs(delay);
        assert_eq!(queue.next_wake(), Some(due));
        queue.wake(due - Duration::from_millis(1));
        assert!(!queue.has_active());
        queue.wake(due);
        assert!(queue.has_active());
    }
    let queued = queue.pop().unwrap();
    queue.back_off(queued, NOW);
    queue.set(&pod("a", json!({ "metadata": { "uid": "new" } })), Duration::ZERO);
    assert_eq!(names(&mut queue), ["a"], "a new pod of the same name does not wait for the old one's errors");
    assert_eq!(queue.next_wake(), None);
}

fn refused(snapshot: &mut Snapshot, pod: &scheduler::pod::PodInfo) -> Unschedulable {
    snapshot.prepare(pod);
    match schedule(snapshot, pod, Choice::default()) {
        Decision::Unschedulable(why) => why,
        Decision::Bind { node } => panic!("bound to {node}"),
    }
}

/// Whether a delta makes a waiting pod active.
fn helps(snapshot: &mut Snapshot, waiting: Value, delta: impl FnOnce(&mut Snapshot) -> Effect) -> bool {
    let mut queue = Queue::default();
    queue.set(&pod("waiting", waiting), Duration::ZERO);
    let queued = queue.pop().unwrap();
    let why = refused(snapshot, &queued.pod);
    queue.wait(queued, why, NOW);
    let mut changes = Gathered::default();
    changes.add(delta(snapshot));
    queue.hint(&changes, |pod, nodes| fits(snapshot, pod, nodes.iter().map(String::as_str)));
    queue.has_active()
}

#[test]
fn only_what_can_help_wakes_a_waiting_pod() {
    let cpu = |cpu: &str| json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } });
    let placed = |name: &str, cpu_request: &str| {
        let mut change = cpu(cpu_request);
        common::merge(&mut change, json!({ "spec": { "nodeName": "a" } }));
        pod(name, change)
    };
    let full = || cluster(&[node("a", json!({}))], &[placed("big", "3"), placed("small", "500m")]);
    let (big, small) = (placed("big", "3").key.clone(), placed("small", "500m").key.clone());
    assert!(helps(&mut full(), cpu("1"), |s| s.remove_pod(&big)));
    assert!(!helps(&mut full(), cpu("2"), |s| s.remove_pod(&small)), "too little became free");
    assert!(helps(&mut full(), cpu("1"), |s| s.set_node(node("b", json!({})))));
    assert!(!helps(&mut full(), cpu("5"), |s| s.set_node(node("b", json!({})))), "the new node is too small");
    assert!(
        !helps(&mut full(), cpu("1"), |s| s.set_node(node("a", json!({})))),
        "a heartbeat changes nothing"
    );
    let more =
        || node("a", json!({ "status": { "allocatable": { "cpu": "8", "memory": "8Gi", "pods": "10" } } }));
    assert!(helps(&mut full(), cpu("1"), |s| s.set_node(more())));
    let relabelled = || node("a", json!({ "metadata": { "labels": { "x": "y" } } }));
    assert!(!helps(&mut full(), cpu("1"), |s| s.set_node(relabelled())), "labels are not what is short");
    let selecting = || json!({ "spec": { "nodeSelector": { "x": "y" } } });
    assert!(helps(&mut full(), selecting(), |s| s.set_node(relabelled())));
    assert!(!helps(&mut full(), selecting(), |s| s.remove_pod(&big)));
    let finished = || pod("big", json!({ "spec": { "nodeName": "a" }, "status": { "phase": "Succeeded" } }));
    assert!(helps(&mut full(), cpu("1"), |s| s.set_pod(&finished())));
    let cordoned = || cluster(&[node("a", json!({ "spec": { "unschedulable": true } }))], &[]);
    assert!(helps(&mut cordoned(), cpu("1"), |s| s.set_node(node("a", json!({})))));
    let term = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "db" } } });
    let near = json!({ "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    let near = || json!({ "spec": { "affinity": near } });
    let db = || pod("db", json!({ "metadata": { "labels": { "app": "db" } }, "spec": { "nodeName": "a" } }));
    assert!(helps(&mut full(), near(), |s| s.set_pod(&db())));
}

#[test]
fn a_confirmed_binding_is_news_to_affinity() {
    let mut snapshot = cluster(&[node("a", json!({}))], &[]);
    let pending = pod("db", json!({}));
    snapshot.assume(&pending, "a");
    let bound = pod("db", json!({ "spec": { "nodeName": "a" } }));
    assert_eq!(snapshot.set_pod(&bound), Effect { hints: Hints::POD_ADDED, node: Some("a".into()) });
    assert_eq!(snapshot.set_pod(&bound), Effect { hints: Hints::NONE, node: Some("a".into()) });
}

#[test]
fn changes_of_the_pod_itself() {
    let mut snapshot = cluster(&[node("a", json!({}))], &[]);
    let mut queue = Queue::default();
    let wants = asking("p", json!({ "cpu": "100" }));
    queue.set(&wants, Duration::ZERO);
    let queued = queue.pop().unwrap();
    let why = refused(&mut snapshot, &wants);
    queue.wait(queued, why, NOW);
    let mut with_status = (*wants).clone();
    with_status.resource_version = "2".into();
    queue.set(&std::sync::Arc::new(with_status), Duration::ZERO);
    assert!(!queue.has_active(), "its own status is no reason to try again");
    queue.set(&asking("p", json!({ "cpu": "1" })), Duration::ZERO);
    assert!(queue.has_active());
}

#[test]
fn a_missing_hint_costs_five_minutes_at_most() {
    let mut snapshot = cluster(&[], &[]);
    let mut queue = Queue::default();
    queue.set(&pod("p", json!({})), Duration::ZERO);
    let queued = queue.pop().unwrap();
    let why = refused(&mut snapshot, &queued.pod);
    queue.wait(queued, why, NOW);
    assert_eq!(queue.next_wake(), Some(NOW + Duration::from_secs(300)));
    queue.wake(NOW + Duration::from_secs(300));
    assert!(queue.has_active());
}
