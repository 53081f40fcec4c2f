//! HorizontalPodAutoscaler: as many pods as their usage asks for (Kubernetes, "Horizontal Pod Autoscaling").
//!
//! ```text
//!   scale of the target ─▶ pods and their usage ─▶ replicas (per metric, the most wins) ─▶ behavior ─▶ scale, status, events
//! ```
//!
//! A round takes place every fifteen seconds and when the spec changes. What was recommended and done in earlier rounds is
//! kept in memory; everything else is read live, so that no cache of usage is needed.

mod behavior;
mod replicas;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, Quantity, RequestOptions, Status, Verb};
use client::{Action, Cached, Controller, EventType, Plan, Read, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
};
use serde_json::{Value, json};

use self::behavior::{Bounds, History, decide};
use self::replicas::{Aim, Metric, Tolerance, wanted};
use self::status::Outcome;
use crate::discovery::ApiResource;
use crate::workload::event;

/// Time between two rounds (Kubernetes, `--horizontal-pod-autoscaler-sync-period`).
const PERIOD: Duration = Duration::from_secs(15);
/// What a ratio may be off (Kubernetes, `--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

type Autoscaler = Cached<HorizontalPodAutoscaler>;

/// What rounds remember of earlier ones.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<ObjectKey, Remembered>>);

#[derive(Clone, Debug, Default)]
struct Remembered {
    uid: String,
    history: History,
    /// The last round: when, and of which generation of the object.
    round: Option<(Timestamp, Option<i64>)>,
}

impl Memory {
    fn all(&self) -> MutexGuard<'_, HashMap<ObjectKey, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, hpa: &Autoscaler) -> Remembered {
        let known = self.all().get(&hpa.key).filter(|known| known.uid == hpa.uid).cloned();
        known.unwrap_or_else(|| Remembered { uid: hpa.uid.clone(), ..Remembered::default() })
    }
}

pub struct HorizontalController {
    /// Where the kind of a target is.
    pub resources: Arc<Vec<ApiResource>>,
    pub memory: Arc<Memory>,
}

impl Controller for HorizontalController {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<HorizontalPodAutoscaler>()]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(hpa) = view.get::<HorizontalPodAutoscaler>(key) else {
            self.memory.all().remove(key);
            return Plan::nothing();
        };
        let mut remembered = self.memory.of(&hpa);
        if let Some(rest) = remembered.rest(hpa.object.metadata.generation, now) {
            return Plan::Do { actions: Vec::new(), requeue_after: Some(rest) };
        }
        let actions = match self.round(&hpa, view, &mut remembered.history, now) {
            Err(reads) => return Plan::Need(reads),
            Ok(actions) => actions,
        };
        remembered.round = Some((now, hpa.object.metadata.generation));
        self.memory.all().insert(key.clone(), remembered);
        Plan::Do { actions, requeue_after: Some(PERIOD) }
    }
}

impl Remembered {
    /// Time until the next round; its own write of the status does not begin one.
    fn rest(&self, generation: Option<i64>, now: Timestamp) -> Option<Duration> {
        let (last, seen) = self.round?;
        let passed = now.duration_since(last).unsigned_abs();
        (seen == generation && passed < PERIOD).then(|| PERIOD - passed)
    }
}

/// The scale of a target, as far as it matters.
struct Scale {
    gvr: GroupVersionResource,
    key: ObjectKey,
    object: Value,
    current: i32,
    selector: String,
}

impl HorizontalController {
    /// What one round does, or what it has to read first.
    fn round(
        &self,
        hpa: &Autoscaler,
        view: &View,
        history: &mut History,
        now: Timestamp,
    ) -> Result<Vec<Action>, Vec<Read>> {
        let mut outcome = Outcome::of(hpa, now);
        let scale = match self.scale(hpa, view)? {
            Ok(scale) => scale,
            Err(why) => {
                let text = format!("the HPA controller was unable to get the target's current scale: {why}");
                outcome.set("AbleToScale", false, "FailedGetScale", &text);
                let told = event(hpa, EventType::Warning, "FailedGetScale", why);
                return Ok([vec![told], outcome.write(hpa)].concat());
            }
        };
        let got = "the HPA controller was able to get the target's current scale";
        outcome.set("AbleToScale", true, "SucceededGetScale", got);
        outcome.current = scale.current;
        let (replicas, why) = match self.desired(hpa, &scale, view, history, &mut outcome, now)? {
            Ok(decision) => decision,
            Err((reason, text)) => {
                outcome.desired = scale.current;
                let told = event(hpa, EventType::Warning, reason, text);
                return Ok([vec![told], outcome.write(hpa)].concat());
            }
        };
        outcome.desired = replicas;
        if replicas == scale.current {
            return Ok(outcome.write(hpa));
        }
        history.note_change(replicas - scale.current, now);
        let text = format!("the HPA controller was able to update the target scale to {replicas}");
        outcome.set("AbleToScale", true, "SucceededRescale", &text);
        outcome.scaled = true;
        let message = format!("New size: {replicas}; reason: {why}");
        let told = event(hpa, EventType::Normal, "SuccessfulRescale", message);
        Ok([vec![scale.change(replicas), told], outcome.write(hpa)].concat())
    }

