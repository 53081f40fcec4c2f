//! Golden plans of single situations.

use client::{Action, Controller, Metadata, Plan, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use serde_json::{Value, json};

use super::StatefulSetController;
use crate::pod::Pod;
use crate::scenario::gvr;
use crate::text::brief;

fn set(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "db", "namespace": "default", "uid": "s", "resourceVersion": "5", "generation": 1},
        "spec": {
            "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
        "status": {"replicas": 0, "currentRevision": "db-a"},
    })
}

fn revision(image: &str, hash: &str, number: i64) -> Value {
    json!({
        "metadata": {
            "name": format!("db-{hash}"), "namespace": "default", "uid": hash, "resourceVersion": "4",
            "labels": {"app": "db", "controller.kubernetes.io/hash": hash},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}],
        },
        "data": {"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}},
        "revision": number,
    })
}

fn pod(ordinal: i32, hash: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("db-{ordinal}"), "namespace": "default", "uid": format!("{ordinal}{hash}"), "resourceVersion": "6",
            "labels": {"app": "db", "controller-revision-hash": format!("db-{hash}")},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}],
        },
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    })
}

fn unready(mut pod: Value) -> Value {
    pod["status"]["conditions"][0]["status"] = "False".into();
    pod
}

fn plan(set: &Value, revisions: &[Value], pods: &[Value]) -> Plan {
    let view = View::default()
        .with_objects::<StatefulSet>(std::slice::from_ref(set))
        .with_objects::<ControllerRevision>(revisions)
        .with_resource::<Metadata>(gvr("persistentvolumeclaims"), &[])
        .with_objects::<Pod>(pods);
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    StatefulSetController.plan(&api::ObjectKey::new("default", "db"), &view, now)
}

fn check(set: &Value, revisions: &[Value], pods: &[Value], expected: Expect) {
    expected.assert_eq(&brief(&plan(set, revisions, pods)));
}

#[test]
fn a_member_has_a_name_a_host_name_and_volumes() {
    let mut set = set(1, "one");
    set["spec"]["volumeClaimTemplates"] = json!([{
        "metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]},
    }]);
    let plan = plan(&set, &[revision("one", "a", 1)], &[]);
    let Plan::Do { actions, .. } = plan else { panic!("{plan:?}") };
    let made = actions.iter().filter_map(|action| match action {
        Action::Create { object, .. } => Some(format!("{object:#}\n")),
        _ => None,
    });
    expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "PersistentVolumeClaim",
          "metadata": {
            "labels": {
              "app": "db"
            },
            "name": "data-db-0",
            "namespace": "default"
          },
          "spec": {
            "accessModes": [
              "ReadWriteOnce"
            ]
          }
        }
        {
          "apiVersion": "v1",
          "kind": "Pod",
          "metadata": {
            "generateName": "db-",
            "labels": {
              "app": "db",
              "apps.kubernetes.io/pod-index": "0",
              "controller-revision-hash": "db-a",
              "statefulset.kubernetes.io/pod-name": "db-0"
            },
            "name": "db-0",
            "namespace": "default",
            "ownerReferences": [
              {
                "apiVersion": "apps/v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "StatefulSet",
                "name": "db",
                "uid": "s"
              }
            ]
          },
          "spec": {
            "containers": [
              {
                "image": "one",
                "name": "c"
              }
            ],
            "hostname": "db-0",
            "subdomain": "db",
            "volumes": [
              {
                "name": "data",
                "persistentVolumeClaim": {
                  "claimName": "data-db-0"
                }
              }
            ]
          }
        }
    "#]]
    .assert_eq(&made.collect::<String>());
}

#[test]
fn members_are_made_one_after_the_other() {
    let revisions = [revision("one", "a", 1)];
    check(
        &set(3, "one"),
        &[],
        &[],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":0,"currentReplicas":0,"currentRevision":"db-8465df5799","observedGeneration":1,"readyReplicas":0,"replicas":0,"updateRevision":"db-8465df5799","updatedReplicas":0}
        create controllerrevisions "db-8465df5799"
        create pods "db-0" "one"
    "#]],
    );
    check(
        &set(3, "one"),
        &revisions,
        &[unready(pod(0, "a"))],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":0,"currentReplicas":1,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":0,"replicas":1,"updateRevision":"db-a","updatedReplicas":1}
    "#]],
    );
    check(
        &set(3, "one"),
        &revisions,
        &[pod(0, "a")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":1,"currentReplicas":1,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":1,"replicas":1,"updateRevision":"db-a","updatedReplicas":1}
        create pods "db-1" "one"
    "#]],
    );
}

