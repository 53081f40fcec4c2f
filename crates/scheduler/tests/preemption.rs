//! Who has to leave so that a more important pod finds room.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use api::LabelSelector;
use api::selector::Requirement;
use common::{cluster, merge, node, pod};
use scheduler::pod::PodInfo;
use scheduler::preemption::{Budget, preempt};
use serde_json::{Value, json};

fn running(name: &str, on: &str, priority: i32, cpu: &str, change: Value) -> Arc<PodInfo> {
    let mut all = json!({
        "spec": {"nodeName": on, "priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    });
    merge(&mut all, change);
    pod(name, all)
}

fn wanting(cpu: &str, change: Value) -> Arc<PodInfo> {
    let mut all = json!({"spec": {"priority": 100, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    merge(&mut all, change);
    pod("urgent", all)
}

fn outcome(nodes: &[&str], pods: &[Arc<PodInfo>], wanting: &PodInfo, budgets: &[Budget]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|name| node(name, json!({}))).collect();
    let snapshot = cluster(&nodes, pods);
    let before = snapshot.summary();
    let answer = preempt(&snapshot, wanting, budgets, 0);
    assert_eq!(snapshot.summary(), before);
    answer.map_or_else(String::new, |nomination| {
        let victims: Vec<&str> = nomination.victims.iter().map(|victim| victim.key.name.as_str()).collect();
        format!("{}: {}", nomination.node, victims.join(" "))
    })
}

#[test]
fn only_as_many_leave_as_must() {
    let none = json!({});
    let pods = [
        running("low", "a", 1, "1", none.clone()),
        running("middle", "a", 5, "1", none.clone()),
        running("high", "a", 200, "2", none.clone()),
    ];
    assert_eq!(outcome(&["a"], &pods, &wanting("1", none.clone()), &[]), "a: low");
    assert_eq!(outcome(&["a"], &pods, &wanting("2", none.clone()), &[]), "a: middle low");
    assert_eq!(outcome(&["a"], &pods, &wanting("3", none), &[]), "");
}

#[test]
fn the_least_harm_is_done() {
    let none = json!({});
    let pods = [
        running("a1", "a", 1, "2", none.clone()),
        running("a2", "a", 1, "2", none.clone()),
        running("b1", "b", 1, "4", none.clone()),
        running("c1", "c", 2, "4", none.clone()),
        running("d1", "d", 1, "4", json!({"status": {"startTime": "2026-01-01T00:00:01Z"}})),
    ];
    let nodes = ["c", "a", "b", "d"];
    let urgent = wanting("4", none);
    assert_eq!(outcome(&nodes, &pods, &urgent, &[]), "d: d1", "fewest victims, of equals the youngest");
    let budget = |app: &str, allowed: i64| Budget {
        namespace: "default".into(),
        pods: LabelSelector { requirements: vec![Requirement::In("app".into(), vec![app.into()])] },
        allowed,
    };
    // All pods have the label: the first of each node is within the budget.
    assert_eq!(outcome(&nodes, &pods, &urgent, &[budget("web", 1)]), "d: d1");
    let guarded = running("d1", "d", 1, "4", json!({"metadata": {"labels": {"app": "db"}}}));
    let pods = [pods[2].clone(), guarded];
    assert_eq!(outcome(&["d", "b"], &pods, &urgent, &[budget("db", 0)]), "b: b1");
    assert_eq!(outcome(&["d"], &pods, &urgent, &[budget("db", 0)]), "d: d1", "a budget is no bar");
}

#[test]
fn room_is_made_only_where_it_helps() {
    let none = json!({});
    let pods = [running("low", "a", 1, "4", none.clone())];
    let elsewhere = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}});
    assert_eq!(outcome(&["a"], &pods, &wanting("1", elsewhere), &[]), "");
    let polite = json!({"spec": {"preemptionPolicy": "Never"}});
    assert_eq!(outcome(&["a"], &pods, &wanting("1", polite), &[]), "");
    let nominated = json!({"status": {"nominatedNodeName": "a"}});
    assert_eq!(outcome(&["a"], &pods, &wanting("1", nominated.clone()), &[]), "a: low");
    let leaving =
        [running("low", "a", 1, "4", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))];
    assert_eq!(outcome(&["a"], &leaving, &wanting("1", nominated), &[]), "");
}
