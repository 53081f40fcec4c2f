//! Golden plans of single situations.

use client::{Controller, Plan, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use serde_json::{Value, json};

use super::DaemonSetController;
use crate::node::Node;
use crate::pod::Pod;
use crate::text::brief;

fn set(image: &str) -> Value {
    json!({
        "metadata": {"name": "log", "namespace": "default", "uid": "s", "resourceVersion": "5", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "log"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn node(name: &str, taint: Option<(&str, &str)>) -> Value {
    let taints: Vec<Value> =
        taint.into_iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
    json!({"metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/os": "linux"}}, "spec": {"taints": taints}})
}

fn revision(image: &str, hash: &str, number: i64) -> Value {
    json!({
        "metadata": {
            "name": format!("log-{hash}"), "namespace": "default", "uid": hash, "resourceVersion": "4",
            "labels": {"app": "log", "controller-revision-hash": hash},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "log", "uid": "s", "controller": true}],
        },
        "data": {"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"app": "log"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}},
        "revision": number,
    })
}

/// A ready pod on a node.
fn pod(node: &str, hash: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("log-{node}-{hash}"), "namespace": "default", "uid": format!("{node}{hash}"), "resourceVersion": "6",
            "labels": {"app": "log", "controller-revision-hash": hash}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "log", "uid": "s", "controller": true}],
        },
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    })
}

fn plan(set: &Value, nodes: &[Value], revisions: &[Value], pods: &[Value]) -> Plan {
    let view = View::default()
        .with_objects::<DaemonSet>(std::slice::from_ref(set))
        .with_objects::<Node>(nodes)
        .with_objects::<ControllerRevision>(revisions)
        .with_objects::<Pod>(pods);
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    DaemonSetController.plan(&api::ObjectKey::new("default", "log"), &view, now)
}

fn check(set: &Value, nodes: &[Value], revisions: &[Value], pods: &[Value], expected: Expect) {
    expected.assert_eq(&brief(&plan(set, nodes, revisions, pods)));
}

#[test]
fn a_pod_is_bound_to_its_node_and_bears_its_troubles() {
    let plan = plan(&set("one"), &[node("n1", None)], &[revision("one", "a", 1)], &[]);
    let Plan::Do { actions, .. } = plan else { panic!("{plan:?}") };
    let made = actions.iter().find_map(|action| match action {
        client::Action::Create { object, .. } => Some(object),
        _ => None,
    });
    expect![[r#"
        {
          "affinity": {
            "nodeAffinity": {
              "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                  {
                    "matchFields": [
                      {
                        "key": "metadata.name",
                        "operator": "In",
                        "values": [
                          "n1"
                        ]
                      }
                    ]
                  }
                ]
              }
            }
          },
          "containers": [
            {
              "image": "one",
              "name": "c"
            }
          ],
          "tolerations": [
            {
              "effect": "NoExecute",
              "key": "node.kubernetes.io/not-ready",
              "operator": "Exists"
            },
            {
              "effect": "NoExecute",
              "key": "node.kubernetes.io/unreachable",
              "operator": "Exists"
            },
            {
              "effect": "NoSchedule",
              "key": "node.kubernetes.io/disk-pressure",
              "operator": "Exists"
            },
            {
              "effect": "NoSchedule",
              "key": "node.kubernetes.io/memory-pressure",
              "operator": "Exists"
            },
            {
              "effect": "NoSchedule",
              "key": "node.kubernetes.io/pid-pressure",
              "operator": "Exists"
            },
            {
              "effect": "NoSchedule",
              "key": "node.kubernetes.io/unschedulable",
              "operator": "Exists"
            }
          ]
        }"#]]
    .assert_eq(&format!("{:#}", made.unwrap()["spec"]));
}

#[test]
fn every_fitting_node_gets_a_pod() {
    let nodes = [
        node("n1", None),
        node("n2", Some(("node.kubernetes.io/unschedulable", "NoSchedule"))),
        node("n3", Some(("dedicated", "NoSchedule"))),
        node("n4", Some(("dedicated", "NoExecute"))),
    ];
    check(
        &set("one"),
        &nodes,
        &[],
        &[pod("n3", "a"), pod("n4", "a")],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":0,"desiredNumberScheduled":2,"numberAvailable":0,"numberMisscheduled":2,"numberReady":0,"numberUnavailable":2,"observedGeneration":1,"updatedNumberScheduled":0}
        create controllerrevisions "log-7dcdb4f8c9"
        delete pods default/log-n4-a 
        create pods "log-6wgsf" "one" ["n1"]
        create pods "log-nx4ht" "one" ["n2"]
    "#]],
    );
}

