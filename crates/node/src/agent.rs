//! The node agent: registers the node, watches its pods and gives each a worker.

use std::sync::Arc;
use std::time::Duration;

use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions};
use api::{ObjectKey, Status};
use client::{Client, Clock, EventRecorder, Informer, Scope};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};

use crate::admission::Book;
use crate::config::NodeConfig;
use crate::events::PodEvents;
use crate::image_gc;
use crate::logs::{self, format::Wanted, read::Follow};
use crate::meter::NodeMeter;
use crate::node_status::{self, machine};
use crate::observed::NodeFacts;
use crate::ports::{ContainerState, ContainerStatus, PodNetwork, Runtime, RuntimeError};
use crate::references::References;
use crate::server::pages::{self, PodView};
use crate::static_pods::runtime_uid;
use crate::usage::{Meter, Rates};
use crate::view::RuntimeView;
use crate::worker::Shared;

mod crew;

use crew::Crew;

/// How often the clock is looked at, and by how much it may be off between two looks: time servers correct little by little.
const CLOCK_EVERY: Duration = Duration::from_secs(10);
const LARGEST_DRIFT: SignedDuration = SignedDuration::from_secs(5);

/// A node.
pub struct NodeAgent {
    shared: Arc<Shared>,
    pods: Informer<core::Pod>,
    meter: Meter,
}

