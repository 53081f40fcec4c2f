//! LIST: selectors, pages and resourceVersion.

use api::RequestOptions;
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, configmap, configmaps};

async fn names(f: &Fixture, at: &At, options: RequestOptions) -> Vec<String> {
    let list = f.list(at, options).await.unwrap();
    item_names(&list)
}

fn item_names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

async fn with_five() -> Fixture {
    let f = Fixture::new().await;
    for (index, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let labels = json!({"parity": if index % 2 == 0 { "even" } else { "odd" }, "set": "five"});
        f.create(&configmaps(), configmap(name, labels, json!({}))).await.unwrap();
    }
    f
}

#[tokio::test]
async fn selectors_choose() {
    let f = with_five().await;
    let table = [
        (Some("parity=even"), None, "a c e"),
        (Some("parity!=even,set"), None, "b d"),
        (Some("parity in (odd)"), None, "b d"),
        (Some("!parity"), Some("metadata.name=a"), ""),
        (None, Some("metadata.name=b"), "b"),
        (Some("set=five"), Some("metadata.name!=b,metadata.namespace=default"), "a c d e"),
    ];
    for (labels, fields, want) in table {
        let options = RequestOptions {
            label_selector: labels.map(str::to_owned),
            field_selector: fields.map(str::to_owned),
            ..RequestOptions::default()
        };
        assert_eq!(names(&f, &configmaps(), options).await.join(" "), want, "{labels:?} {fields:?}");
    }
    let bad = RequestOptions { field_selector: Some("data.x=1".into()), ..RequestOptions::default() };
    let refused = f.list(&configmaps(), bad).await.unwrap_err();
    assert!(refused.code == 400 && refused.message == "field label not supported: data.x", "{refused}");
}

