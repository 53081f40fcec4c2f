use super::*;
use crate::resource::ResourceSet;

fn groups() -> Vec<Group> {
    let rows = ResourceSet::new(crate::resources::builtin(schema::table()));
    crate::aggregation::listing(&Default::default(), &Default::default(), &rows)
}

fn get(path: &str, accept: &str) -> Option<Value> {
    let response = document(&groups(), path, accept, "127.0.0.1:6443")?;
    Some(serde_json::from_slice(&response.into_bytes().unwrap()).unwrap())
}

#[test]
fn every_advertised_kind_has_a_schema_and_every_level_a_document() {
    let groups = get("/apis", "").unwrap();
    let mut paths = vec!["/api/v1".to_owned()];
    for group in groups["groups"].as_array().unwrap() {
        assert!(get(&format!("/apis/{}", group["name"].as_str().unwrap()), "").is_some());
        for version in group["versions"].as_array().unwrap() {
            paths.push(format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    let table = schema::table();
    for path in paths {
        let list = get(&path, "").unwrap();
        let own = GroupVersionKind::from_api_version(list["groupVersion"].as_str().unwrap(), "");
        for entry in list["resources"].as_array().unwrap() {
            let kind = entry["kind"].as_str().unwrap();
            if kind.ends_with("Options") {
                continue; // query parameters, never a body
            }
            let group = entry["group"].as_str().unwrap_or(&own.group);
            let version = entry["version"].as_str().unwrap_or(&own.version);
            assert!(table.kind(group, version, kind).is_some(), "{path}: {entry}");
            assert!(!entry["verbs"].as_array().unwrap().is_empty(), "{path}: {entry}");
        }
    }
}

#[test]
fn unknown_paths_have_no_document() {
    for path in ["/apis/nothing", "/apis/apps/v9", "/api/v2", "/apix", "/apis/apps/v1/deployments"] {
        assert!(get(path, "").is_none(), "{path}");
    }
}

#[test]
fn aggregated_where_asked_for() {
    let asked = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let core = get("/api", asked).unwrap();
    assert_eq!(core["kind"], "APIGroupDiscoveryList");
    let pods = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
    let pods = pods.iter().find(|r| r["resource"] == "pods").unwrap();
    assert_eq!(pods["shortNames"], json!(["po"]));
    assert!(pods["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "log"));
    assert_eq!(get("/api", "application/json").unwrap()["kind"], "APIVersions");
    assert_eq!(get("/apis", "application/json").unwrap()["kind"], "APIGroupList");
    let apps = get("/apis", asked).unwrap();
    assert!(apps["items"].as_array().unwrap().iter().any(|g| g["metadata"]["name"] == "apps"));
}

#[test]
fn the_order_is_that_of_kubernetes() {
    let list = get("/apis", "").unwrap();
    let groups = list["groups"].as_array().unwrap().iter();
    let shown: Vec<&str> = groups.map(|g| g["preferredVersion"]["groupVersion"].as_str().unwrap()).collect();
    let first = ["apiregistration.k8s.io/v1", "apps/v1", "events.k8s.io/v1", "authentication.k8s.io/v1"];
    assert_eq!(shown[..4], first);
    assert_eq!(shown[5], "autoscaling/v2");
}

#[test]
fn what_does_not_answer_is_stale() {
    let version = |name: &str, stale| Version {
        name: name.into(),
        content: Content::Remote {
            resources: vec![json!({"resource": "things"})],
            open_api: String::new(),
            stale,
        },
    };
    let groups = [Group { name: "g".into(), versions: vec![version("v2", false), version("v1", true)] }];
    let get = |path: &str, accept: &str| {
        let bytes = document(&groups, path, accept, "").unwrap().into_bytes().unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let versions = &get("/apis", AGGREGATED)["items"][0]["versions"];
    assert_eq!((&versions[0]["freshness"], &versions[1]["freshness"]), (&json!("Current"), &json!("Stale")));
    assert_eq!(versions[1]["resources"], json!([{"resource": "things"}]));
    assert_eq!(get("/apis/g", "")["preferredVersion"]["groupVersion"], "g/v2");
}

#[test]
fn storage_hash_is_that_of_kubernetes() {
    let list = get("/api/v1", "").unwrap();
    let hash = |name: &str| {
        let entry = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
        entry["storageVersionHash"].as_str().unwrap_or_default().to_owned()
    };
    // As published by Kubernetes clusters.
    assert_eq!(hash("pods"), "xPOwRZ+Yhw8=");
    assert_eq!(hash("services"), "0/CO1lhkEBI=");
}
