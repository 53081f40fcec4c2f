use expect_test::{Expect, expect};

use super::*;
use crate::text::text;

const NOW: &str = "2026-01-01T01:00:00Z";

fn resources() -> Arc<Vec<ApiResource>> {
    let gvr = GroupVersionResource::new("apps", "v1", "deployments");
    Arc::new(vec![ApiResource {
        gvr,
        kind: "Deployment".into(),
        namespaced: true,
        verbs: Vec::new(),
        versions: vec!["v1".into()],
    }])
}

fn hpa(spec: Value) -> Value {
    let mut whole = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
        "minReplicas": 1, "maxReplicas": 10, "metrics": [cpu(50)]});
    for (name, value) in spec.as_object().unwrap() {
        whole[name] = value.clone();
    }
    json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u", "generation": 1}, "spec": whole})
}

fn cpu(percent: i32) -> Value {
    json!({"type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// Pods that ask for one processor each, and what they use of it.
fn lists(used: &[&str]) -> (Value, Value) {
    let name = |index: usize| json!({"name": format!("p{index}")});
    let pods = (0..used.len()).map(|index| {
        json!({"metadata": name(index),
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}]}})
    });
    let usage = used.iter().enumerate().map(|(index, cpu)| {
        json!({"metadata": name(index), "timestamp": NOW, "window": "15s",
            "containers": [{"name": "c", "usage": {"cpu": cpu}}]})
    });
    (json!({"items": pods.collect::<Vec<_>>()}), json!({"items": usage.collect::<Vec<_>>()}))
}

fn scale(replicas: i32) -> Value {
    json!({"kind": "Scale", "spec": {"replicas": replicas}, "status": {"selector": "app=d"}})
}

fn controller() -> HorizontalController {
    HorizontalController { resources: resources(), memory: Arc::default() }
}

/// The plan when every read is answered so.
fn planned(controller: &HorizontalController, hpa: &Value, scale: &Value, used: &[&str], now: &str) -> Plan {
    let key = ObjectKey::new("ns", "a");
    let (pods, usage) = lists(used);
    let mut view = View::default().with_objects::<HorizontalPodAutoscaler>(std::slice::from_ref(hpa));
    loop {
        match controller.plan(&key, &view, now.parse().unwrap()) {
            Plan::Need(reads) => {
                for read in reads {
                    let answer = match &read {
                        Read::Subresource { .. } => scale.clone(),
                        Read::List { gvr, .. } if gvr.group.is_empty() => pods.clone(),
                        _ => usage.clone(),
                    };
                    view = view.with_read(read, Ok(answer));
                }
            }
            plan => return plan,
        }
    }
}

fn check(spec: Value, replicas: i32, used: &[&str], expected: Expect) {
    expected.assert_eq(&text(&planned(&controller(), &hpa(spec), &scale(replicas), used, NOW)));
}

#[test]
fn load_brings_pods() {
    check(
        json!({}),
        2,
        &["1", "1"],
        expect![[r#"
        call deployments ns/d/scale {"replicas":4}
        event SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to update the target scale to 4","reason":"SucceededRescale","status":"True","type":"AbleToScale"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)","reason":"ValidMetricFound","status":"True","type":"ScalingActive"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the desired count is within the acceptable range","reason":"DesiredWithinRange","status":"False","type":"ScalingLimited"}],"currentMetrics":[{"resource":{"current":{"averageUtilization":100,"averageValue":"1"},"name":"cpu"},"type":"Resource"}],"currentReplicas":2,"desiredReplicas":4,"lastScaleTime":"2026-01-01T01:00:00Z","observedGeneration":1}
        again after 15s
    "#]],
    );
    check(
        json!({}),
        2,
        &["500m", "520m"],
        expect![[r#"
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"recommended size matches current size","reason":"ReadyForNewScale","status":"True","type":"AbleToScale"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)","reason":"ValidMetricFound","status":"True","type":"ScalingActive"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the desired count is within the acceptable range","reason":"DesiredWithinRange","status":"False","type":"ScalingLimited"}],"currentMetrics":[{"resource":{"current":{"averageUtilization":51,"averageValue":"510m"},"name":"cpu"},"type":"Resource"}],"currentReplicas":2,"desiredReplicas":2,"observedGeneration":1}
        again after 15s
    "#]],
    );
}

