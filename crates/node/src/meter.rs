//! What the node counts about itself, under Kubernetes' names: the kubelet's pages `/metrics` and `/metrics/probes`.

use std::sync::Arc;
use std::time::Duration;

use api::metrics::{Counter, Family, Gauge, Histogram, Metrics, Registry};
use k8s_openapi::api::core::v1 as core;

use crate::observed::{ContainerKind, find_container, init_containers, spec};
use crate::ports::ContainerState;
use crate::prober::ProbeKind;
use crate::server::pages::PodView;

/// Seconds from a pod's beginning until it runs.
const START_BOUNDS: &[f64] =
    &[0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 300.0];
/// Seconds of a worker's look at its pod.
const WORKER_BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds of a pull.
const PULL_BOUNDS: &[f64] =
    &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0];
/// Classes of image sizes: below so many bytes.
const SIZES: [(u64, &str); 8] = [
    (10 << 20, "0-10MB"),
    (100 << 20, "10MB-100MB"),
    (500 << 20, "100MB-500MB"),
    (1 << 30, "500MB-1GB"),
    (5 << 30, "1GB-5GB"),
    (10 << 30, "5GB-10GB"),
    (100 << 30, "10GB-100GB"),
    (u64::MAX, "GT100GB"),
];

/// The counters of one node.
pub(crate) struct NodeMeter {
    page: Metrics,
    running_pods: Arc<Gauge>,
    running_containers: Family<Gauge>,
    started_pods: Arc<Counter>,
    pod_errors: Arc<Counter>,
    started_containers: Family<Counter>,
    container_errors: Family<Counter>,
    pod_start: Arc<Histogram>,
    pod_start_without_pulls: Arc<Histogram>,
    worker: Family<Histogram>,
    pull: Family<Histogram>,
    evictions: Family<Counter>,
    pub(crate) probes: ProbeMeter,
}

impl NodeMeter {
    pub(crate) fn new(page: &Metrics, node: &str) -> Self {
        let counter = |name, help| page.counter(name, help, &[]).with(&[]);
        let start = |name, help| page.histogram(name, help, &[], START_BOUNDS).with(&[]);
        page.gauge("kubelet_node_name", "The node's name, in a label; always 1.", &["node"])
            .with(&[node])
            .set(1.0);
        Self {
            running_pods: page
                .gauge("kubelet_running_pods", "Pods that have a running container.", &[])
                .with(&[]),
            running_containers: page.gauge(
                "kubelet_running_containers",
                "Containers, by their state.",
                &["container_state"],
            ),
            started_pods: counter("kubelet_started_pods_total", "Sandboxes that were made."),
            pod_errors: counter("kubelet_started_pods_errors_total", "Sandboxes that could not be made."),
            started_containers: page.counter(
                "kubelet_started_containers_total",
                "Containers that were started.",
                &["container_type"],
            ),
            container_errors: page.counter(
                "kubelet_started_containers_errors_total",
                "Containers that could not be started, by the reason.",
                &["container_type", "code"],
            ),
            pod_start: start(
                "kubelet_pod_start_duration_seconds",
                "Seconds from the node's first sight of a pod until it runs.",
            ),
            pod_start_without_pulls: start(
                "kubelet_pod_start_sli_duration_seconds",
                "Seconds from a pod's creation until it runs, without the time that its images took.",
            ),
            worker: page.histogram(
                "kubelet_pod_worker_duration_seconds",
                "Seconds of a look at a pod and what had to be done for it.",
                &["operation_type"],
                WORKER_BOUNDS,
            ),
            pull: page.histogram(
                "kubelet_image_pull_duration_seconds",
                "Seconds that a pull takes, by the image's size.",
                &["image_size_in_bytes"],
                PULL_BOUNDS,
            ),
            evictions: page.counter(
                "kubelet_evictions",
                "Pods that had to go because the node ran short, by what ran short.",
                &["eviction_signal"],
            ),
            probes: ProbeMeter::default(),
            page: Arc::clone(page),
        }
    }

