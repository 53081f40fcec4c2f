//! What clients and work queues count, under Kubernetes' names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::metrics::{Counter, Family, Gauge, Histogram, Metrics, Registry};
use api::{ApiResponse, Status, Verb};

use crate::clock::Clock;

/// Seconds that a request takes.
const REQUEST_BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Seconds that a key waits or is worked on.
const QUEUE_BOUNDS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0];

/// Requests of all clients that share a page.
#[derive(Clone)]
pub(crate) struct RequestMeter {
    requests: Family<Counter>,
    duration: Family<Histogram>,
}

impl RequestMeter {
    pub(crate) fn new(metrics: &Registry) -> Self {
        let requests = metrics.counter(
            "rest_client_requests_total",
            "Requests to the API server, by the code of the answer.",
            &["code", "method", "host"],
        );
        let duration = metrics.histogram(
            "rest_client_request_duration_seconds",
            "Seconds until the API server's answer begins.",
            &["verb", "host"],
            REQUEST_BOUNDS,
        );
        Self { requests, duration }
    }

    pub(crate) fn note(&self, verb: Verb, host: &str, took: Duration, answer: &Result<ApiResponse, Status>) {
        let method = match verb {
            Verb::Get | Verb::List | Verb::Watch => "GET",
            Verb::Create => "POST",
            Verb::Update => "PUT",
            Verb::Patch => "PATCH",
            Verb::Delete | Verb::DeleteCollection => "DELETE",
        };
        let code = match answer {
            Ok(response) => response.code,
            Err(status) => status.code,
        };
        self.requests.with(&[&code.to_string(), method, host]).inc();
        self.duration.with(&[method, host]).observe(took);
    }
}

/// What is under work.
struct UnderWork {
    clock: Arc<dyn Clock>,
    /// When the keys were begun, and how many at that time.
    begun: Mutex<BTreeMap<Duration, u32>>,
    unfinished: Arc<Gauge>,
    longest: Arc<Gauge>,
}

impl UnderWork {
    fn look(&self) {
        let now = self.clock.monotonic();
        let (mut sum, mut most) = (0.0, Duration::ZERO);
        for (start, count) in lock(&self.begun).iter() {
            let spent = now.saturating_sub(*start);
            sum += spent.as_secs_f64() * f64::from(*count);
            most = most.max(spent);
        }
        self.unfinished.set(sum);
        self.longest.set(most.as_secs_f64());
    }
}

/// One queue's numbers.
pub struct QueueMeter {
    adds: Arc<Counter>,
    retries: Arc<Counter>,
    depth: Arc<Gauge>,
    waited: Arc<Histogram>,
    worked: Arc<Histogram>,
    under_work: Arc<UnderWork>,
}

impl std::fmt::Debug for QueueMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueMeter").finish_non_exhaustive()
    }
}

impl QueueMeter {
    /// The numbers of the queue of that name.
    pub fn new(metrics: &Metrics, clock: Arc<dyn Clock>, name: &str) -> Self {
        let name = &[name];
        let gauge = |metric, help| metrics.gauge(metric, help, &["name"]).with(name);
        let under_work = Arc::new(UnderWork {
            clock,
            begun: Mutex::default(),
            unfinished: gauge(
                "workqueue_unfinished_work_seconds",
                "Seconds spent on all keys that are still under work; it grows without end when work hangs.",
            ),
            longest: gauge(
                "workqueue_longest_running_processor_seconds",
                "Seconds spent on the key that has been under work longest.",
            ),
        });
        metrics.on_scrape(&under_work, UnderWork::look);
        let depth = gauge("workqueue_depth", "Keys that wait to be worked on.");
        // an earlier queue of that name may have ended with keys in it
        depth.set(0.0);
        let counter = |metric, help| metrics.counter(metric, help, &["name"]).with(name);
        let histogram = |metric, help| metrics.histogram(metric, help, &["name"], QUEUE_BOUNDS).with(name);
        Self {
            adds: counter("workqueue_adds_total", "Keys that began to wait."),
            retries: counter("workqueue_retries_total", "Keys that wait again after a failure."),
            depth,
            waited: histogram(
                "workqueue_queue_duration_seconds",
                "Seconds that a key waits before work on it begins.",
            ),
            worked: histogram("workqueue_work_duration_seconds", "Seconds that work on a key takes."),
            under_work,
        }
    }

    /// A key begins to wait; returns when.
    pub(crate) fn added(&self) -> Duration {
        self.adds.inc();
        self.depth.add(1.0);
        self.under_work.clock.monotonic()
    }

    /// Work begins on a key that has waited since; returns when.
    pub(crate) fn begun(&self, since: Duration) -> Duration {
        let now = self.under_work.clock.monotonic();
        self.depth.add(-1.0);
        self.waited.observe(now.saturating_sub(since));
        *lock(&self.under_work.begun).entry(now).or_default() += 1;
        now
    }

    /// Work that began then has ended.
    pub(crate) fn ended(&self, start: Duration) {
        self.worked.observe(self.under_work.clock.monotonic().saturating_sub(start));
        let mut begun = lock(&self.under_work.begun);
        if let Some(count) = begun.get_mut(&start) {
            *count -= 1;
            if *count == 0 {
                begun.remove(&start);
            }
        }
    }

    pub(crate) fn failed(&self) {
        self.retries.inc();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