    fn scale(&self, hpa: &Autoscaler, view: &View) -> Result<Result<Scale, String>, Vec<Read>> {
        let target = &hpa.object.spec.scale_target_ref;
        let api_version = target.api_version.as_deref().unwrap_or("v1");
        let Some(found) = self.resources.iter().find(|resource| resource.is(api_version, &target.kind))
        else {
            return Ok(Err(format!("no matches for kind {:?} in version {api_version:?}", target.kind)));
        };
        let (gvr, key) = (found.gvr.clone(), ObjectKey::new(&*hpa.key.namespace, &*target.name));
        let read = Read::Subresource { gvr: gvr.clone(), key: key.clone(), subresource: "scale".into() };
        match view.read(&read) {
            None => Err(vec![read]),
            Some(Err(status)) => Ok(Err(status.message.clone())),
            Some(Ok(object)) => {
                let number = object["spec"]["replicas"].as_i64().and_then(|n| i32::try_from(n).ok());
                let selector = object["status"]["selector"].as_str().unwrap_or_default().to_owned();
                Ok(Ok(Scale { gvr, key, object: object.clone(), current: number.unwrap_or(0), selector }))
            }
        }
    }

    /// The number of pods that there should be and why, or reason and text of the event that says why nobody knows.
    #[expect(clippy::type_complexity, reason = "reads, then a decision or a refusal")]
    fn desired(
        &self,
        hpa: &Autoscaler,
        scale: &Scale,
        view: &View,
        history: &mut History,
        outcome: &mut Outcome,
        now: Timestamp,
    ) -> Result<Result<(i32, String), (&'static str, String)>, Vec<Read>> {
        let spec = &hpa.object.spec;
        let bounds = Bounds { min: spec.min_replicas.unwrap_or(1), max: spec.max_replicas };
        if scale.current == 0 && bounds.min != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            outcome.set("ScalingActive", false, "ScalingDisabled", text);
            return Ok(Ok((0, String::new())));
        }
        if scale.current > bounds.max {
            return Ok(Ok((bounds.max, "Current number of replicas above Spec.MaxReplicas".to_owned())));
        }
        if scale.current < bounds.min {
            return Ok(Ok((bounds.min, "Current number of replicas below Spec.MinReplicas".to_owned())));
        }
        let (pods, usage) = match measured(scale, view)? {
            Ok(measured) => measured,
            Err(why) => return Ok(Err(outcome.failed("FailedGetResourceMetric", &why))),
        };
        let (recommended, name) = match recommended(spec, scale, &pods, &usage, outcome, now) {
            Ok(recommended) => recommended,
            Err((reason, why)) => return Ok(Err(outcome.failed(reason, &why))),
        };
        let text = format!("the HPA was able to successfully calculate a replica count from {name}");
        outcome.set("ScalingActive", true, "ValidMetricFound", &text);
        let why = match recommended.cmp(&scale.current) {
            std::cmp::Ordering::Greater => format!("{name} above target"),
            _ => "All metrics below target".to_owned(),
        };
        let decision = decide(spec.behavior.as_ref(), bounds, scale.current, recommended, history, now);
        for (type_, value, reason, message) in [decision.able, decision.limited] {
            outcome.set(type_, value, reason, message);
        }
        Ok(Ok((decision.replicas, why)))
    }
}

impl Scale {
    fn change(&self, replicas: i32) -> Action {
        let mut body = self.object.clone();
        body["spec"]["replicas"] = replicas.into();
        let (gvr, key) = (self.gvr.clone(), self.key.clone());
        Action::Call { verb: Verb::Update, gvr, key, subresource: "scale".into(), body }
    }
}

