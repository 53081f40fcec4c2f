//! The node agent: registers the node, watches its pods and gives each a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions};
use api::{ObjectKey, Status};
use client::{Client, EventRecorder, Informer, Scope};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admission::Book;
use crate::config::NodeConfig;
use crate::events::PodEvents;
use crate::leftovers;
use crate::logs::{self, format::Wanted, read::Follow};
use crate::node_status::{self, machine};
use crate::observed::{Failure, NodeFacts};
use crate::ports::{ContainerState, ContainerStatus, PodNetwork, Runtime, RuntimeError};
use crate::references::References;
use crate::server::pages::{self, PodView};
use crate::usage::{Meter, Rates};
use crate::view::RuntimeView;
use crate::worker::{PodWorker, Shared, Wake};

/// Pause before a pod whose worker panicked gets a new one.
const AFTER_PANIC: Duration = Duration::from_secs(10);

/// A node.
pub struct NodeAgent {
    shared: Arc<Shared>,
    pods: Informer<core::Pod>,
    meter: Meter,
}

struct Worker {
    wake: mpsc::UnboundedSender<Wake>,
    task: JoinHandle<()>,
}

impl NodeAgent {
    /// Must be called within a tokio runtime: caches start at once.
    pub fn new(
        config: NodeConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Arc<NodeAgent> {
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
        self.run_pods(stop, evicted).await;
        if let Err(error) = guarding.await {
            tracing::error!(%error, "the task that watches the node's resources failed");
        }
        if let Err(error) = reporting.await {
            tracing::error!(%error, "the node's reporting task failed");
        }
    }

    async fn run_pods(
        &self,
        mut stop: watch::Receiver<bool>,
        mut evicted: mpsc::UnboundedReceiver<(String, Failure)>,
    ) {
        let mut events = self.shared.runtime.events();
        let mut changes = self.pods.subscribe();
        let (ended, mut endings) = mpsc::unbounded_channel::<String>();
        let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
        let mut synced = Box::pin(self.pods.synced());
        let mut swept = false;
        let mut early: BTreeMap<String, Failure> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(change) = changes.recv() => {
                    let (old, new) = (change.old.as_ref(), change.new);
                    if let Some(old) = old.filter(|o| new.as_ref().is_none_or(|n| n.uid != o.uid))
                        && let Some(worker) = workers.get(&old.uid)
                    {
                        tell(worker, Wake::Gone);
                    }
                    if let Some(new) = new {
                        let worker = workers
                            .entry(new.uid.clone())
                            .or_insert_with(|| self.start_worker(new.object.clone(), Duration::ZERO, &ended));
                        if let Some(failure) = early.remove(&new.uid) {
                            tell(worker, Wake::Fail(failure));
                        }
                        tell(worker, Wake::Pod(new));
                    }
                }
                Some(event) = events.recv() => {
                    let known = self.shared.view.pod_of(&event.sandbox_id);
                    match known.and_then(|uid| workers.get(&uid)) {
                        Some(worker) => tell(worker, Wake::Look),
                        // Too new for the last listing: its worker is the one that made it, or everybody looks.
                        None => workers.values().for_each(|worker| tell(worker, Wake::Look)),
                    }
                }
                Some((uid, failure)) = evicted.recv() => match workers.get(&uid) {
                    Some(worker) => tell(worker, Wake::Fail(failure)),
                    // The cache knew of it before the loop did.
                    None => drop(early.insert(uid, failure)),
                },
                Some(uid) = endings.recv() => self.ended(&uid, &mut workers, &ended),
                () = &mut synced, if !swept => {
                    swept = true;
                    self.sweep(&mut workers, &ended).await;
                }
            }
        }
        for worker in workers.values() {
            worker.task.abort();
        }
    }

    fn start_worker(&self, pod: core::Pod, delay: Duration, ended: &mpsc::UnboundedSender<String>) -> Worker {
        let (wake, inbox) = mpsc::unbounded_channel();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let worker = PodWorker::new(self.shared.clone(), pod, wake.clone(), inbox);
        let ended = ended.clone();
        let clock = self.shared.clock.clone();
        let task = client::spawn(async move {
            let guard = SendOnDrop { ended, uid };
            if !delay.is_zero() {
                clock.sleep(delay).await;
            }
            worker.run().await;
            drop(guard);
        });
        Worker { wake, task }
    }

    /// A worker has ended: for good, or by a panic; then the pod gets a new one.
    fn ended(
        &self,
        uid: &str,
        workers: &mut BTreeMap<String, Worker>,
        ended: &mpsc::UnboundedSender<String>,
    ) {
        workers.remove(uid);
        if let Some(cached) = self.pods.list().into_iter().find(|c| c.uid == uid) {
            let worker = self.start_worker(cached.object.clone(), AFTER_PANIC, ended);
            workers.insert(uid.to_owned(), worker);
        }
    }

    /// Pods that the runtime still has and the API no longer: each gets a worker that removes it.
    async fn sweep(&self, workers: &mut BTreeMap<String, Worker>, ended: &mpsc::UnboundedSender<String>) {
        let snapshot = match self.shared.view.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(%error, "cannot look for orphaned pods");
                return;
            }
        };
        let mut known: BTreeSet<String> = self.pods.list().iter().map(|c| c.uid.clone()).collect();
        for (uid, record) in snapshot.iter().filter(|(uid, _)| !known.contains(*uid)) {
            let first = record.sandboxes.first();
            let meta = ObjectMeta {
                uid: Some(uid.clone()),
                name: first.map(|s| s.name.clone()),
                namespace: first.map(|s| s.namespace.clone()),
                ..ObjectMeta::default()
            };
            let pod = core::Pod { metadata: meta, ..core::Pod::default() };
            let worker =
                workers.entry(uid.clone()).or_insert_with(|| self.start_worker(pod, Duration::ZERO, ended));
            tell(worker, Wake::Gone);
        }
        known.extend(workers.keys().cloned());
        self.clear_folders(known).await;
    }

    /// Removes the folders of pods that neither the API nor the runtime has, and gives their addresses back.
    async fn clear_folders(&self, known: BTreeSet<String>) {
        let (pods, logs) = (self.shared.config.root_dir.clone(), self.shared.config.log_root.clone());
        let work = tokio::task::spawn_blocking(move || {
            let uids = leftovers::find(&pods, &logs, &known);
            (leftovers::remove(&pods, &logs, &uids), uids)
        });
        let (removed, uids) = match work.await {
            Ok(done) => done,
            Err(error) => return tracing::error!(%error, "cannot look for leftover folders"),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove all folders of deleted pods");
        }
        for uid in uids {
            if let Err(error) = self.shared.network.detach(&uid).await {
                tracing::warn!(pod = %uid, %error, "cannot release the network of a deleted pod");
            }
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
        let containers = self.containers(&pod.uid).await?;
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
            containers: containers(&pod.uid),
            pod: pod.object.clone(),
        };
        Ok(self.pods.list().into_iter().map(view).collect())
    }

    /// What is used now.
    pub(crate) async fn rates(&self) -> Result<Rates, Status> {
        self.meter.read(&*self.shared.runtime, &*self.shared.clock).await.map_err(Status::internal)
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
        let uid = self.pod(namespace, pod)?.uid.clone();
        let snapshot = self.shared.view.snapshot().await.map_err(Status::internal)?;
        let sandbox = snapshot.get(&uid).and_then(|record| record.sandboxes.iter().find(|s| s.ready));
        let sandbox = sandbox.ok_or_else(|| Status::internal(format!("pod {pod} does not run")))?;
        self.shared.runtime.connect(&sandbox.id, port).await.map_err(|e| stream_error(&e))
    }

    async fn running(&self, namespace: &str, name: &str, container: &str) -> Result<String, Status> {
        let pod = self.pod(namespace, name)?;
        let container = default_container(&pod.object, container)?;
        let containers = self.containers(&pod.uid).await?;
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

/// A worker that has just ended misses nothing: its end is handled next.
fn tell(worker: &Worker, wake: Wake) {
    drop(worker.wake.send(wake));
}

/// Completes when `stop` turns true, or when nobody can turn it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stopped| *stopped).await);
}

/// Reports the end of a worker, also after a panic.
struct SendOnDrop {
    ended: mpsc::UnboundedSender<String>,
    uid: String,
}

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        // The agent may have stopped.
        drop(self.ended.send(std::mem::take(&mut self.uid)));
    }
}

#[cfg(test)]
mod tests;
