//! The runtime's lists, shared: workers that look at the same time share one listing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::ports::{ContainerStatus, Runtime, RuntimeError, SandboxStatus};

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodRecord {
    /// Newest first.
    pub sandboxes: Vec<SandboxStatus>,
    pub containers: Vec<ContainerStatus>,
}

/// All pods of the runtime, by uid.
pub type Snapshot = BTreeMap<String, PodRecord>;

type Answer = Result<Arc<Snapshot>, RuntimeError>;

/// Handle of the listing task, which ends with the last handle.
#[derive(Clone)]
pub struct RuntimeView {
    requests: mpsc::UnboundedSender<oneshot::Sender<Answer>>,
    pods: Arc<Mutex<HashMap<String, String>>>,
}

impl RuntimeView {
    /// Starts the listing task.
    pub fn start(runtime: Arc<dyn Runtime>) -> Self {
        let (requests, mut incoming) = mpsc::unbounded_channel::<oneshot::Sender<Answer>>();
        let pods: Arc<Mutex<HashMap<String, String>>> = Arc::default();
        let index = pods.clone();
        client::spawn(async move {
            while let Some(first) = incoming.recv().await {
                let mut waiting = vec![first];
                while let Ok(next) = incoming.try_recv() {
                    waiting.push(next);
                }
                let answer = list(&*runtime).await.map(Arc::new);
                if let Ok(snapshot) = &answer {
                    let sandboxes =
                        snapshot.iter().flat_map(|(uid, r)| r.sandboxes.iter().map(move |s| (uid, s)));
                    let fresh = sandboxes.map(|(uid, s)| (s.id.clone(), uid.clone())).collect();
                    *index.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                }
                for waiter in waiting {
                    // A waiter that has gone needs no answer.
                    drop(waiter.send(answer.clone()));
                }
            }
        });
        Self { requests, pods }
    }

    /// A listing that began after this call.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn snapshot(&self) -> Answer {
        let (tx, rx) = oneshot::channel();
        let stopped = || RuntimeError::Other("the runtime listing has stopped".into());
        self.requests.send(tx).map_err(|_| stopped())?;
        rx.await.map_err(|_| stopped())?
    }

    /// Notes a sandbox that was made after the last listing, so that its events find their pod.
    pub fn learn(&self, sandbox_id: &str, pod_uid: &str) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.insert(sandbox_id.to_owned(), pod_uid.to_owned());
    }

    /// Pod uid of a sandbox, from the last listing or [`RuntimeView::learn`].
    pub fn pod_of(&self, sandbox_id: &str) -> Option<String> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(sandbox_id).cloned()
    }
}

async fn list(runtime: &dyn Runtime) -> Result<Snapshot, RuntimeError> {
    let mut snapshot = Snapshot::new();
    // Containers first: a container without its sandbox would look lost.
    let containers = runtime.list_containers().await?;
    for sandbox in runtime.list_pod_sandboxes().await? {
        snapshot.entry(sandbox.pod_uid.clone()).or_default().sandboxes.push(sandbox);
    }
    for container in containers {
        snapshot.entry(container.pod_uid.clone()).or_default().containers.push(container);
    }
    for record in snapshot.values_mut() {
        record.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at_nanos)));
    }
    Ok(snapshot)
}
