//! Writes the `PodScheduled` condition of pods that stay pending. One task, beside the path of scheduling; only the
//! newest report of a pod is written.

use std::collections::BTreeMap;

use api::{ObjectKey, PatchType, RequestOptions, Status};
use client::{Client, Informer, Kind};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod::{Condition, PodInfo};

/// Conflicts after which a report is given up; the pod is changing all the time then.
const MAX_ATTEMPTS: usize = 5;

/// Why a pod is pending.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Handle of the writing task, which ends with it.
pub(crate) struct Reporter {
    reports: mpsc::UnboundedSender<Report>,
}

impl Reporter {
    pub(crate) fn start(client: Client, pods: Informer<PodInfo>) -> Self {
        let (reports, receiver) = mpsc::unbounded_channel();
        client::spawn(write_all(client, pods, receiver));
        Self { reports }
    }

    pub(crate) fn report(&self, report: Report) {
        if self.reports.send(report).is_err() {
            tracing::error!("the task that writes pod conditions is gone");
        }
    }
}

async fn write_all(client: Client, pods: Informer<PodInfo>, mut reports: mpsc::UnboundedReceiver<Report>) {
    let mut newest = BTreeMap::new();
    while let Some(report) = reports.recv().await {
        newest.insert(report.key.clone(), report);
        while let Some((_, report)) = newest.pop_first() {
            write(&client, &pods, &report).await;
            while let Ok(report) = reports.try_recv() {
                newest.insert(report.key.clone(), report);
            }
        }
    }
}

/// Writes a report unless the pod got a node meanwhile: the patch names the version it was made for, so it cannot
/// overwrite what the binding writes.
async fn write(client: &Client, pods: &Informer<PodInfo>, report: &Report) {
    let mut pod = match pods.get(&report.key) {
        Some(cached) => cached.object.clone(),
        None => return,
    };
    for _ in 0..MAX_ATTEMPTS {
        let Some(patch) = patch(&pod, report, &seconds(client)) else { return };
        let (gvr, options) = (PodInfo::gvr(), RequestOptions::default());
        let result =
            client.patch(&gvr, &report.key, Some("status"), PatchType::Strategic, &patch, options).await;
        match result {
            Ok(_) => return,
            Err(status) if status.is_not_found() => return,
            Err(status) if status.is_conflict() => {}
            Err(status) => {
                tracing::warn!(pod = %report.key, %status, "cannot write why a pod is pending");
                return;
            }
        }
        pod = match client.get::<PodInfo>(&report.key).await {
            Ok(pod) => pod,
            Err(status) => {
                tracing::debug!(pod = %report.key, %status, "cannot read a pod whose condition is to be written");
                return;
            }
        };
    }
    tracing::warn!(pod = %report.key, "gave up writing why a pod is pending: it changes all the time");
}

/// The patch that makes the condition say what the report says; `None` when there is nothing to write.
fn patch(pod: &PodInfo, report: &Report, now: &str) -> Option<serde_json::Value> {
    let wanted =
        Condition { status: "False".into(), reason: report.reason.clone(), message: report.message.clone() };
    let said = pod.scheduled_condition.as_ref();
    if pod.uid != report.uid || !pod.is_pending() || said == Some(&wanted) {
        return None;
    }
    let mut condition = json!({
        "type": "PodScheduled",
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
    });
    if said.is_none_or(|said| said.status != wanted.status) {
        condition["lastTransitionTime"] = now.into();
    }
    Some(json!({
        "metadata": { "uid": pod.uid, "resourceVersion": pod.resource_version },
        "status": { "conditions": [condition] },
    }))
}

/// The time as Kubernetes writes it in objects: RFC 3339 with whole seconds.
fn seconds(client: &Client) -> String {
    let now = client.clock().now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Writes where a pod may hope for room; a failure only costs others the knowledge.
pub(crate) async fn nominate(client: &Client, pod: &PodInfo, node: Option<&str>) {
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": node}});
    let options = RequestOptions::default();
    let result =
        client.patch(&PodInfo::gvr(), &pod.key, Some("status"), PatchType::Strategic, &patch, options).await;
    if let Err(status) = result {
        tracing::warn!(pod = %pod.key, %status, "cannot write the nominated node");
    }
}

/// Says why a pod has to leave, and deletes it.
pub(crate) async fn evict(client: &Client, pod: &PodInfo) -> Result<(), Status> {
    if pod.deleting {
        return Ok(());
    }
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": seconds(client),
    });
    let gvr = PodInfo::gvr();
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
    let options = RequestOptions::default();
    let told = client.patch(&gvr, &pod.key, Some("status"), PatchType::Strategic, &patch, options).await;
    let options = RequestOptions { precondition_uid: Some(pod.uid.clone()), ..RequestOptions::default() };
    let gone = |status: &Status| status.is_not_found() || status.is_conflict();
    match told {
        Err(status) if gone(&status) => return Ok(()),
        Err(status) => return Err(status),
        Ok(_) => {}
    }
    match client.delete(&gvr, &pod.key, options).await {
        Err(status) if gone(&status) => Ok(()),
        other => other,
    }
}
