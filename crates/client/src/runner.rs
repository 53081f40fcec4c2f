//! The one generic runner: retries, back-off and stale caches are handled here and nowhere else.
//!
//! ```text
//!   informers ──changes──▶ keys ──▶ WorkQueue ──▶ gate: has the cache seen this key's last writes?
//!                                      ▲            │ no: parked until it has (or a live read says so)
//!                                      │            ▼ yes
//!                       back-off, timer └── perform ◀── plan
//! ```
//!
//! Invariants:
//! - A key is worked on by one task at a time; keys run in parallel; controllers take turns.
//! - No key is planned before all caches of its controller are filled, nor while a cache has not seen what the key's
//!   last plan wrote.
//! - A panic in a plan concerns its key alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, Status};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::clock::{AbortOnDrop, spawn};
use crate::controller::{AnyInformer, Controller, InformerSet, Outcome, Plan, View, Watch};
use crate::meter::QueueMeter;
use crate::perform::{Written, perform, read_live};
use crate::queue::WorkQueue;
use crate::recorder::EventRecorder;

/// Keys worked on at the same time, over all controllers.
const WORKERS: usize = 32;
/// Live reads may lead to further ones, but not for ever.
const READ_ROUNDS: usize = 4;
/// The cause of a refusal to create something in a namespace that is being deleted.
pub const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
/// How long a controller waits for caches that it can begin without.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this time without the cache catching up, the API is asked directly.
const GATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs controllers until `stop` turns true.
pub async fn run(client: Client, controllers: Vec<Arc<dyn Controller>>, stop: watch::Receiver<bool>) {
    let informers = InformerSet::new(client.clone());
    run_with(client, informers, controllers, stop).await;
}

/// The same on a given set of informers.
pub async fn run_with(
    client: Client,
    informers: InformerSet,
    controllers: Vec<Arc<dyn Controller>>,
    mut stop: watch::Receiver<bool>,
) {
    let (sender, mut signals) = mpsc::unbounded_channel();
    let mut runner = Runner::new(client, controllers);
    runner.start(&informers, &sender);
    loop {
        runner.start_work();
        let wake = runner.next_wake();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            signal = signals.recv() => {
                let Some(signal) = signal else { break };
                runner.observe(signal);
                while let Ok(signal) = signals.try_recv() {
                    runner.observe(signal);
                }
            }
            Some(done) = runner.working.next(), if !runner.working.is_empty() => match done {
                Ok(done) => runner.finish(done),
                Err(error) => tracing::error!(%error, "a worker ended early"),
            },
            () = wake => {}
        }
    }
}

enum Signal {
    Changed { lane: usize, keys: Vec<ObjectKey> },
    Progressed { lane: usize, gvr: GroupVersionResource },
    Synced { lane: usize },
}

struct Lane {
    controller: Arc<dyn Controller>,
    view: View,
    events: EventRecorder,
    synced: bool,
    last: HashMap<ObjectKey, Outcome>,
    gate: Gate,
}

/// Writes that the caches have still to see, by key of the controller.
#[derive(Default)]
struct Gate {
    pending: HashMap<ObjectKey, Pending>,
    parked: HashSet<ObjectKey>,
}

struct Pending {
    writes: Vec<Written>,
    /// Monotonic time at which the API is asked directly.
    check_at: Duration,
}

#[expect(clippy::large_enum_variant, reason = "one per worker")]
enum Work {
    Planned {
        outcome: Option<Outcome>,
        written: Vec<Written>,
        requeue_after: Option<Duration>,
    },
    Failed(String),
    /// What of the pending writes is still to be waited for.
    Checked(Vec<Written>),
}

struct Done {
    lane: usize,
    key: ObjectKey,
    work: Work,
}

struct Runner {
    client: Client,
    lanes: Vec<Lane>,
    queue: WorkQueue<ObjectKey>,
    working: FuturesUnordered<JoinHandle<Done>>,
    pumps: Vec<AbortOnDrop>,
}

