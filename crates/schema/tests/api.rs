//! The built-in table under the codecs and patches of `api`.

use api::{Field, FieldType, ListType, Object, TypeId, codec, patch, time};
use schema::table;
use serde_json::json;

fn kind(group: &str, version: &str, name: &str) -> TypeId {
    table().kind(group, version, name).unwrap_or_else(|| panic!("no kind {group}/{version} {name}"))
}

/// Field at a path of names below a kind.
fn field(root: TypeId, path: &str) -> Field {
    let table = table();
    let mut at = root;
    let mut found = None;
    for name in path.split('.') {
        let field = table
            .get(at)
            .field(name)
            .unwrap_or_else(|| panic!("{path}: no {name} in {}", table.get(at).name));
        let mut ty = &field.ty;
        while let FieldType::List(inner) | FieldType::Map(inner) = ty {
            ty = inner;
        }
        if let FieldType::Ref(id) = ty {
            at = *id;
        }
        found = Some(field.clone());
    }
    found.expect("a path has at least one name")
}

#[test]
fn known_markers() {
    let pod = kind("", "v1", "Pod");
    let keys = |names: &[&str]| ListType::Map(names.iter().map(|n| (*n).to_owned()).collect());
    // (kind, path, list type, merge key)
    let deployment = kind("apps", "v1", "Deployment");
    let service = kind("", "v1", "Service");
    let cases = [
        (pod, "spec.containers", keys(&["name"]), Some("name")),
        (pod, "spec.containers.ports", keys(&["containerPort", "protocol"]), Some("containerPort")),
        (pod, "spec.containers.env", keys(&["name"]), Some("name")),
        (pod, "spec.containers.volumeMounts", keys(&["mountPath"]), Some("mountPath")),
        (pod, "spec.volumes", keys(&["name"]), Some("name")),
        (pod, "spec.ephemeralContainers.ports", keys(&["containerPort", "protocol"]), Some("containerPort")),
        (pod, "spec.tolerations", ListType::Atomic, None),
        (pod, "metadata.finalizers", ListType::Set, None),
        (pod, "metadata.ownerReferences", keys(&["uid"]), Some("uid")),
        (pod, "status.conditions", keys(&["type"]), Some("type")),
        (service, "spec.ports", keys(&["port", "protocol"]), Some("port")),
        (service, "status.conditions", keys(&["type"]), Some("type")),
        (deployment, "status.conditions", keys(&["type"]), Some("type")),
        (kind("discovery.k8s.io", "v1", "EndpointSlice"), "endpoints", ListType::Atomic, None),
    ];
    for (ty, path, list, merge) in cases {
        let field = field(ty, path);
        assert_eq!(field.list_type, list, "{path}");
        assert_eq!(field.patch_merge_key.as_deref(), merge, "{path}");
    }
    assert!(field(service, "spec.selector").atomic);
    assert!(field(pod, "spec.nodeSelector").atomic);
    assert!(field(pod, "spec.volumes").patch_retain_keys && field(pod, "spec.volumes").patch_merge);
    assert!(field(deployment, "spec.strategy").patch_retain_keys);
    let selector = table().by_name("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap();
    assert!(table().get(selector).atomic);
}

#[test]
fn a_deployment_is_decoded_applied_and_patched() {
    let table = table();
    let ty = kind("apps", "v1", "Deployment");
    let yaml = b"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, labels: {app: web}}\nspec:\n  replicas: 3\n  \
        selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers:\n      \
        - name: web\n        image: web:1\n        ports: [{containerPort: 80}]\n        resources: {limits: {cpu: 0.5, memory: 1024Mi}}\n        foo: 1\n";
    let decoded = codec::decode_yaml(&table, ty, yaml, codec::Mode::Warn).unwrap();
    assert_eq!(decoded.warnings, ["unknown field \"spec.template.spec.containers[0].foo\""]);
    let now = time::parse("2027-01-15T08:00:00Z").unwrap();
    let live = patch::apply(&table, ty, None, &decoded.object, "kubectl", "", false, now).unwrap();
    let container = &live.0["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"], json!({"limits": {"cpu": "500m", "memory": "1Gi"}}));
    let owned =
        &live.0["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"];
    let ports = &owned["k:{\"name\":\"web\"}"]["f:ports"];
    assert_eq!(
        *ports,
        json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}})
    );
    let body = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}, {"name": "side"}]}}}});
    let patched = patch::strategic::merge(&table, ty, &live, &body).unwrap();
    let containers = patched.0["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!((containers.len(), &containers[0]["image"]), (2, &json!("web:2")));
    assert_eq!(containers[0]["ports"], json!([{"containerPort": 80}]));
    let mut defaulted = Object(patched.0);
    api::schema::apply_defaults(&table, ty, &mut defaulted);
    let ports = &defaulted.0["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(*ports, json!([{"containerPort": 80, "protocol": "TCP"}]));
}
