//! WATCH: order, starts, selectors, bookmarks, ends.

use api::{RequestOptions, Verb};
use futures_util::StreamExt;
use serde_json::json;

use crate::common::{Fixture, at, brief, configmap, configmaps, next};

fn from(version: &str) -> RequestOptions {
    RequestOptions { resource_version: Some(version.to_owned()), ..RequestOptions::default() }
}

async fn version(f: &Fixture) -> String {
    let list = f.list(&configmaps(), RequestOptions::default()).await.unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn events_come_in_order_with_their_versions() {
    let f = Fixture::new().await;
    let start = version(&f).await;
    let created = f.create(&configmaps(), configmap("a", json!({}), json!({"n": "0"}))).await.unwrap();
    let mut changed = created.clone();
    changed["data"]["n"] = "1".into();
    let changed = f.update(&configmaps(), "a", &changed).await.unwrap();
    f.delete(&configmaps(), "a").await.unwrap();
    // Begins in the past: what happened since then comes first.
    let mut watch = f.watch(&configmaps(), from(&start)).await.unwrap();
    assert_eq!(next(&mut watch).await, ("ADDED".into(), created));
    assert_eq!(next(&mut watch).await, ("MODIFIED".into(), changed.clone()));
    let (kind, deleted) = next(&mut watch).await;
    assert_eq!((kind.as_str(), &deleted["data"]), ("DELETED", &changed["data"]));
    let number = |object: &serde_json::Value| -> u64 {
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    assert!(number(&deleted) > number(&changed), "a deletion has a version of its own");
    f.create(&configmaps(), configmap("b", json!({}), json!({}))).await.unwrap();
    assert_eq!(brief(&mut watch).await, "ADDED b");
}

#[tokio::test]
async fn selectors_turn_changes_into_comings_and_goings() {
    let f = Fixture::new().await;
    let options = RequestOptions { label_selector: Some("on=yes".into()), ..from(&version(&f).await) };
    let mut watch = f.watch(&configmaps(), options).await.unwrap();
    let mut object = f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    for label in ["yes", "no", "yes", "yes"] {
        object["metadata"]["labels"] = json!({"on": label});
        let data = object["data"]["n"].as_str().unwrap_or("0").len() + 1;
        object["data"] = json!({"n": "x".repeat(data)});
        object = f.update(&configmaps(), "a", &object).await.unwrap();
    }
    f.delete(&configmaps(), "a").await.unwrap();
    for want in ["ADDED a", "DELETED a", "ADDED a", "MODIFIED a", "DELETED a"] {
        assert_eq!(brief(&mut watch).await, want);
    }
}

#[tokio::test]
async fn other_namespaces_and_kinds_stay_out() {
    let f = Fixture::new().await;
    let mut watch = f.watch(&configmaps(), from(&version(&f).await)).await.unwrap();
    f.create(&at("", "configmaps", "kube-system"), configmap("x", json!({}), json!({}))).await.unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    f.create(&at("", "secrets", "default"), secret).await.unwrap();
    f.create(&configmaps(), configmap("mine", json!({}), json!({}))).await.unwrap();
    assert_eq!(brief(&mut watch).await, "ADDED mine");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let f = Fixture::new().await;
    for name in ["a", "b"] {
        f.create(&configmaps(), configmap(name, json!({}), json!({}))).await.unwrap();
    }
    let mut legacy = f.watch(&configmaps(), RequestOptions::default()).await.unwrap();
    assert_eq!((brief(&mut legacy).await, brief(&mut legacy).await), ("ADDED a".into(), "ADDED b".into()));
    let options = RequestOptions {
        send_initial_events: Some(true),
        allow_watch_bookmarks: true,
        resource_version_match: Some("NotOlderThan".into()),
        ..RequestOptions::default()
    };
    let mut streaming = f.watch(&configmaps(), options.clone()).await.unwrap();
    assert_eq!(
        (brief(&mut streaming).await, brief(&mut streaming).await),
        ("ADDED a".into(), "ADDED b".into())
    );
    let (kind, bookmark) = next(&mut streaming).await;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(bookmark["kind"], "ConfigMap");
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["metadata"]["resourceVersion"], version(&f).await);
    f.delete(&configmaps(), "a").await.unwrap();
    assert_eq!(brief(&mut streaming).await, "DELETED a");
    let wrong = RequestOptions { resource_version_match: None, ..options };
    assert_eq!(f.watch(&configmaps(), wrong).await.err().map(|status| status.code), Some(422));
}

#[tokio::test]
async fn a_start_before_history_is_answered_with_410() {
    use store::Store;
    let f = Fixture::new().await;
    let old = version(&f).await;
    for name in ["a", "b"] {
        f.create(&configmaps(), configmap(name, json!({}), json!({}))).await.unwrap();
    }
    f.store.compact(f.store.current_revision().await.unwrap()).await.unwrap();
    let mut watch = f.watch(&configmaps(), from(&old)).await.unwrap();
    let (kind, status) = next(&mut watch).await;
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(watch.next().await.is_none(), "the watch ends after the error");
    assert_eq!(f.watch(&configmaps(), from("99999999")).await.err().map(|status| status.code), Some(504));
}

#[tokio::test]
async fn a_timeout_ends_the_watch_with_a_bookmark() {
    let f = Fixture::new().await;
    let options =
        RequestOptions { timeout_seconds: Some(1), allow_watch_bookmarks: true, ..from(&version(&f).await) };
    let mut watch = f.watch(&configmaps(), options).await.unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let secret = f.create(&at("", "secrets", "default"), secret).await.unwrap();
    let (kind, bookmark) = next(&mut watch).await;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        bookmark["metadata"]["resourceVersion"], secret["metadata"]["resourceVersion"],
        "the bookmark has moved on with other kinds"
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn fields_are_selected_as_pods_move() {
    let f = Fixture::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    let pods = at("", "pods", "default");
    let options =
        RequestOptions { field_selector: Some("spec.nodeName=n1".into()), ..RequestOptions::default() };
    let mut watch = f.watch(&at("", "pods", ""), options).await.unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    f.create(&pods, pod).await.unwrap();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"}});
    let bind = || pods.request(Verb::Create, Some("p"), Some("binding")).with_json(binding.to_string());
    f.json(bind()).await.unwrap();
    assert_eq!(brief(&mut watch).await, "ADDED p");
    let again = f.json(bind()).await.unwrap_err();
    assert!(again.is_conflict() && again.message.contains("already assigned to node"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_watchers_agree_on_the_order() {
    let f = Fixture::new().await;
    let start = version(&f).await;
    let mut watchers = Vec::new();
    for _ in 0..4 {
        watchers.push(f.watch(&configmaps(), from(&start)).await.unwrap());
    }
    let writes =
        (0..20).map(|n| {
            let f = &f;
            async move {
                f.create(&configmaps(), configmap(&format!("n{n}"), json!({}), json!({}))).await.unwrap()
            }
        });
    futures_util::future::join_all(writes).await;
    let mut seen = Vec::new();
    for watch in &mut watchers {
        let mut names = Vec::new();
        for _ in 0..20 {
            names.push(brief(watch).await);
        }
        seen.push(names);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}
