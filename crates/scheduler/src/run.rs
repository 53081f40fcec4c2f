//! The scheduler at work: feeds deltas to the snapshot, decides, binds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, Status};
use client::{Change, Client, EventRecorder, EventType, Informer, Kind, Scope};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::claims::{self, Caches};
use crate::cycle::{Choice, Decision, Unschedulable, fits, schedule};
use crate::hints::Hints;
use crate::meter::{Attempt, Meter};
use crate::node::NodeSpec;
use crate::pod::PodInfo;
use crate::preemption::{Budget, Nomination, preempt};
use crate::queue::{Gathered, Queue, Queued};
use crate::report::{self, Report, Reporter};
use crate::snapshot::{Effect, Snapshot};
use crate::volumes::{ClaimInfo, ClassInfo, Step, VolumeInfo};

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
    let budgets: Informer<PodDisruptionBudget> = Informer::start(&client, Scope::default());
    let claims: Informer<ClaimInfo> = Informer::start(&client, Scope::default());
    let volumes: Informer<VolumeInfo> = Informer::start(&client, Scope::default());
    let classes: Informer<ClassInfo> = Informer::start(&client, Scope::default());
    tokio::join!(pods.synced(), nodes.synced(), namespaces.synced(), services.synced());
    tokio::join!(claims.synced(), volumes.synced(), classes.synced());
    let mut claim_changes = claims.subscribe();
    let mut volume_changes = volumes.subscribe();
    let mut class_changes = classes.subscribe();
    let mut pod_changes = pods.subscribe();
    let mut node_changes = nodes.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let mut service_changes = services.subscribe();
    let (results, mut bound) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler::new(client, pods, budgets, Caches { claims, volumes }, results);
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
        while let Ok(change) = class_changes.try_recv() {
            scheduler.class_changed(&change);
        }
        while let Ok(change) = volume_changes.try_recv() {
            scheduler.volume_changed(&change);
        }
        while let Ok(change) = claim_changes.try_recv() {
            scheduler.claim_changed(&change);
        }
        while let Ok(change) = pod_changes.try_recv() {
            scheduler.pod_changed(&change);
        }
        while let Ok(result) = bound.try_recv() {
            scheduler.done(result);
        }
        if scheduler.decide() {
            tokio::task::yield_now().await;
            continue;
        }
        scheduler.meter.pending(&scheduler.queue);
        let sleep = scheduler.sleep();
        tokio::select! {
            Some(change) = namespace_changes.recv() => scheduler.namespace_changed(&change),
            Some(change) = service_changes.recv() => {
                let selector = change.new.as_ref().map(|service| service.object.0.clone());
                scheduler.snapshot.set_service(&change.key, selector);
            }
            Some(change) = node_changes.recv() => scheduler.node_changed(&change),
            Some(change) = class_changes.recv() => scheduler.class_changed(&change),
            Some(change) = volume_changes.recv() => scheduler.volume_changed(&change),
            Some(change) = claim_changes.recv() => scheduler.claim_changed(&change),
            Some(change) = pod_changes.recv() => scheduler.pod_changed(&change),
            Some(result) = bound.recv() => scheduler.done(result),
            () = sleep => {}
        }
    }
}

/// What came of work that the scheduler has handed out.
enum Done {
    Bound(Box<Bound>),
    /// Not all victims could be told to leave.
    NoRoom(ObjectKey),
}

/// Outcome of one binding.
struct Bound {
    queued: Queued,
    node: String,
    steps: Vec<Step>,
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
    meter: Meter,
    budgets: Informer<PodDisruptionBudget>,
    caches: Caches,
    /// Pods for which room is being made, and where: nobody less important gets that room.
    nominated: BTreeMap<ObjectKey, (Arc<PodInfo>, String)>,
    results: mpsc::UnboundedSender<Done>,
    binds: Arc<Semaphore>,
    /// Where the next search begins, so that all nodes get their turn.
    start: usize,
}