impl Runner {
    fn new(client: Client, controllers: Vec<Arc<dyn Controller>>) -> Self {
        let meter = |controller: &Arc<dyn Controller>| {
            QueueMeter::new(client.metrics(), client.clock().clone(), controller.name())
        };
        let queue = WorkQueue::metered(controllers.iter().map(meter));
        let lanes = controllers.into_iter().map(|controller| Lane {
            events: EventRecorder::new(client.clone(), controller.name(), ""),
            controller,
            view: View::default(),
            synced: false,
            last: HashMap::new(),
            gate: Gate::default(),
        });
        let lanes = lanes.collect();
        Self { client, lanes, queue, working: FuturesUnordered::new(), pumps: Vec::new() }
    }

    fn start(&mut self, informers: &InformerSet, signals: &mpsc::UnboundedSender<Signal>) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let watches = lane.controller.watches();
            let caches: Vec<Arc<dyn AnyInformer>> =
                watches.iter().map(|watch| (watch.start)(informers)).collect();
            let optional: Vec<bool> = watches.iter().map(|watch| watch.optional).collect();
            lane.view = View::new(caches.clone());
            let mut pumps = Vec::new();
            for (watch, cache) in watches.into_iter().zip(&caches) {
                pumps.push(spawn(pump(index, watch, cache.clone(), lane.view.clone(), signals.clone())));
            }
            let caches = caches.into_iter().zip(optional).collect();
            pumps.push(spawn(report_synced(index, caches, self.client.clone(), signals.clone())));
            self.pumps.extend(pumps.into_iter().map(|task| AbortOnDrop(task.abort_handle())));
        }
    }

    fn observe(&mut self, signal: Signal) {
        match signal {
            Signal::Changed { lane, keys } => keys.into_iter().for_each(|key| self.queue.add(lane, key)),
            Signal::Synced { lane } => {
                self.lanes[lane].synced = true;
                tracing::info!(controller = self.lanes[lane].controller.name(), "controller begins");
            }
            Signal::Progressed { lane, gvr } => {
                let Gate { pending, parked } = &mut self.lanes[lane].gate;
                let waits = |key: &ObjectKey| {
                    pending.get(key).is_none_or(|pending| pending.writes.iter().any(|write| write.gvr == gvr))
                };
                let ready: Vec<ObjectKey> = parked.iter().filter(|key| waits(key)).cloned().collect();
                for key in ready {
                    parked.remove(&key);
                    self.queue.add(lane, key);
                }
            }
        }
    }

    fn start_work(&mut self) {
        let now = self.client.clock().monotonic();
        while self.working.len() < WORKERS {
            let lanes = &self.lanes;
            let Some((index, key)) = self.queue.pop(now, |index| lanes[index].synced) else { return };
            match self.lanes[index].gate_open(&key, now) {
                GateState::Open => {
                    let work = self.lanes[index].plan_and_perform(&self.client, key.clone());
                    self.working.push(spawn(async move { Done { lane: index, key, work: work.await } }));
                }
                GateState::Waiting(until) => {
                    self.queue.done(index, &key);
                    self.lanes[index].gate.parked.insert(key.clone());
                    self.queue.add_at(index, key, until);
                }
                GateState::Overdue(writes) => {
                    let client = self.client.clone();
                    self.working.push(spawn(async move {
                        Done { lane: index, key, work: Work::Checked(still_there(&client, writes).await) }
                    }));
                }
            }
        }
    }

    fn next_wake(&self) -> futures_util::future::BoxFuture<'static, ()> {
        match self.queue.next_due() {
            // With all workers busy only a finished one can start work.
            Some(at) if self.working.len() < WORKERS => {
                let delay = at.saturating_sub(self.client.clock().monotonic());
                self.client.clock().sleep(delay)
            }
            _ => std::future::pending().boxed(),
        }
    }

    fn finish(&mut self, done: Done) {
        let Done { lane: index, key, work } = done;
        let now = self.client.clock().monotonic();
        let lane = &mut self.lanes[index];
        let name = lane.controller.name();
        match work {
            Work::Planned { outcome, written, requeue_after } => {
                if let Some(check_at) = lane.remember(&key, written, now) {
                    // The change may never be told: a relist shows only what it led to.
                    self.queue.add_at(index, key.clone(), check_at);
                }
                let failed = outcome.as_ref().and_then(|outcome| outcome.failed.as_ref());
                if let Some((action, status)) = failed.filter(|(_, status)| !is_final(status)) {
                    let delay = self.queue.add_failed(index, key.clone(), now);
                    report_failure(name, &key, action, status, delay);
                } else {
                    if let Some((action, status)) = failed {
                        tracing::debug!(controller = name, %key, %status, action = action.verb(), "refused for good");
                    }
                    self.queue.succeeded(index, &key);
                }
                if let Some(outcome) = outcome {
                    lane.last.insert(key.clone(), outcome);
                } else {
                    lane.last.remove(&key);
                }
                if let Some(after) = requeue_after {
                    self.queue.add_at(index, key.clone(), now + after);
                }
            }
            Work::Failed(why) => {
                let delay = self.queue.add_failed(index, key.clone(), now);
                tracing::error!(controller = name, %key, why, ?delay, "cannot plan");
            }
            Work::Checked(writes) => {
                lane.gate.pending.remove(&key);
                lane.remember(&key, writes, now);
                self.queue.add(index, key.clone());
            }
        }
        self.queue.done(index, &key);
    }
}