#[test]
fn bounds_hold_without_any_measurement() {
    check(
        json!({"maxReplicas": 3}),
        5,
        &[],
        expect![[r#"
        call deployments ns/d/scale {"replicas":3}
        event SuccessfulRescale: New size: 3; reason: Current number of replicas above Spec.MaxReplicas
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to update the target scale to 3","reason":"SucceededRescale","status":"True","type":"AbleToScale"}],"currentReplicas":5,"desiredReplicas":3,"lastScaleTime":"2026-01-01T01:00:00Z","observedGeneration":1}
        again after 15s
    "#]],
    );
    check(
        json!({"minReplicas": 2}),
        1,
        &[],
        expect![[r#"
        call deployments ns/d/scale {"replicas":2}
        event SuccessfulRescale: New size: 2; reason: Current number of replicas below Spec.MinReplicas
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to update the target scale to 2","reason":"SucceededRescale","status":"True","type":"AbleToScale"}],"currentReplicas":1,"desiredReplicas":2,"lastScaleTime":"2026-01-01T01:00:00Z","observedGeneration":1}
        again after 15s
    "#]],
    );
    check(
        json!({}),
        0,
        &[],
        expect![[r#"
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to get the target's current scale","reason":"SucceededGetScale","status":"True","type":"AbleToScale"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"scaling is disabled since the replica count of the target is zero","reason":"ScalingDisabled","status":"False","type":"ScalingActive"}],"currentReplicas":0,"desiredReplicas":0,"observedGeneration":1}
        again after 15s
    "#]],
    );
}

#[test]
fn what_is_not_known_is_said() {
    check(
        json!({}),
        1,
        &[],
        expect![[r#"
        event FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu utilization: no pods returned by selector while calculating replica count
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to get the target's current scale","reason":"SucceededGetScale","status":"True","type":"AbleToScale"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA was unable to compute the replica count: invalid metrics (1 invalid out of 1), first error is: failed to get cpu utilization: no pods returned by selector while calculating replica count","reason":"FailedGetResourceMetric","status":"False","type":"ScalingActive"}],"currentReplicas":1,"desiredReplicas":1,"observedGeneration":1}
        again after 15s
    "#]],
    );
    let kind = json!({"apiVersion": "g.example/v1", "kind": "Thing", "name": "t"});
    check(
        json!({"scaleTargetRef": kind}),
        1,
        &[],
        expect![[r#"
        event FailedGetScale: no matches for kind "Thing" in version "g.example/v1"
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was unable to get the target's current scale: no matches for kind \"Thing\" in version \"g.example/v1\"","reason":"FailedGetScale","status":"False","type":"AbleToScale"}],"currentReplicas":0,"desiredReplicas":0,"observedGeneration":1}
        again after 15s
    "#]],
    );
    // One metric alone may add pods, but not take them away.
    let external = json!({"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "1"}}});
    check(
        json!({"metrics": [external, cpu(50)]}),
        2,
        &["100m", "100m"],
        expect![[r#"
        event FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 2), first error is: metrics of type External are not served in this cluster
        status horizontalpodautoscalers ns/a {"conditions":[{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA controller was able to get the target's current scale","reason":"SucceededGetScale","status":"True","type":"AbleToScale"},{"lastTransitionTime":"2026-01-01T01:00:00Z","message":"the HPA was unable to compute the replica count: invalid metrics (1 invalid out of 2), first error is: metrics of type External are not served in this cluster","reason":"FailedGetExternalMetric","status":"False","type":"ScalingActive"}],"currentMetrics":[{"resource":{"current":{"averageUtilization":10,"averageValue":"100m"},"name":"cpu"},"type":"Resource"}],"currentReplicas":2,"desiredReplicas":2,"observedGeneration":1}
        again after 15s
    "#]],
    );
}

#[test]
fn rounds_are_fifteen_seconds_apart_and_a_new_spec_begins_one() {
    let controller = controller();
    let first = planned(&controller, &hpa(json!({})), &scale(1), &["500m"], NOW);
    assert!(matches!(&first, Plan::Do { actions, .. } if actions.len() == 1), "{first:?}");
    let soon = "2026-01-01T01:00:05Z";
    let rest = planned(&controller, &hpa(json!({})), &scale(1), &["1"], soon);
    assert_eq!(rest, Plan::Do { actions: Vec::new(), requeue_after: Some(Duration::from_secs(10)) });
    let mut changed = hpa(json!({"minReplicas": 2}));
    changed["metadata"]["generation"] = 2.into();
    let anew = planned(&controller, &changed, &scale(1), &["1"], soon);
    assert!(matches!(&anew, Plan::Do { actions, .. } if actions.len() == 3), "{anew:?}");
}

#[test]
fn a_second_look_at_the_same_changes_nothing() {
    let controller = controller();
    let before = hpa(json!({}));
    let Plan::Do { actions, .. } = planned(&controller, &before, &scale(1), &["500m"], NOW) else { panic!() };
    let [Action::UpdateStatus { object, .. }] = &actions[..] else { panic!("{actions:?}") };
    let again = planned(&controller, object, &scale(1), &["500m"], "2026-01-01T01:00:20Z");
    assert_eq!(again, Plan::Do { actions: Vec::new(), requeue_after: Some(PERIOD) });
}
