//! PodDisruptionBudget: how many of the selected pods may be disturbed now. Evictions count it down; this counts anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use client::{Cached, Controller, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::claim::selector;
use crate::pod::Pod;
use crate::replicaset::AsSet;
use crate::workload::{number, same, scaled, update_status, whole_seconds};

/// An evicted pod that is still there after this time was not removed after all.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(120);

pub struct DisruptionController;

impl Controller for DisruptionController {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<PodDisruptionBudget>(),
            Watch::map::<Pod>(|view, pod| {
                let budgets = view.in_namespace::<PodDisruptionBudget>(&pod.key.namespace).into_iter();
                budgets.filter(|budget| selects(&budget.object, pod)).map(|b| b.key.clone()).collect()
            }),
            Watch::map::<ReplicaSet>(|view, set| budgets_of(view, &set.key.namespace)),
            Watch::map::<Deployment>(|view, set| budgets_of(view, &set.key.namespace)),
            Watch::map::<StatefulSet>(|view, set| budgets_of(view, &set.key.namespace)),
            Watch::map::<AsSet>(|view, set| budgets_of(view, &set.key.namespace)),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(budget) = view.get::<PodDisruptionBudget>(key) else { return Plan::nothing() };
        let mut pods = view.in_namespace::<Pod>(&key.namespace);
        pods.retain(|pod| selects(&budget.object, pod));
        let old = budget.object.status.clone().unwrap_or_default();
        let (evicted, requeue_after) = still_evicted(&old, &pods, now);
        let (expected, desired) = wanted(&budget.object, view, &pods);
        let healthy = pods
            .iter()
            .filter(|pod| !pod.deleting && pod.object.is_ready() && !evicted.contains_key(&pod.key.name));
        let healthy = number(healthy.count());
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        let mut new = PodDisruptionBudgetStatus {
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(expected),
            observed_generation: budget.object.metadata.generation,
            disrupted_pods: (!evicted.is_empty()).then_some(evicted),
            conditions: old.conditions.clone(),
        };
        set_condition(&mut new, now);
        if same(&new, &old) && budget.object.status.is_some() {
            return Plan::Do { actions: Vec::new(), requeue_after };
        }
        let mut object = budget.object.clone();
        object.status = Some(new);
        Plan::Do { actions: vec![update_status(key, &object)], requeue_after }
    }
}

fn budgets_of(view: &View, namespace: &str) -> Vec<ObjectKey> {
    view.in_namespace::<PodDisruptionBudget>(namespace).iter().map(|budget| budget.key.clone()).collect()
}

/// Whether a budget covers a pod; an empty selector covers all, none covers none.
fn selects(budget: &PodDisruptionBudget, pod: &Cached<Pod>) -> bool {
    let field = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    field.and_then(selector).is_some_and(|selector| selector.matches(&pod.labels))
}

/// Evictions that have been granted and are not visible yet, and when to look again.
fn still_evicted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Cached<Pod>>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut left = BTreeMap::new();
    let mut again: Option<Duration> = None;
    for (name, time) in old.disrupted_pods.iter().flatten() {
        let age = u64::try_from(now.as_millisecond() - time.0.as_millisecond()).unwrap_or(0);
        let wait = EVICTION_TIMEOUT.saturating_sub(Duration::from_millis(age));
        let waits = pods.iter().any(|pod| pod.key.name == *name && !pod.deleting);
        if waits && !wait.is_zero() {
            again = Some(again.map_or(wait, |other| other.min(wait)));
            left.insert(name.clone(), time.clone());
        }
    }
    (left, again)
}

/// Pods there should be, and how many of them must be healthy.
fn wanted(budget: &PodDisruptionBudget, view: &View, pods: &[Arc<Cached<Pod>>]) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    let by_owners = || expected(view, pods);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(limit), _) => {
            let expected = by_owners();
            (expected, (expected - scaled(limit, expected, true)).max(0))
        }
        (None, Some(IntOrString::Int(minimum))) => (number(pods.len()), *minimum),
        (None, Some(share)) => {
            let expected = by_owners();
            (expected, scaled(share, expected, true))
        }
        (None, None) => (number(pods.len()), 0),
    }
}

/// The sum of the sizes of the pods' owners; a pod without one counts for itself.
fn expected(view: &View, pods: &[Arc<Cached<Pod>>]) -> i32 {
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    for pod in pods {
        let (uid, size) = match pod.controller() {
            Some(owner) => {
                let key = ObjectKey::new(&pod.key.namespace, &owner.name);
                size_of(view, &owner.kind, &key).unwrap_or_else(|| (pod.uid.clone(), 1))
            }
            None => (pod.uid.clone(), 1),
        };
        if seen.insert(uid) {
            sum += size;
        }
    }
    sum
}