    /// The page `/metrics`.
    pub(crate) fn page(&self, views: &[PodView]) -> String {
        let containers = || views.iter().flat_map(|view| &view.containers);
        let running = |view: &&PodView| view.containers.iter().any(|c| c.state == ContainerState::Running);
        self.running_pods.set(views.iter().filter(running).count() as f64);
        for (name, state) in [
            ("created", ContainerState::Created),
            ("exited", ContainerState::Exited),
            ("running", ContainerState::Running),
        ] {
            let count = containers().filter(|c| c.state == state).count();
            self.running_containers.with(&[name]).set(count as f64);
        }
        self.page.text()
    }

    pub(crate) fn sandbox(&self, made: bool) {
        if made { self.started_pods.inc() } else { self.pod_errors.inc() }
    }

    pub(crate) fn started(&self, pod: &core::Pod, container: &str) {
        self.started_containers.with(&[kind(pod, container)]).inc();
    }

    pub(crate) fn not_started(&self, pod: &core::Pod, container: &str, reason: &str) {
        self.container_errors.with(&[kind(pod, container), reason]).inc();
    }

    /// A pod runs, so long after the node saw it and after it was created; its images took so long.
    pub(crate) fn runs(&self, seen: Duration, created: Duration, pulls: Duration) {
        self.pod_start.observe(seen);
        self.pod_start_without_pulls.observe(created.saturating_sub(pulls));
    }

    pub(crate) fn worked(&self, operation: &str, took: Duration) {
        self.worker.with(&[operation]).observe(took);
    }

    pub(crate) fn pulled(&self, bytes: u64, took: Duration) {
        let class = SIZES.iter().find(|(below, _)| bytes < *below).map_or("GT100GB", |(_, name)| name);
        self.pull.with(&[class]).observe(took);
    }

    pub(crate) fn evicted(&self, signal: &str) {
        self.evictions.with(&[signal]).inc();
    }
}

fn kind(pod: &core::Pod, container: &str) -> &'static str {
    match find_container(pod, container) {
        Some((ContainerKind::Init | ContainerKind::Sidecar, _)) => "init_container",
        Some((ContainerKind::Ephemeral, _)) => "ephemeral_container",
        Some((ContainerKind::Main, _)) | None => "container",
    }
}

/// Results of probes. They have a page of their own, because there are as many series as probes.
#[derive(Clone)]
pub(crate) struct ProbeMeter {
    page: Arc<Registry>,
    results: Family<Counter>,
}

impl Default for ProbeMeter {
    fn default() -> Self {
        let page = Arc::new(Registry::default());
        let labels = &["probe_type", "result", "container", "pod", "namespace", "pod_uid"];
        let results = page.counter("prober_probe_total", "Probes of containers, by their result.", labels);
        Self { page, results }
    }
}

const RESULTS: [(bool, &str); 2] = [(true, "successful"), (false, "failed")];

impl ProbeMeter {
    /// The page `/metrics/probes`.
    pub(crate) fn page(&self) -> String {
        self.page.text()
    }

    /// The counters of one container's probe: of successes and of failures.
    pub(crate) fn of(&self, pod: &core::Pod, container: &str, probe: ProbeKind) -> [Arc<Counter>; 2] {
        RESULTS.map(|(_, result)| self.results.with(&labels(pod, container, probe, result)))
    }

    /// Forgets the probes of a pod that is gone.
    pub(crate) fn forget(&self, pod: &core::Pod) {
        for container in spec(pod).containers.iter().chain(init_containers(pod)) {
            for probe in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                for (_, result) in RESULTS {
                    self.results.remove(&labels(pod, &container.name, probe, result));
                }
            }
        }
    }
}

fn labels<'a>(pod: &'a core::Pod, container: &'a str, probe: ProbeKind, result: &'a str) -> [&'a str; 6] {
    let probe = match probe {
        ProbeKind::Startup => "Startup",
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
    };
    let meta = &pod.metadata;
    let text = |value: &'a Option<String>| value.as_deref().unwrap_or_default();
    [probe, result, container, text(&meta.name), text(&meta.namespace), text(&meta.uid)]
}
