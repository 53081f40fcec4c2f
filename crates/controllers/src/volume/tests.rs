use api::ObjectKey;
use client::{Controller, Kind, Read, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::*;
use crate::pod::Pod;
use crate::text::text;

fn volume(name: &str, storage: &str, change: Value) -> Value {
    let mut volume = json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {"disk": name}},
        "spec": {
            "capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/x"},
        },
        "status": {"phase": "Available"},
    });
    merge(&mut volume, change);
    volume
}

fn claim(change: Value) -> Value {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "default", "uid": "c", "resourceVersion": "2"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut claim, change);
    claim
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            change
                .into_iter()
                .for_each(|(name, value)| merge(into.entry(name).or_insert(Value::Null), value));
        }
        (into, change) => *into = change,
    }
}

fn bound(name: &str) -> Value {
    json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": name},
        "status": {"phase": "Bound"},
    })
}

fn for_claim(uid: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "default", "name": "c", "uid": uid}}, "status": {"phase": "Bound"}})
}

fn view(volumes: &[Value], claims: &[Value]) -> View {
    let class = json!({
        "metadata": {"name": "late"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    });
    let made = json!({"metadata": {"name": "made"}, "provisioner": "example.com/maker"});
    View::default()
        .with_objects::<PersistentVolume>(volumes)
        .with_objects::<PersistentVolumeClaim>(claims)
        .with_objects::<StorageClass>(&[class, made])
}

fn check(key: &ObjectKey, view: &View, expected: Expect) {
    expected.assert_eq(&text(&PersistentVolumeBinder.plan(key, view, Timestamp::UNIX_EPOCH)));
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "c")
}

