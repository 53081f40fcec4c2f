use super::*;
use api::{Field, FieldType, ListType, Object, codec, patch};
use jiff::Timestamp;
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
        let field = table.get(at).field(name).unwrap_or_else(|| panic!("{path}: no {name} in {}", table.get(at).name));
        let mut ty = &field.ty;
        while let FieldType::List(inner) | FieldType::Map(inner) = ty {
            ty = inner;
        }
        if let FieldType::Ref(id) = ty {
            at = *id;
        }
        found = Some(field.clone());
    }
    found.unwrap()
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
fn known_types_and_numbers() {
    let pod = kind("", "v1", "Pod");
    let deployment = kind("apps", "v1", "Deployment");
    assert_eq!(field(deployment, "spec.replicas").ty, FieldType::Int32);
    assert_eq!(field(pod, "spec").number, 2);
    assert_eq!(field(pod, "spec.containers").number, 2);
    assert_eq!(field(pod, "spec.volumes.emptyDir").inlined_in, Some(2));
    assert_eq!(field(pod, "spec.containers.ports.protocol").default.as_deref(), Some("\"TCP\""));
    assert_eq!(field(pod, "metadata.creationTimestamp").ty, FieldType::Time);
    assert_eq!(field(kind("coordination.k8s.io", "v1", "Lease"), "spec.renewTime").ty, FieldType::MicroTime);
    assert_eq!(field(kind("", "v1", "Secret"), "data").ty, FieldType::Map(Box::new(FieldType::Bytes)));
    assert_eq!(field(pod, "spec.containers.resources.limits").ty, FieldType::Map(Box::new(FieldType::Quantity)));
    assert_eq!(field(kind("", "v1", "Service"), "spec.ports.targetPort").ty, FieldType::IntOrString);
    assert!(field(pod, "spec.containers").required);
    assert!(!field(pod, "metadata").required);
    assert!(!field(pod, "spec.nodeName").description.is_empty());
    let list = list_type("", "v1", "Pod").unwrap();
    assert_eq!(field(list, "items").ty, FieldType::List(Box::new(FieldType::Ref(pod))));
}

#[test]
fn the_table_is_whole() {
    let table = table();
    let types = table.types().count();
    let fields: usize = table.types().map(|(_, t)| t.fields.len()).sum();
    assert!(types > 750, "{types} types");
    assert!(fields > 3_000, "{fields} fields");
    for (_, def) in table.types() {
        assert!(def.fields.is_sorted_by(|a, b| a.name < b.name), "{}", def.name);
    }
    let numbered = table.types().flat_map(|(_, t)| &t.fields).filter(|f| f.number != 0).count();
    assert!(numbered > 2_300, "{numbered} fields have numbers");
}

#[test]
fn every_stable_kind_is_there() {
    let kinds = [
        ("", "v1", "Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim \
            Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount"),
        ("apps", "v1", "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet"),
        ("batch", "v1", "CronJob Job"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRole ClusterRoleBinding Role RoleBinding"),
        ("coordination.k8s.io", "v1", "Lease"),
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        ("events.k8s.io", "v1", "Event"),
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        ("networking.k8s.io", "v1", "Ingress IngressClass IPAddress NetworkPolicy ServiceCIDR"),
        ("storage.k8s.io", "v1", "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass"),
        ("authentication.k8s.io", "v1", "SelfSubjectReview TokenRequest TokenReview"),
        ("authorization.k8s.io", "v1",
            "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview"),
        ("policy", "v1", "Eviction PodDisruptionBudget"),
        ("autoscaling", "v1", "HorizontalPodAutoscaler Scale"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration ValidatingAdmissionPolicy \
            ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("apiregistration.k8s.io", "v1", "APIService"),
        ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema PriorityLevelConfiguration"),
        ("node.k8s.io", "v1", "RuntimeClass"),
        ("resource.k8s.io", "v1", "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice"),
    ];
    for (group, version, names) in kinds {
        for name in names.split_whitespace() {
            kind(group, version, name);
        }
    }
}

#[test]
fn stable_lists_newer_than_the_markers_are_accounted_for() {
    // A list of objects without any marker and number is either atomic on purpose or missing from the supplement.
    let table = table();
    let stable = |name: &str| name.rsplit('.').nth(1).is_some_and(|v| v == "v1" || v == "v2");
    let mut unknown = Vec::new();
    for (_, def) in table.types().filter(|(_, d)| stable(&d.name) && !d.name.ends_with("List")) {
        for f in def.fields.iter().filter(|f| f.number == 0 && f.list_type == ListType::Atomic) {
            if matches!(&f.ty, FieldType::List(inner) if matches!(**inner, FieldType::Ref(_))) {
                unknown.push(format!("{}.{}", def.name, f.name));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn openapi_components() {
    let table = table();
    let all = openapi::components(&table, [kind("apps", "v1", "Deployment")]);
    let spec = &all["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(spec["containers"]["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    let deployment = &all["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let text = serde_json::to_string(&all).unwrap();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(all.contains_key(name), "{name} is referenced but absent");
    }
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
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let live = patch::apply(&table, ty, None, &decoded.object, "kubectl", "", false, now).unwrap();
    let container = &live.0["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"], json!({"limits": {"cpu": "500m", "memory": "1Gi"}}));
    let owned = &live.0["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"];
    let ports = &owned["k:{\"name\":\"web\"}"]["f:ports"];
    assert_eq!(*ports, json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}));
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