/// Uid and size of the topmost owner.
fn size_of(view: &View, kind: &str, key: &ObjectKey) -> Option<(String, i32)> {
    match kind {
        "ReplicaSet" => {
            let set = view.get::<ReplicaSet>(key)?;
            let deployment = set.controller().filter(|owner| owner.kind == "Deployment");
            let key = deployment.map(|owner| ObjectKey::new(&key.namespace, &owner.name));
            match key.and_then(|key| view.get::<Deployment>(&key)) {
                Some(top) => Some((top.uid.clone(), top.object.spec.replicas.unwrap_or(1))),
                None => Some((set.uid.clone(), set.object.spec.replicas.unwrap_or(1))),
            }
        }
        "StatefulSet" => {
            let set = view.get::<StatefulSet>(key)?;
            Some((set.uid.clone(), set.object.spec.replicas.unwrap_or(1)))
        }
        "ReplicationController" => {
            let set = view.get::<AsSet>(key)?;
            Some((set.uid.clone(), set.object.replicas()))
        }
        _ => None,
    }
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, now: Timestamp) {
    const TYPE: &str = "DisruptionAllowed";
    let allowed = status.disruptions_allowed.unwrap_or(0) > 0;
    let (value, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|condition| condition.type_ == TYPE);
    let since = old.filter(|old| old.status == value).map(|old| old.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != TYPE);
    conditions.push(Condition {
        type_: TYPE.into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
        observed_generation: generation,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn check(spec: Value, ready: &[bool], evicted: Value, expected: Expect) {
        let mut budget = json!({
            "metadata": {"name": "b", "namespace": "default", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0, "disruptedPods": evicted},
        });
        for (name, value) in spec.as_object().unwrap() {
            budget["spec"][name] = value.clone();
        }
        let pods: Vec<Value> = ready.iter().enumerate().map(|(index, ready)| json!({
            "metadata": {
                "name": format!("p{index}"), "namespace": "default", "uid": format!("p{index}"), "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}],
            },
            "status": {"conditions": [{"type": "Ready", "status": if *ready { "True" } else { "False" }}]},
        })).collect();
        let set = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"replicas": 4, "selector": {}, "template": {}},
        });
        let view = View::default()
            .with_objects::<PodDisruptionBudget>(&[budget])
            .with_objects::<StatefulSet>(&[set])
            .with_objects::<Pod>(&pods);
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let plan = DisruptionController.plan(&ObjectKey::new("default", "b"), &view, now);
        expected.assert_eq(&brief(&plan));
    }

    #[test]
    fn what_may_be_disturbed_is_counted() {
        let all = [true, true, true, false];
        check(
            json!({"minAvailable": 2}),
            &all,
            json!({}),
            expect![[r#"
            status poddisruptionbudgets default/b {"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"","observedGeneration":1,"reason":"SufficientPods","status":"True","type":"DisruptionAllowed"}],"currentHealthy":3,"desiredHealthy":2,"disruptionsAllowed":1,"expectedPods":4,"observedGeneration":1}
        "#]],
        );
        check(
            json!({"minAvailable": "75%"}),
            &all,
            json!({}),
            expect![[r#"
            status poddisruptionbudgets default/b {"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"","observedGeneration":1,"reason":"InsufficientPods","status":"False","type":"DisruptionAllowed"}],"currentHealthy":3,"desiredHealthy":3,"disruptionsAllowed":0,"expectedPods":4,"observedGeneration":1}
        "#]],
        );
        check(
            json!({"maxUnavailable": 2}),
            &all,
            json!({}),
            expect![[r#"
            status poddisruptionbudgets default/b {"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"","observedGeneration":1,"reason":"SufficientPods","status":"True","type":"DisruptionAllowed"}],"currentHealthy":3,"desiredHealthy":2,"disruptionsAllowed":1,"expectedPods":4,"observedGeneration":1}
        "#]],
        );
        check(
            json!({"maxUnavailable": "25%"}),
            &all[..1],
            json!({}),
            expect![[r#"
            status poddisruptionbudgets default/b {"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"","observedGeneration":1,"reason":"InsufficientPods","status":"False","type":"DisruptionAllowed"}],"currentHealthy":1,"desiredHealthy":3,"disruptionsAllowed":0,"expectedPods":4,"observedGeneration":1}
        "#]],
        );
    }

    #[test]
    fn granted_evictions_count_until_they_are_seen_or_time_out() {
        let evicted = json!({"p0": "2026-01-01T00:00:30Z", "p1": "2025-12-31T00:00:00Z", "gone": "2026-01-01T00:00:30Z"});
        check(
            json!({"minAvailable": 1}),
            &[true, true],
            evicted,
            expect![[r#"
            status poddisruptionbudgets default/b {"conditions":[{"lastTransitionTime":"2026-01-01T00:01:00Z","message":"","observedGeneration":1,"reason":"InsufficientPods","status":"False","type":"DisruptionAllowed"}],"currentHealthy":1,"desiredHealthy":1,"disruptedPods":{"p0":"2026-01-01T00:00:30Z"},"disruptionsAllowed":0,"expectedPods":2,"observedGeneration":1}
            again after 90s
        "#]],
        );
    }
}