#[test]
fn the_smallest_fitting_volume_is_bound() {
    let none = json!({});
    let volumes = [
        volume("big", "5Gi", none.clone()),
        volume("fits", "2Gi", none.clone()),
        volume("small", "1Mi", none.clone()),
        volume("other", "1Gi", json!({"spec": {"storageClassName": "other"}})),
        volume("blocks", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
        volume(
            "taken",
            "1Gi",
            json!({"spec": {"claimRef": {"namespace": "default", "name": "d", "uid": "d"}}}),
        ),
        volume("new", "1Gi", json!({"status": {"phase": "Pending"}})),
    ];
    check(
        &key(),
        &view(&volumes, &[claim(none)]),
        expect![[r#"
            patch persistentvolumes fits {"metadata":{"annotations":{"pv.kubernetes.io/bound-by-controller":"yes"},"resourceVersion":"1","uid":"fits"},"spec":{"claimRef":{"apiVersion":"v1","kind":"PersistentVolumeClaim","name":"c","namespace":"default","resourceVersion":"2","uid":"c"}}}
            patch persistentvolumes fits {"metadata":{"uid":"fits"},"status":{"phase":"Bound"}}
            patch persistentvolumeclaims default/c {"metadata":{"annotations":{"pv.kubernetes.io/bind-completed":"yes","pv.kubernetes.io/bound-by-controller":"yes"},"resourceVersion":"2","uid":"c"},"spec":{"volumeName":"fits"}}
            patch persistentvolumeclaims default/c {"metadata":{"uid":"c"},"status":{"accessModes":["ReadWriteOnce","ReadOnlyMany"],"capacity":{"storage":"2Gi"},"phase":"Bound"}}
        "#]],
    );
}

#[test]
fn a_bound_pair_is_left_alone() {
    let objects = ([volume("v", "2Gi", for_claim("c"))], [claim(bound("v"))]);
    check(&key(), &view(&objects.0, &objects.1), expect![""]);
    check(&ObjectKey::new("", "v"), &view(&objects.0, &objects.1), expect![""]);
}

#[test]
fn a_reserved_volume_goes_to_its_claim() {
    let reserved = volume("big", "5Gi", json!({"spec": {"claimRef": {"namespace": "default", "name": "c"}}}));
    let objects = [reserved, volume("fits", "1Gi", json!({}))];
    let plan =
        PersistentVolumeBinder.plan(&key(), &view(&objects, &[claim(json!({}))]), Timestamp::UNIX_EPOCH);
    assert!(text(&plan).starts_with("patch persistentvolumes big"), "{}", text(&plan));
    let labelled = claim(json!({"spec": {"selector": {"matchLabels": {"disk": "fits"}}}}));
    let objects = [volume("less", "1Gi", json!({})), volume("fits", "2Gi", json!({}))];
    let plan = PersistentVolumeBinder.plan(&key(), &view(&objects, &[labelled]), Timestamp::UNIX_EPOCH);
    assert!(text(&plan).starts_with("patch persistentvolumes fits"), "{}", text(&plan));
}

#[test]
fn claims_wait() {
    let volumes = [volume("v", "1Gi", json!({"spec": {"storageClassName": "late"}}))];
    check(
        &key(),
        &view(&volumes, &[claim(json!({"spec": {"storageClassName": "late"}}))]),
        expect![[r#"
            event WaitForFirstConsumer: waiting for first consumer to be created before binding
        "#]],
    );
    check(
        &key(),
        &view(&[], &[claim(json!({"status": null}))]),
        expect![[r#"
            patch persistentvolumeclaims default/c {"metadata":{"uid":"c"},"status":{"phase":"Pending"}}
            event FailedBinding: no persistent volumes available for this claim and no storage class is set
        "#]],
    );
    let made = view(&[], &[claim(json!({"spec": {"storageClassName": "made"}}))]);
    let plan = text(&PersistentVolumeBinder.plan(&key(), &made, Timestamp::UNIX_EPOCH));
    assert!(plan.contains(r#"{"volume.kubernetes.io/storage-provisioner":"example.com/maker"}"#), "{plan}");
}

#[test]
fn a_volume_whose_claim_is_gone_is_kept_or_fails() {
    let gone = |view: View| {
        let read = Read::Get { gvr: PersistentVolumeClaim::gvr(), key: key() };
        view.with_read(read, Err(api::Status::not_found("", "persistentvolumeclaims", "c")))
    };
    let kept = [volume("v", "1Gi", for_claim("c"))];
    let id = ObjectKey::new("", "v");
    check(&id, &view(&kept, &[]), expect![["need get persistentvolumeclaims default/c\n"]]);
    let released = expect![[r#"
        patch persistentvolumes v {"metadata":{"uid":"v"},"status":{"phase":"Released"}}
    "#]];
    check(&id, &gone(view(&kept, &[])), released);
    let mut doomed = volume("v", "1Gi", for_claim("c"));
    doomed["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
    check(
        &id,
        &gone(view(&[doomed], &[])),
        expect![[r#"
            patch persistentvolumes v {"metadata":{"uid":"v"},"status":{"message":"error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched","phase":"Failed"}}
            event VolumeFailedDelete: error getting deleter volume plugin for volume "v": no deletable volume plugin matched
        "#]],
    );
}

#[test]
fn a_claim_whose_volume_is_gone_is_lost() {
    let read = Read::Get { gvr: PersistentVolume::gvr(), key: ObjectKey::new("", "v") };
    let gone = view(&[], &[claim(bound("v"))])
        .with_read(read, Err(api::Status::not_found("", "persistentvolumes", "v")));
    check(
        &key(),
        &gone,
        expect![[r#"
            patch persistentvolumeclaims default/c {"metadata":{"uid":"c"},"status":{"phase":"Lost"}}
            event ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!
        "#]],
    );
}

#[test]
fn what_is_in_use_stays() {
    let pod = |node: &str| {
        json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
        })
    };
    let doomed = claim(json!({"metadata": {
        "deletionTimestamp": "1970-01-01T00:00:00Z", "finalizers": ["kubernetes.io/pvc-protection", "other"],
    }}));
    let plan = |pods: &[Value], live: &[Value]| {
        let read = Read::List {
            gvr: Pod::gvr(),
            namespace: Some("default".into()),
            options: api::RequestOptions::default(),
        };
        let view = view(&[], std::slice::from_ref(&doomed))
            .with_objects::<Pod>(pods)
            .with_read(read, Ok(json!({"items": live})));
        text(&ClaimProtection.plan(&key(), &view, Timestamp::UNIX_EPOCH))
    };
    assert_eq!(plan(&[pod("n")], &[]), "");
    assert_eq!(plan(&[], &[pod("n")]), "");
    let released = "patch persistentvolumeclaims default/c {\"metadata\":{\"finalizers\":[\"other\"],\"resourceVersion\":\"2\",\"uid\":\"c\"}}\n";
    assert_eq!(plan(&[pod("")], &[pod("")]), released);
}