#[tokio::test]
async fn pages_show_one_state() {
    let f = with_five().await;
    for labels in [None, Some("set=five".to_owned())] {
        let page = |token: Option<String>| RequestOptions {
            limit: Some(2),
            continue_token: token,
            label_selector: labels.clone(),
            ..RequestOptions::default()
        };
        let first = f.list(&configmaps(), page(None)).await.unwrap();
        assert_eq!(item_names(&first), ["a", "b"]);
        if labels.is_none() {
            assert_eq!(first["metadata"]["remainingItemCount"], 3);
        }
        let added = format!("c-{}", labels.is_some());
        f.create(&configmaps(), configmap(&added, json!({"set": "five"}), json!({}))).await.unwrap();
        let token = |list: &Value| list["metadata"]["continue"].as_str().map(str::to_owned);
        let second = f.list(&configmaps(), page(token(&first))).await.unwrap();
        assert_eq!(item_names(&second), ["c", "d"], "an object made between pages is not seen");
        assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        let third = f.list(&configmaps(), page(token(&second))).await.unwrap();
        assert_eq!((item_names(&third), token(&third)), (vec!["e".to_owned()], None));
        f.delete(&configmaps(), &added).await.unwrap();
    }
    let wrong = RequestOptions { continue_token: Some("???".into()), ..RequestOptions::default() };
    assert_eq!(f.list(&configmaps(), wrong).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn resource_versions_choose_the_state() {
    let f = with_five().await;
    let before = f.list(&configmaps(), RequestOptions::default()).await.unwrap();
    let version = before["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    f.delete(&configmaps(), "a").await.unwrap();
    let at = |version: &str, matching: Option<&str>| RequestOptions {
        resource_version: Some(version.to_owned()),
        resource_version_match: matching.map(str::to_owned),
        ..RequestOptions::default()
    };
    assert_eq!(names(&f, &configmaps(), at(&version, Some("Exact"))).await.len(), 5);
    assert_eq!(names(&f, &configmaps(), at(&version, Some("NotOlderThan"))).await.len(), 4);
    assert_eq!(names(&f, &configmaps(), at(&version, None)).await.len(), 4);
    assert_eq!(names(&f, &configmaps(), at("0", None)).await.len(), 4);
    let future = f.list(&configmaps(), at("99999999", None)).await.unwrap_err();
    assert_eq!((future.code, future.causes[0].reason.as_str()), (504, "ResourceVersionTooLarge"));
    assert_eq!(f.list(&configmaps(), at("0", Some("Exact"))).await.unwrap_err().code, 422);
    assert_eq!(f.list(&configmaps(), at("x", None)).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn compacted_states_are_gone() {
    use store::Store;
    let f = with_five().await;
    let first = RequestOptions { limit: Some(2), ..RequestOptions::default() };
    let first = f.list(&configmaps(), first).await.unwrap();
    let token = first["metadata"]["continue"].as_str().map(str::to_owned);
    f.delete(&configmaps(), "a").await.unwrap();
    let now = f.store.current_revision().await.unwrap();
    f.store.compact(now).await.unwrap();
    let next = RequestOptions { limit: Some(2), continue_token: token, ..RequestOptions::default() };
    let gone = f.list(&configmaps(), next).await.unwrap_err();
    assert_eq!((gone.code, gone.reason), (410, api::Reason::Expired));
    assert_eq!(gone.to_value()["metadata"]["continue"], gone.continue_token.as_str());
    // the rest can be had, as it is now
    f.delete(&configmaps(), "d").await.unwrap();
    let token = Some(gone.continue_token);
    let rest = RequestOptions { limit: Some(1), continue_token: token, ..RequestOptions::default() };
    let page = f.list(&configmaps(), rest).await.unwrap();
    assert_eq!(
        (&page["items"][0]["metadata"]["name"], &page["metadata"]["remainingItemCount"]),
        (&json!("c"), &json!(1))
    );
    f.delete(&configmaps(), "e").await.unwrap();
    let token = page["metadata"]["continue"].as_str().map(str::to_owned);
    let last = RequestOptions { limit: Some(9), continue_token: token, ..RequestOptions::default() };
    let last = f.list(&configmaps(), last).await.unwrap();
    assert_eq!(last["items"][0]["metadata"]["name"], "e", "from then on the state stays");
    assert_eq!(last["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn all_namespaces_are_listed_together() {
    let f = with_five().await;
    f.create(&at("", "configmaps", "kube-system"), configmap("z", json!({"set": "five"}), json!({})))
        .await
        .unwrap();
    let everywhere = at("", "configmaps", "");
    let options = RequestOptions { label_selector: Some("set=five".into()), ..RequestOptions::default() };
    assert_eq!(names(&f, &everywhere, options).await, ["a", "b", "c", "d", "e", "z"]);
}

#[tokio::test]
async fn tables_and_metadata_are_made_on_demand() {
    let f = with_five().await;
    let mut request = configmaps().request(api::Verb::List, None, None);
    request.accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json".into();
    request.options.limit = Some(2);
    let table = f.json(request).await.unwrap();
    assert_eq!((table["kind"].as_str(), table["rows"].as_array().map(Vec::len)), (Some("Table"), Some(2)));
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert!(table["metadata"]["continue"].is_string());
    let mut request = configmaps().request(api::Verb::Get, Some("a"), None);
    request.accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io".into();
    let partial = f.json(request).await.unwrap();
    assert_eq!((partial["kind"].as_str(), partial.get("data")), (Some("PartialObjectMetadata"), None));
    let mut request = configmaps().request(api::Verb::Get, Some("a"), None);
    request.accept = "text/html".into();
    assert_eq!(f.json(request).await.unwrap_err().code, 406);
    let mut request = configmaps().request(api::Verb::Get, Some("a"), None);
    request.accept = "application/yaml".into();
    let response = f.send(&f.admin, request).await.unwrap();
    assert_eq!(response.content_type, "application/yaml");
    assert!(String::from_utf8_lossy(&response.into_bytes().unwrap()).contains("name: a\n"));
}

#[tokio::test]
async fn what_is_answered_has_no_columns() {
    let f = Fixture::new().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let reviews = at("authorization.k8s.io", "selfsubjectaccessreviews", "");
    let mut request = reviews.request(api::Verb::Create, None, None).with_json(review.to_string());
    request.accept = "application/json;as=Table;v=v1;g=meta.k8s.io".into();
    assert_eq!(f.json(request.clone()).await.unwrap_err().code, 406);
    request.accept.push_str(",application/json");
    assert_eq!(f.json(request).await.unwrap()["status"]["allowed"], true);
}

#[tokio::test]
async fn events_are_selected_by_the_names_of_each_version() {
    let f = Fixture::new().await;
    let core = at("", "events", "default");
    let event = |name: &str, source: Value, controller: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "source": source,
            "reportingComponent": controller,
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}})
    };
    for (name, source, controller) in [
        ("a", json!({"component": "kubelet"}), "other"),
        ("b", json!({}), "kubelet"),
        ("c", json!({"component": "scheduler"}), "kubelet"),
    ] {
        f.create(&core, event(name, source, controller)).await.unwrap();
    }
    let fields =
        |text: &str| RequestOptions { field_selector: Some(text.into()), ..RequestOptions::default() };
    assert_eq!(names(&f, &core, fields("source=kubelet")).await, ["a", "b"]);
    assert_eq!(names(&f, &core, fields("reportingComponent=kubelet")).await, ["b", "c"]);
    let new = at("events.k8s.io", "events", "default");
    let both = "regarding.name=p,reportingController=kubelet";
    assert_eq!(names(&f, &new, fields(both)).await, ["b", "c"]);
    assert_eq!(f.list(&new, fields("source=kubelet")).await.unwrap_err().code, 400);
}
