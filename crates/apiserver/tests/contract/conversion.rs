//! Custom resources that a webhook converts between their versions, and rules in their schemas.

use api::{GroupVersionResource, PatchType, RequestOptions, Verb};
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, brief, next};
use crate::webhooks::Server;

fn things(version: &str) -> At {
    At {
        gvr: GroupVersionResource::new("example.com", version, "things"),
        namespace: Some("default".to_owned()),
    }
}

fn thing(version: &str, name: &str, fields: Value) -> Value {
    let mut object =
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": {"name": name}});
    for (field, value) in fields.as_object().unwrap() {
        object[field] = value.clone();
    }
    object
}

/// v1 has `hostPort`, v2 `host` and `port`.
fn convert(_: &str, review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let one = |object: &Value| {
        let mut object = object.clone();
        assert_ne!(object["apiVersion"], wanted, "nothing is sent that needs no conversion");
        object["apiVersion"] = wanted.into();
        let map = object.as_object_mut().unwrap();
        if wanted.ends_with("/v2") {
            let joined = map.remove("hostPort").unwrap();
            let (host, port) = joined.as_str().unwrap().split_once(':').unwrap();
            map.insert("host".into(), host.into());
            map.insert("port".into(), port.into());
        } else {
            let (host, port) = (map.remove("host").unwrap(), map.remove("port").unwrap());
            map.insert(
                "hostPort".into(),
                format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap()).into(),
            );
        }
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(one).collect();
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "response": {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

fn version(name: &str, storage: bool, fields: &[&str]) -> Value {
    let properties: serde_json::Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), json!({"type": "string"}))).collect();
    json!({"name": name, "served": true, "storage": storage,
        "selectableFields": [{"jsonPath": format!(".{}", fields[0])}],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
}

async fn define(f: &Fixture, server: &Server) {
    let conversion = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://localhost:{}/convert", server.address.port()), "caBundle": server.bundle}}});
    let spec = json!({"group": "example.com", "scope": "Namespaced", "conversion": conversion,
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [version("v1", true, &["hostPort"]), version("v2", false, &["host", "port"])]});
    let definitions = at("apiextensions.k8s.io", "customresourcedefinitions", "");
    f.create(&definitions, json!({"metadata": {"name": "things.example.com"}, "spec": spec})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_shows_the_version_that_was_asked_for() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", convert).await;
    define(&f, &server).await;
    let (v1, v2) = (things("v1"), things("v2"));
    let mut watch = f.watch(&v2, RequestOptions::default()).await.unwrap();
    f.create(&v1, thing("v1", "a", json!({"hostPort": "h:1"}))).await.unwrap();
    let made = f.create(&v2, thing("v2", "b", json!({"host": "g", "port": "2"}))).await.unwrap();
    assert_eq!((&made["apiVersion"], &made["host"]), (&json!("example.com/v2"), &json!("g")));
    let got = f.get(&v2, "a").await.unwrap();
    assert_eq!((&got["host"], &got["port"], &got["hostPort"]), (&json!("h"), &json!("1"), &Value::Null));
    assert_eq!(f.get(&v1, "b").await.unwrap()["hostPort"], "g:2");
    let (kind, first) = next(&mut watch).await;
    assert_eq!((kind.as_str(), &first["host"]), ("ADDED", &json!("h")));
    assert_eq!(brief(&mut watch).await, "ADDED b");
    let patched = f.patch(&v2, "a", PatchType::Merge, json!({"port": "9"})).await.unwrap();
    assert_eq!(patched["port"], "9");
    assert_eq!(f.get(&v1, "a").await.unwrap()["hostPort"], "h:9");
    assert_eq!(brief(&mut watch).await, "MODIFIED a");
    // The storage version changes: what is stored stays as it is until it is written.
    let definitions = at("apiextensions.k8s.io", "customresourcedefinitions", "");
    let storage = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    f.patch(&definitions, "things.example.com", PatchType::Json, storage).await.unwrap();
    f.create(&v1, thing("v1", "c", json!({"hostPort": "i:3"}))).await.unwrap();
    for (at, field, want) in [(&v1, "hostPort", ["h:9", "g:2", "i:3"]), (&v2, "host", ["h", "g", "i"])] {
        let list = f.list(at, RequestOptions::default()).await.unwrap();
        let shown: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item[field]).collect();
        assert_eq!(shown, want);
    }
    let selected = RequestOptions { field_selector: Some("host=g".to_owned()), ..RequestOptions::default() };
    let list = f.list(&v2, selected).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    f.delete(&v2, "a").await.unwrap();
    f.json(v1.request(Verb::DeleteCollection, None, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversion_that_fails_says_why() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", |_, review| {
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": review["request"]["uid"], "result": {"status": "Failed", "message": "not today"}}})
    })
    .await;
    define(&f, &server).await;
    f.create(&things("v1"), thing("v1", "a", json!({"hostPort": "h:1"}))).await.unwrap();
    f.get(&things("v1"), "a").await.unwrap();
    let refused = f.get(&things("v2"), "a").await.unwrap_err();
    let want = "Internal error occurred: conversion webhook for example.com/v1, Kind=Thing failed: not today";
    assert_eq!((refused.code, refused.message.as_str()), (500, want));
    let refused = f.list(&things("v2"), RequestOptions::default()).await.unwrap_err();
    assert_eq!(refused.message, want);
    let definitions = at("apiextensions.k8s.io", "customresourcedefinitions", "");
    let wrong = json!([{"op": "remove", "path": "/spec/conversion/webhook/clientConfig"}]);
    let refused =
        f.patch(&definitions, "things.example.com", PatchType::Json, wrong).await.unwrap_err().message;
    assert!(
        refused.contains(
            "spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook"
        ),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_asked_on_creation_and_change() {
    let f = Fixture::new().await;
    let define = async |rule: Value| {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "x-kubernetes-validations": [rule]});
        let spec = json!({"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]});
        let definitions = at("apiextensions.k8s.io", "customresourcedefinitions", "");
        f.create(&definitions, json!({"metadata": {"name": "things.example.com"}, "spec": spec})).await
    };
    let refused = define(json!({"rule": "self.m > 0"})).await.unwrap_err().message;
    assert!(refused.contains("spec.versions[0].schema.openAPIV3Schema.x-kubernetes-validations[0].rule: Invalid value: \"self.m > 0\": compilation failed: ERROR: <input>:1:5: undefined field 'm'"), "{refused}");
    define(json!({"rule": "self.n > 0 && self.metadata.name != 'no' && (self.n < 5 || self.n >= oldSelf.n)", "message": "n is wrong"})).await.unwrap();
    let at = things("v1");
    f.create(&at, thing("v1", "a", json!({"n": 9}))).await.unwrap();
    let refused = f.patch(&at, "a", PatchType::Merge, json!({"n": 8})).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (422, "Thing.example.com \"a\" is invalid: <nil>: Invalid value: n is wrong")
    );
    f.patch(&at, "a", PatchType::Merge, json!({"n": 10})).await.unwrap();
}
