//! Every generic verb on every row of the table.

use api::{PatchType, RequestOptions, Verb};
use serde_json::{Value, json};

use crate::common::{At, Fixture, configmap, configmaps};

/// What a kind needs beyond its name to be valid.
fn sample(kind: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "podium.local/toolbox"}]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    let mut job_template = template.clone();
    job_template["spec"]["restartPolicy"] = "Never".into();
    match kind {
        "Pod" => json!({"spec": {"containers": [{"name": "c", "image": "podium.local/toolbox"}]}}),
        "Service" => json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}}),
        "ReplicationController" => json!({"spec": {"selector": {"app": "x"}, "template": template}}),
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            json!({"spec": {"selector": selector, "template": template}})
        }
        "StatefulSet" => json!({"spec": {"selector": selector, "template": template, "serviceName": "x"}}),
        "Job" => json!({"spec": {"template": job_template}}),
        "CronJob" => {
            json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job_template}}}})
        }
        "PodTemplate" => json!({"template": template}),
        "ControllerRevision" => json!({"revision": 1, "data": {"a": 1}}),
        "PersistentVolume" => {
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/tmp"}}})
        }
        "PersistentVolumeClaim" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "LimitRange" => json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        "ResourceQuota" => json!({"spec": {"hard": {"pods": "5"}}}),
        "Endpoints" => json!({"subsets": []}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.5"]}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}),
        "HorizontalPodAutoscaler" => json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}}),
        "PodDisruptionBudget" => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "example.com/x"}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "IPAddress" => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "x"}}})
        }
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.200.0.0/24"]}}),
        "CertificateSigningRequest" => crate::joining::certificate_request(),
        "Role" | "ClusterRole" => {
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})
        }
        "RoleBinding" | "ClusterRoleBinding" => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]}),
        "PriorityClass" => json!({"value": 5}),
        "StorageClass" => json!({"provisioner": "example.com/x"}),
        "CSIDriver" => json!({"spec": {"attachRequired": false}}),
        "CSINode" => json!({"spec": {"drivers": []}}),
        "CSIStorageCapacity" => json!({"storageClassName": "x"}),
        "VolumeAttachment" => json!({"spec": {"attacher": "example.com/x", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}}}),
        "VolumeAttributesClass" => json!({"driverName": "example.com/x", "parameters": {"a": "b"}}),
        "Lease" => json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": 5}}),
        "RuntimeClass" => json!({"handler": "podium"}),
        "CustomResourceDefinition" => crate::custom::definition(),
        "APIService" => json!({"spec": {"group": "x.example", "version": "v1", "groupPriorityMinimum": 1,
            "versionPriority": 1}}),
        "ClusterTrustBundle" => {
            let issued = rcgen::generate_simple_self_signed(Vec::new()).unwrap();
            json!({"spec": {"trustBundle": issued.cert.pem()}})
        }
        "PodCertificateRequest" => {
            json!({"spec": {"signerName": "example.com/x", "podName": "p", "podUID": "1",
            "serviceAccountName": "default", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3",
            "stubPKCS10Request": "AA=="}})
        }
        "FlowSchema" => json!({"spec": {"priorityLevelConfiguration": {"name": "x"}}}),
        "PriorityLevelConfiguration" => {
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}})
        }
        "DeviceTaintRule" => json!({"spec": {"taint": {"key": "example.com/x", "effect": "NoSchedule"}}}),
        "ResourceClaim" => json!({"spec": {}}),
        "ResourceClaimTemplate" => json!({"spec": {"spec": {}}}),
        "ResourceSlice" => json!({"spec": {"driver": "example.com", "nodeName": "n",
            "pool": {"name": "x", "generation": 1, "resourceSliceCount": 1}}}),
        "StorageVersionMigration" => {
            json!({"spec": {"resource": {"group": "", "resource": "configmaps"}}})
        }
        "ValidatingAdmissionPolicy" => {
            json!({"spec": {"matchConstraints": nothing(), "validations": [{"expression": "true"}]}})
        }
        "MutatingAdmissionPolicy" => {
            let labels = "Object{metadata: Object.metadata{labels: {'a': 'b'}}}";
            let mutation =
                json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": labels}});
            json!({"spec": {"matchConstraints": nothing(), "reinvocationPolicy": "Never", "mutations": [mutation]}})
        }
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "x", "validationActions": ["Deny"]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "x"}}),
        "Event" => json!({"reason": "Test", "message": "text", "type": "Normal",
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "x"}}),
        _ => json!({}),
    }
}

/// A rule for a resource that nobody serves.
fn nothing() -> Value {
    json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v1"],
        "resources": ["nothing"]}]})
}

