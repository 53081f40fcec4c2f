//! What a round writes into the status.

use client::Action;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::Autoscaler;
use crate::workload::{same, update_status, whole_seconds};

/// What came of a round.
pub(super) struct Outcome {
    now: Timestamp,
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    pub(super) current: i32,
    pub(super) desired: i32,
    /// What was measured; entries of `status.currentMetrics`.
    pub(super) metrics: Vec<Value>,
    pub(super) scaled: bool,
}

impl Outcome {
    /// Nothing yet: what the status says holds until something else is found.
    pub(super) fn of(hpa: &Autoscaler, now: Timestamp) -> Self {
        let status = hpa.object.status.clone().unwrap_or_default();
        Self {
            now,
            conditions: status.conditions.unwrap_or_default(),
            current: status.current_replicas.unwrap_or(0),
            desired: status.desired_replicas,
            metrics: Vec::new(),
            scaled: false,
        }
    }

    /// Sets a condition; its time changes with its status alone.
    pub(super) fn set(&mut self, type_: &str, status: bool, reason: &str, message: &str) {
        let status = if status { "True" } else { "False" };
        let found = self.conditions.iter().position(|condition| condition.type_ == type_);
        let since = found.map(|at| &self.conditions[at]).filter(|old| old.status == status);
        let since = since.and_then(|old| old.last_transition_time.clone());
        let condition = HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(since.unwrap_or_else(|| Time(whole_seconds(self.now)))),
            observed_generation: None,
        };
        match found {
            Some(at) => self.conditions[at] = condition,
            None => self.conditions.push(condition),
        }
    }

    /// Notes that nobody knows how many pods there should be; reason and text of the event.
    pub(super) fn failed(&mut self, reason: &'static str, why: &str) -> (&'static str, String) {
        let text = format!("the HPA was unable to compute the replica count: {why}");
        self.set("ScalingActive", false, reason, &text);
        ("FailedComputeMetricsReplicas", why.to_owned())
    }

    /// Writes the status where it says something else than before.
    pub(super) fn write(self, hpa: &Autoscaler) -> Vec<Action> {
        let old = hpa.object.status.clone().unwrap_or_default();
        let metrics: Vec<MetricStatus> =
            self.metrics.into_iter().filter_map(|metric| serde_json::from_value(metric).ok()).collect();
        let new = HorizontalPodAutoscalerStatus {
            conditions: Some(self.conditions),
            current_metrics: (!metrics.is_empty()).then_some(metrics),
            current_replicas: Some(self.current),
            desired_replicas: self.desired,
            last_scale_time: match self.scaled {
                true => Some(Time(whole_seconds(self.now))),
                false => old.last_scale_time.clone(),
            },
            observed_generation: hpa.object.metadata.generation,
        };
        if same(&new, &old) && hpa.object.status.is_some() {
            return Vec::new();
        }
        let mut object = hpa.object.clone();
        object.status = Some(new);
        vec![update_status(&hpa.key, &object)]
    }
}
