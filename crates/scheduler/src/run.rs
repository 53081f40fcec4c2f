//! The scheduler at work: feeds deltas to the snapshot, decides, binds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, Status};
use client::{Change, Client, EventRecorder, EventType, Informer, Kind, Scope};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Service};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::cycle::{Choice, Decision, Unschedulable, fits, schedule};
use crate::node::NodeSpec;
use crate::pod::PodInfo;
use crate::queue::{Gathered, Queue, Queued};
use crate::report::{Report, Reporter};
use crate::snapshot::Snapshot;

const COMPONENT: &str = "default-scheduler";
/// Binding calls under way at once.
const MAX_BINDS: usize = 256;
/// Decisions between two looks at what changed.
const DECISIONS: usize = 64;

/// Labels of a namespace.
#[derive(Deserialize)]
#[serde(from = "Namespace")]
struct NamespaceInfo(BTreeMap<String, String>);

impl From<Namespace> for NamespaceInfo {
    fn from(namespace: Namespace) -> Self {
        Self(namespace.metadata.labels.unwrap_or_default())
    }
}

impl Kind for NamespaceInfo {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "namespaces")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Namespace")
    }
}

/// Selector of a service.
#[derive(Deserialize)]
#[serde(from = "Service")]
struct ServiceInfo(BTreeMap<String, String>);

impl From<Service> for ServiceInfo {
    fn from(service: Service) -> Self {
        Self(service.spec.unwrap_or_default().selector.unwrap_or_default())
    }
}

impl Kind for ServiceInfo {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "services")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Service")
    }
}

/// Schedules pods until `stop` turns true.
pub async fn run(client: Client, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = work(client) => {}
        result = stop.wait_for(|stopped| *stopped) => {
            if result.is_err() {
                tracing::debug!("nobody can stop the scheduler any more");
            }
        }
    }
}

async fn work(client: Client) {
    let pods: Informer<PodInfo> = Informer::start(&client, Scope::default());
    let nodes: Informer<NodeSpec> = Informer::start(&client, Scope::default());
    let namespaces: Informer<NamespaceInfo> = Informer::start(&client, Scope::default());
    let services: Informer<ServiceInfo> = Informer::start(&client, Scope::default());
    tokio::join!(pods.synced(), nodes.synced(), namespaces.synced(), services.synced());
    let mut pod_changes = pods.subscribe();
    let mut node_changes = nodes.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let mut service_changes = services.subscribe();
    let (results, mut bound) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler::new(client, pods, results);
    loop {
        while let Ok(change) = namespace_changes.try_recv() {
            scheduler.namespace_changed(&change);
        }
        while let Ok(change) = service_changes.try_recv() {
            let selector = change.new.as_ref().map(|service| service.object.0.clone());
            scheduler.snapshot.set_service(&change.key, selector);
        }
        while let Ok(change) = node_changes.try_recv() {
            scheduler.node_changed(&change);
        }
        while let Ok(change) = pod_changes.try_recv() {
            scheduler.pod_changed(&change);
        }
        while let Ok(result) = bound.try_recv() {
            scheduler.bound(result);
        }
        if scheduler.decide() {
            tokio::task::yield_now().await;
            continue;
        }
        let sleep = scheduler.sleep();
        tokio::select! {
            Some(change) = namespace_changes.recv() => scheduler.namespace_changed(&change),
            Some(change) = service_changes.recv() => {
                let selector = change.new.as_ref().map(|service| service.object.0.clone());
                scheduler.snapshot.set_service(&change.key, selector);
            }
            Some(change) = node_changes.recv() => scheduler.node_changed(&change),
            Some(change) = pod_changes.recv() => scheduler.pod_changed(&change),
            Some(result) = bound.recv() => scheduler.bound(result),
            () = sleep => {}
        }
    }
}

/// Outcome of one binding.
struct Bound {
    queued: Queued,
    node: String,
    result: Result<(), Status>,
}

struct Scheduler {
    client: Client,
    pods: Informer<PodInfo>,
    snapshot: Snapshot,
    queue: Queue,
    changes: Gathered,
    recorder: EventRecorder,
    reporter: Reporter,
    results: mpsc::UnboundedSender<Bound>,
    binds: Arc<Semaphore>,
    /// Where the next search begins, so that all nodes get their turn.
    start: usize,
}

impl Scheduler {
    fn new(client: Client, pods: Informer<PodInfo>, results: mpsc::UnboundedSender<Bound>) -> Self {
        Self {
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            changes: Gathered::default(),
            recorder: EventRecorder::new(client.clone(), COMPONENT, ""),
            reporter: Reporter::start(client.clone(), pods.clone()),
            results,
            binds: Arc::new(Semaphore::new(MAX_BINDS)),
            start: 0,
            client,
            pods,
        }
    }

    fn now(&self) -> Duration {
        self.client.clock().monotonic()
    }

    fn namespace_changed(&mut self, change: &Change<NamespaceInfo>) {
        let labels = change.new.as_ref().map(|namespace| namespace.object.0.clone());
        self.changes.add(self.snapshot.set_namespace(&change.key.name, labels));
    }

