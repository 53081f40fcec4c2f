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

use crate::cli::{errln, outln};

/// A served kind, from discovery.
#[derive(Clone)]
struct Served {
    gvr: GroupVersionResource,
    namespaced: bool,
}

/// Manifests that were read but not applied yet.
pub(crate) struct Manifests(Vec<manifest::Document>);

/// Reads all manifests below the paths, so that a mistake shows before anything starts.
///
/// # Errors
/// When a path can't be read or a document is no object; the error names the document.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Manifests> {
    if paths.is_empty() { Ok(Manifests(Vec::new())) } else { manifest::read(paths).map(Manifests) }
}

/// Applies the manifests, waits for their workloads and prints how to reach their services. What is refused is
/// reported by document; the rest goes on, as with kubectl.
pub(crate) async fn apply(client: &Client, Manifests(documents): Manifests) {
    let mut kinds = BTreeMap::new();
    let mut applied = Vec::new();
    for document in documents {
        let source = document.source.clone();
        match apply_one(client, &mut kinds, document.object).await {
            Ok(one) => {
                outln(&format!("applied {}/{}", one.0.gvr.group_resource(), one.1.name));
                applied.push(one);
            }
            Err(error) => errln(&format!("podium: {source}: {error:#}")),
        }
    }
    wait(client, &applied).await;
    for line in
        applied.iter().filter_map(|(served, _, object)| rollout::address(&served.gvr.resource, object))
    {
        outln(&format!("  curl {line}"));
    }
}

async fn apply_one(
    client: &Client,
    kinds: &mut BTreeMap<GroupVersionKind, Served>,
    mut object: Object,
) -> Result<(Served, ObjectKey, Object)> {
    let gvk = object.gvk();
    let served = discover(client, kinds, &gvk).await?;
    if served.namespaced && object.namespace().is_empty() {
        object.set(&["metadata", "namespace"], "default");
    }
    let key = if served.namespaced { object.key() } else { ObjectKey::new("", object.name()) };
    let options =
        RequestOptions { field_manager: Some("podium".into()), force: true, ..RequestOptions::default() };
    let patch = object.into_value();
    let result = client.patch(&served.gvr, &key, None, PatchType::Apply, &patch, options).await;
    let object = result.map_err(|status| anyhow!("{}: {status}", gvk.kind))?;
    Ok((served, key, object))
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
