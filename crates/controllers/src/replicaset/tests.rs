//! Golden plans of single situations.

use client::{Controller, Outcome, Read, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::ReplicaSetController;
use crate::pod::Pod;
use crate::scenario::gvr;
use crate::text::text;

fn key() -> api::ObjectKey {
    api::ObjectKey::new("default", "web")
}

fn set(replicas: i32, status: Value) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "s", "resourceVersion": "5", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
        },
        "status": status,
    })
}

/// A running pod on node n1, ready for an hour.
fn pod(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "6", "labels": {"app": "web"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "s", "controller": true}],
        },
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    })
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    let slot = object.pointer_mut(path).map(|slot| *slot = value.clone());
    if slot.is_none() {
        let (parent, name) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[name] = value;
    }
    object
}

fn view(set: &Value, pods: &[Value]) -> View {
    View::default().with_objects::<ReplicaSet>(std::slice::from_ref(set)).with_objects::<Pod>(pods)
}

fn check_view(view: &View, expected: &Expect) {
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    expected.assert_eq(&text(&ReplicaSetController.plan(&key(), view, now)));
}

fn check(set: &Value, pods: &[Value], expected: Expect) {
    check_view(&view(set, pods), &expected);
}

#[test]
fn missing_pods_are_made() {
    check(
        &set(2, json!({"replicas": 0, "observedGeneration": 1})),
        &[],
        expect![[r#"
            create pods {"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","labels":{"app":"web"},"name":"web-6wgsf","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"s"}]},"spec":{"containers":[{"name":"c"}]}}
            create pods {"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","labels":{"app":"web"},"name":"web-nx4ht","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"s"}]},"spec":{"containers":[{"name":"c"}]}}
            event SuccessfulCreate: Created pod: web-6wgsf
            event SuccessfulCreate: Created pod: web-nx4ht
        "#]],
    );
}

#[test]
fn finished_and_leaving_pods_do_not_count() {
    let status = json!({"replicas": 0, "observedGeneration": 1});
    check(
        &set(1, status),
        &[
            with(pod("failed"), "/status/phase", "Failed".into()),
            with(pod("leaving"), "/metadata/deletionTimestamp", "2026-01-01T00:30:00Z".into()),
        ],
        expect![[r#"
            status replicasets default/web {"availableReplicas":0,"fullyLabeledReplicas":0,"observedGeneration":1,"readyReplicas":0,"replicas":0,"terminatingReplicas":1}
            create pods {"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","labels":{"app":"web"},"name":"web-6wgsf","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"s"}]},"spec":{"containers":[{"name":"c"}]}}
            event SuccessfulCreate: Created pod: web-6wgsf
        "#]],
    );
}

#[test]
fn the_least_useful_pods_go_first() {
    let costly = with(
        pod("cheap"),
        "/metadata/annotations",
        json!({"controller.kubernetes.io/pod-deletion-cost": "-1"}),
    );
    let young = with(pod("young"), "/metadata/creationTimestamp", "2026-01-01T00:59:59Z".into());
    let restarted = with(pod("restarted"), "/status/containerStatuses", json!([{"restartCount": 3}]));
    let recent =
        with(pod("recent"), "/status/conditions/0/lastTransitionTime", "2026-01-01T00:59:59Z".into());
    let unready = with(pod("unready"), "/status/conditions/0/status", "False".into());
    let pending =
        with(with(pod("pending"), "/status/phase", "Pending".into()), "/status/conditions", json!([]));
    let unassigned = with(pending.clone(), "/spec/nodeName", "".into());
    let unassigned =
        with(with(unassigned, "/metadata/name", "unassigned".into()), "/metadata/uid", "unassigned".into());
    let pods = [pod("old"), young, restarted, recent, costly, unready, pending, unassigned];
    check(
        &set(0, json!({"replicas": 8})),
        &pods,
        expect![[r#"
            status replicasets default/web {"availableReplicas":5,"fullyLabeledReplicas":8,"observedGeneration":1,"readyReplicas":5,"replicas":8,"terminatingReplicas":0}
            delete pods default/unassigned 
            delete pods default/pending 
            delete pods default/unready 
            delete pods default/cheap 
            delete pods default/recent 
            delete pods default/restarted 
            delete pods default/young 
            delete pods default/old 
            event SuccessfulDelete: Deleted pod: unassigned
            event SuccessfulDelete: Deleted pod: pending
            event SuccessfulDelete: Deleted pod: unready
            event SuccessfulDelete: Deleted pod: cheap
            event SuccessfulDelete: Deleted pod: recent
            event SuccessfulDelete: Deleted pod: restarted
            event SuccessfulDelete: Deleted pod: young
            event SuccessfulDelete: Deleted pod: old
        "#]],
    );
}

#[test]
fn orphans_are_adopted_after_a_live_read_and_strangers_released() {
    let orphan = with(pod("orphan"), "/metadata/ownerReferences", json!([]));
    let stranger = with(pod("stranger"), "/metadata/labels", json!({"app": "other"}));
    let object = set(1, json!({"replicas": 1, "observedGeneration": 1}));
    let view = view(&object, &[orphan, stranger]);
    check_view(
        &view,
        &expect![[r#"
        need get replicasets default/web
    "#]],
    );
    let read = Read::Get { gvr: gvr("replicasets"), key: key() };
    check_view(
        &view.with_read(read, Ok(object)),
        &expect![[r#"
        patch pods default/orphan {"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"s"}],"resourceVersion":"6","uid":"orphan"}}
        patch pods default/stranger {"metadata":{"ownerReferences":null,"resourceVersion":"6","uid":"stranger"}}
        status replicasets default/web {"availableReplicas":1,"fullyLabeledReplicas":1,"observedGeneration":1,"readyReplicas":1,"replicas":1,"terminatingReplicas":0}
    "#]],
    );
}

#[test]
fn a_pod_becomes_available_after_its_time() {
    let mut object = set(
        1,
        json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "observedGeneration": 1}),
    );
    object["spec"]["minReadySeconds"] = 10.into();
    let recent =
        with(pod("recent"), "/status/conditions/0/lastTransitionTime", "2026-01-01T00:59:57Z".into());
    check(
        &object,
        &[recent],
        expect![[r#"
        again after 7s
    "#]],
    );
}

#[test]
fn a_refused_pod_becomes_a_condition() {
    let create = client::Action::Create { gvr: gvr("pods"), namespace: "default".into(), object: json!({}) };
    let refused = api::Status::forbidden("", "pods", "", "exceeded quota");
    let view = view(&set(1, json!({"replicas": 0, "observedGeneration": 1})), &[]);
    check_view(
        &view.with_last(Outcome { failed: Some((create, refused)), performed: 0 }),
        &expect![[r#"
            status replicasets default/web {"availableReplicas":0,"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"pods is forbidden: exceeded quota","reason":"FailedCreate","status":"True","type":"ReplicaFailure"}],"fullyLabeledReplicas":0,"observedGeneration":1,"readyReplicas":0,"replicas":0,"terminatingReplicas":0}
            create pods {"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","labels":{"app":"web"},"name":"web-6wgsf","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"s"}]},"spec":{"containers":[{"name":"c"}]}}
            event SuccessfulCreate: Created pod: web-6wgsf
        "#]],
    );
}

#[test]
fn a_refusal_is_written_once() {
    let failing = json!({"replicas": 0, "observedGeneration": 1, "conditions": [{
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "pods \"web-1\" is forbidden: no",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    let create =
        || client::Action::Create { gvr: gvr("pods"), namespace: "default".into(), object: json!({}) };
    let statuses = |status: &Value, refusal: api::Status| {
        let view = view(&set(1, status.clone()), &[]);
        let view = view.with_last(Outcome { failed: Some((create(), refusal)), performed: 0 });
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        text(&ReplicaSetController.plan(&key(), &view, now))
            .lines()
            .filter(|l| l.starts_with("status"))
            .count()
    };
    let forbidden = || api::Status::forbidden("", "pods", "web-2", "no");
    assert_eq!(statuses(&failing, forbidden()), 0, "another name is no news");
    let calm = json!({"replicas": 0, "observedGeneration": 1});
    assert_eq!(statuses(&calm, forbidden()), 1);
    let mut ending = forbidden();
    ending.causes.push(api::Cause {
        reason: client::NAMESPACE_TERMINATING.into(),
        message: String::new(),
        field: String::new(),
    });
    assert_eq!(statuses(&calm, ending), 0, "the set of a namespace that ends has no failure");
}

#[test]
fn a_replication_controller_is_planned_like_a_set() {
    let mut object = set(2, json!({"replicas": 2}));
    object["spec"]["selector"] = json!({"app": "web"});
    let mut owned = pod("one");
    owned["metadata"]["ownerReferences"][0]["kind"] = "ReplicationController".into();
    let view = View::default()
        .with_objects::<super::replication_controller::AsSet>(std::slice::from_ref(&object))
        .with_objects::<Pod>(&[owned]);
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    let plan = super::ReplicationControllerController.plan(&key(), &view, now);
    expect![[r#"
        patch replicationcontrollers default/web {"metadata":{"resourceVersion":"5","uid":"s"},"status":{"availableReplicas":1,"conditions":null,"fullyLabeledReplicas":1,"observedGeneration":1,"readyReplicas":1,"replicas":1}}
        create pods {"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","labels":{"app":"web"},"name":"web-6wgsf","namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicationController","name":"web","uid":"s"}]},"spec":{"containers":[{"name":"c"}]}}
        event SuccessfulCreate: Created pod: web-6wgsf
    "#]].assert_eq(&text(&plan));
}
