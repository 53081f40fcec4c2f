//! `--apply`: applies manifests and shows their rollout until everything is ready.
//!
//! Server-side apply with field manager `podium`: a second start with the same manifests changes nothing.

mod manifest;
mod rollout;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use api::{
    ApiRequest, EventKind, GroupVersionKind, GroupVersionResource, Object, ObjectKey, PatchType,
    RequestOptions,
};
use client::Client;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use crate::cli::outln;

/// A served kind, from discovery.
#[derive(Clone)]
struct Served {
    gvr: GroupVersionResource,
    namespaced: bool,
}

/// Applies all manifests below the paths, waits for their workloads and prints how to reach their services.
///
/// # Errors
/// When a path can't be read, a document is no object, or the API server refuses one; the error names the document.
pub(crate) async fn apply(client: &Client, paths: &[PathBuf]) -> Result<()> {
    let documents = manifest::read(paths)?;
    let mut kinds = BTreeMap::new();
    let mut applied = Vec::new();
    for document in documents {
        let gvk = document.object.gvk();
        let served = discover(client, &mut kinds, &gvk).await.with_context(|| document.source.clone())?;
        let mut object = document.object;
        if served.namespaced && object.namespace().is_empty() {
            object.set(&["metadata", "namespace"], "default");
        }
        let key = if served.namespaced { object.key() } else { ObjectKey::new("", object.name()) };
        let options =
            RequestOptions { field_manager: Some("podium".into()), force: true, ..RequestOptions::default() };
        let patch = object.into_value();
        let result = client.patch(&served.gvr, &key, None, PatchType::Apply, &patch, options).await;
        let object = result.map_err(|status| anyhow!("{}: {}: {status}", document.source, gvk.kind))?;
        outln(&format!("applied {}/{}", served.gvr.group_resource(), key.name));
        applied.push((served, key, object));
    }
    wait(client, &applied).await;
    for line in
        applied.iter().filter_map(|(served, _, object)| rollout::address(&served.gvr.resource, object))
    {
        outln(&format!("  curl {line}"));
    }
    Ok(())
}

/// Finds the resource of a kind in the API server's discovery documents.
async fn discover(
    client: &Client,
    known: &mut BTreeMap<GroupVersionKind, Served>,
    gvk: &GroupVersionKind,
) -> Result<Served> {
    if let Some(served) = known.get(gvk) {
        return Ok(served.clone());
    }
    let root = if gvk.group.is_empty() { "/api/" } else { "/apis/" };
    let unknown = || anyhow!("no kind {:?} in {:?}", gvk.kind, gvk.api_version());
    let answer = client.call(ApiRequest::path(&format!("{root}{}", gvk.api_version()))).await;
    let bytes = answer.and_then(api::ApiResponse::into_bytes).map_err(|_| unknown())?;
    let list: serde_json::Value = serde_json::from_slice(&bytes).context("malformed discovery document")?;
    let resources = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    for resource in resources {
        let (Some(name), Some(kind)) = (resource["name"].as_str(), resource["kind"].as_str()) else {
            continue;
        };
        if !name.contains('/') {
            let served = Served {
                gvr: GroupVersionResource::new(&gvk.group, &gvk.version, name),
                namespaced: resource["namespaced"].as_bool().unwrap_or(false),
            };
            known.insert(GroupVersionKind::new(&gvk.group, &gvk.version, kind), served);
        }
    }
    known.get(gvk).cloned().ok_or_else(unknown)
}

/// Shows each workload's progress until all are ready or have failed.
async fn wait(client: &Client, applied: &[(Served, ObjectKey, Object)]) {
    let (report, mut reports) = mpsc::channel(16);
    let mut pending = 0;
    for (served, key, object) in applied {
        if rollout::state(&served.gvr.resource, object).is_some() {
            pending += 1;
            let (client, served, key, report) = (client.clone(), served.clone(), key.clone(), report.clone());
            tokio::spawn(async move { follow(&client, &served, &key, &report).await });
        }
    }
    drop(report);
    while pending > 0 {
        let Some((line, last)) = reports.recv().await else { return };
        outln(&format!("  {line}"));
        pending -= usize::from(last);
    }
}

/// Reports every change of one workload's state, the last one marked.
async fn follow(client: &Client, served: &Served, key: &ObjectKey, report: &mpsc::Sender<(String, bool)>) {
    let mut shown = String::new();
    loop {
        let selector = Some(format!("metadata.name={}", key.name));
        let options = RequestOptions { field_selector: selector, ..RequestOptions::default() };
        let namespace = Some(key.namespace.as_str()).filter(|n| !n.is_empty());
        let mut events = match client.watch(&served.gvr, namespace, options).await {
            Ok(events) => events,
            Err(status) => {
                let line = format!("{}/{}: {status}", served.gvr.group_resource(), key.name);
                if report.send((line, true)).await.is_err() {
                    tracing::debug!("nobody waits for the rollout any more");
                }
                return;
            }
        };
        while let Some(event) = events.next().await {
            if !matches!(event.kind, EventKind::Added | EventKind::Modified) {
                continue;
            }
            let Some(object) = serde_json::from_slice(&event.object).ok().and_then(Object::from_value) else {
                continue;
            };
            let Some(state) = rollout::state(&served.gvr.resource, &object) else { continue };
            let line = format!("{}/{}: {}", served.gvr.group_resource(), key.name, state.text);
            if line != shown && report.send((line.clone(), state.finished)).await.is_err() || state.finished {
                return;
            }
            shown = line;
        }
    }
}
