//! `autoscaling/v1`: the older view of HorizontalPodAutoscaler. Only `autoscaling/v2` is stored; what v1 has no field for
//! is in annotations (Kubernetes, API conventions of `autoscaling.alpha.kubernetes.io`).

use api::{FieldError, Object};
use serde_json::{Map, Value, json};

use super::HPA;
use crate::printing::cells;
use crate::resource::{Column, Strategy};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CPU_TARGET: [&str; 2] = ["spec", "targetCPUUtilizationPercentage"];
const CPU_NOW: [&str; 2] = ["status", "currentCPUUtilizationPercentage"];
/// What is aimed at when nothing is said.
const USUAL_TARGET: i64 = 80;

/// For each source of metrics: names in v1 and where the same is in v2.
type Names = &'static [(&'static str, &'static [(&'static str, [&'static str; 2])])];

const TARGETS: Names = &[
    (
        "resource",
        &[
            ("name", ["name", ""]),
            ("targetAverageUtilization", ["target", "averageUtilization"]),
            ("targetAverageValue", ["target", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", ["name", ""]),
            ("container", ["container", ""]),
            ("targetAverageUtilization", ["target", "averageUtilization"]),
            ("targetAverageValue", ["target", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", ["metric", "name"]),
            ("selector", ["metric", "selector"]),
            ("targetAverageValue", ["target", "averageValue"]),
        ],
    ),
    (
        "object",
        &[
            ("target", ["describedObject", ""]),
            ("metricName", ["metric", "name"]),
            ("selector", ["metric", "selector"]),
            ("targetValue", ["target", "value"]),
            ("averageValue", ["target", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", ["metric", "name"]),
            ("metricSelector", ["metric", "selector"]),
            ("targetValue", ["target", "value"]),
            ("targetAverageValue", ["target", "averageValue"]),
        ],
    ),
];

const CURRENT: Names = &[
    (
        "resource",
        &[
            ("name", ["name", ""]),
            ("currentAverageUtilization", ["current", "averageUtilization"]),
            ("currentAverageValue", ["current", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", ["name", ""]),
            ("container", ["container", ""]),
            ("currentAverageUtilization", ["current", "averageUtilization"]),
            ("currentAverageValue", ["current", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", ["metric", "name"]),
            ("selector", ["metric", "selector"]),
            ("currentAverageValue", ["current", "averageValue"]),
        ],
    ),
    (
        "object",
        &[
            ("target", ["describedObject", ""]),
            ("metricName", ["metric", "name"]),
            ("selector", ["metric", "selector"]),
            ("currentValue", ["current", "value"]),
            ("averageValue", ["current", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", ["metric", "name"]),
            ("metricSelector", ["metric", "selector"]),
            ("currentValue", ["current", "value"]),
            ("currentAverageValue", ["current", "averageValue"]),
        ],
    ),
];

/// The source that a metric has, with its names.
fn source(
    names: Names,
    metric: &Value,
) -> Option<(&'static str, &'static [(&'static str, [&'static str; 2])])> {
    names.iter().find(|(source, _)| metric[*source].is_object()).copied()
}

fn older(names: Names, metric: &Value) -> Value {
    let Some((source, fields)) = source(names, metric) else { return metric.clone() };
    let mut out = Map::new();
    for (name, [outer, inner]) in fields {
        let value = if inner.is_empty() { &metric[source][*outer] } else { &metric[source][*outer][*inner] };
        if !value.is_null() {
            out.insert((*name).to_owned(), value.clone());
        }
    }
    json!({"type": metric["type"], source: out})
}

fn newer(names: Names, metric: &Value) -> Value {
    let Some((source, fields)) = source(names, metric) else { return metric.clone() };
    let mut out = json!({});
    for (name, [outer, inner]) in fields {
        let value = &metric[source][*name];
        if value.is_null() {
            continue;
        }
        let place = if inner.is_empty() { &mut out[*outer] } else { &mut out[*outer][*inner] };
        *place = value.clone();
    }
    if let Some(target) = out.get_mut("target").filter(|_| std::ptr::eq(names, TARGETS)) {
        let kinds = [("averageUtilization", "Utilization"), ("averageValue", "AverageValue")];
        let kind = kinds.into_iter().find(|(field, _)| !target[*field].is_null());
        target["type"] = kind.map_or("Value", |(_, kind)| kind).into();
    }
    json!({"type": metric["type"], source: out})
}

/// The utilization that a metric is about when it is that of processors, which v1 has a field for.
fn processors<'a>(metric: &'a Value, part: &str) -> Option<&'a Value> {
    let resource = &metric["resource"];
    let utilization = &resource[part]["averageUtilization"];
    (metric["type"] == "Resource" && resource["name"] == "cpu" && !utilization.is_null())
        .then_some(utilization)
}

/// An annotation's value, taken away; what is no JSON counts as absent.
fn take(o: &mut Object, annotation: &str) -> Option<Value> {
    let path = ["metadata", "annotations", annotation];
    let value = serde_json::from_str(o.get(&path)?.as_str()?).ok();
    o.remove(&path);
    if o.get(&path[..2]).and_then(Value::as_object).is_some_and(Map::is_empty) {
        o.remove(&path[..2]);
    }
    value
}

fn note(o: &mut Object, annotation: &str, value: &Value) {
    o.set(&["metadata", "annotations", annotation], value.to_string());
}

/// Takes a field away and gives its value.
fn taken(o: &mut Object, path: &[&str]) -> Option<Value> {
    let value = o.get(path).cloned();
    o.remove(path);
    value
}

fn list(value: Option<Value>) -> Vec<Value> {
    value.and_then(|value| value.as_array().cloned()).unwrap_or_default()
}

fn to_v2(o: &mut Object) {
    let cpu = |part: &str, value: Value| {
        let mut metric =
            json!({"type": "Resource", "resource": {"name": "cpu", part: {"averageUtilization": value}}});
        if part == "target" {
            metric["resource"][part]["type"] = "Utilization".into();
        }
        metric
    };
    let mut metrics: Vec<Value> =
        taken(o, &CPU_TARGET).map(|value| cpu("target", value)).into_iter().collect();
    metrics.extend(list(take(o, METRICS)).iter().map(|metric| newer(TARGETS, metric)));
    if !metrics.is_empty() {
        o.set(&["spec", "metrics"], metrics);
    }
    if let Some(behavior) = take(o, BEHAVIOR) {
        o.set(&["spec", "behavior"], behavior);
    }
    let now = taken(o, &CPU_NOW).map(|value| vec![cpu("current", value)]);
    let noted =
        take(o, CURRENT_METRICS).map(|value| list(Some(value)).iter().map(|m| newer(CURRENT, m)).collect());
    if let Some(current) = noted.or(now) {
        o.set(&["status", "currentMetrics"], current);
    }
    if let Some(conditions) = take(o, CONDITIONS) {
        o.set(&["status", "conditions"], conditions);
    }
    o.set(&["apiVersion"], "autoscaling/v2");
}

fn to_v1(o: &mut Object) {
    let (mut target, mut others) = (None, Vec::new());
    for metric in list(taken(o, &["spec", "metrics"])) {
        match processors(&metric, "target") {
            Some(value) if target.is_none() => target = Some(value.clone()),
            _ => others.push(older(TARGETS, &metric)),
        }
    }
    if let Some(value) = target {
        o.set(&CPU_TARGET, value);
    }
    if !others.is_empty() {
        note(o, METRICS, &others.into());
    }
    if let Some(behavior) = taken(o, &["spec", "behavior"]) {
        note(o, BEHAVIOR, &behavior);
    }
    let current = list(taken(o, &["status", "currentMetrics"]));
    if let Some(now) = current.iter().find_map(|metric| processors(metric, "current")) {
        o.set(&CPU_NOW, now.clone());
    }
    if !current.is_empty() {
        note(o, CURRENT_METRICS, &current.iter().map(|metric| older(CURRENT, metric)).collect());
    }
    let conditions = list(taken(o, &["status", "conditions"]));
    if !conditions.is_empty() {
        note(o, CONDITIONS, &conditions.into());
    }
    o.set(&["apiVersion"], "autoscaling/v1");
}

/// The same object as it is stored.
fn stored(o: &Object) -> Object {
    let mut o = o.clone();
    to_v2(&mut o);
    o
}

/// Columns of v2 for objects of v1.
pub(super) fn columns(of_v2: Vec<Column>) -> Vec<Column> {
    let converted = |column: Column| {
        let value = column.value.clone();
        Column { value: std::sync::Arc::new(move |o, now| value(&stored(o), now)), ..column }
    };
    of_v2.into_iter().map(converted).collect()
}

pub(super) struct V1;

impl Strategy for V1 {
    fn default(&self, o: &mut Object) {
        o.set_default(&["spec", "minReplicas"], 1);
        let metrics = cells::list(&stored(o), &["spec", "metrics"]).len();
        if metrics == 0 && o.get(&["spec"]).is_some() {
            o.set_default(&CPU_TARGET, USUAL_TARGET);
        }
    }

    fn validate(&self, o: &Object) -> Vec<FieldError> {
        HPA.validate(&stored(o))
    }

    fn to_stored(&self, o: &mut Object) {
        to_v2(o);
    }

    fn from_stored(&self, o: &mut Object) {
        to_v1(o);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn objects_go_to_v1_and_back_unchanged() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {"mine": "1"}},
            "spec": {
                "maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "m"},
                        "target": {"type": "Value", "value": "7"}}},
                    {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "9"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 60}}},
                ]},
            "status": {
                "desiredReplicas": 2, "currentReplicas": 2,
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 44, "averageValue": "1"}}},
                ]},
        });
        let mut object = Object::from_value(stored.clone()).unwrap();
        to_v1(&mut object);
        expect![[r#"
            {"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"annotations":{"autoscaling.alpha.kubernetes.io/behavior":"{\"scaleDown\":{\"stabilizationWindowSeconds\":5}}","autoscaling.alpha.kubernetes.io/conditions":"[{\"status\":\"True\",\"type\":\"AbleToScale\"}]","autoscaling.alpha.kubernetes.io/current-metrics":"[{\"resource\":{\"currentAverageUtilization\":44,\"currentAverageValue\":\"1\",\"name\":\"cpu\"},\"type\":\"Resource\"}]","autoscaling.alpha.kubernetes.io/metrics":"[{\"resource\":{\"name\":\"memory\",\"targetAverageValue\":\"1Gi\"},\"type\":\"Resource\"},{\"pods\":{\"metricName\":\"m\",\"selector\":{\"matchLabels\":{\"a\":\"b\"}},\"targetAverageValue\":\"5\"},\"type\":\"Pods\"},{\"object\":{\"metricName\":\"m\",\"target\":{\"kind\":\"Service\",\"name\":\"s\"},\"targetValue\":\"7\"},\"type\":\"Object\"},{\"external\":{\"metricName\":\"q\",\"targetAverageValue\":\"9\"},\"type\":\"External\"},{\"containerResource\":{\"container\":\"c\",\"name\":\"cpu\",\"targetAverageUtilization\":60},\"type\":\"ContainerResource\"}]","mine":"1"},"name":"a"},"spec":{"maxReplicas":3,"minReplicas":1,"scaleTargetRef":{"kind":"Deployment","name":"d"},"targetCPUUtilizationPercentage":50},"status":{"currentCPUUtilizationPercentage":44,"currentReplicas":2,"desiredReplicas":2}}
        "#]]
        .assert_eq(&format!("{}\n", object.clone().into_value()));
        to_v2(&mut object);
        assert_eq!(object.into_value(), stored);
    }

    #[test]
    fn an_empty_target_means_the_usual_one() {
        let mut object =
            Object::from_value(json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3}})).unwrap();
        V1.default(&mut object);
        assert_eq!(object.i64(&CPU_TARGET), Some(80));
        let mut noted = Object::from_value(json!({"metadata": {"name": "a", "annotations": {
            METRICS: json!([{"type": "Resource", "resource": {"name": "memory", "targetAverageUtilization": 3}}]).to_string()}},
            "spec": {"maxReplicas": 3}}))
        .unwrap();
        V1.default(&mut noted);
        assert_eq!(noted.get(&CPU_TARGET), None);
        assert!(V1.validate(&noted).iter().all(|error| !error.field.starts_with("spec.metrics")));
    }
}
