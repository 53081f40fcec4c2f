//! DELETE: preconditions, grace, finalizers, propagation, namespaces, collections.

use api::{PatchType, RequestOptions, Verb};
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, configmap, configmaps};

async fn delete_with(
    f: &Fixture,
    at: &At,
    name: &str,
    options: RequestOptions,
) -> Result<Value, api::Status> {
    let mut request = at.request(Verb::Delete, Some(name), None);
    request.options = options;
    f.json(request).await
}

#[tokio::test]
async fn preconditions_guard() {
    let f = Fixture::new().await;
    let a = f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    let wrong = RequestOptions { precondition_uid: Some("other".into()), ..RequestOptions::default() };
    let refused = delete_with(&f, &configmaps(), "a", wrong).await.unwrap_err();
    assert!(refused.is_conflict() && refused.message.contains("UID in precondition: other"), "{refused}");
    let right = RequestOptions {
        precondition_uid: a["metadata"]["uid"].as_str().map(str::to_owned),
        precondition_resource_version: a["metadata"]["resourceVersion"].as_str().map(str::to_owned),
        ..RequestOptions::default()
    };
    let status = delete_with(&f, &configmaps(), "a", right).await.unwrap();
    assert_eq!((&status["status"], &status["details"]["uid"]), (&json!("Success"), &a["metadata"]["uid"]));
    assert!(f.delete(&configmaps(), "a").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn finalizers_hold_an_object_back() {
    let f = Fixture::new().await;
    let mut object = configmap("a", json!({}), json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    f.create(&configmaps(), object).await.unwrap();
    let marked = f.delete(&configmaps(), "a").await.unwrap();
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let again = f.delete(&configmaps(), "a").await.unwrap();
    assert_eq!(again["metadata"]["resourceVersion"], marked["metadata"]["resourceVersion"]);
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert_eq!(f.patch(&configmaps(), "a", PatchType::Merge, more).await.unwrap_err().code, 422);
    f.patch(&configmaps(), "a", PatchType::Merge, json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert!(f.get(&configmaps(), "a").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn propagation_policies_add_finalizers() {
    let f = Fixture::new().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
        let options = RequestOptions { propagation_policy: Some(policy.into()), ..RequestOptions::default() };
        let marked = delete_with(&f, &configmaps(), "a", options).await.unwrap();
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        f.patch(&configmaps(), "a", PatchType::Merge, json!({"metadata": {"finalizers": []}})).await.unwrap();
        assert!(f.get(&configmaps(), "a").await.unwrap_err().is_not_found());
    }
    f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    let wrong = RequestOptions { propagation_policy: Some("Sideways".into()), ..RequestOptions::default() };
    assert_eq!(delete_with(&f, &configmaps(), "a", wrong).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn scheduled_pods_go_gracefully() {
    let f = Fixture::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    let pods = at("", "pods", "default");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    f.create(&pods, pod).await.unwrap();
    let marked = f.delete(&pods, "p").await.unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = RequestOptions { grace_period_seconds: Some(5), ..RequestOptions::default() };
    let shorter = delete_with(&f, &pods, "p", shorter).await.unwrap();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(
        shorter["metadata"]["deletionTimestamp"].as_str() < marked["metadata"]["deletionTimestamp"].as_str()
    );
    let now = RequestOptions { grace_period_seconds: Some(0), ..RequestOptions::default() };
    delete_with(&f, &pods, "p", now).await.unwrap();
    assert!(f.get(&pods, "p").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new() {
    let f = Fixture::new().await;
    let namespaces = at("", "namespaces", "");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let made = f.create(&namespaces, namespace.clone()).await.unwrap();
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let inside = at("", "configmaps", "shop");
    f.create(&inside, configmap("a", json!({}), json!({}))).await.unwrap();
    let marked = f.delete(&namespaces, "shop").await.unwrap();
    assert_eq!(
        (&marked["status"]["phase"], marked["metadata"]["deletionTimestamp"].is_string()),
        (&json!("Terminating"), true)
    );
    let refused = f.create(&inside, configmap("b", json!({}), json!({}))).await.unwrap_err();
    assert_eq!((refused.code, refused.causes[0].reason.as_str()), (403, "NamespaceTerminating"));
    f.update(&inside, "a", &configmap("a", json!({}), json!({"still": "fine"}))).await.unwrap();
    f.delete(&inside, "a").await.unwrap();
    let mut finalize = f.get(&namespaces, "shop").await.unwrap();
    finalize["spec"]["finalizers"] = json!([]);
    let request = namespaces.request(Verb::Update, Some("shop"), Some("finalize"));
    f.json(request.with_json(finalize.to_string())).await.unwrap();
    assert!(f.get(&namespaces, "shop").await.unwrap_err().is_not_found());
    f.create(&namespaces, namespace).await.unwrap();
    f.create(&inside, configmap("b", json!({}), json!({}))).await.unwrap();
    let kept = f.delete(&namespaces, "kube-system").await.unwrap_err();
    assert_eq!(kept.code, 403);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let f = Fixture::new().await;
    for name in ["a", "b", "c"] {
        let labels = json!({"go": if name == "c" { "no" } else { "yes" }});
        f.create(&configmaps(), configmap(name, labels, json!({}))).await.unwrap();
    }
    let mut request = configmaps().request(Verb::DeleteCollection, None, None);
    request.options.label_selector = Some("go=yes".into());
    f.json(request).await.unwrap();
    let left = f.list(&configmaps(), RequestOptions::default()).await.unwrap();
    let left: Vec<&str> =
        left["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert_eq!(left, ["c"]);
}
