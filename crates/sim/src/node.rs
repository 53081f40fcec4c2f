//! A node agent without containers: pods run because it says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions, Status};
use client::{Cached, Client, Informer, Scope};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::random::Random;

const LEASE_SECONDS: i32 = 40;

/// Runs a node for ever.
pub(crate) async fn run(client: Client, name: String, random: Arc<Random>) {
    retry(&client, async || register(&client, &name).await).await;
    let scope = Scope { field_selector: Some(format!("spec.nodeName={name}")), ..Scope::default() };
    let pods = Informer::<Pod>::start(&client, scope);
    let mut changes = pods.subscribe();
    let mut busy = BTreeSet::new();
    let mut work = FuturesUnordered::new();
    let mut renew = Box::pin(lease(&client, &name));
    loop {
        for pod in pods.list() {
            if needs_work(&pod) && busy.insert(pod.uid.clone()) {
                let (client, random) = (client.clone(), Arc::clone(&random));
                work.push(async move {
                    tokio::time::sleep(random.millis(50, 2500)).await;
                    if let Err(status) = act(&client, &pod, &random).await {
                        tracing::debug!(key = %pod.key, %status, "the node tries again");
                        tokio::time::sleep(random.millis(200, 1000)).await;
                    }
                    pod.uid.clone()
                });
            }
        }
        tokio::select! {
            biased;
            Some(_) = changes.recv() => {}
            Some(uid) = work.next(), if !work.is_empty() => { busy.remove(&uid); }
            () = &mut renew => {}
        }
    }
}

/// Others make a pod unready too: when they believe that the node is gone.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn needs_work(pod: &Cached<Pod>) -> bool {
    pod.deleting || !is_ready(&pod.object)
}

/// Starts a pod, or ends one that is being deleted.
async fn act(client: &Client, pod: &Cached<Pod>, random: &Random) -> Result<(), Status> {
    let pods = GroupVersionResource::new("", "v1", "pods");
    if pod.deleting {
        let options = RequestOptions { grace_period_seconds: Some(0), ..RequestOptions::default() };
        return match client.delete(&pods, &pod.key, options).await {
            Err(status) if status.is_not_found() => Ok(()),
            outcome => outcome,
        };
    }
    let now = client.clock().now().to_string();
    let conditions: Vec<Value> = ["Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}))
        .to_vec();
    let ip = format!("10.244.{}.{}", random.below(200), 1 + random.below(250));
    let containers = pod.object.spec.iter().flat_map(|spec| &spec.containers);
    let statuses: Vec<Value> = containers
        .map(|container| {
            json!({"name": container.name, "image": container.image, "imageID": "", "ready": true, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now}}})
        })
        .collect();
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"phase": "Running", "podIP": ip, "startTime": now,
        "podIPs": [{"ip": ip}], "conditions": conditions, "containerStatuses": statuses}});
    let options = RequestOptions::default();
    client.patch(&pods, &pod.key, Some("status"), PatchType::Strategic, &patch, options).await.map(drop)
}

async fn register(client: &Client, name: &str) -> Result<(), Status> {
    let now = client.clock().now().to_string();
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
    let node: Node = decode(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room, "conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}]},
    }))?;
    exists(client.create(None, &node).await)?;
    let lease: Lease = decode(json!({
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": micros(client)},
    }))?;
    exists(client.create(Some("kube-node-lease"), &lease).await)
}

fn exists<T>(outcome: Result<T, Status>) -> Result<(), Status> {
    match outcome {
        Err(status) if status.is_already_exists() => Ok(()),
        outcome => outcome.map(drop),
    }
}

fn decode<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Status> {
    serde_json::from_value(value).map_err(Status::internal)
}

/// Renews the lease for ever.
async fn lease(client: &Client, name: &str) {
    let leases = GroupVersionResource::new("coordination.k8s.io", "v1", "leases");
    let key = ObjectKey::new("kube-node-lease", name);
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let patch = json!({"spec": {"renewTime": micros(client)}});
        let options = RequestOptions::default();
        match client.patch(&leases, &key, None, PatchType::Merge, &patch, options).await {
            // a crash may have taken it: its writes are relaxed
            Err(status) if status.is_not_found() => {
                retry(client, async || register(client, name).await).await
            }
            Err(status) => tracing::debug!(%status, "the lease is renewed next time"),
            Ok(_) => {}
        }
        if let Err(status) = report(client, name).await {
            tracing::debug!(%status, "the node's status is reported next time");
        }
    }
}

/// Says that the node is ready, if others have come to think that it is not.
async fn report(client: &Client, name: &str) -> Result<(), Status> {
    let key = ObjectKey::new("", name);
    let node: Node = client.get(&key).await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return Ok(());
    }
    let nodes = GroupVersionResource::new("", "v1", "nodes");
    let now = client.clock().now().to_string();
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
    let options = RequestOptions::default();
    client.patch(&nodes, &key, Some("status"), PatchType::Strategic, &patch, options).await.map(drop)
}

fn micros(client: &Client) -> String {
    format!("{:.6}", client.clock().now())
}

/// Tries again until it works.
pub(crate) async fn retry(client: &Client, attempt: impl AsyncFn() -> Result<(), Status>) {
    while let Err(status) = attempt().await {
        tracing::debug!(%status, "tried again");
        let pause = Duration::from_millis(100 + client.clock().random() % 900);
        tokio::time::sleep(pause).await;
    }
}
