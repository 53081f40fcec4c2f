//! Answers, bodies and watches in protobuf over TLS.

use api::codec::protobuf;
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::common::{at, configmap, configmaps};
use crate::wire::{ADMIN, Wire, request};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A request that takes nothing but protobuf.
fn binary(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = request(method, path, body);
    request.headers_mut().insert("accept", PROTOBUF.parse().unwrap());
    request.headers_mut().insert("content-type", PROTOBUF.parse().unwrap());
    request
}

/// Kind and tree of an enveloped object of one of the kinds that occur here.
fn decoded(body: &[u8]) -> Value {
    let table = schema::table();
    let known = [
        ("", "ConfigMap"),
        ("", "ConfigMapList"),
        ("", "Status"),
        ("meta.k8s.io", "PartialObjectMetadata"),
        ("meta.k8s.io", "PartialObjectMetadataList"),
        ("autoscaling", "Scale"),
    ];
    let mut trees = known.into_iter().filter_map(|(group, kind)| {
        let tree = protobuf::decode(&table, table.kind(group, "v1", kind)?, body).ok()?;
        (tree["kind"] == kind).then_some(tree)
    });
    trees.next_back().expect("one of the known kinds")
}

async fn answer(response: Response<Incoming>) -> (StatusCode, Value) {
    assert_eq!(response.headers()["content-type"], PROTOBUF);
    let code = response.status();
    (code, decoded(&response.into_body().collect().await.unwrap().to_bytes()))
}

fn enveloped(tree: &Value) -> Bytes {
    let table = schema::table();
    let kind = tree["kind"].as_str().unwrap();
    let mut message = Vec::new();
    protobuf::encode_value(&table, table.kind("", "v1", kind).unwrap(), tree, &mut message).unwrap();
    protobuf::envelope("v1", kind, &[&message])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_lists_and_failures() {
    let wire = Wire::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let body = enveloped(&configmap("a", json!({"x": "y"}), json!({"k": "v"})));
    let (code, created) = answer(wire.send("h2", ADMIN, binary("POST", path, body)).await).await;
    assert_eq!((code, &created["data"]["k"]), (StatusCode::CREATED, &json!("v")));
    let as_json = wire.f.get(&configmaps(), "a").await.unwrap();
    let one = format!("{path}/a");
    for _ in 0..2 {
        let (_, got) = answer(wire.send("h2", ADMIN, binary("GET", &one, "")).await).await;
        assert_eq!(got, as_json, "revision included, the second time from what is kept");
    }
    let (_, list) = answer(wire.send("h2", ADMIN, binary("GET", &format!("{path}?limit=1"), "")).await).await;
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(list["items"][0]["metadata"], as_json["metadata"]);
    assert!(list["metadata"]["resourceVersion"].is_string());
    // what a dry run shows must not be shown again
    let mut changed = as_json.clone();
    changed["data"]["k"] = "w".into();
    let dry = binary("PUT", &format!("{one}?dryRun=All"), enveloped(&changed));
    assert_eq!(answer(wire.send("h2", ADMIN, dry).await).await.1["data"]["k"], "w");
    assert_eq!(answer(wire.send("h2", ADMIN, binary("GET", &one, "")).await).await.1["data"]["k"], "v");

    let (code, status) = answer(wire.send("h2", ADMIN, binary("GET", &format!("{path}/b"), "")).await).await;
    assert_eq!((code, &status["reason"]), (StatusCode::NOT_FOUND, &json!("NotFound")));
    assert_eq!(status["details"]["name"], "b");
    let (_, gone) = answer(wire.send("h2", ADMIN, binary("DELETE", &one, "")).await).await;
    assert_eq!((&gone["kind"], &gone["details"]["name"]), (&json!("Status"), &json!("a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_metadata_of_custom_resources() {
    let wire = Wire::new().await;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    wire.f.create(&at("apiextensions.k8s.io", "customresourcedefinitions", ""), definition).await.unwrap();
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}});
    wire.f.create(&at("example.com", "things", "default"), thing).await.unwrap();
    let path = "/apis/example.com/v1/namespaces/default/things";
    let refused = wire.send("h2", ADMIN, binary("GET", path, "")).await;
    assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    let body = wire.send("h2", ADMIN, binary("POST", path, "k8s\0")).await;
    assert_eq!(body.status(), StatusCode::NOT_ACCEPTABLE);
    let mut either = binary("POST", path, "k8s\0");
    either.headers_mut().insert("accept", format!("{PROTOBUF}, application/json").parse().unwrap());
    assert_eq!(wire.send("h2", ADMIN, either).await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut partial = binary("GET", path, "");
    let accept = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    partial.headers_mut().insert("accept", accept.parse().unwrap());
    let (_, list) = answer(wire.send("h2", ADMIN, partial).await).await;
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("t"))
    );
}

/// The next frame of a watch: its kind and its object.
async fn event(body: &mut Incoming, rest: &mut BytesMut) -> (String, Value) {
    loop {
        if let Some(length) = rest.get(..4).map(|mut head| head.get_u32() as usize)
            && rest.len() >= 4 + length
        {
            rest.advance(4);
            let frame = rest.split_to(length);
            // type = 1, object = 2 { raw = 1 }: the object is the rest from the envelope's prefix on
            let kind = String::from_utf8(frame[2..2 + usize::from(frame[1])].to_vec()).unwrap();
            let start = frame.windows(4).position(|window| window == b"k8s\0").unwrap();
            return (kind, decoded(&frame[start..]));
        }
        let frame = tokio::time::timeout(std::time::Duration::from_secs(5), body.frame()).await;
        rest.extend_from_slice(&frame.expect("in time").unwrap().unwrap().into_data().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_length_delimited() {
    let wire = Wire::new().await;
    let configmaps = configmaps();
    let first =
        wire.f.create(&configmaps, configmap("a", json!({"x": "y"}), json!({"k": "1"}))).await.unwrap();
    let path = "/api/v1/namespaces/default/configmaps?watch=true&sendInitialEvents=true&allowWatchBookmarks=true\
        &resourceVersionMatch=NotOlderThan&fieldSelector=metadata.name%3Da";
    let response = wire.send("http/1.1", ADMIN, binary("GET", path, "")).await;
    assert_eq!(response.headers()["content-type"], format!("{PROTOBUF};stream=watch"));
    let (mut body, mut rest) = (response.into_body(), BytesMut::new());
    assert_eq!(event(&mut body, &mut rest).await, ("ADDED".to_owned(), first.clone()));
    let (kind, bookmark) = event(&mut body, &mut rest).await;
    assert_eq!((kind.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("ConfigMap")));
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut changed = first.clone();
    changed["data"]["k"] = "2".repeat(300).into();
    let second = wire.f.update(&configmaps, "a", &changed).await.unwrap();
    assert_eq!(event(&mut body, &mut rest).await, ("MODIFIED".to_owned(), second.clone()));
    wire.f.delete(&configmaps, "a").await.unwrap();
    let (kind, last) = event(&mut body, &mut rest).await;
    assert_eq!((kind.as_str(), &last["data"]), ("DELETED", &second["data"]));
    assert_ne!(last["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
}
