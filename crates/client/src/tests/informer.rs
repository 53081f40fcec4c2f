use std::time::Duration;

use api::{GroupVersionResource, ObjectKey};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::testing::MiniServer;
use crate::{Informer, Kind, Scope};

fn gvr() -> GroupVersionResource {
    ConfigMap::gvr()
}

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"}, "data": {"k": value}})
}

fn contents(informer: &Informer<ConfigMap>) -> Vec<String> {
    let one = |map: std::sync::Arc<crate::Cached<ConfigMap>>| {
        format!("{}={}", map.key.name, map.object.data.clone().unwrap_or_default()["k"])
    };
    informer.list().into_iter().map(one).collect()
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it should have happened by now");
}

#[tokio::test]
async fn lists_then_follows_changes() {
    let server = MiniServer::new();
    server.put(&gvr(), map("one", "1"));
    let informer = Informer::<ConfigMap>::start(&server.client(), Scope::default());
    informer.synced().await;
    assert_eq!(contents(&informer), ["one=1"]);
    let mut changes = informer.subscribe();
    server.put(&gvr(), map("two", "2"));
    server.put(&gvr(), map("one", "3"));
    server.remove(&gvr(), &ObjectKey::new("a", "two"));
    let mut seen = Vec::new();
    for _ in 0..4 {
        let change = changes.recv().await.unwrap();
        seen.push(format!(
            "{} {}{}",
            change.key.name,
            u8::from(change.old.is_some()),
            u8::from(change.new.is_some())
        ));
    }
    assert_eq!(seen, ["one 01", "two 01", "one 11", "two 10"]);
    assert_eq!(contents(&informer), ["one=3"]);
}

#[tokio::test]
async fn resumes_after_the_watch_ended_without_listing_again() {
    let server = MiniServer::new();
    let informer = Informer::<ConfigMap>::start(&server.client(), Scope::default());
    informer.synced().await;
    server.put(&gvr(), map("one", "1"));
    until(|| contents(&informer) == ["one=1"]).await;
    server.end_watches();
    server.put(&gvr(), map("two", "2"));
    until(|| contents(&informer) == ["one=1", "two=2"]).await;
    let lists = server.calls().into_iter().filter(|call| call == "list configmaps").count();
    assert_eq!(lists, 1);
}

#[tokio::test]
async fn lists_again_when_history_is_gone_and_reports_the_difference() {
    let server = MiniServer::new();
    server.put(&gvr(), map("kept", "1"));
    server.put(&gvr(), map("gone", "1"));
    let refuse = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let refused = refuse.clone();
    server.set_fault(move |request| {
        let down = refused.load(std::sync::atomic::Ordering::SeqCst);
        (down && request.verb == api::Verb::Watch).then(|| api::Status::unavailable("down"))
    });
    let informer = Informer::<ConfigMap>::start(&server.client(), Scope::default());
    informer.synced().await;
    let mut changes = informer.subscribe();
    for _ in 0..2 {
        changes.recv().await.unwrap();
    }
    refuse.store(true, std::sync::atomic::Ordering::SeqCst);
    server.end_watches();
    server.remove(&gvr(), &ObjectKey::new("a", "gone"));
    server.put(&gvr(), map("new", "1"));
    server.compact();
    refuse.store(false, std::sync::atomic::Ordering::SeqCst);
    let first = changes.recv().await.unwrap();
    let second = changes.recv().await.unwrap();
    assert!(first.key.name == "gone" && first.new.is_none());
    assert!(second.key.name == "new" && second.old.is_none());
    assert_eq!(contents(&informer), ["kept=1", "new=1"]);
}

#[tokio::test]
async fn indexes_by_namespace_and_owner() {
    let server = MiniServer::new();
    let mut owned = map("owned", "1");
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}]);
    server.put(&gvr(), owned);
    server.put(&gvr(), json!({"metadata": {"name": "other", "namespace": "ab"}}));
    let informer = Informer::<ConfigMap>::start(&server.client(), Scope::default());
    informer.synced().await;
    let names = |list: Vec<std::sync::Arc<crate::Cached<ConfigMap>>>| -> Vec<String> {
        list.iter().map(|map| map.key.name.clone()).collect()
    };
    assert_eq!(names(informer.in_namespace("a")), ["owned"]);
    assert_eq!(names(informer.owned_by("u")), ["owned"]);
    server.put(&gvr(), map("owned", "2"));
    until(|| informer.owned_by("u").is_empty()).await;
}