impl Scheduler {
    fn new(
        client: Client,
        pods: Informer<PodInfo>,
        budgets: Informer<PodDisruptionBudget>,
        caches: Caches,
        results: mpsc::UnboundedSender<Done>,
    ) -> Self {
        Self {
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            changes: Gathered::default(),
            recorder: EventRecorder::new(client.clone(), COMPONENT, ""),
            reporter: Reporter::start(client.clone(), pods.clone()),
            meter: Meter::new(client.metrics()),
            budgets,
            caches,
            nominated: BTreeMap::new(),
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

    fn class_changed(&mut self, change: &Change<ClassInfo>) {
        let classes = &mut self.snapshot.volumes.classes;
        match &change.new {
            Some(class) => classes.insert(change.key.name.clone(), class.object.clone()),
            None => classes.remove(&change.key.name),
        };
        self.changes.add(Effect { hints: Hints::VOLUMES, node: None });
    }

    fn volume_changed(&mut self, change: &Change<VolumeInfo>) {
        let volumes = &mut self.snapshot.volumes.volumes;
        match &change.new {
            Some(volume) => volumes.insert(change.key.name.clone(), volume.object.clone()),
            None => volumes.remove(&change.key.name),
        };
        self.changes.add(Effect { hints: Hints::VOLUMES, node: None });
    }

    fn claim_changed(&mut self, change: &Change<ClaimInfo>) {
        let claims = &mut self.snapshot.volumes.claims;
        match &change.new {
            Some(claim) => claims.insert(change.key.clone(), claim.object.clone()),
            None => claims.remove(&change.key),
        };
        self.changes.add(Effect { hints: Hints::VOLUMES, node: None });
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
            self.give_up_room(&change.key);
            self.changes.add(self.snapshot.remove_pod(&change.key));
            return;
        };
        let pod = Arc::new(cached.object.clone());
        self.changes.add(self.snapshot.set_pod(&pod));
        let reserved = self.snapshot.node_of(&pod.key).is_some();
        if pod.is_pending() && !reserved {
            if let Some(node) = &pod.nominated_node {
                self.nominated.insert(pod.key.clone(), (Arc::clone(&pod), node.clone()));
            }
            self.queue.set(&pod, self.now());
        } else {
            self.give_up_room(&pod.key);
            self.queue.remove(&pod.key);
        }
    }

    /// Room that is held for nobody any more helps others.
    fn give_up_room(&mut self, key: &ObjectKey) {
        if let Some((_, node)) = self.nominated.remove(key) {
            self.changes.add(Effect { hints: Hints::POD_REMOVED, node: Some(node) });
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Bound(bound) => self.bound(*bound),
            Done::NoRoom(key) => {
                if let Some(queued) = self.queue.remove(&key) {
                    self.queue.back_off(queued, self.now());
                }
            }
        }
    }

    fn bound(&mut self, Bound { queued, node, steps, result }: Bound) {
        let pod = &queued.pod;
        self.snapshot.volumes.release(&steps);
        let now = self.now();
        let took = now.saturating_sub(queued.begun);
        let Err(status) = result else {
            self.meter.attempted(Attempt::Scheduled, took);
            tracing::info!(pod = %pod.key, node, "pod bound");
            self.meter.placed(queued.attempts, now.saturating_sub(queued.arrived));
            let message = format!("Successfully assigned {} to {node}", pod.key);
            self.recorder.event(&reference(pod), EventType::Normal, "Scheduled", &message);
            return;
        };
        self.meter.attempted(Attempt::Error, took);
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
        queued.attempts += 1;
        queued.begun = self.now();
        let pod = Arc::clone(&queued.pod);
        let guests = self.seat_guests(&pod);
        self.snapshot.prepare(&pod);
        let choice = Choice { start: self.start, random: self.client.clock().random() };
        let decision = schedule(&self.snapshot, &pod, choice);
        self.meter.searched(self.now().saturating_sub(queued.begun));
        let nomination = match &decision {
            Decision::Bind { .. } => None,
            Decision::Unschedulable(_) => self.nominate(&pod),
        };
        for guest in guests {
            self.snapshot.forget(&guest);
        }
        match decision {
            Decision::Bind { node } => {
                self.start = self.start.wrapping_add(1) % self.snapshot.nodes().len().max(1);
                self.give_up_room(&pod.key);
                self.snapshot.assume(&pod, &node);
                self.bind(queued, node);
            }
            Decision::Unschedulable(why) => {
                self.meter.attempted(Attempt::Unschedulable, self.now().saturating_sub(queued.begun));
                self.tell(&mut queued, "Unschedulable", &why.to_string());
                self.wait(queued, why);
                if let Some(nomination) = nomination {
                    self.make_room(pod, nomination);
                }
            }
        }
    }

    /// Lets those pods count where room is being made for them that are at least as important as this one.
    fn seat_guests(&mut self, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        let matters = |guest: &PodInfo| guest.key != pod.key && guest.spec.priority >= pod.spec.priority;
        let mut seated = Vec::new();
        for (guest, node) in self.nominated.values() {
            if matters(guest) && self.snapshot.node_of(&guest.key).is_none() {
                self.snapshot.assume(guest, node);
                seated.push(Arc::clone(guest));
            }
        }
        seated
    }

    fn nominate(&self, pod: &PodInfo) -> Option<Nomination> {
        let budgets: Vec<Budget> =
            self.budgets.list().iter().map(|cached| Budget::from(&cached.object)).collect();
        preempt(&self.snapshot, pod, &budgets, self.start)
    }

    /// Tells the victims to leave, and the pod where it may hope for room.
    fn make_room(&mut self, pod: Arc<PodInfo>, Nomination { node, victims }: Nomination) {
        tracing::info!(pod = %pod.key, node, victims = victims.len(), "making room");
        self.meter.made_room(victims.len());
        for victim in &victims {
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.recorder.event(&reference(victim), EventType::Normal, "Preempted", &message);
        }
        // Who is less important and hoped for the same node has to hope anew.
        let lesser = |(other, theirs): &(Arc<PodInfo>, String)| {
            *theirs == node && other.spec.priority < pod.spec.priority
        };
        let outdone: Vec<Arc<PodInfo>> =
            self.nominated.values().filter(|held| lesser(held)).map(|(other, _)| Arc::clone(other)).collect();
        self.nominated.retain(|_, held| !lesser(held));
        self.nominated.insert(pod.key.clone(), (Arc::clone(&pod), node.clone()));
        let (client, results) = (self.client.clone(), self.results.clone());
        client::spawn(async move {
            for other in outdone {
                report::nominate(&client, &other, None).await;
            }
            report::nominate(&client, &pod, Some(&node)).await;
            for victim in victims {
                if let Err(status) = report::evict(&client, &victim).await {
                    tracing::warn!(pod = %victim.key, %status, "a victim does not leave");
                    if results.send(Done::NoRoom(pod.key.clone())).is_err() {
                        tracing::debug!("the scheduler stopped while room was being made");
                    }
                    return;
                }
            }
        });
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

    fn bind(&mut self, queued: Queued, node: String) {
        let (client, results, permits) = (self.client.clone(), self.results.clone(), Arc::clone(&self.binds));
        let caches = self.caches.clone();
        let slot = self.snapshot.slot(&node).map(|slot| &self.snapshot.nodes()[slot].spec);
        let steps =
            slot.and_then(|node| self.snapshot.volumes.steps(&queued.pod, node).ok()).unwrap_or_default();
        self.snapshot.volumes.reserve(&steps);
        client::spawn(async move {
            let mut result = claims::perform(&client, &caches, &steps, &node).await;
            if result.is_ok() {
                let permit = permits.acquire().await;
                result = bind(&client, &queued.pod, &node).await;
                drop(permit);
            }
            if results.send(Done::Bound(Box::new(Bound { queued, node, steps, result }))).is_err() {
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
