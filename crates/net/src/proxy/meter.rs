//! What the proxy counts, under the names of Kubernetes' proxy.

use std::sync::Arc;

use api::metrics::{Counter, Gauge, Histogram, SECONDS};
use client::{Client, Clock};
use tokio::time::Instant;

/// Seconds until a change is in effect.
const EFFECT_BOUNDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0,
    240.0, 300.0,
];

pub(super) struct Meter {
    clock: Arc<dyn Clock>,
    sync: Arc<Histogram>,
    effect: Arc<Histogram>,
    last: Arc<Gauge>,
    failures: Arc<Counter>,
    /// When the changes came that are not yet in effect.
    waiting: Vec<Instant>,
}

impl Meter {
    pub(super) fn new(client: &Client) -> Self {
        let metrics = client.metrics();
        Self {
            clock: Arc::clone(client.clock()),
            sync: metrics
                .histogram(
                    "kubeproxy_sync_proxy_rules_duration_seconds",
                    "Seconds that it takes to bring the packet rules into step.",
                    &[],
                    SECONDS,
                )
                .with(&[]),
            effect: metrics
                .histogram(
                    "kubeproxy_network_programming_duration_seconds",
                    "Seconds from the arrival of a change of endpoints at this node until it is in effect.",
                    &[],
                    EFFECT_BOUNDS,
                )
                .with(&[]),
            last: metrics
                .gauge(
                    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                    "When the packet rules were last in step, in seconds since 1970.",
                    &[],
                )
                .with(&[]),
            failures: metrics
                .counter(
                    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                    "Times that the kernel did not take the packet rules.",
                    &[],
                )
                .with(&[]),
            waiting: Vec::new(),
        }
    }

    /// A change of endpoints has come.
    pub(super) fn changed(&mut self) {
        self.waiting.push(Instant::now());
    }

    /// The kernel has taken what was there at `begun`, or has not.
    pub(super) fn synced<E>(&mut self, begun: Instant, result: &Result<(), E>) {
        self.sync.observe(begun.elapsed());
        if result.is_err() {
            return self.failures.inc();
        }
        self.waiting.drain(..).for_each(|came| self.effect.observe(came.elapsed()));
        self.last.set(self.clock.now().as_millisecond() as f64 / 1e3);
    }
}
