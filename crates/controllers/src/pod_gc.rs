//! Pod garbage collection: pods that no node will ever end, and finished pods beyond a number.

use std::time::Duration;

use api::{ObjectKey, PatchType, RequestOptions};
use client::{Action, Cached, Controller, Kind, Plan, Read, View, Watch};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::node::Node;
use crate::pod::Pod;
use crate::workload::{delete_pod, whole_seconds};

/// Finished pods that are kept (Kubernetes' default of `terminated-pod-gc-threshold`).
const FINISHED_KEPT: usize = 12_500;
/// A pod younger than this may be on a node that the cache does not show yet.
const YOUNG: Duration = Duration::from_secs(40);

pub struct PodGcController;

/// The key under which finished pods are counted.
fn counting_key() -> ObjectKey {
    ObjectKey::new("", "finished-pods")
}

impl Controller for PodGcController {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::map::<Pod>(|_, pod| {
                let finished = pod.object.is_terminal().then(counting_key);
                [pod.key.clone()].into_iter().chain(finished).collect()
            }),
            Watch::map::<Node>(|view, node| {
                if view.get::<Node>(&node.key).is_some() {
                    return Vec::new();
                }
                let pods = view.list::<Pod>().into_iter();
                let here = pods.filter(|pod| pod.object.spec.node_name == node.key.name);
                here.map(|pod| pod.key.clone()).collect()
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        if *key == counting_key() {
            return forget_finished(view);
        }
        let Some(pod) = view.get::<Pod>(key) else { return Plan::nothing() };
        if pod.object.spec.node_name.is_empty() {
            // Nothing was started that would have to be ended.
            return if pod.deleting { Plan::actions(remove(&pod, now)) } else { Plan::nothing() };
        }
        let node = ObjectKey::new("", &pod.object.spec.node_name);
        if view.get::<Node>(&node).is_some() {
            return Plan::nothing();
        }
        let created = pod.object.metadata.creation_timestamp.unwrap_or(Timestamp::UNIX_EPOCH);
        let age = Duration::from_secs(u64::try_from(now.as_second() - created.as_second()).unwrap_or(0));
        if age < YOUNG {
            return Plan::Do { actions: Vec::new(), requeue_after: Some(YOUNG - age) };
        }
        let read = Read::Get { gvr: Node::gvr(), key: node };
        match view.read(&read) {
            None => Plan::Need(vec![read]),
            Some(Err(status)) if status.is_not_found() => Plan::actions(remove(&pod, now)),
            Some(_) => Plan::nothing(),
        }
    }
}

/// Marks a pod Failed, unless it has ended, and removes it without waiting for a node.
fn remove(pod: &Cached<Pod>, now: Timestamp) -> Vec<Action> {
    let unplaced = pod.object.spec.node_name.is_empty();
    let why =
        if unplaced { "PodGC: the pod left before it had a node" } else { "PodGC: node no longer exists" };
    let fail = Action::Patch {
        gvr: Pod::gvr(),
        key: pod.key.clone(),
        subresource: Some("status".into()),
        kind: PatchType::Strategic,
        patch: json!({"status": {"phase": "Failed", "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": why, "lastTransitionTime": Time(whole_seconds(now)),
        }]}}),
    };
    let delete = Action::Delete {
        gvr: Pod::gvr(),
        key: pod.key.clone(),
        options: RequestOptions {
            precondition_uid: Some(pod.uid.clone()),
            grace_period_seconds: Some(0),
            ..RequestOptions::default()
        },
    };
    let fail = (!pod.object.is_terminal()).then_some(fail);
    // What only its finalizers hold has been deleted already.
    let held = pod.deleting && pod.object.is_terminal() && !pod.object.metadata.finalizers.is_empty();
    fail.into_iter().chain((!held).then_some(delete)).collect()
}

/// Deletes the oldest finished pods beyond the limit.
fn forget_finished(view: &View) -> Plan {
    let mut finished = view.list::<Pod>();
    finished.retain(|pod| pod.object.is_terminal() && !pod.deleting);
    let surplus = finished.len().saturating_sub(FINISHED_KEPT);
    finished.sort_by_key(|pod| (pod.object.metadata.creation_timestamp, pod.key.clone()));
    Plan::actions(finished[..surplus].iter().map(|pod| delete_pod(pod)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::expect;

    #[test]
    fn pods_of_vanished_nodes_are_removed_after_a_live_read() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "gone"}, "status": {"phase": "Running"},
        });
        let key = ObjectKey::new("default", "p");
        let view = View::default().with_objects::<Node>(&[]).with_objects::<Pod>(&[pod]);
        let plan = |view: &View, now: &str| brief(&PodGcController.plan(&key, view, now.parse().unwrap()));
        expect![[r#"
            again after 10s
        "#]]
        .assert_eq(&plan(&view, "2026-01-01T00:00:30Z"));
        expect![[r#"
            need get nodes gone
        "#]]
        .assert_eq(&plan(&view, "2026-01-01T00:01:00Z"));
        let read = Read::Get { gvr: Node::gvr(), key: ObjectKey::new("", "gone") };
        let view = view.with_read(read, Err(api::Status::not_found("", "nodes", "gone")));
        expect![[r#"
            patch pods default/p {"status":{"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"PodGC: node no longer exists","reason":"DeletionByPodGC","status":"True","type":"DisruptionTarget"}],"phase":"Failed"}}
            delete pods default/p 
        "#]].assert_eq(&plan(&view, "2026-01-01T00:01:00Z"));
    }

    #[test]
    fn a_leaving_pod_without_a_node_is_removed() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Pending"},
        });
        let view = View::default().with_objects::<Node>(&[]).with_objects::<Pod>(&[pod]);
        let plan = PodGcController.plan(&ObjectKey::new("default", "p"), &view, Timestamp::UNIX_EPOCH);
        expect![[r#"
            patch pods default/p {"status":{"conditions":[{"lastTransitionTime":"1970-01-01T00:00:00Z","message":"PodGC: the pod left before it had a node","reason":"DeletionByPodGC","status":"True","type":"DisruptionTarget"}],"phase":"Failed"}}
            delete pods default/p 
        "#]].assert_eq(&brief(&plan));
    }
}
