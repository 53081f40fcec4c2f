//! `autoscaling/v2`: HorizontalPodAutoscaler, and its view in `autoscaling/v1`.

mod v1;

use api::Object;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{At, Errors};
use super::row::{Hooks, Row, col};
use crate::printing::cells;
use crate::resource::Column;

const HPA: Hooks = Hooks { default, validate, ..Hooks::NONE };

fn default(o: &mut Object) {
    o.set_default(&["spec", "minReplicas"], 1);
    o.set_default(
        &["spec", "metrics"],
        json!([{"type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
    );
    for direction in ["scaleUp", "scaleDown"] {
        if o.get(&["spec", "behavior", direction]).is_some_and(Value::is_object) {
            let policies = match direction {
                "scaleUp" => json!([{"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15}]),
                _ => json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
            };
            o.set_default(&["spec", "behavior", direction, "policies"], policies);
            o.set_default(&["spec", "behavior", direction, "selectPolicy"], "Max");
            if direction == "scaleUp" {
                o.set_default(&["spec", "behavior", direction, "stabilizationWindowSeconds"], 0);
            }
        }
    }
}

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let (min, max) = (spec.field("minReplicas"), spec.field("maxReplicas"));
    if min.i64().is_some_and(|n| n < 1) {
        min.invalid(e, "must be greater than or equal to 1");
    }
    let highest = max.i64().unwrap_or(0);
    if highest < 1 {
        e.push(api::FieldError::invalid(&max.path, highest, "must be greater than 0"));
    } else if min.i64().is_some_and(|n| n > highest) {
        max.invalid(e, "must be greater than or equal to `minReplicas`");
    }
    spec.field("scaleTargetRef").field("kind").required(e);
    spec.field("scaleTargetRef").field("name").required(e);
    for metric in spec.field("metrics").items() {
        metric
            .field("type")
            .required_one_of(e, &["ContainerResource", "External", "Object", "Pods", "Resource"]);
        let source = match metric.field("type").str() {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "External" => "external",
            "Object" => "object",
            "Pods" => "pods",
            _ => continue,
        };
        metric.field(source).required_because(e, "must populate information for the given metric source");
    }
}

fn metric_text(spec: &Value, current: Option<&Value>) -> String {
    let kind = match cells::sub(spec, "type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        _ => "pods",
    };
    let target = &spec[kind]["target"];
    let now = current.map(|c| &c[kind]["current"]);
    let value = |name: &str| now.map(|n| cells::plain(&n[name])).filter(|t| !t.is_empty());
    let unknown = || "<unknown>".to_owned();
    let name = cells::sub(&spec[kind], "name");
    let prefix =
        if matches!(kind, "resource" | "containerResource") { format!("{name}: ") } else { String::new() };
    if let Some(wanted) = target["averageUtilization"].as_i64() {
        let now = value("averageUtilization").map_or_else(unknown, |n| format!("{n}%"));
        return format!("{prefix}{now}/{wanted}%");
    }
    if let Some(wanted) = target["averageValue"].as_str() {
        let suffix = if matches!(kind, "external" | "object") { " (avg)" } else { "" };
        return format!("{prefix}{}/{wanted}{suffix}", value("averageValue").unwrap_or_else(unknown));
    }
    format!("{prefix}{}/{}", value("value").unwrap_or_else(unknown), cells::plain(&target["value"]))
}

fn targets(o: &Object, _: Timestamp) -> Value {
    let (specs, current) =
        (cells::list(o, &["spec", "metrics"]), cells::list(o, &["status", "currentMetrics"]));
    if specs.is_empty() {
        return "<none>".into();
    }
    let texts: Vec<String> =
        specs.iter().take(2).enumerate().map(|(i, s)| metric_text(s, current.get(i))).collect();
    let shown = texts.join(", ");
    if specs.len() > 2 { format!("{shown} + {} more...", specs.len() - 2).into() } else { shown.into() }
}

fn columns() -> Vec<Column> {
    vec![
        col("Reference", "string", "The object that is scaled.", |o, _| {
            let text = |name| o.str(&["spec", "scaleTargetRef", name]);
            format!("{}/{}", text("kind"), text("name")).into()
        }),
        col("Targets", "string", "Measured and wanted values.", targets),
        col("MinPods", "string", "Fewest pods.", |o, _| {
            o.i64(&["spec", "minReplicas"]).map_or("<unset>".into(), |n| n.to_string().into())
        }),
        col("MaxPods", "integer", "Most pods.", |o, _| cells::count(o, &["spec", "maxReplicas"]).into()),
        col("Replicas", "integer", "Present number of pods.", |o, _| {
            cells::count(o, &["status", "currentReplicas"]).into()
        }),
    ]
}

fn row() -> Row {
    Row::new("horizontalpodautoscalers", "HorizontalPodAutoscaler").short(&["hpa"]).in_all().status()
}

pub(super) fn rows() -> Vec<Row> {
    vec![row().strategy(HPA).columns(columns(), Vec::new())]
}

pub(super) fn older_rows() -> Vec<Row> {
    let view = row().stored_as("autoscaling", "v2", "horizontalpodautoscalers").strategy(v1::V1);
    vec![view.columns(v1::columns(columns()), Vec::new())]
}
