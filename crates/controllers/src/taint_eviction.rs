//! Taint eviction: pods leave nodes whose NoExecute taints they do not tolerate, or tolerate for a time only.

use std::time::Duration;

use api::ObjectKey;
use client::{Action, Controller, EventType, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::node::{Node, tolerates};
use crate::node_lifecycle::patch_status;
use crate::pod::Pod;
use crate::workload::{delete_pod, event, whole_seconds};

pub struct TaintEvictionController;

impl Controller for TaintEvictionController {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<Pod>(),
            Watch::map::<Node>(|view, node| {
                if node.object.spec.taints.iter().all(|taint| taint.effect != "NoExecute") {
                    return Vec::new();
                }
                let pods = view.list::<Pod>().into_iter();
                let here = pods.filter(|pod| pod.object.spec.node_name == node.key.name);
                here.map(|pod| pod.key.clone()).collect()
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(pod) = view.get::<Pod>(key).filter(|pod| !pod.deleting) else { return Plan::nothing() };
        let node = ObjectKey::new("", &pod.object.spec.node_name);
        let Some(node) = view.get::<Node>(&node) else { return Plan::nothing() };
        let Some(stay) = may_stay(&pod.object, &node.object, now) else { return Plan::nothing() };
        if !stay.is_zero() {
            return Plan::Do { actions: Vec::new(), requeue_after: Some(stay) };
        }
        let mut actions: Vec<Action> = Vec::new();
        if !pod.object.is_terminal() {
            let condition = json!([{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": Time(whole_seconds(now)),
            }]);
            actions.push(patch_status::<Pod>(key, condition));
        }
        actions.push(delete_pod(&pod));
        let text = format!("Marking for deletion Pod {key}");
        actions.push(event(&*pod, EventType::Normal, "TaintManagerEviction", text));
        Plan::actions(actions)
    }
}

/// How long a pod may stay: `None` for ever, zero when it must go.
fn may_stay(pod: &Pod, node: &Node, now: Timestamp) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut bearing = pod.spec.tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if bearing.peek().is_none() {
            return Some(Duration::ZERO);
        }
        // The shortest of the tolerations counts; one without a time sets none.
        let Some(seconds) = bearing.filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = since.as_millisecond() + seconds.max(0).saturating_mul(1000) - now.as_millisecond();
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        shortest = Some(shortest.map_or(left, |other| other.min(left)));
    }
    shortest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::{Expect, expect};

    fn check(tolerations: serde_json::Value, expected: Expect) {
        let node = json!({"metadata": {"name": "n1"}, "spec": {"taints": [
            {"key": "bad", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
            {"key": "other", "effect": "NoSchedule"},
        ]}});
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "p"},
            "spec": {"nodeName": "n1", "tolerations": tolerations}, "status": {"phase": "Running"},
        });
        let view = View::default().with_objects::<Node>(&[node]).with_objects::<Pod>(&[pod]);
        let now: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        let plan = TaintEvictionController.plan(&ObjectKey::new("default", "p"), &view, now);
        expected.assert_eq(&brief(&plan));
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let bears =
            |seconds: i64| json!([{"key": "bad", "operator": "Exists", "tolerationSeconds": seconds}]);
        check(
            json!([]),
            expect![[r#"
            patch pods default/p {"status":{"conditions":[{"lastTransitionTime":"2026-01-01T00:00:30Z","message":"Taint manager: deleting due to NoExecute taint","reason":"DeletionByTaintManager","status":"True","type":"DisruptionTarget"}]}}
            delete pods default/p 
        "#]],
        );
        check(json!([{"operator": "Exists"}]), expect![[r#""#]]);
        check(
            bears(40),
            expect![[r#"
            again after 10s
        "#]],
        );
        check(
            bears(30),
            expect![[r#"
            patch pods default/p {"status":{"conditions":[{"lastTransitionTime":"2026-01-01T00:00:30Z","message":"Taint manager: deleting due to NoExecute taint","reason":"DeletionByTaintManager","status":"True","type":"DisruptionTarget"}]}}
            delete pods default/p 
        "#]],
        );
    }
}
