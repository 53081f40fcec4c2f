//! What the scheduler counts, under Kubernetes' names.

use std::sync::Arc;
use std::time::Duration;

use api::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};

use crate::queue::Queue;

/// Seconds from a pod's arrival to its place.
const ARRIVAL_BOUNDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
    655.36, 1310.72, 2621.44, 5242.88,
];
/// More attempts than that are told as so many.
const MOST_ATTEMPTS: u32 = 16;
const PROFILE: &str = "default-scheduler";

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    fn as_str(self) -> &'static str {
        match self {
            Attempt::Scheduled => "scheduled",
            Attempt::Unschedulable => "unschedulable",
            Attempt::Error => "error",
        }
    }
}

pub(crate) struct Meter {
    attempts: Family<Counter>,
    attempt_seconds: Family<Histogram>,
    algorithm_seconds: Arc<Histogram>,
    arrival_seconds: Family<Histogram>,
    attempts_of_a_pod: Arc<Histogram>,
    active: Arc<Gauge>,
    backing_off: Arc<Gauge>,
    unschedulable: Arc<Gauge>,
    preemptions: Arc<Counter>,
    victims: Arc<Histogram>,
}

impl Meter {
    pub(crate) fn new(metrics: &Registry) -> Self {
        let pending =
            metrics.gauge("scheduler_pending_pods", "Pods without a node, by where they wait.", &["queue"]);
        Self {
            attempts: metrics.counter(
                "scheduler_schedule_attempts_total",
                "Attempts to find a node for a pod, by their result.",
                &["profile", "result"],
            ),
            attempt_seconds: metrics.histogram(
                "scheduler_scheduling_attempt_duration_seconds",
                "Seconds of an attempt: the search, and the binding if a node was found.",
                &["profile", "result"],
                SECONDS,
            ),
            algorithm_seconds: metrics
                .histogram(
                    "scheduler_scheduling_algorithm_duration_seconds",
                    "Seconds of the search for a node.",
                    &[],
                    SECONDS,
                )
                .with(&[]),
            arrival_seconds: metrics.histogram(
                "scheduler_pod_scheduling_sli_duration_seconds",
                "Seconds from a pod's arrival at the scheduler until it has a node.",
                &["attempts"],
                ARRIVAL_BOUNDS,
            ),
            attempts_of_a_pod: metrics
                .histogram(
                    "scheduler_pod_scheduling_attempts",
                    "Attempts until a pod has a node.",
                    &[],
                    &[1.0, 2.0, 4.0, 8.0, 16.0],
                )
                .with(&[]),
            active: pending.with(&["active"]),
            backing_off: pending.with(&["backoff"]),
            unschedulable: pending.with(&["unschedulable"]),
            preemptions: metrics
                .counter("scheduler_preemption_attempts_total", "Times that room was made for a pod.", &[])
                .with(&[]),
            victims: metrics
                .histogram(
                    "scheduler_preemption_victims",
                    "Pods that had to leave for another one.",
                    &[],
                    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
                )
                .with(&[]),
        }
    }

    /// A search for a node took so long.
    pub(crate) fn searched(&self, took: Duration) {
        self.algorithm_seconds.observe(took);
    }

    /// An attempt ended so.
    pub(crate) fn attempted(&self, result: Attempt, took: Duration) {
        let labels = [PROFILE, result.as_str()];
        self.attempts.with(&labels).inc();
        self.attempt_seconds.with(&labels).observe(took);
    }

    /// A pod has its node, so long after it arrived.
    pub(crate) fn placed(&self, attempts: u32, took: Duration) {
        self.attempts_of_a_pod.observe_number(attempts);
        self.arrival_seconds.with(&[&attempts.min(MOST_ATTEMPTS).to_string()]).observe(took);
    }

    pub(crate) fn made_room(&self, victims: usize) {
        self.preemptions.inc();
        self.victims.observe_number(u32::try_from(victims).unwrap_or(u32::MAX));
    }

    pub(crate) fn pending(&self, queue: &Queue) {
        self.active.set(queue.active() as f64);
        self.backing_off.set(queue.backing_off() as f64);
        self.unschedulable.set(queue.unschedulable() as f64);
    }
}