/// The target's pods, and what they use.
#[expect(clippy::type_complexity, reason = "reads, then two lists or a refusal")]
fn measured(scale: &Scale, view: &View) -> Result<Result<(Vec<Value>, Vec<Value>), String>, Vec<Read>> {
    if scale.selector.is_empty() {
        return Ok(Err("selector is required".to_owned()));
    }
    let list = |group: &str, version: &str| Read::List {
        gvr: GroupVersionResource::new(group, version, "pods"),
        namespace: Some(scale.key.namespace.clone()),
        options: RequestOptions { label_selector: Some(scale.selector.clone()), ..RequestOptions::default() },
    };
    let reads = [list("", "v1"), list("metrics.k8s.io", "v1beta1")];
    let missing: Vec<Read> = reads.iter().filter(|read| view.read(read).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let items = |read: &Read| match view.read(read) {
        Some(Ok(list)) => Ok(list["items"].as_array().cloned().unwrap_or_default()),
        Some(Err(Status { message, .. })) => {
            Err(format!("unable to fetch metrics from resource metrics API: {message}"))
        }
        None => Ok(Vec::new()),
    };
    Ok(items(&reads[0]).and_then(|pods| Ok((pods, items(&reads[1])?))))
}

/// The most that any metric asks for, and its name. A metric that is not known keeps the others from taking pods away.
fn recommended(
    spec: &HorizontalPodAutoscalerSpec,
    scale: &Scale,
    pods: &[Value],
    usage: &[Value],
    outcome: &mut Outcome,
    now: Timestamp,
) -> Result<(i32, String), (&'static str, String)> {
    let metrics = spec.metrics.as_deref().unwrap_or_default();
    let (mut best, mut failures) = (None::<(i32, String)>, Vec::new());
    for metric in metrics {
        let found = read_metric(metric).and_then(|(name, metric_of_pods)| {
            let found = wanted(scale.current, metric_of_pods, tolerance(spec), pods, usage, now);
            let failed = |why| (reason(metric), format!("failed to get {}: {why}", shown(metric_of_pods)));
            Ok((name, metric_of_pods, found.map_err(failed)?))
        });
        match found {
            Err(failure) => failures.push(failure),
            Ok((name, of_pods, found)) => {
                outcome.metrics.push(current_metric(metric, of_pods, &found));
                if best.as_ref().is_none_or(|(most, _)| found.replicas > *most) {
                    best = Some((found.replicas, name));
                }
            }
        }
    }
    match (best, failures.first()) {
        (Some(best), None) => Ok(best),
        (Some(best), Some(_)) if best.0 >= scale.current => Ok(best),
        (_, Some((reason, why))) => Err((
            reason,
            format!(
                "invalid metrics ({} invalid out of {}), first error is: {why}",
                failures.len(),
                metrics.len()
            ),
        )),
        (None, None) => Err(("FailedGetResourceMetric", "there are no metrics".to_owned())),
    }
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let rules = spec.behavior.as_ref();
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let text = rules.and_then(|rules| rules.tolerance.as_ref());
        text.and_then(|text| Quantity::parse(&text.0).ok()).map_or(TOLERANCE, |quantity| quantity.as_f64())
    };
    Tolerance {
        up: of(rules.and_then(|behavior| behavior.scale_up.as_ref())),
        down: of(rules.and_then(|behavior| behavior.scale_down.as_ref())),
    }
}

/// The reason of the condition when a metric cannot be had.
fn reason(metric: &MetricSpec) -> &'static str {
    match metric.type_.as_str() {
        "Resource" => "FailedGetResourceMetric",
        "ContainerResource" => "FailedGetContainerResourceMetric",
        "Pods" => "FailedGetPodsMetric",
        "Object" => "FailedGetObjectMetric",
        "External" => "FailedGetExternalMetric",
        _ => "InvalidMetricSourceType",
    }
}

/// A metric of resources and its name in messages.
fn read_metric(metric: &MetricSpec) -> Result<(String, Metric<'_>), (&'static str, String)> {
    let (resource, container, target) = match (&metric.resource, &metric.container_resource) {
        (Some(source), _) => (source.name.as_str(), None, &source.target),
        (None, Some(source)) => (source.name.as_str(), Some(source.container.as_str()), &source.target),
        (None, None) => {
            let text = format!("metrics of type {} are not served in this cluster", metric.type_);
            return Err((reason(metric), text));
        }
    };
    let aim = aim(target).ok_or_else(|| {
        (reason(metric), "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned())
    })?;
    let of = container.map(|_| "container ").unwrap_or_default();
    let name = match aim {
        Aim::Utilization(_) => format!("{resource} {of}resource utilization (percentage of request)"),
        Aim::Average(_) => format!("{resource} {of}resource"),
    };
    Ok((name, Metric { resource, container, aim }))
}

fn aim(target: &MetricTarget) -> Option<Aim> {
    match (target.average_utilization, &target.average_value) {
        (Some(percent), _) => Some(Aim::Utilization(percent)),
        (None, Some(value)) => Quantity::parse(&value.0).ok().map(|value| Aim::Average(value.milli())),
        (None, None) => None,
    }
}

fn shown(metric: Metric<'_>) -> String {
    let what = match metric.aim {
        Aim::Utilization(_) => "utilization",
        Aim::Average(_) => "usage",
    };
    format!("{} {what}", metric.resource)
}

/// What was measured, for the status.
fn current_metric(metric: &MetricSpec, of: Metric<'_>, found: &replicas::Wanted) -> Value {
    let mut current = json!({"averageValue": Quantity::from_milli(found.average).to_string()});
    if let Some(percent) = found.utilization {
        current["averageUtilization"] = percent.into();
    }
    match of.container {
        None => json!({"type": metric.type_, "resource": {"name": of.resource, "current": current}}),
        Some(container) => json!({"type": metric.type_,
            "containerResource": {"name": of.resource, "container": container, "current": current}}),
    }
}

#[cfg(test)]
mod tests;