#[test]
fn a_converged_set_is_left_alone() {
    let mut set = set("one");
    set["status"] = json!({
        "currentNumberScheduled": 1, "desiredNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1,
        "numberAvailable": 1, "updatedNumberScheduled": 1, "observedGeneration": 1,
    });
    check(&set, &[node("n1", None)], &[revision("one", "a", 1)], &[pod("n1", "a")], expect![[r#""#]]);
}

#[test]
fn an_update_replaces_broken_pods_and_within_bounds_others() {
    let nodes = [node("n1", None), node("n2", None), node("n3", None)];
    let revisions = [revision("one", "a", 1), revision("two", "b", 2)];
    let mut broken = pod("n3", "a");
    broken["status"]["conditions"][0]["status"] = "False".into();
    let pods = [pod("n1", "a"), pod("n2", "a"), broken];
    check(
        &set("two"),
        &nodes,
        &revisions,
        &pods,
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":3,"desiredNumberScheduled":3,"numberAvailable":2,"numberMisscheduled":0,"numberReady":2,"numberUnavailable":1,"observedGeneration":1,"updatedNumberScheduled":0}
        delete pods default/log-n3-a 
    "#]],
    );
    check(
        &set("two"),
        &nodes,
        &revisions,
        &pods[..2].iter().cloned().chain([pod("n3", "b")]).collect::<Vec<_>>(),
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":3,"desiredNumberScheduled":3,"numberAvailable":3,"numberMisscheduled":0,"numberReady":3,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":1}
        delete pods default/log-n1-a 
    "#]],
    );
}

#[test]
fn a_surge_starts_the_new_pod_before_the_old_one_goes() {
    let mut set = set("two");
    set["spec"]["updateStrategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": 1});
    let revisions = [revision("one", "a", 1), revision("two", "b", 2)];
    let nodes = [node("n1", None), node("n2", None)];
    check(
        &set,
        &nodes,
        &revisions,
        &[pod("n1", "a"), pod("n2", "a")],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":2,"desiredNumberScheduled":2,"numberAvailable":2,"numberMisscheduled":0,"numberReady":2,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":0}
        create pods "log-6wgsf" "two" ["n1"]
    "#]],
    );
    check(
        &set,
        &nodes,
        &revisions,
        &[pod("n1", "a"), pod("n1", "b"), pod("n2", "a")],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":2,"desiredNumberScheduled":2,"numberAvailable":2,"numberMisscheduled":0,"numberReady":2,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":1}
        delete pods default/log-n1-a 
    "#]],
    );
}

#[test]
fn going_back_renumbers_the_old_revision() {
    let revisions = [revision("one", "a", 1), revision("two", "b", 2)];
    check(
        &set("one"),
        &[node("n1", None)],
        &revisions,
        &[pod("n1", "a")],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":1,"desiredNumberScheduled":1,"numberAvailable":1,"numberMisscheduled":0,"numberReady":1,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":1}
        patch controllerrevisions default/log-a {"metadata":{"uid":"a"},"revision":3}
    "#]],
    );
}

#[test]
fn failed_pods_are_replaced_and_duplicate_revisions_merged() {
    let revisions = [revision("one", "a", 1), revision("one", "b", 2)];
    let mut failed = pod("n2", "b");
    failed["status"]["phase"] = "Failed".into();
    check(
        &set("one"),
        &[node("n1", None), node("n2", None)],
        &revisions,
        &[pod("n1", "a"), failed],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":2,"desiredNumberScheduled":2,"numberAvailable":2,"numberMisscheduled":0,"numberReady":2,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":1}
        delete controllerrevisions default/log-a 
        patch pods default/log-n1-a {"metadata":{"labels":{"controller-revision-hash":"b"},"uid":"n1a"}}
        delete pods default/log-n2-b 
    "#]],
    );
}

#[test]
fn on_delete_leaves_old_pods_alone() {
    let mut set = set("two");
    set["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    check(
        &set,
        &[node("n1", None)],
        &[revision("one", "a", 1), revision("two", "b", 2)],
        &[pod("n1", "a")],
        expect![[r#"
        status daemonsets default/log {"currentNumberScheduled":1,"desiredNumberScheduled":1,"numberAvailable":1,"numberMisscheduled":0,"numberReady":1,"numberUnavailable":0,"observedGeneration":1,"updatedNumberScheduled":0}
    "#]],
    );
}
