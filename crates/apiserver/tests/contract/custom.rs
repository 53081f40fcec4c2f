//! CustomResourceDefinitions: the kinds that they define behave as built-in ones.

use api::{GroupVersionResource, PatchType, RequestOptions, Verb};
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, brief, patch_request};

fn definitions() -> At {
    at("apiextensions.k8s.io", "customresourcedefinitions", "")
}

fn widgets(version: &str, namespace: &str) -> At {
    let gvr = GroupVersionResource::new("example.com", version, "widgets");
    At { gvr, namespace: Some(namespace.to_owned()) }
}

fn schema(extra: Value) -> Value {
    let mut spec = json!({
        "size": {"type": "integer", "minimum": 1},
        "mode": {"type": "string", "default": "slow"},
        "port": {"x-kubernetes-int-or-string": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"],
                "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}}});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"openAPIV3Schema": {"type": "object", "description": "A thing.", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": spec},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}})
}

/// A definition of widgets.
pub(crate) fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema(json!({})),
                    "subresources": {"status": {},
                        "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector"}},
                    "selectableFields": [{"jsonPath": ".spec.mode"}],
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": schema(json!({}))}]}})
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn established() -> Fixture {
    let f = Fixture::new().await;
    let crd = f.create(&definitions(), definition()).await.unwrap();
    assert_eq!(crd["spec"]["names"]["singular"], "widget");
    assert_eq!(crd["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(crd["spec"]["conversion"]["strategy"], "None");
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    let conditions = crd["status"]["conditions"].as_array().unwrap();
    let show = |c: &Value| format!("{}={}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap());
    assert_eq!(conditions.iter().map(show).collect::<Vec<_>>(), ["NamesAccepted=True", "Established=True"]);
    f
}

#[tokio::test]
async fn a_malformed_definition_is_refused() {
    let f = Fixture::new().await;
    let mut crd = definition();
    crd["metadata"]["name"] = "other.example.com".into();
    crd["spec"]["versions"][1]["storage"] = true.into();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["bad"] =
        json!({});
    let status = f.create(&definitions(), crd).await.unwrap_err();
    let fields: Vec<&str> = status.causes.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(status.code, 422);
    assert_eq!(
        fields,
        [
            "metadata.name",
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[bad].type",
            "spec.versions"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sees_a_definition_can_use_it() {
    let f = Fixture::new().await;
    for _ in 0..20 {
        let mut watch = f.watch(&definitions(), RequestOptions::default()).await.unwrap();
        let at = widgets("v1", "default");
        let seen = async {
            assert_eq!(brief(&mut watch).await, "ADDED widgets.example.com");
            f.list(&at, RequestOptions::default()).await.unwrap();
        };
        let definitions = definitions();
        let (made, ()) = tokio::join!(f.create(&definitions, definition()), seen);
        made.unwrap();
        f.delete(&definitions, "widgets.example.com").await.unwrap();
        gone(&f).await;
    }
}

#[tokio::test]
async fn objects_are_checked_pruned_and_defaulted() {
    let f = established().await;
    let at = widgets("v1", "default");
    let made =
        f.create(&at, widget("a", json!({"size": 2, "port": "http", "junk": 1, "free": {"x": 1}}))).await;
    let made = made.unwrap();
    assert_eq!(made["spec"], json!({"size": 2, "mode": "slow", "port": "http", "free": {"x": 1}}));
    assert_eq!(made["metadata"]["generation"], 1);
    let status = f.create(&at, widget("b", json!({"size": "x", "parts": [{"n": 1}]}))).await.unwrap_err();
    let causes: Vec<String> = status.causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    assert_eq!(
        causes,
        [
            "spec.parts[0].name: Required value",
            r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#
        ]
    );
    let status = f.create(&at, widget("b", json!({"size": 0}))).await.unwrap_err();
    assert!(status.message.contains("should be greater than or equal to 1"), "{status}");
    let mut strict =
        at.request(Verb::Create, None, None).with_json(widget("c", json!({"size": 1, "z": 1})).to_string());
    strict.options.field_validation = Some("Strict".into());
    assert!(f.json(strict).await.unwrap_err().message.contains("unknown field \"spec.z\""));
}

#[tokio::test]
async fn the_generic_verbs_work() {
    let f = established().await;
    let at = widgets("v1", "default");
    let mut watch = f.watch(&at, RequestOptions::default()).await.unwrap();
    f.create(&at, widget("a", json!({"size": 2}))).await.unwrap();
    f.create(&at, widget("b", json!({"size": 3, "mode": "fast"}))).await.unwrap();
    let merged = f.patch(&at, "a", PatchType::Merge, json!({"spec": {"size": 5}})).await.unwrap();
    assert_eq!((&merged["spec"]["size"], &merged["metadata"]["generation"]), (&json!(5), &json!(2)));
    let patch = json!([{"op": "replace", "path": "/spec/size", "value": 6}]);
    f.patch(&at, "a", PatchType::Json, patch).await.unwrap();
    let refused = f.patch(&at, "a", PatchType::Strategic, json!({"spec": {"size": 7}})).await.unwrap_err();
    assert_eq!(refused.code, 415);
    for _ in 0..4 {
        assert!(["ADDED a", "ADDED b", "MODIFIED a"].contains(&brief(&mut watch).await.as_str()));
    }
    for (manager, name) in [("one", "x"), ("two", "y")] {
        let config = widget("c", json!({"size": 1, "parts": [{"name": name, "n": 1}]}));
        let mut request = patch_request(&at, "c", PatchType::Apply, &config);
        request.options.field_manager = Some(manager.into());
        f.json(request).await.unwrap();
    }
    assert_eq!(f.get(&at, "c").await.unwrap()["spec"]["parts"].as_array().unwrap().len(), 2);
    let fast = RequestOptions { field_selector: Some("spec.mode=fast".into()), ..RequestOptions::default() };
    let list = f.list(&at, fast).await.unwrap();
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("WidgetList"), Some(1))
    );
    let mut table = at.request(Verb::Get, Some("b"), None);
    table.accept = "application/json;as=Table;v=v1;g=meta.k8s.io".into();
    let table = f.json(table).await.unwrap();
    assert_eq!(table["rows"][0]["cells"], json!(["b", 3]));
}

#[tokio::test]
async fn status_and_scale_are_apart() {
    let f = established().await;
    let at = widgets("v1", "default");
    let mut object = widget("a", json!({"size": 2}));
    object["status"] = json!({"replicas": 9});
    let mut made = f.create(&at, object).await.unwrap();
    assert_eq!(made["status"], Value::Null);
    made["status"] = json!({"replicas": 4, "selector": "app=web"});
    made["spec"]["size"] = 100.into();
    let made = f.update_status(&at, "a", &made).await.unwrap();
    assert_eq!((&made["status"]["replicas"], &made["spec"]["size"]), (&json!(4), &json!(2)));
    let scale = f.json(at.request(Verb::Get, Some("a"), Some("scale"))).await.unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(2), &json!(4)));
    assert_eq!(scale["status"]["selector"], "app=web");
    let mut wish = patch_request(&at, "a", PatchType::Merge, &json!({"spec": {"replicas": 8}}));
    wish.target = at.request(Verb::Patch, Some("a"), Some("scale")).target;
    f.json(wish).await.unwrap();
    assert_eq!(f.get(&at, "a").await.unwrap()["spec"]["size"], 8);
}

#[tokio::test]
async fn versions_show_the_same_objects_and_schemas_may_grow() {
    let f = established().await;
    f.create(&widgets("v1", "default"), widget("a", json!({"size": 2}))).await.unwrap();
    let beta = f.get(&widgets("v1beta1", "default"), "a").await.unwrap();
    assert_eq!(
        (beta["apiVersion"].as_str(), &beta["spec"]["size"]),
        (Some("example.com/v1beta1"), &json!(2))
    );
    let mut other = widget("b", json!({"size": 1}));
    other["apiVersion"] = "example.com/v1beta1".into();
    f.create(&widgets("v1beta1", "default"), other).await.unwrap();
    let listed = f.list(&widgets("v1", "default"), RequestOptions::default()).await.unwrap();
    let versions: Vec<&str> =
        listed["items"].as_array().unwrap().iter().filter_map(|item| item["apiVersion"].as_str()).collect();
    assert_eq!(versions, ["example.com/v1", "example.com/v1"]);
    let mut crd = f.get(&definitions(), "widgets.example.com").await.unwrap();
    crd["spec"]["versions"][0]["schema"] = schema(json!({"color": {"type": "string", "default": "red"}}));
    f.update(&definitions(), "widgets.example.com", &crd).await.unwrap();
    assert_eq!(f.get(&widgets("v1", "default"), "a").await.unwrap()["spec"]["color"], "red");
}

#[tokio::test]
async fn documents_follow_the_definitions() {
    let f = established().await;
    let path = |path: &str| {
        let mut request = definitions().request(Verb::Get, None, None);
        request.target = api::Target::Path(path.to_owned());
        request
    };
    let found = f.json(path("/apis/example.com")).await.unwrap();
    assert_eq!(found["preferredVersion"]["version"], "v1");
    let found = f.json(path("/apis/example.com/v1")).await.unwrap();
    let names: Vec<&str> =
        found["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    let found = f.json(path("/openapi/v3/apis/example.com/v1")).await.unwrap();
    let component = &found["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(component["properties"]["spec"]["properties"]["size"]["minimum"].as_f64(), Some(1.0));
    let patch = &found["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    let types: Vec<&String> = patch["requestBody"]["content"].as_object().unwrap().keys().collect();
    let wanted =
        ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
    assert_eq!(types, wanted);
    f.delete(&definitions(), "widgets.example.com").await.unwrap();
    gone(&f).await;
    assert_eq!(f.json(path("/apis/example.com")).await.unwrap_err().code, 404);
}

/// Waits until the definition is gone.
async fn gone(f: &Fixture) {
    let mut watch = f.watch(&definitions(), RequestOptions::default()).await.unwrap();
    while f.get(&definitions(), "widgets.example.com").await.is_ok() {
        if brief(&mut watch).await == "DELETED widgets.example.com" {
            return;
        }
    }
}

#[tokio::test]
async fn deleting_a_definition_takes_its_objects_along() {
    let f = established().await;
    let at = widgets("v1", "default");
    f.create(&at, widget("a", json!({"size": 2}))).await.unwrap();
    let mut held = widget("b", json!({"size": 2}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    f.create(&at, held).await.unwrap();
    let crd = f.delete(&definitions(), "widgets.example.com").await.unwrap();
    assert_eq!(crd["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert_eq!(f.create(&at, widget("late", json!({"size": 2}))).await.unwrap_err().code, 405);
    let mut watch = f.watch(&at, RequestOptions::default()).await.unwrap();
    while f.get(&at, "b").await.unwrap()["metadata"]["deletionTimestamp"].is_null() {
        brief(&mut watch).await;
    }
    f.get(&definitions(), "widgets.example.com").await.unwrap();
    f.patch(&at, "b", PatchType::Merge, json!({"metadata": {"finalizers": null}})).await.unwrap();
    gone(&f).await;
    assert_eq!(f.get(&at, "a").await.unwrap_err().code, 404);
    f.create(&definitions(), definition()).await.unwrap();
    assert_eq!(f.list(&at, RequestOptions::default()).await.unwrap()["items"], json!([]));
}

#[tokio::test]
async fn names_of_another_definition_are_not_accepted() {
    let f = established().await;
    let mut crd = definition();
    crd["metadata"]["name"] = "gadgets.example.com".into();
    crd["spec"]["names"]["plural"] = "gadgets".into();
    let crd = f.create(&definitions(), crd).await.unwrap();
    assert_eq!(crd["status"]["conditions"][0]["reason"], "SingularConflict");
    assert_eq!(crd["status"]["conditions"][1]["status"], "False");
}
