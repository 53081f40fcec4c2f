//! ServiceAccount: every pod runs as one, and gets its token, the cluster's CA and its namespace as files.

use std::time::Duration;

use api::{GroupVersionResource, Object, ObjectKey, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::{AdmissionContext, Plugin, mirror_pod};
use crate::registry::{finalize, meta};
use crate::resource::Reader;

/// Where containers find the files.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// One hour and a little, so that a client that refreshes hourly always has a valid one.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod's creation waits for the namespace's account `default`.
const WAIT: Duration = Duration::from_secs(2);

pub(crate) struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if !cx.creates("", "pods") {
                return Ok(());
            }
            if !mirror_pod::is_mirror(object) {
                return serve(cx, object).await;
            }
            match mirror_pod::reference(object) {
                Some(what) => {
                    Err(cx.forbidden(object.name(), &format!("a mirror pod may not reference {what}")))
                }
                None => Ok(()),
            }
        })
    }
}

async fn serve(cx: &AdmissionContext<'_>, pod: &mut Object) -> Result<(), Status> {
    let alias = pod.str(&["spec", "serviceAccount"]).to_owned();
    pod.set_default(&["spec", "serviceAccountName"], if alias.is_empty() { "default" } else { &alias });
    let name = match pod.str(&["spec", "serviceAccountName"]) {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    pod.set(&["spec", "serviceAccountName"], name.as_str());
    pod.set(&["spec", "serviceAccount"], name.as_str());
    let gvr = GroupVersionResource::new("", "v1", "serviceaccounts");
    let namespace = cx.call.namespace;
    let key = ObjectKey::new(namespace, &*name);
    let mut account = Reader::get(cx.registry, &gvr, &key).await?;
    if account.is_none() {
        require_namespace(cx, pod.name()).await?;
        // A controller makes the account `default` right after the namespace.
        if name == "default" {
            account = awaited(cx, &gvr, &key).await?;
        }
    }
    let Some(account) = account else {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(cx.forbidden(pod.name(), &why));
    };
    let flag = |object: &Object, path: &[&str]| object.get(path).and_then(Value::as_bool);
    let automount = flag(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| flag(&account, &["automountServiceAccountToken"]))
        .unwrap_or(true);
    if automount {
        mount_token(pod, &meta::suffix());
    }
    let empty = pod.get(&["spec", "imagePullSecrets"]).and_then(Value::as_array).is_none_or(Vec::is_empty);
    if let Some(secrets) = account.get(&["imagePullSecrets"]).filter(|_| empty) {
        pod.set(&["spec", "imagePullSecrets"], secrets.clone());
    }
    Ok(())
}

/// Why there is no account, if it is because of the namespace.
async fn require_namespace(cx: &AdmissionContext<'_>, pod: &str) -> Result<(), Status> {
    let name = cx.call.namespace;
    let gvr = GroupVersionResource::new("", "v1", "namespaces");
    match Reader::get(cx.registry, &gvr, &ObjectKey::new("", name)).await? {
        None => Err(Status::not_found("", "namespaces", name)),
        Some(namespace) if namespace.is_deleting() => Err(finalize::terminating(cx.call.resource, pod, name)),
        Some(_) => Ok(()),
    }
}

/// The account as soon as it exists, or `None` after [`WAIT`].
async fn awaited(
    cx: &AdmissionContext<'_>,
    gvr: &GroupVersionResource,
    key: &ObjectKey,
) -> Result<Option<Object>, Status> {
    let Some(row) = cx.registry.resources.get(gvr) else { return Ok(None) };
    let mut changed = cx.registry.cache(&row, None).await?.subscribe();
    let appears = async {
        loop {
            let account = Reader::get(cx.registry, gvr, key).await?;
            if account.is_some() || changed.changed().await.is_err() {
                return Ok(account);
            }
        }
    };
    tokio::time::timeout(WAIT, appears).await.unwrap_or(Ok(None))
}

/// Adds the projected volume and mounts it where a container has nothing at that path yet.
fn mount_token(pod: &mut Object, suffix: &str) {
    let mut volume = format!("kube-api-access-{suffix}");
    let volumes = pod.get(&["spec", "volumes"]).and_then(Value::as_array);
    let present = volumes.into_iter().flatten().filter_map(|v| v["name"].as_str());
    let present = present.filter(|name| name.starts_with("kube-api-access-")).map(str::to_owned).next();
    let add = present.is_none();
    if let Some(name) = present {
        volume = name;
    }
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers =
            pod.0.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "mountPath": MOUNT_PATH, "readOnly": true}));
            mounted = true;
        }
    }
    if add && mounted {
        let volumes = pod.get(&["spec", "volumes"]).and_then(Value::as_array);
        let mut volumes: Vec<Value> = volumes.cloned().unwrap_or_default();
        volumes.push(token_volume(&volume));
        pod.set(&["spec", "volumes"], volumes);
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_per_container() {
        let mut pod = Object::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        }}))
        .unwrap();
        mount_token(&mut pod, "abcde");
        mount_token(&mut pod, "fghij");
        let spec = pod.get(&["spec"]).unwrap();
        assert_eq!(spec["volumes"].as_array().map(Vec::len), Some(1));
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["initContainers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(spec["containers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "own");
    }
}
