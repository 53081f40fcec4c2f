//! Golden plans of single situations.

use client::{Action, Controller, Outcome, Read, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};

use super::DeploymentController;
use crate::pod::Pod;
use crate::scenario::{deployment, gvr};
use crate::text::text;

const NOW: &str = "2026-01-01T01:00:00Z";

fn key() -> api::ObjectKey {
    api::ObjectKey::new("default", "web")
}

fn stored(mut object: Value) -> Value {
    object["metadata"]["uid"] = "d".into();
    object["metadata"]["resourceVersion"] = "5".into();
    object["metadata"]["generation"] = 1.into();
    object
}

fn web(replicas: i32, image: &str) -> Value {
    stored(deployment("web", replicas, image))
}

/// A ReplicaSet of `web`, sized for a Deployment of `desired`.
fn set(name: &str, image: &str, revision: i32, (replicas, available): (i32, i32), desired: i32) -> Value {
    let mut template = deployment("web", 0, image)["spec"]["template"].clone();
    template["metadata"]["labels"]["pod-template-hash"] = name.into();
    json!({
        "metadata": {
            "name": format!("web-{name}"), "namespace": "default", "uid": name, "resourceVersion": "6", "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:0{revision}Z"),
            "labels": {"app": "web", "pod-template-hash": name},
            "annotations": {
                "deployment.kubernetes.io/revision": revision.to_string(),
                "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                "deployment.kubernetes.io/max-replicas": (desired + (desired + 3) / 4).to_string(),
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}],
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web", "pod-template-hash": name}}, "template": template},
        "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1},
    })
}

fn check_view(view: &View, expected: &Expect) {
    let now: Timestamp = NOW.parse().unwrap();
    expected.assert_eq(&text(&DeploymentController.plan(&key(), view, now)));
}

fn view(deployment: &Value, sets: &[Value]) -> View {
    View::default()
        .with_objects::<Deployment>(std::slice::from_ref(deployment))
        .with_objects::<ReplicaSet>(sets)
        .with_objects::<Pod>(&[])
}

fn check(deployment: &Value, sets: &[Value], expected: Expect) {
    check_view(&view(deployment, sets), &expected);
}

#[test]
fn the_first_replica_set() {
    check(
        &web(3, "one"),
        &[],
        expect![[r#"
        create replicasets {"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"3","deployment.kubernetes.io/max-replicas":"4","deployment.kubernetes.io/revision":"1"},"labels":{"app":"web","pod-template-hash":"77b496c86d"},"name":"web-77b496c86d","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"Deployment","name":"web","uid":"d"}]},"spec":{"replicas":3,"selector":{"matchLabels":{"app":"web","pod-template-hash":"77b496c86d"}},"template":{"metadata":{"labels":{"app":"web","pod-template-hash":"77b496c86d"}},"spec":{"containers":[{"image":"one","name":"main"}]}}}}
        event ScalingReplicaSet: Scaled up replica set web-77b496c86d from 0 to 3
        status deployments default/web {"availableReplicas":0,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment does not have minimum availability.","reason":"MinimumReplicasUnavailable","status":"False","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Created new replica set \"web-77b496c86d\"","reason":"NewReplicaSetCreated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":0,"replicas":0,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"1"},"uid":"d"}}
        again after 601s
    "#]],
    );
}