/// `events.k8s.io/v1` has other words for the same things.
fn event_v1() -> Value {
    json!({"reason": "Test", "note": "text", "type": "Normal", "action": "Testing",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "tests.example.com/x",
        "reportingInstance": "x-1", "regarding": {"kind": "Pod", "namespace": "default", "name": "x"}})
}

fn name_of(kind: &str) -> &'static str {
    match kind {
        "IPAddress" => "10.96.200.200",
        "CustomResourceDefinition" => "widgets.example.com",
        "APIService" => "v1.x.example",
        _ => "sample-x",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_serves_its_verbs() {
    let f = Fixture::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    f.create(&crate::common::at("", "serviceaccounts", "default"), account).await.unwrap();
    let mut failures = Vec::new();
    let mut rows = 0;
    for row in f.server.resources().iter().filter(|row| row.allows(Verb::List)) {
        rows += 1;
        let at = At { gvr: row.gvr.clone(), namespace: row.namespaced.then(|| "default".to_owned()) };
        let mut object = if row.gvr.group == "events.k8s.io" { event_v1() } else { sample(&row.kind) };
        object["apiVersion"] = row.api_version().into();
        object["kind"] = row.kind.as_str().into();
        object["metadata"] = json!({"name": name_of(&row.kind), "labels": {"test": "row"}});
        if let Err(error) = exercise(&f, &at, object, name_of(&row.kind)).await {
            failures.push(format!("{}: {error}", row.gvr));
        }
    }
    assert!(rows > 40, "only {rows} rows");
    assert!(failures.is_empty(), "{failures:#?}");
}

/// create, get, list, update, patch, delete, deletecollection and watch of one row.
async fn exercise(f: &Fixture, at: &At, object: Value, name: &str) -> Result<(), String> {
    let step =
        |what: &'static str| move |status: api::Status| format!("{what}: {} {}", status.code, status.message);
    let mut watch = f.watch(at, labelled("test=row")).await.map_err(step("watch"))?;
    let created = f.create(at, object.clone()).await.map_err(step("create"))?;
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        if created["metadata"][field].as_str().unwrap_or_default().is_empty() {
            return Err(format!("created object has no {field}"));
        }
    }
    let got = f.get(at, name).await.map_err(step("get"))?;
    if got != created {
        return Err(format!("get differs from create: {got} {created}"));
    }
    match f.create(at, object).await {
        Err(status) if status.is_already_exists() => {}
        other => return Err(format!("second create: {other:?}")),
    }
    let listed = f.list(at, labelled("test=row")).await.map_err(step("list"))?;
    if listed["items"][0] != created || listed["items"].as_array().map(Vec::len) != Some(1) {
        return Err(format!("list differs: {listed}"));
    }
    let mut changed = created.clone();
    changed["metadata"]["annotations"]["tests.example.com/a"] = "1".into();
    let updated = f.update(at, name, &changed).await.map_err(step("update"))?;
    if updated["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"] {
        return Err("update kept the resourceVersion".into());
    }
    match f.update(at, name, &changed).await {
        Err(status) if status.is_conflict() => {}
        other => return Err(format!("stale update: {other:?}")),
    }
    let patch = json!({"metadata": {"annotations": {"tests.example.com/b": "2"}}});
    let patched = f.patch(at, name, PatchType::Merge, patch.clone()).await.map_err(step("merge patch"))?;
    if patched["metadata"]["annotations"]["tests.example.com/b"] != "2" {
        return Err(format!("patch was not applied: {patched}"));
    }
    let again = f.patch(at, name, PatchType::Strategic, patch).await.map_err(step("strategic patch"))?;
    if again["metadata"]["resourceVersion"] != patched["metadata"]["resourceVersion"] {
        return Err(format!("a patch without effect made a new version: {patched} {again}"));
    }
    let rows = f.server.resources();
    let row = rows.get(&at.gvr).ok_or("no row")?;
    let many = row.allows(Verb::DeleteCollection);
    let mut delete = match many {
        true => at.request(Verb::DeleteCollection, None, None),
        false => at.request(Verb::Delete, Some(name), None),
    };
    if many {
        delete.options = labelled("test=row");
    }
    delete.options.grace_period_seconds = Some(0);
    f.json(delete).await.map_err(step("deletecollection"))?;
    let finalized = f.get(at, name).await;
    if let Ok(object) = &finalized {
        release(f, at, name, object).await?;
    }
    match f.get(at, name).await {
        Err(status) if status.is_not_found() => {}
        other => return Err(format!("get after delete: {other:?}")),
    }
    for want in ["ADDED", "MODIFIED", "MODIFIED"] {
        let (kind, _) = crate::common::next(&mut watch).await;
        if kind != want {
            return Err(format!("watch gave {kind} instead of {want}"));
        }
    }
    Ok(())
}

