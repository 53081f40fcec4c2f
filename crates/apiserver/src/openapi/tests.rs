use super::*;

fn set() -> ResourceSet {
    ResourceSet::new(crate::resources::builtin(schema::table()))
}

fn get(path: &str) -> Value {
    let response =
        document(&set(), &[], path, "application/json", "").unwrap_or_else(|| panic!("{path} exists"));
    serde_json::from_slice(&response.into_bytes().unwrap()).unwrap()
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => out.push(target.clone()),
                    _ => references(value, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

#[test]
fn every_listed_document_exists_and_refers_to_its_own_components() {
    let index = get("/openapi/v3");
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for entry in paths.values() {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let document = get(url.split('?').next().unwrap());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty(), "{url}");
        for target in found {
            let name = target.strip_prefix("#/components/schemas/").unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{url}: {target}");
        }
    }
}

/// What kubectl looks for before it leaves validation to the server, and what `explain` starts from.
#[test]
fn kubectl_finds_its_way() {
    let apps = get("/openapi/v3/apis/apps/v1");
    let path = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    assert_eq!(path["patch"]["x-kubernetes-group-version-kind"], gvk);
    let parameters = path["patch"]["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
    let component = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(component["x-kubernetes-group-version-kind"], json!([gvk]));
    assert!(component["properties"]["spec"].is_object());
}

#[test]
fn nothing_elsewhere() {
    for path in ["/openapi/v3/apis/none/v1", "/openapi/v1", "/openapi/v3/api"] {
        assert!(document(&set(), &[], path, "", "").is_none(), "{path}");
    }
}

#[test]
fn the_older_document_is_whole_in_both_forms() {
    let document_v2 = get("/openapi/v2");
    let mut found = Vec::new();
    references(&document_v2, &mut found);
    for target in found {
        let name = target.strip_prefix("#/definitions/").unwrap();
        assert!(document_v2["definitions"].get(name).is_some(), "{target}");
    }
    let scale =
        &document_v2["definitions"]["io.k8s.api.apps.v1.RollingUpdateDeployment"]["properties"]["maxSurge"];
    assert_eq!(scale["$ref"], "#/definitions/io.k8s.apimachinery.pkg.util.intstr.IntOrString");
    let patch = &document_v2["paths"]["/api/v1/namespaces/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Namespace");
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let response = document(&set(), &[], "/openapi/v2", accept, "").unwrap();
    assert_eq!(response.content_type, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let bytes = response.into_bytes().unwrap();
    // Document { swagger = 1, info = 2 { title = 1, version = 2 }, paths = 8, definitions = 9 }
    let start = b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.37.0\x42";
    assert!(bytes.starts_with(start), "{:?}", &bytes[..start.len()]);
    let text = String::from_utf8_lossy(&bytes);
    let names = document_v2["definitions"].as_object().unwrap().keys();
    for name in names.chain(document_v2["paths"].as_object().unwrap().keys()) {
        assert!(text.contains(name.as_str()), "{name}");
    }
}