#[test]
fn the_new_set_grows_within_the_surge() {
    check(
        &web(4, "two"),
        &[set("old", "one", 1, (4, 4), 4), set("new", "two", 2, (0, 0), 4)],
        expect![[r#"
        patch replicasets default/web-new {"metadata":{"uid":"new"},"spec":{"replicas":1}}
        event ScalingReplicaSet: Scaled up replica set web-new from 0 to 1
        status deployments default/web {"availableReplicas":4,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-new\" is progressing.","reason":"ReplicaSetUpdated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":4,"replicas":4,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"},"uid":"d"}}
        again after 601s
    "#]],
    );
}

#[test]
fn the_old_set_shrinks_as_far_as_enough_pods_are_available() {
    check(
        &web(4, "two"),
        &[set("old", "one", 1, (4, 4), 4), set("new", "two", 2, (1, 0), 4)],
        expect![[r#"
        patch replicasets default/web-old {"metadata":{"uid":"old"},"spec":{"replicas":3}}
        event ScalingReplicaSet: Scaled down replica set web-old from 4 to 3
        status deployments default/web {"availableReplicas":4,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-new\" is progressing.","reason":"ReplicaSetUpdated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":4,"replicas":5,"terminatingReplicas":0,"unavailableReplicas":1,"updatedReplicas":1}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"},"uid":"d"}}
        again after 601s
    "#]],
    );
}

#[test]
fn old_pods_that_serve_nobody_go_first() {
    check(
        &web(4, "three"),
        &[set("a", "one", 1, (3, 3), 4), set("b", "two", 2, (1, 0), 4), set("c", "three", 3, (1, 0), 4)],
        expect![[r#"
            patch replicasets default/web-b {"metadata":{"uid":"b"},"spec":{"replicas":0}}
            event ScalingReplicaSet: Scaled down replica set web-b from 1 to 0
            status deployments default/web {"availableReplicas":3,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-c\" is progressing.","reason":"ReplicaSetUpdated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":3,"replicas":5,"terminatingReplicas":0,"unavailableReplicas":2,"updatedReplicas":1}
            patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"3"},"uid":"d"}}
            again after 601s
        "#]],
    );
}

#[test]
fn going_back_reuses_the_old_set_and_remembers_its_revision() {
    check(
        &web(2, "one"),
        &[set("a", "one", 1, (0, 0), 2), set("b", "two", 2, (2, 2), 2)],
        expect![[r#"
        patch replicasets default/web-a {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"3","deployment.kubernetes.io/revision-history":"1"},"uid":"a"},"spec":{"replicas":1}}
        event ScalingReplicaSet: Scaled up replica set web-a from 0 to 1
        status deployments default/web {"availableReplicas":2,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-a\" is progressing.","reason":"ReplicaSetUpdated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":2,"replicas":2,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"3"},"uid":"d"}}
        again after 601s
    "#]],
    );
}

#[test]
fn a_resize_in_mid_rollout_is_shared_out() {
    check(
        &web(10, "two"),
        &[set("old", "one", 1, (4, 4), 5), set("new", "two", 2, (3, 2), 5)],
        expect![[r#"
            patch replicasets default/web-old {"metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"10","deployment.kubernetes.io/max-replicas":"13"},"uid":"old"},"spec":{"replicas":7}}
            event ScalingReplicaSet: Scaled up replica set web-old from 4 to 7
            patch replicasets default/web-new {"metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"10","deployment.kubernetes.io/max-replicas":"13"},"uid":"new"},"spec":{"replicas":6}}
            event ScalingReplicaSet: Scaled up replica set web-new from 3 to 6
            status deployments default/web {"availableReplicas":6,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment does not have minimum availability.","reason":"MinimumReplicasUnavailable","status":"False","type":"Available"}],"observedGeneration":1,"readyReplicas":6,"replicas":7,"terminatingReplicas":0,"unavailableReplicas":1,"updatedReplicas":3}
            patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"},"uid":"d"}}
        "#]],
    );
}

#[test]
fn a_paused_rollout_only_follows_its_size() {
    let mut object = web(2, "two");
    object["spec"]["paused"] = true.into();
    check(
        &object,
        &[set("old", "one", 1, (4, 4), 4)],
        expect![[r#"
            patch replicasets default/web-old {"metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"2","deployment.kubernetes.io/max-replicas":"3"},"uid":"old"},"spec":{"replicas":2}}
            event ScalingReplicaSet: Scaled down replica set web-old from 4 to 2
            status deployments default/web {"availableReplicas":4,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment is paused","reason":"DeploymentPaused","status":"Unknown","type":"Progressing"}],"observedGeneration":1,"readyReplicas":4,"replicas":4,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
        "#]],
    );
}

#[test]
fn a_rollout_without_progress_is_reported() {
    let mut object = web(2, "two");
    object["status"] = json!({"replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 2,
        "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    check(
        &object,
        &[set("old", "one", 1, (2, 2), 2), set("new", "two", 2, (1, 0), 2)],
        expect![[r#"
        status deployments default/web {"availableReplicas":2,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-new\" has timed out progressing.","reason":"ProgressDeadlineExceeded","status":"False","type":"Progressing"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"}],"observedGeneration":1,"readyReplicas":2,"replicas":3,"terminatingReplicas":0,"unavailableReplicas":1,"updatedReplicas":1}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"},"uid":"d"}}
    "#]],
    );
}

#[test]
fn surplus_revisions_are_forgotten_after_the_rollout() {
    let mut object = web(1, "three");
    object["spec"]["revisionHistoryLimit"] = 1.into();
    check(
        &object,
        &[set("a", "one", 1, (0, 0), 1), set("b", "two", 2, (0, 0), 1), set("c", "three", 3, (1, 1), 1)],
        expect![[r#"
            status deployments default/web {"availableReplicas":1,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-c\" has successfully progressed.","reason":"NewReplicaSetAvailable","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":1,"replicas":1,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":1}
            patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"3"},"uid":"d"}}
            delete replicasets default/web-a 
        "#]],
    );
}

#[test]
fn a_name_that_is_taken_counts_as_a_collision() {
    let object = web(1, "one");
    let hash = super::revision::template_hash(
        &serde_json::from_value(object["spec"]["template"].clone()).unwrap(),
        None,
    );
    let name = format!("web-{hash}");
    let create = Action::Create { gvr: gvr("replicasets"), namespace: "default".into(), object: json!({}) };
    let refused = api::Status::already_exists("apps", "replicasets", &name);
    let read = Read::Get { gvr: gvr("replicasets"), key: api::ObjectKey::new("default", &*name) };
    let view = view(&object, &[]).with_last(Outcome { failed: Some((create, refused)), performed: 0 });
    let foreign = view.with_read(read, Ok(json!({"metadata": {"uid": "other"}})));
    check_view(
        &foreign,
        &expect![[r#"
        status deployments default/web {"availableReplicas":0,"collisionCount":1,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment does not have minimum availability.","reason":"MinimumReplicasUnavailable","status":"False","type":"Available"}],"observedGeneration":1,"readyReplicas":0,"replicas":0,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
    "#]],
    );
}

#[test]
fn an_orphan_is_adopted_after_a_live_read() {
    let mut orphan = set("a", "one", 1, (1, 1), 1);
    orphan["metadata"]["ownerReferences"] = Value::Null;
    let object = web(1, "one");
    let view = view(&object, &[orphan]);
    check_view(
        &view,
        &expect![[r#"
        need get deployments default/web
    "#]],
    );
    let read = Read::Get { gvr: gvr("deployments"), key: key() };
    check_view(
        &view.clone().with_read(read.clone(), Ok(object)),
        &expect![[r#"
        patch replicasets default/web-a {"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"Deployment","name":"web","uid":"d"}],"resourceVersion":"6","uid":"a"}}
        status deployments default/web {"availableReplicas":1,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment has minimum availability.","reason":"MinimumReplicasAvailable","status":"True","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"ReplicaSet \"web-a\" has successfully progressed.","reason":"NewReplicaSetAvailable","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":1,"replicas":1,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":1}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"1"},"uid":"d"}}
    "#]],
    );
    let replaced = json!({"metadata": {"uid": "another"}});
    check_view(
        &view.with_read(read, Ok(replaced)),
        &expect![[r#"
        create replicasets {"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"1","deployment.kubernetes.io/max-replicas":"2","deployment.kubernetes.io/revision":"1"},"labels":{"app":"web","pod-template-hash":"77b496c86d"},"name":"web-77b496c86d","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"Deployment","name":"web","uid":"d"}]},"spec":{"replicas":1,"selector":{"matchLabels":{"app":"web","pod-template-hash":"77b496c86d"}},"template":{"metadata":{"labels":{"app":"web","pod-template-hash":"77b496c86d"}},"spec":{"containers":[{"image":"one","name":"main"}]}}}}
        event ScalingReplicaSet: Scaled up replica set web-77b496c86d from 0 to 1
        status deployments default/web {"availableReplicas":0,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Deployment does not have minimum availability.","reason":"MinimumReplicasUnavailable","status":"False","type":"Available"},{"lastTransitionTime":"2026-01-01T01:00:00Z","lastUpdateTime":"2026-01-01T01:00:00Z","message":"Created new replica set \"web-77b496c86d\"","reason":"NewReplicaSetCreated","status":"True","type":"Progressing"}],"observedGeneration":1,"readyReplicas":0,"replicas":0,"terminatingReplicas":0,"unavailableReplicas":0,"updatedReplicas":0}
        patch deployments default/web {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"1"},"uid":"d"}}
        again after 601s
    "#]],
    );
}