    fn node_changed(&mut self, change: &Change<NodeSpec>) {
        let effect = match &change.new {
            Some(node) => self.snapshot.set_node(node.object.clone()),
            None => self.snapshot.remove_node(&change.key.name),
        };
        self.changes.add(effect);
    }

    fn pod_changed(&mut self, change: &Change<PodInfo>) {
        let Some(cached) = &change.new else {
            self.queue.remove(&change.key);
            self.changes.add(self.snapshot.remove_pod(&change.key));
            return;
        };
        let pod = Arc::new(cached.object.clone());
        self.changes.add(self.snapshot.set_pod(&pod));
        let reserved = self.snapshot.node_of(&pod.key).is_some();
        if pod.is_pending() && !reserved {
            self.queue.set(&pod);
        } else {
            self.queue.remove(&pod.key);
        }
    }

    fn bound(&mut self, Bound { queued, node, result }: Bound) {
        let pod = &queued.pod;
        let Err(status) = result else {
            let message = format!("Successfully assigned {} to {node}", pod.key);
            self.recorder.event(&reference(pod), EventType::Normal, "Scheduled", &message);
            return;
        };
        tracing::warn!(pod = %pod.key, node, %status, "binding failed");
        self.changes.add(self.snapshot.forget(pod));
        let current = self.pods.get(&pod.key).map(|cached| cached.object.clone());
        let Some(current) = current.filter(|current| current.uid == pod.uid && current.is_pending()) else {
            return;
        };
        let mut queued = Queued { pod: Arc::new(current), ..queued };
        self.tell(&mut queued, "SchedulerError", &format!("binding rejected: {status}"));
        self.queue.back_off(queued, self.now());
    }

    /// Makes some decisions; true when there are more to make.
    fn decide(&mut self) -> bool {
        self.queue.wake(self.now());
        let changes = std::mem::take(&mut self.changes);
        let fits = |pod: &PodInfo, nodes: &BTreeSet<String>| {
            fits(&self.snapshot, pod, nodes.iter().map(String::as_str))
        };
        self.queue.hint(&changes, fits);
        for _ in 0..DECISIONS {
            let Some(queued) = self.queue.pop() else { return false };
            self.decide_one(queued);
        }
        self.queue.has_active()
    }

    fn decide_one(&mut self, mut queued: Queued) {
        self.snapshot.prepare(&queued.pod);
        let choice = Choice { start: self.start, random: self.client.clock().random() };
        match schedule(&self.snapshot, &queued.pod, choice) {
            Decision::Bind { node } => {
                self.start = self.start.wrapping_add(1) % self.snapshot.nodes().len().max(1);
                self.snapshot.assume(&queued.pod, &node);
                self.bind(queued, node);
            }
            Decision::Unschedulable(why) => {
                self.tell(&mut queued, "Unschedulable", &why.to_string());
                self.wait(queued, why);
            }
        }
    }

    fn wait(&mut self, queued: Queued, why: Unschedulable) {
        tracing::debug!(pod = %queued.pod.key, %why, "unschedulable");
        let now = self.now();
        self.queue.wait(queued, why, now);
    }

    /// Tells a pod's user why it is pending, if that is news.
    fn tell(&self, queued: &mut Queued, reason: &str, message: &str) {
        if queued.told == message {
            return;
        }
        message.clone_into(&mut queued.told);
        self.recorder.event(&reference(&queued.pod), EventType::Warning, "FailedScheduling", message);
        self.reporter.report(Report {
            key: queued.pod.key.clone(),
            uid: queued.pod.uid.clone(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    fn bind(&self, queued: Queued, node: String) {
        let (client, results, permits) = (self.client.clone(), self.results.clone(), Arc::clone(&self.binds));
        client::spawn(async move {
            let permit = permits.acquire().await;
            let result = bind(&client, &queued.pod, &node).await;
            drop(permit);
            if results.send(Bound { queued, node, result }).is_err() {
                tracing::debug!("the scheduler stopped while a pod was being bound");
            }
        });
    }

    fn sleep(&self) -> futures_util::future::BoxFuture<'static, ()> {
        match self.queue.next_wake() {
            Some(at) => self.client.clock().sleep(at.saturating_sub(self.now())),
            None => Box::pin(std::future::pending()),
        }
    }
}

async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), Status> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let Err(status) = client.create_subresource(&PodInfo::gvr(), &pod.key, "binding", &body).await else {
        return Ok(());
    };
    if status.is_not_found() {
        return Err(status);
    }
    // The answer may have got lost after the binding was stored.
    match client.get::<PodInfo>(&pod.key).await {
        Ok(stored) if stored.uid == pod.uid && stored.spec.node_name.as_deref() == Some(node) => Ok(()),
        Ok(_) | Err(_) => Err(status),
    }
}

fn reference(pod: &PodInfo) -> ObjectReference {
    let ObjectKey { namespace, name } = pod.key.clone();
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace),
        name: Some(name),
        uid: Some(pod.uid.clone()),
        resource_version: Some(pod.resource_version.clone()),
        field_path: None,
    }
}