/// Whether trying again is useless until something else changes: no namespace comes back from its end.
fn is_final(status: &Status) -> bool {
    status.has_cause(NAMESPACE_TERMINATING)
}

fn report_failure(
    name: &str,
    key: &ObjectKey,
    action: &crate::controller::Action,
    status: &Status,
    delay: Duration,
) {
    if status.is_conflict() || status.is_already_exists() || status.is_not_found() {
        tracing::debug!(controller = name, %key, %status, ?delay, "the world moved on");
    } else {
        tracing::warn!(controller = name, %key, %status, ?delay, action = action.verb(), "action failed");
    }
}

enum GateState {
    Open,
    Waiting(Duration),
    Overdue(Vec<Written>),
}

impl Lane {
    fn gate_open(&mut self, key: &ObjectKey, now: Duration) -> GateState {
        self.gate.parked.remove(key);
        let Some(pending) = self.gate.pending.get_mut(key) else { return GateState::Open };
        let view = &self.view;
        pending.writes.retain(|write| !seen(view, write));
        if pending.writes.is_empty() {
            self.gate.pending.remove(key);
            GateState::Open
        } else if now >= pending.check_at {
            GateState::Overdue(pending.writes.clone())
        } else {
            GateState::Waiting(pending.check_at)
        }
    }

    /// Closes the gate for a key; gives the time at which to ask the API directly.
    fn remember(&mut self, key: &ObjectKey, written: Vec<Written>, now: Duration) -> Option<Duration> {
        let watched = |write: &Written| self.view.caches().iter().any(|cache| *cache.resource() == write.gvr);
        let writes: Vec<Written> = written.into_iter().filter(watched).collect();
        if writes.is_empty() {
            return None;
        }
        let check_at = now + GATE_TIMEOUT;
        self.gate.pending.insert(key.clone(), Pending { writes, check_at });
        self.gate.parked.insert(key.clone());
        Some(check_at)
    }

