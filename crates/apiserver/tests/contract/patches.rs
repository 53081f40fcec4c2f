//! PATCH of four kinds, conflicts, generations, the status and scale subresources.

use api::{Body, ContentType, PatchType, Verb};
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, configmap, configmaps, patch_request};

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "a", "image": "one"}, {"name": "b", "image": "two"}]}}}})
}

fn deployments() -> At {
    at("apps", "deployments", "default")
}

#[tokio::test]
async fn each_kind_of_patch_works_in_its_way() {
    let f = Fixture::new().await;
    f.create(&deployments(), deployment("d")).await.unwrap();
    let json_patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 2}]);
    let d = f.patch(&deployments(), "d", PatchType::Json, json_patch).await.unwrap();
    assert_eq!(d["spec"]["replicas"], 2);
    let container =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "three"}]}}}});
    let d = f.patch(&deployments(), "d", PatchType::Strategic, container.clone()).await.unwrap();
    let images = |d: &Value| {
        let list = d["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter().map(|c| c["image"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(images(&d), ["one", "three"], "strategic merge goes by name");
    let d = f.patch(&deployments(), "d", PatchType::Merge, container).await.unwrap();
    assert_eq!(images(&d), ["three"], "a merge patch replaces lists");
    assert_eq!(d["metadata"]["generation"], 4);
    let failing = json!([{"op": "test", "path": "/spec/replicas", "value": 9}]);
    assert_eq!(f.patch(&deployments(), "d", PatchType::Json, failing).await.unwrap_err().code, 422);
    let missing = f.patch(&deployments(), "nobody", PatchType::Merge, json!({})).await.unwrap_err();
    assert!(missing.is_not_found());
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 8}});
    assert!(f.patch(&deployments(), "d", PatchType::Merge, stale).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn apply_creates_owns_and_conflicts() {
    let f = Fixture::new().await;
    let config = |replicas: i64| {
        let mut config = deployment("d");
        config["spec"]["replicas"] = replicas.into();
        config
    };
    let apply = |manager: &str, body: &Value, force: bool| {
        let mut request = patch_request(&deployments(), "d", PatchType::Apply, body);
        request.options.field_manager = Some(manager.to_owned());
        request.options.force = force;
        request
    };
    let created = f.json(apply("one", &config(1), false)).await.unwrap();
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!((entry["manager"].as_str(), entry["operation"].as_str()), (Some("one"), Some("Apply")));
    let again = f.json(apply("one", &config(1), false)).await.unwrap();
    assert_eq!(
        again["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"],
        "no change, no write"
    );
    let conflict = f.json(apply("two", &config(5), false)).await.unwrap_err();
    assert!(
        conflict.is_conflict() && conflict.causes.iter().any(|c| c.field == ".spec.replicas"),
        "{conflict:?}"
    );
    let forced = f.json(apply("two", &config(5), true)).await.unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    let mut without = config(1);
    without["spec"].as_object_mut().unwrap().remove("replicas");
    f.json(apply("one", &without, false)).await.unwrap();
    let nobody = f.json({
        let mut request = apply("", &config(1), false);
        request.options.field_manager = None;
        request
    });
    assert_eq!(nobody.await.unwrap_err().code, 422);
}

#[tokio::test]
async fn updates_are_recorded_under_the_client_s_name() {
    let f = Fixture::new().await;
    let created = f.create(&configmaps(), configmap("a", json!({}), json!({"k": "v"}))).await.unwrap();
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!((entry["manager"].as_str(), entry["operation"].as_str()), (Some("tester"), Some("Update")));
    assert!(entry["fieldsV1"]["f:data"]["f:k"].is_object(), "{entry}");
}

#[tokio::test]
async fn status_and_spec_are_kept_apart() {
    let f = Fixture::new().await;
    let mut d = deployment("d");
    d["status"] = json!({"replicas": 7});
    let created = f.create(&deployments(), d).await.unwrap();
    assert_ne!(created["status"]["replicas"], 7, "status is not taken at creation");
    let mut both = created.clone();
    both["spec"]["replicas"] = 3.into();
    both["status"] = json!({"replicas": 9, "observedGeneration": 1});
    let main = f.update(&deployments(), "d", &both).await.unwrap();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"]),
        (&json!(3), &created["status"]["replicas"])
    );
    assert_eq!(main["metadata"]["generation"], 2);
    both["metadata"]["resourceVersion"] = main["metadata"]["resourceVersion"].clone();
    both["spec"]["replicas"] = 8.into();
    let status = f.update_status(&deployments(), "d", &both).await.unwrap();
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(3), &json!(9)));
    assert_eq!(status["metadata"]["generation"], 2, "a status has no generation");
    let entries = status["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["subresource"] == "status"), "{entries:?}");
}

