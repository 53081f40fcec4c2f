//! ConfigMaps and Secrets that pods of this node use: one watch per object, shared, dropped with its last user; and one
//! watch of all trust bundles while a pod uses any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::ObjectKey;
use client::{Client, Informer, Kind, Scope};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::mpsc;

use crate::observed::{ephemeral_containers, init_containers, spec};

/// How long a first read may take before the pod's volumes count as failed.
const FIRST_READ: Duration = Duration::from_secs(10);

/// One watched object.
struct Watched<T> {
    key: ObjectKey,
    informer: Informer<T>,
    users: Mutex<Vec<mpsc::WeakUnboundedSender<()>>>,
}

impl<T> Watched<T> {
    fn tell(&self, user: &mpsc::UnboundedSender<()>) {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).push(user.downgrade());
    }
}

struct Pool<T> {
    client: Client,
    watched: Mutex<BTreeMap<ObjectKey, Weak<Watched<T>>>>,
}

impl<T: Kind> Pool<T> {
    fn acquire(&self, key: &ObjectKey, user: &mpsc::UnboundedSender<()>) -> Arc<Watched<T>> {
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, weak| weak.strong_count() > 0);
        let found = all.get(key).and_then(Weak::upgrade);
        let watched = found.unwrap_or_else(|| {
            let scope = Scope {
                namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                field_selector: Some(key)
                    .filter(|key| !key.name.is_empty())
                    .map(|key| format!("metadata.name={}", key.name)),
                ..Scope::default()
            };
            let fresh = watch(&self.client, key, scope);
            all.insert(key.clone(), Arc::downgrade(&fresh));
            fresh
        });
        watched.tell(user);
        watched
    }
}

fn watch<T: Kind>(client: &Client, key: &ObjectKey, scope: Scope) -> Arc<Watched<T>> {
    let informer = Informer::start(client, scope);
    let mut changes = informer.subscribe();
    let watched = Arc::new(Watched { key: key.clone(), informer, users: Mutex::default() });
    let weak = Arc::downgrade(&watched);
    client::spawn(async move {
        while changes.recv().await.is_some() {
            let Some(watched) = weak.upgrade() else { return };
            let mut users = watched.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|user| user.upgrade().is_some_and(|user| user.send(()).is_ok()));
        }
    });
    watched
}

/// All ConfigMaps and Secrets in use on the node.
pub struct References {
    config_maps: Pool<core::ConfigMap>,
    secrets: Pool<core::Secret>,
    /// All of them under the empty key: selectors range over them.
    trust_bundles: Pool<ClusterTrustBundle>,
    clock: Arc<dyn client::Clock>,
}

/// What one pod holds on to. Dropping it lets the watches go.
pub struct Held {
    config_maps: BTreeMap<String, Arc<Watched<core::ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Watched<core::Secret>>>,
    trust_bundles: Option<Arc<Watched<ClusterTrustBundle>>>,
}

/// Contents by name; `None` where there is no such object.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<core::ConfigMap>>,
    pub secrets: BTreeMap<String, Option<core::Secret>>,
    /// All that exist, if the pod uses any; sorted by name.
    pub trust_bundles: Vec<ClusterTrustBundle>,
}

impl References {
    /// No watch yet.
    pub fn new(client: &Client) -> Self {
        Self {
            config_maps: Pool { client: client.clone(), watched: Mutex::default() },
            secrets: Pool { client: client.clone(), watched: Mutex::default() },
            trust_bundles: Pool { client: client.clone(), watched: Mutex::default() },
            clock: client.clock().clone(),
        }
    }

    /// Starts (or joins) the watches of everything the pod names; `changed` hears of every later change.
    pub fn hold(&self, pod: &core::Pod, changed: &mpsc::UnboundedSender<()>) -> Held {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let (config_maps, secrets) = names(pod);
        let key = |name: &String| ObjectKey::new(namespace.clone(), name.clone());
        Held {
            config_maps: config_maps
                .iter()
                .map(|n| (n.clone(), self.config_maps.acquire(&key(n), changed)))
                .collect(),
            secrets: secrets.iter().map(|n| (n.clone(), self.secrets.acquire(&key(n), changed))).collect(),
            trust_bundles: uses_trust_bundles(pod)
                .then(|| self.trust_bundles.acquire(&ObjectKey::new("", ""), changed)),
        }
    }

    /// The contents now, once all first reads are done.
    ///
    /// # Errors
    /// The name of an object whose first read takes too long.
    pub async fn read(&self, held: &Held) -> Result<Sources, String> {
        let mut sources = Sources::default();
        for (name, watched) in &held.config_maps {
            self.wait(&watched.informer, "configmap", name).await?;
            let object = watched.informer.get(&watched.key).map(|c| c.object.clone());
            sources.config_maps.insert(name.clone(), object);
        }
        for (name, watched) in &held.secrets {
            self.wait(&watched.informer, "secret", name).await?;
            let object = watched.informer.get(&watched.key).map(|c| c.object.clone());
            sources.secrets.insert(name.clone(), object);
        }
        if let Some(watched) = &held.trust_bundles {
            self.wait(&watched.informer, "clustertrustbundle", "all").await?;
            sources.trust_bundles = watched.informer.list().iter().map(|c| c.object.clone()).collect();
        }
        Ok(sources)
    }

    async fn wait<T: Kind>(&self, informer: &Informer<T>, kind: &str, name: &str) -> Result<(), String> {
        tokio::select! {
            biased;
            () = informer.synced() => Ok(()),
            () = self.clock.sleep(FIRST_READ) => Err(format!("failed to sync {kind} cache: timed out waiting for {name:?}")),
        }
    }
}

fn uses_trust_bundles(pod: &core::Pod) -> bool {
    let projected = spec(pod).volumes.iter().flatten().filter_map(|v| v.projected.as_ref());
    projected.flat_map(|p| p.sources.iter().flatten()).any(|s| s.cluster_trust_bundle.is_some())
}

/// Names of the ConfigMaps and Secrets that a pod's volumes and environments use.
pub fn names(pod: &core::Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    secrets.extend(spec(pod).image_pull_secrets.iter().flatten().map(|s| s.name.clone()));
    for volume in spec(pod).volumes.iter().flatten() {
        maps.extend(volume.config_map.as_ref().map(|s| s.name.clone()));
        secrets.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(source.config_map.as_ref().map(|s| s.name.clone()));
            secrets.extend(source.secret.as_ref().map(|s| s.name.clone()));
        }
    }
    let ephemeral = ephemeral_containers(pod);
    for container in spec(pod).containers.iter().chain(init_containers(pod)).chain(&ephemeral) {
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    (maps, secrets)
}