/// Removes the finalizers that a kind has by itself.
async fn release(f: &Fixture, at: &At, name: &str, object: &Value) -> Result<(), String> {
    let mut object = object.clone();
    if at.gvr.resource == "namespaces" {
        object["spec"]["finalizers"] = json!([]);
        let request = at.request(Verb::Update, Some(name), Some("finalize")).with_json(object.to_string());
        f.json(request).await.map_err(|status| format!("finalize: {status}"))?;
    } else {
        let patch = json!({"metadata": {"finalizers": null}});
        match f.patch(at, name, PatchType::Merge, patch).await {
            // The server ends a definition by itself.
            Err(status) if !status.is_not_found() => return Err(format!("finalizers: {status}")),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn labelled(selector: &str) -> RequestOptions {
    RequestOptions { label_selector: Some(selector.into()), ..RequestOptions::default() }
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let f = Fixture::new().await;
    let mut object = configmap("", json!({}), json!({}));
    object["metadata"] = json!({"generateName": "made-"});
    let made = f.create(&configmaps(), object).await.unwrap();
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("made-") && name.len() == 10, "{name}");
    let bad =
        f.create(&configmaps(), configmap("Not_A_Name", json!({"-": "x"}), json!({}))).await.unwrap_err();
    assert_eq!(bad.code, 422);
    let fields: Vec<&str> = bad.causes.iter().map(|cause| cause.field.as_str()).collect();
    assert!(fields.contains(&"metadata.name") && fields.contains(&"metadata.labels"), "{fields:?}");
    let nameless =
        f.create(&configmaps(), json!({"apiVersion": "v1", "kind": "ConfigMap"})).await.unwrap_err();
    assert!(nameless.message.contains("name or generateName is required"), "{nameless}");
}

#[tokio::test]
async fn bodies_must_fit_the_url() {
    let f = Fixture::new().await;
    let mut object = configmap("a", json!({}), json!({}));
    object["metadata"]["namespace"] = "other".into();
    assert_eq!(f.create(&configmaps(), object).await.unwrap_err().code, 400);
    let mut object = configmap("a", json!({}), json!({}));
    object["kind"] = "Secret".into();
    assert_eq!(f.create(&configmaps(), object).await.unwrap_err().code, 400);
    f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap();
    let other = configmap("b", json!({}), json!({}));
    assert_eq!(f.update(&configmaps(), "a", &other).await.unwrap_err().code, 400);
    let elsewhere = crate::common::at("", "configmaps", "nowhere");
    let missing = f.create(&elsewhere, configmap("a", json!({}), json!({}))).await.unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"nowhere\" not found"));
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused() {
    let f = Fixture::new().await;
    let mut object = configmap("a", json!({}), json!({}));
    object["surprise"] = 1.into();
    let request = || configmaps().request(Verb::Create, None, None).with_json(object.to_string());
    let mut strict = request();
    strict.options.field_validation = Some("Strict".into());
    let refused = f.json(strict).await.unwrap_err();
    assert!(refused.code == 400 && refused.message.contains("unknown field \"surprise\""), "{refused}");
    let response = f.send(&f.admin, request()).await.unwrap();
    assert_eq!(response.warnings, ["unknown field \"surprise\""]);
    let body: Value = serde_json::from_slice(&response.into_bytes().unwrap()).unwrap();
    assert_eq!(body.get("surprise"), None);
}

#[tokio::test]
async fn dry_runs_leave_no_trace() {
    let f = Fixture::new().await;
    let mut request = configmaps().request(Verb::Create, None, None);
    request.options.dry_run = true;
    let shown = f.json(request.with_json(configmap("a", json!({}), json!({})).to_string())).await.unwrap();
    assert_eq!(shown["metadata"]["name"], "a");
    assert!(f.get(&configmaps(), "a").await.unwrap_err().is_not_found());
    let real = f.create(&configmaps(), configmap("a", json!({}), json!({"k": "v"}))).await.unwrap();
    let mut request = configmaps().request(Verb::Delete, Some("a"), None);
    request.options.dry_run = true;
    f.json(request).await.unwrap();
    let mut changed = real.clone();
    changed["data"]["k"] = "w".into();
    let mut request = configmaps().request(Verb::Update, Some("a"), None).with_json(changed.to_string());
    request.options.dry_run = true;
    assert_eq!(f.json(request).await.unwrap()["data"]["k"], "w");
    assert_eq!(f.get(&configmaps(), "a").await.unwrap(), real);
}
