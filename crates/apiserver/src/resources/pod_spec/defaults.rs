//! Defaults of pod specs (`SetDefaults_*` of Kubernetes' core/v1).

use serde_json::{Map, Value, json};

use crate::resources::defaults::{fill, fill_zero, items_mut, object_mut, text};

/// Fills in a pod spec, of a pod or of a template.
pub(crate) fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    fill(spec, "restartPolicy", "Always");
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "securityContext", Value::Object(Map::new()));
    // The old name of the field is kept in step.
    match (text(spec, "serviceAccountName").to_owned(), text(spec, "serviceAccount").to_owned()) {
        (name, _) if !name.is_empty() => spec["serviceAccount"] = name.into(),
        (_, old) if !old.is_empty() => spec["serviceAccountName"] = old.into(),
        _ => {}
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec.get_mut(list)) {
            self::container(container);
        }
    }
    for volume in items_mut(spec.get_mut("volumes")) {
        self::volume(volume);
    }
}

/// `Always` for the tag `latest` or none, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(text(container, "image"));
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    for port in items_mut(container.get_mut("ports")) {
        fill(port, "protocol", "TCP");
    }
    for variable in items_mut(container.get_mut("env")) {
        let source = object_mut(variable, "valueFrom");
        if let Some(field) = source.and_then(|s| object_mut(s, "fieldRef")) {
            fill(field, "apiVersion", "v1");
        }
        if let Some(divisor) = variable.pointer_mut("/valueFrom/resourceFieldRef") {
            fill(divisor, "divisor", "0");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = object_mut(container, name) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = object_mut(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(get) = object_mut(lifecycle, name).and_then(|h| object_mut(h, "httpGet")) {
                http_get(get);
            }
        }
    }
    fill(container, "resources", Value::Object(Map::new()));
}

fn probe(probe: &mut Value) {
    for (field, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        fill_zero(probe, field, default);
    }
    if let Some(get) = object_mut(probe, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = object_mut(probe, "grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    fill(get, "path", "/");
    fill(get, "scheme", "HTTP");
}

/// A limit without a request is the request too; hugepages and extended resources as well.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let Some(resources) = container.get_mut("resources") else { return };
    if resources.get("requests").is_none_or(Value::is_null) {
        resources["requests"] = Value::Object(Map::new());
    }
    for (name, amount) in limits {
        fill(&mut resources["requests"], &name, amount);
    }
    if resources["requests"].as_object().is_some_and(Map::is_empty) {
        resources.as_object_mut().and_then(|r| r.remove("requests"));
    }
}

const MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    // A volume without a source is an emptyDir.
    if map.iter().all(|(key, value)| key == "name" || value.is_null()) {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    for name in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = object_mut(volume, name) {
            fill(source, "defaultMode", MODE);
        }
    }
    field_refs(volume.pointer_mut("/downwardAPI/items"));
    for source in items_mut(volume.pointer_mut("/projected/sources")) {
        if let Some(token) = object_mut(source, "serviceAccountToken") {
            fill(token, "expirationSeconds", 3600);
        }
        field_refs(source.pointer_mut("/downwardAPI/items"));
    }
    for (source, field, default) in [
        ("hostPath", "type", ""),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("iscsi", "iscsiInterface", "default"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "kind", "Shared"),
        ("azureDisk", "fsType", "ext4"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ] {
        if let Some(source) = object_mut(volume, source) {
            fill(source, field, default);
        }
    }
    let image = volume.pointer("/image/reference").and_then(Value::as_str).map(pull_policy);
    if let Some((image, policy)) = object_mut(volume, "image").zip(image) {
        fill(image, "pullPolicy", policy);
    }
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        fill(claim, "volumeMode", "Filesystem");
    }
}

fn field_refs(items: Option<&mut Value>) {
    for item in items_mut(items) {
        if let Some(field) = object_mut(item, "fieldRef") {
            fill(field, "apiVersion", "v1");
        }
        if let Some(field) = object_mut(item, "resourceFieldRef") {
            fill(field, "divisor", "0");
        }
    }
}

/// What pods get and their templates do not: service links, requests taken from limits, host ports on the host's network.
pub(crate) fn pod_only(spec: &mut Value) {
    fill(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool) == Some(true);
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec.get_mut(list)) {
            requests_from_limits(container);
            let ports = container.get_mut("ports").filter(|_| host_network);
            for port in items_mut(ports) {
                if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
                    fill_zero(port, "hostPort", number);
                }
            }
        }
    }
}