#[test]
fn parallel_members_do_not_wait() {
    let mut set = set(3, "one");
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    let revisions = [revision("one", "a", 1)];
    check(
        &set,
        &revisions,
        &[unready(pod(1, "a"))],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":0,"currentReplicas":1,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":0,"replicas":1,"updateRevision":"db-a","updatedReplicas":1}
        create pods "db-0" "one"
        create pods "db-2" "one"
    "#]],
    );
    set["spec"]["replicas"] = 0.into();
    check(
        &set,
        &revisions,
        &[pod(0, "a"), unready(pod(1, "a"))],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":1,"currentReplicas":2,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":1,"replicas":2,"updateRevision":"db-a","updatedReplicas":2}
        delete pods default/db-1 
        delete pods default/db-0 
    "#]],
    );
}

#[test]
fn the_highest_member_goes_first_and_waits_for_the_others() {
    let revisions = [revision("one", "a", 1)];
    check(
        &set(1, "one"),
        &revisions,
        &[pod(0, "a"), pod(1, "a"), pod(2, "a")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":3,"currentReplicas":3,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":3,"replicas":3,"updateRevision":"db-a","updatedReplicas":3}
        delete pods default/db-2 
    "#]],
    );
    check(
        &set(1, "one"),
        &revisions,
        &[unready(pod(0, "a")), pod(1, "a"), pod(2, "a")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":2,"currentReplicas":3,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":2,"replicas":3,"updateRevision":"db-a","updatedReplicas":3}
    "#]],
    );
}

#[test]
fn an_update_goes_from_the_highest_down_to_the_partition() {
    let revisions = [revision("one", "a", 1), revision("two", "b", 2)];
    let mut set = set(3, "two");
    set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = 1.into();
    check(
        &set,
        &revisions,
        &[pod(0, "a"), pod(1, "a"), pod(2, "a")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":3,"currentReplicas":3,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":3,"replicas":3,"updateRevision":"db-b","updatedReplicas":0}
        delete pods default/db-2 
    "#]],
    );
    check(
        &set,
        &revisions,
        &[pod(0, "a"), pod(1, "a"), unready(pod(2, "b"))],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":2,"currentReplicas":2,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":2,"replicas":3,"updateRevision":"db-b","updatedReplicas":1}
    "#]],
    );
    check(
        &set,
        &revisions,
        &[pod(0, "a"), pod(1, "b"), pod(2, "b")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":3,"currentReplicas":1,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":3,"replicas":3,"updateRevision":"db-b","updatedReplicas":2}
    "#]],
    );
    // A member below the partition comes back with the old template.
    check(
        &set,
        &revisions,
        &[pod(1, "b"), pod(2, "b")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":2,"currentReplicas":0,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":2,"replicas":2,"updateRevision":"db-b","updatedReplicas":2}
        create pods "db-0" "one"
    "#]],
    );
}

#[test]
fn failed_members_are_replaced() {
    let mut failed = pod(0, "a");
    failed["status"]["phase"] = "Failed".into();
    check(
        &set(1, "one"),
        &[revision("one", "a", 1)],
        &[failed],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":0,"currentReplicas":1,"currentRevision":"db-a","observedGeneration":1,"readyReplicas":0,"replicas":1,"updateRevision":"db-a","updatedReplicas":1}
        delete pods default/db-0 
    "#]],
    );
}

#[test]
fn a_finished_update_moves_the_current_revision() {
    let revisions = [revision("one", "a", 1), revision("two", "b", 2)];
    check(
        &set(1, "two"),
        &revisions,
        &[pod(0, "b")],
        expect![[r#"
        status statefulsets default/db {"availableReplicas":1,"currentReplicas":1,"currentRevision":"db-b","observedGeneration":1,"readyReplicas":1,"replicas":1,"updateRevision":"db-b","updatedReplicas":1}
    "#]],
    );
}