#[tokio::test]
async fn scale_is_a_view() {
    let f = Fixture::new().await;
    f.create(&deployments(), deployment("d")).await.unwrap();
    let request = |verb| deployments().request(verb, Some("d"), Some("scale"));
    let mut scale = f.json(request(Verb::Get)).await.unwrap();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    assert_eq!(scale["status"]["selector"], "app=x");
    scale["spec"]["replicas"] = 4.into();
    let scaled = f.json(request(Verb::Update).with_json(scale.to_string())).await.unwrap();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let stale = f.json(request(Verb::Update).with_json(scale.to_string())).await.unwrap_err();
    assert!(stale.is_conflict(), "{stale}");
    let mut patch = patch_request(&deployments(), "d", PatchType::Merge, &json!({"spec": {"replicas": 2}}));
    patch.target = request(Verb::Patch).target;
    assert_eq!(f.json(patch).await.unwrap()["spec"]["replicas"], 2);
    assert_eq!(f.get(&deployments(), "d").await.unwrap()["spec"]["replicas"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_patches_all_take_effect() {
    let f = Fixture::new().await;
    f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    let patches =
        (0..6).map(|n| {
            let f = &f;
            async move {
                f.patch(&configmaps(), "a", PatchType::Merge, json!({"data": {format!("k{n}"): "v"}})).await
            }
        });
    for result in futures_util::future::join_all(patches).await {
        result.unwrap();
    }
    let data = f.get(&configmaps(), "a").await.unwrap()["data"].clone();
    assert_eq!(data.as_object().map(serde_json::Map::len), Some(6));
}

#[tokio::test]
async fn updates_without_a_version_overwrite() {
    let f = Fixture::new().await;
    f.create(&configmaps(), configmap("a", json!({}), json!({"k": "v"}))).await.unwrap();
    let changed = f.update(&configmaps(), "a", &configmap("a", json!({}), json!({"k": "w"}))).await.unwrap();
    assert_eq!(changed["data"]["k"], "w");
    let mut other = changed.clone();
    other["metadata"]["uid"] = "11111111-1111-4111-8111-111111111111".into();
    assert!(f.update(&configmaps(), "a", &other).await.unwrap_err().is_conflict());
    let gone = f.update(&configmaps(), "b", &configmap("b", json!({}), json!({}))).await.unwrap_err();
    assert!(gone.is_not_found());
}

#[tokio::test]
async fn a_patch_of_a_wrong_type_is_refused_with_its_field() {
    let f = Fixture::new().await;
    f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    let wrong = f.patch(&configmaps(), "a", PatchType::Merge, json!({"data": {"k": 1}})).await.unwrap_err();
    assert_eq!((wrong.code, wrong.name.as_str(), wrong.causes[0].field.as_str()), (422, "", "patch"));
    let why = "cannot unmarshal number 1 into Go struct field ConfigMap.data.k of type string";
    assert!(wrong.causes[0].message.contains(why), "{wrong}");
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused_as_a_whole() {
    let f = Fixture::new().await;
    let large = configmap("a", json!({}), json!({"k": "x".repeat(1 << 20), "l": "y"}));
    let refused = f.create(&configmaps(), large).await.unwrap_err();
    assert_eq!(
        refused.message,
        "ConfigMap \"a\" is invalid: []: Too long: may not be more than 1048576 bytes"
    );
}

#[tokio::test]
async fn spec_and_status_are_always_there() {
    let f = Fixture::new().await;
    let mut deployment = deployment("d");
    deployment["status"] = json!(null);
    let made = f.create(&deployments(), deployment).await.unwrap();
    assert_eq!(made["status"], json!({}));
    let same = f.patch(&deployments(), "d", PatchType::Merge, json!({"status": null})).await.unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let map = f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    assert!(map.get("status").is_none() && map.get("spec").is_none());
}

#[tokio::test]
async fn nobody_owns_what_no_schema_declares() {
    let f = Fixture::new().await;
    let mut request = configmaps().request(Verb::Patch, Some("a"), None);
    request.options.field_manager = Some("tester".into());
    let mut apply = async |text: &str, mode: &str| {
        request.options.field_validation = Some(mode.into());
        let content_type = ContentType::Patch(PatchType::Apply);
        request.body = Some(Body { content_type, bytes: text.to_owned().into() });
        f.json(request.clone()).await
    };
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n";
    let unknown = format!("{head}  odd: x\nother: 1\n");
    for mode in ["Strict", "Warn", "Ignore"] {
        let refused = apply(&unknown, mode).await.unwrap_err().message;
        let want = "failed to create typed patch object (default/a; v1, Kind=ConfigMap): errors:\n  \
            .metadata.odd: field not declared in schema\n  .other: field not declared in schema";
        assert_eq!(refused, want, "{mode}");
    }
    let twice = format!("{head}data:\n  k: v\n  k: w\n");
    let refused = apply(&twice, "Strict").await.unwrap_err().message;
    assert!(refused.ends_with("line 7: key \"k\" already set in map"), "{refused}");
    assert_eq!(apply(&twice, "Warn").await.unwrap()["data"]["k"], "w");
}

#[tokio::test]
async fn an_approval_takes_any_condition_and_a_status_keeps_the_decision() {
    let f = Fixture::new().await;
    let requests = at("certificates.k8s.io", "certificatesigningrequests", "");
    let key = rcgen::KeyPair::generate().unwrap();
    let text = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "x"}, "spec": {"request": base64::Engine::encode(&BASE64, text),
            "signerName": "example.com/any", "usages": ["digital signature"]}});
    f.create(&requests, object).await.unwrap();
    let patch = async |part: &str, types: &[&str]| {
        let conditions: Vec<Value> = types.iter().map(|t| json!({"type": t, "status": "True"})).collect();
        let mut request = requests.request(Verb::Patch, Some("x"), Some(part));
        let bytes = json!({"status": {"conditions": conditions}}).to_string().into();
        request.body = Some(Body { content_type: ContentType::Patch(PatchType::Merge), bytes });
        let list = f.json(request).await?["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok::<_, api::Status>(list.iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(patch("approval", &["Seen"]).await.unwrap(), ["Seen"]);
    assert_eq!(patch("approval", &["Seen", "Approved"]).await.unwrap(), ["Seen", "Approved"]);
    assert_eq!(patch("status", &["Seen", "Ready"]).await.unwrap(), ["Approved", "Seen", "Ready"]);
}