impl NodeAgent {
    /// Must be called within a tokio runtime: caches start at once.
    pub fn new(
        config: NodeConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Arc<NodeAgent> {
        // What is not there cannot be measured.
        if let Err(error) = std::fs::create_dir_all(&config.root_dir) {
            tracing::warn!(folder = %config.root_dir.display(), %error, "cannot make the folder of pods");
        }
        let found = machine(&config);
        let facts = NodeFacts {
            node_name: config.node_name.clone(),
            node_ips: config.node_ips.clone(),
            cpu_milli: i64::try_from(found.cpus).unwrap_or(1) * 1000,
            memory_bytes: i64::try_from(found.memory_bytes).unwrap_or(0),
        };
        let scope =
            Scope { field_selector: Some(format!("spec.nodeName={}", config.node_name)), ..Scope::default() };
        let pods = Informer::start(&client, scope);
        let own = format!("metadata.name={}", config.node_name);
        let own = Scope { field_selector: Some(own), ..Scope::default() };
        let recorder = EventRecorder::new(client.clone(), "kubelet", &config.node_name);
        let shared = Arc::new(Shared {
            facts,
            clock: client.clock().clone(),
            view: RuntimeView::start(runtime.clone()),
            references: References::new(&client),
            services: Informer::start(&client, Scope::default()),
            events: PodEvents::new(recorder),
            node: Informer::start(&client, own),
            book: Book::default(),
            pressures: watch::Sender::default(),
            meter: NodeMeter::new(client.metrics(), &config.node_name),
            runtime,
            network,
            client,
            config,
        });
        Arc::new(NodeAgent { shared, pods, meter: Meter::default() })
    }

    /// Runs the node until `stop` turns true. Pods keep running; the next agent adopts them.
    pub async fn run(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let reporting = {
            let (shared, stop) = (self.shared.clone(), stop.clone());
            client::spawn(async move { node_status::run(&shared, stop).await })
        };
        let (evictions, evicted) = mpsc::unbounded_channel();
        let guarding = {
            let (shared, pods, stop) = (self.shared.clone(), self.pods.clone(), stop.clone());
            client::spawn(crate::pressure::run(shared, pods, evictions, stop))
        };
        let (steps, stepped) = mpsc::unbounded_channel();
        let watching = client::spawn(clock_steps(self.shared.clock.clone(), steps));
        let collecting = client::spawn(image_gc::run(self.shared.clone(), stop.clone()));
        Crew::new(&self).run(stop, evicted, stepped).await;
        watching.abort();
        if let Err(error) = collecting.await {
            tracing::error!(%error, "the task that removes unused images failed");
        }
        if let Err(error) = guarding.await {
            tracing::error!(%error, "the task that watches the node's resources failed");
        }
        if let Err(error) = reporting.await {
            tracing::error!(%error, "the node's reporting task failed");
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<client::Cached<core::Pod>>, Status> {
        let found = self.pods.get(&ObjectKey::new(namespace, name));
        found.ok_or_else(|| Status::not_found("", "pods", name))
    }

    async fn containers(&self, uid: &str) -> Result<Vec<ContainerStatus>, Status> {
        let snapshot = self.shared.view.snapshot().await.map_err(Status::internal)?;
        Ok(snapshot.get(uid).map(|record| record.containers.clone()).unwrap_or_default())
    }

    /// A container's log.
    ///
    /// # Errors
    /// NotFound for the pod, BadRequest for a container that is unknown or has not started.
    pub async fn logs(&self, namespace: &str, pod: &str, options: LogOptions) -> Result<ByteStream, Status> {
        let pod = self.pod(namespace, pod)?;
        let container = logs::pick_container(&pod.object, &options.container)?;
        // Subscribed before the state is read: an exit in between is not missed.
        let events = self.shared.runtime.events();
        let containers = self.containers(runtime_uid(&pod.object)).await?;
        let attempt = logs::pick_attempt(&pod.object, &container, &containers, &options)?;
        let now = self.shared.clock.now();
        let seconds = options.since_seconds.and_then(|s| i64::try_from(s).ok());
        let ago = seconds.and_then(|s| now.checked_sub(jiff::SignedDuration::from_secs(s)).ok());
        let since = match &options.since_time {
            Some(text) => Some(text.parse::<Timestamp>().map_err(|e| Status::bad_request(e.to_string()))?),
            None => ago,
        };
        let wanted = Wanted { since, timestamps: options.timestamps, limit: options.limit_bytes };
        let follow = (options.follow && !options.previous)
            .then(|| Follow { events, exited: self.exit_check(&attempt.id) });
        logs::read::stream(&attempt.log_path, options.tail_lines, wanted, follow).map_err(|error| {
            Status::internal(format!("failed to open the log of container {container:?}: {error}"))
        })
    }

    fn exit_check(&self, id: &str) -> logs::read::Exited {
        let (view, id) = (self.shared.view.clone(), id.to_owned());
        Box::new(move || {
            let (view, id) = (view.clone(), id.clone());
            Box::pin(async move {
                let Ok(snapshot) = view.snapshot().await else { return true };
                let mut all = snapshot.values().flat_map(|record| &record.containers);
                !all.any(|c| c.id == id && c.state == ContainerState::Running)
            })
        })
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// NotFound for the pod, BadRequest for a container that is unknown or does not run.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, Status> {
        let id = self.running(namespace, pod, &options.container).await?;
        self.shared.runtime.exec(&id, options).await.map_err(|e| stream_error(&e))
    }

    /// Attaches to a container's first process.
    ///
    /// # Errors
    /// As [`NodeAgent::exec`].
    pub async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, Status> {
        let id = self.running(namespace, pod, &options.container).await?;
        self.shared.runtime.attach(&id, options).await.map_err(|e| stream_error(&e))
    }

    /// The pods of this node, with what the runtime has of them.
    pub(crate) async fn pod_views(&self) -> Result<Vec<PodView>, Status> {
        let snapshot = self.shared.view.snapshot().await.map_err(Status::internal)?;
        let containers =
            |uid: &str| snapshot.get(uid).map(|record| record.containers.clone()).unwrap_or_default();
        let view = |pod: Arc<client::Cached<core::Pod>>| PodView {
            containers: containers(runtime_uid(&pod.object)),
            pod: pod.object.clone(),
        };
        Ok(self.pods.list().into_iter().map(view).collect())
    }

    /// What is used now.
    pub(crate) async fn rates(&self) -> Result<Rates, Status> {
        self.meter.read(&*self.shared.runtime, &*self.shared.clock).await.map_err(Status::internal)
    }

    pub(crate) fn meter(&self) -> &NodeMeter {
        &self.shared.meter
    }

    pub(crate) fn name(&self) -> String {
        self.shared.config.node_name.clone()
    }

    /// The settings, in the words of a kubelet's configuration file.
    pub(crate) fn settings(&self) -> serde_json::Value {
        let config = &self.shared.config;
        serde_json::json!({"kubeletconfig": {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "port": node_status::SERVER_PORT, "clusterDomain": config.cluster_domain,
            "clusterDNS": config.cluster_dns, "maxPods": config.max_pods,
            "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
            "resolvConf": config.host_resolv_conf,
            "nodeStatusReportFrequency": pages::duration(node_status::REPORT),
        }})
    }

    /// Connects to a port of a pod, as seen from inside it.
    ///
    /// # Errors
    /// NotFound for the pod, an internal error when it has no sandbox or nobody listens there.
    pub async fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Connection, Status> {
        let uid = runtime_uid(&self.pod(namespace, pod)?.object).to_owned();
        let snapshot = self.shared.view.snapshot().await.map_err(Status::internal)?;
        let sandbox = snapshot.get(&uid).and_then(|record| record.sandboxes.iter().find(|s| s.ready));
        let sandbox = sandbox.ok_or_else(|| Status::internal(format!("pod {pod} does not run")))?;
        self.shared.runtime.connect(&sandbox.id, port).await.map_err(|e| stream_error(&e))
    }

    async fn running(&self, namespace: &str, name: &str, container: &str) -> Result<String, Status> {
        let pod = self.pod(namespace, name)?;
        let container = default_container(&pod.object, container)?;
        let containers = self.containers(runtime_uid(&pod.object)).await?;
        let found =
            containers.into_iter().find(|c| c.name == container && c.state == ContainerState::Running);
        found.map(|c| c.id).ok_or_else(|| {
            let mut status = Status::internal("");
            status.message = format!("container not found ({container:?})");
            status
        })
    }
}

/// The container that exec and attach mean: the one named, else the annotated or first one.
fn default_container(pod: &core::Pod, wanted: &str) -> Result<String, Status> {
    if !wanted.is_empty() {
        return logs::pick_container(pod, wanted);
    }
    let picked = logs::pick_container(pod, "");
    let first = crate::observed::spec(pod).containers.first().map(|c| c.name.clone());
    picked.or_else(|status| first.ok_or(status))
}

fn stream_error(error: &RuntimeError) -> Status {
    match error {
        RuntimeError::NotFound => Status::internal("the container has just ended"),
        RuntimeError::Invalid(text) => Status::bad_request(text.clone()),
        RuntimeError::Timeout | RuntimeError::Other(_) => Status::internal(error),
    }
}

/// Tells when the clock was set, or the machine slept: timers run on another clock than the one that says what time it is.
async fn clock_steps(clock: Arc<dyn Clock>, steps: mpsc::UnboundedSender<()>) {
    // What time it was when the monotonic clock began.
    let beginning = || {
        let running = SignedDuration::try_from(clock.monotonic()).unwrap_or_default();
        clock.now().checked_sub(running).unwrap_or(Timestamp::UNIX_EPOCH)
    };
    let mut before = beginning();
    loop {
        clock.sleep(CLOCK_EVERY).await;
        let now = beginning();
        let step = now.duration_since(before);
        if step.abs() > LARGEST_DRIFT {
            before = now;
            tracing::info!(seconds = step.as_secs(), "the clock was set");
            if steps.send(()).is_err() {
                return;
            }
        }
    }
}

/// Completes when `stop` turns true, or when nobody can turn it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stopped| *stopped).await);
}

#[cfg(test)]
mod tests;