    fn plan_and_perform(
        &self,
        client: &Client,
        key: ObjectKey,
    ) -> impl Future<Output = Work> + Send + 'static {
        let (controller, events, client) = (self.controller.clone(), self.events.clone(), client.clone());
        let (view, last) = (self.view.clone(), self.last.get(&key).cloned());
        async move {
            let work = async {
                let mut reads = Vec::new();
                for _ in 0..READ_ROUNDS {
                    let view = view.clone().with(last.clone(), reads.clone());
                    match controller.plan(&key, &view, client.clock().now()) {
                        Plan::Do { actions, requeue_after } if actions.is_empty() => {
                            return Work::Planned { outcome: None, written: Vec::new(), requeue_after };
                        }
                        Plan::Do { actions, requeue_after } => {
                            let (outcome, written) = perform(&client, &events, actions).await;
                            return Work::Planned { outcome: Some(outcome), written, requeue_after };
                        }
                        Plan::Need(more) => {
                            reads.retain(|(read, _)| !more.contains(read));
                            reads.extend(read_live(&client, more).await);
                        }
                    }
                }
                Work::Failed("the plan keeps asking for live reads".into())
            };
            AssertUnwindSafe(work)
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| Work::Failed(panic_text(&*panic)))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_default())
}

/// Whether every cache of the resource has seen a write. Revisions of one store only grow, so a cache that has passed
/// the write's revision has seen it even if its scope hides the object.
fn seen(view: &View, write: &Written) -> bool {
    view.caches().iter().filter(|cache| *cache.resource() == write.gvr).all(|cache| {
        let cached = cache.identity(&write.key);
        match write.revision {
            Some(revision) => {
                *cache.progressed().borrow() >= revision
                    || cached.is_some_and(|(uid, at)| uid == write.uid && at >= revision)
            }
            None => cached.is_none_or(|(uid, _)| !write.uid.is_empty() && uid != write.uid),
        }
    })
}

/// Asks the API which of the overdue writes are still to be waited for: those whose object is still as written (or
/// newer), so that its event must come. A write of another store's life is forgotten.
async fn still_there(client: &Client, writes: Vec<Written>) -> Vec<Written> {
    let mut keep = Vec::new();
    for write in writes {
        let request = crate::client::request(api::Verb::Get, &write.gvr, &write.key, None);
        match (client.object(request).await, write.revision) {
            (Ok(object), Some(revision)) => {
                let newer = object.resource_version().parse::<u64>().is_ok_and(|at| at >= revision);
                if object.uid() == write.uid && newer {
                    keep.push(write);
                }
            }
            (Err(status), None) if status.is_not_found() => keep.push(write),
            (Ok(_), None) => {}
            (Err(status), _) if status.is_not_found() => {}
            (Err(status), _) => {
                tracing::warn!(gvr = %write.gvr, key = %write.key, %status, "cannot check an overdue write");
                keep.push(write);
            }
        }
    }
    keep
}

async fn pump(
    lane: usize,
    watch: Watch,
    cache: Arc<dyn AnyInformer>,
    view: View,
    signals: mpsc::UnboundedSender<Signal>,
) {
    let mut changes = cache.changes();
    let mut progress = cache.progressed();
    loop {
        let signal = tokio::select! {
            change = changes.next() => {
                let Some(objects) = change else { return };
                let keys = objects.iter().flat_map(|object| (watch.map)(&view, cache.resource(), &**object));
                let keys: BTreeSet<ObjectKey> = keys.collect();
                if keys.is_empty() {
                    continue;
                }
                Signal::Changed { lane, keys: keys.into_iter().collect() }
            }
            moved = progress.changed() => {
                if moved.is_err() {
                    return;
                }
                Signal::Progressed { lane, gvr: cache.resource().clone() }
            }
        };
        if signals.send(signal).is_err() {
            return;
        }
    }
}

/// Waits for what the controller needs, and a while for what it can begin without.
async fn report_synced(
    lane: usize,
    caches: Vec<(Arc<dyn AnyInformer>, bool)>,
    client: Client,
    signals: mpsc::UnboundedSender<Signal>,
) {
    let fill = async |wanted: bool| {
        for (cache, _) in caches.iter().filter(|(_, optional)| *optional == wanted) {
            cache.wait_synced().await;
        }
    };
    fill(false).await;
    tokio::select! {
        () = fill(true) => {}
        () = client.clock().sleep(PATIENCE) => tracing::warn!(lane, "going on without caches that don't fill"),
    }
    if signals.send(Signal::Synced { lane }).is_err() {
        tracing::debug!("the runner ended before its caches were filled");
    }
}
