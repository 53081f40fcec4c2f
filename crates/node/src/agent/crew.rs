//! The workers of a node's pods: which pod gets one, and who is told what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::{ObjectKey, RequestOptions};
use client::{Cached, Change};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{NodeAgent, stopped};
use crate::leftovers;
use crate::observed::Failure;
use crate::ports::RuntimeEvent;
use crate::static_pods::roster::Roster;
use crate::static_pods::{folder, mirrored};
use crate::worker::{Origin, PodWorker, Wake};

/// Pause before a pod whose worker panicked gets a new one.
const AFTER_PANIC: Duration = Duration::from_secs(10);
/// Between looks for what could not be removed with its pod.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

struct Worker {
    wake: mpsc::UnboundedSender<Wake>,
    task: JoinHandle<()>,
}

/// All workers, by uid of the pod.
pub(super) struct Crew<'a> {
    agent: &'a NodeAgent,
    workers: BTreeMap<String, Worker>,
    /// Static pods; `None` until their folder has been read.
    roster: Option<Roster>,
    /// Evictions of pods that the cache knew of before the crew did.
    early: BTreeMap<String, Failure>,
    ended: mpsc::UnboundedSender<String>,
    endings: mpsc::UnboundedReceiver<String>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(agent: &'a NodeAgent) -> Self {
        let (ended, endings) = mpsc::unbounded_channel();
        Self { agent, workers: BTreeMap::new(), roster: None, early: BTreeMap::new(), ended, endings }
    }

    /// Works until `stop` turns true. Pods keep running.
    pub(super) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        mut evicted: mpsc::UnboundedReceiver<(String, Failure)>,
        mut stepped: mpsc::UnboundedReceiver<()>,
    ) {
        let mut events = self.agent.shared.runtime.events();
        let mut changes = self.agent.pods.subscribe();
        let mut manifests = self.manifests(&stop);
        let mut synced = Box::pin(self.agent.pods.synced());
        let mut is_synced = false;
        let mut swept = false;
        let mut again = self.agent.shared.clock.sleep(SWEEP_EVERY);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(change) = changes.recv() => self.changed(change),
                Some(event) = events.recv() => self.happened(&event),
                Some((uid, failure)) = evicted.recv() => match self.workers.get(&uid) {
                    Some(worker) => tell(worker, Wake::Fail(failure)),
                    None => drop(self.early.insert(uid, failure)),
                },
                // All that is due at a time of day is due at another moment now.
                Some(()) = stepped.recv() => self.workers.values().for_each(|worker| tell(worker, Wake::Look)),
                Some(uid) = self.endings.recv() => self.worker_ended(&uid),
                Some(pods) = manifests.recv() => self.take_manifests(pods),
                () = &mut synced, if !is_synced => is_synced = true,
                () = &mut again => {
                    swept = false;
                    again = self.agent.shared.clock.sleep(SWEEP_EVERY);
                }
            }
            if is_synced && self.roster.is_some() && !swept {
                swept = true;
                self.sweep().await;
            }
        }
        for worker in self.workers.values() {
            worker.task.abort();
        }
    }

    /// Lists of the static pods. A node without a folder of them has none.
    fn manifests(&self, stop: &watch::Receiver<bool>) -> mpsc::UnboundedReceiver<Vec<core::Pod>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let shared = &self.agent.shared;
        match shared.config.manifests.clone() {
            Some(folder) => {
                let (node, clock) = (shared.config.node_name.clone(), shared.clock.clone());
                client::spawn(folder::follow(folder, node, clock, sender, stop.clone()));
            }
            // The receiver is here.
            None => drop(sender.send(Vec::new())),
        }
        receiver
    }

    fn changed(&mut self, change: Change<core::Pod>) {
        let (old, new) = (change.old, change.new);
        if let Some(old) = old.filter(|o| new.as_ref().is_none_or(|n| n.uid != o.uid)) {
            if mirrored(&old.object).is_some() {
                self.tell_static(&old.key, Wake::MirrorGone(old.uid.clone()));
            } else if let Some(worker) = self.workers.get(&old.uid) {
                tell(worker, Wake::Gone);
            }
        }
        let Some(new) = new else { return };
        if mirrored(&new.object).is_some() {
            return self.take_mirror(new);
        }
        if !self.workers.contains_key(&new.uid) {
            self.start(new.object.clone(), Origin::Api, Duration::ZERO);
        }
        let Some(worker) = self.workers.get(&new.uid) else { return };
        if let Some(failure) = self.early.remove(&new.uid) {
            tell(worker, Wake::Fail(failure));
        }
        tell(worker, Wake::Pod(new));
    }

    fn happened(&self, event: &RuntimeEvent) {
        let known = self.agent.shared.view.pod_of(&event.sandbox_id);
        match known.and_then(|uid| self.workers.get(&uid)) {
            Some(worker) => tell(worker, Wake::Look),
            // Too new for the last listing: its worker is the one that made it, or everybody looks.
            None => self.workers.values().for_each(|worker| tell(worker, Wake::Look)),
        }
    }

    fn tell_static(&self, key: &ObjectKey, wake: Wake) {
        let worker = self.roster.as_ref().and_then(|roster| self.workers.get(roster.working(key)?));
        if let Some(worker) = worker {
            tell(worker, wake);
        }
    }

    /// A mirror goes to the worker of its pod; one of which no file is left goes away.
    fn take_mirror(&self, mirror: std::sync::Arc<Cached<core::Pod>>) {
        match &self.roster {
            Some(roster) if !roster.knows(&mirror.key) => self.remove_mirror(&mirror),
            _ => self.tell_static(&mirror.key.clone(), Wake::Mirror(mirror)),
        }
    }

    fn remove_mirror(&self, mirror: &Cached<core::Pod>) {
        let (client, key) = (self.agent.shared.client.clone(), mirror.key.clone());
        let options = RequestOptions {
            grace_period_seconds: Some(0),
            precondition_uid: Some(mirror.uid.clone()),
            ..RequestOptions::default()
        };
        client::spawn(async move {
            match client.delete(&crate::worker::pods(), &key, options).await {
                Ok(()) => {}
                Err(status) if status.is_not_found() || status.is_conflict() => {}
                Err(error) => tracing::warn!(pod = %key.name, %error, "cannot delete an orphaned mirror pod"),
            }
        });
    }

    /// Takes what the folder of manifests holds now.
    fn take_manifests(&mut self, pods: Vec<core::Pod>) {
        let roster = self.roster.get_or_insert_default();
        for uid in roster.replace(pods) {
            if let Some(worker) = self.workers.get(&uid) {
                tell(worker, Wake::Gone);
            }
        }
        self.begin("");
    }

    /// Starts static pods whose turn has come. `failed`: uid of one whose worker panicked.
    fn begin(&mut self, failed: &str) {
        for pod in self.roster.as_mut().map(Roster::begin).unwrap_or_default() {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let delay = if uid == failed { AFTER_PANIC } else { Duration::ZERO };
            let key = crate::worker::key_of(&pod);
            self.start(pod, Origin::File, delay);
            let mirror = self.agent.pods.get(&key).filter(|found| mirrored(&found.object).is_some());
            if let (Some(mirror), Some(worker)) = (mirror, self.workers.get(&uid)) {
                tell(worker, Wake::Mirror(mirror));
            }
        }
    }

    fn start(&mut self, pod: core::Pod, origin: Origin, delay: Duration) {
        let (wake, inbox) = mpsc::unbounded_channel();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let shared = self.agent.shared.clone();
        let clock = shared.clock.clone();
        let worker = PodWorker::new(shared, pod, origin, wake.clone(), inbox);
        let guard = SendOnDrop { ended: self.ended.clone(), uid: uid.clone() };
        let task = client::spawn(async move {
            if !delay.is_zero() {
                clock.sleep(delay).await;
            }
            worker.run().await;
            drop(guard);
        });
        self.workers.insert(uid, Worker { wake, task });
    }

    /// A worker has ended: for good, or by a panic; then the pod gets a new one.
    fn worker_ended(&mut self, uid: &str) {
        self.workers.remove(uid);
        if let Some(roster) = &mut self.roster {
            roster.ended(uid);
            self.begin(uid);
        }
        if let Some(cached) = self.agent.pods.list().into_iter().find(|c| c.uid == uid) {
            self.start(cached.object.clone(), Origin::Api, AFTER_PANIC);
        }
    }

    /// Pods that the runtime still has and nobody wants any longer: each gets a worker that removes it.
    async fn sweep(&mut self) {
        let snapshot = match self.agent.shared.view.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(%error, "cannot look for orphaned pods");
                return;
            }
        };
        let pods = self.agent.pods.list();
        for mirror in pods.iter().filter(|pod| mirrored(&pod.object).is_some()) {
            if self.roster.as_ref().is_some_and(|roster| !roster.knows(&mirror.key)) {
                self.remove_mirror(mirror);
            }
        }
        let mut known: BTreeSet<String> = pods.iter().map(|c| c.uid.clone()).collect();
        known.extend(self.roster.iter().flat_map(Roster::uids).map(str::to_owned));
        for (uid, record) in snapshot.iter().filter(|(uid, _)| !known.contains(*uid)) {
            let first = record.sandboxes.first();
            let meta = ObjectMeta {
                uid: Some(uid.clone()),
                name: first.map(|s| s.name.clone()),
                namespace: first.map(|s| s.namespace.clone()),
                ..ObjectMeta::default()
            };
            if !self.workers.contains_key(uid) {
                let pod = core::Pod { metadata: meta, ..core::Pod::default() };
                self.start(pod, Origin::Api, Duration::ZERO);
            }
            if let Some(worker) = self.workers.get(uid) {
                tell(worker, Wake::Gone);
            }
        }
        known.extend(self.workers.keys().cloned());
        self.clear_folders(known).await;
    }

    /// Removes the folders of pods that neither the API nor the runtime has, and gives their addresses back.
    async fn clear_folders(&self, known: BTreeSet<String>) {
        let config = &self.agent.shared.config;
        let (pods, logs) = (config.root_dir.clone(), config.log_root.clone());
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
            if let Err(error) = self.agent.shared.network.detach(&uid).await {
                tracing::warn!(pod = %uid, %error, "cannot release the network of a deleted pod");
            }
        }
    }
}

/// A worker that has just ended misses nothing: its end is handled next.
fn tell(worker: &Worker, wake: Wake) {
    drop(worker.wake.send(wake));
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
