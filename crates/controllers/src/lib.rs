//! The controllers, one module each. A module decides (`plan`); the runner of `client` acts.
//!
//! ```text
//!   Deployment ──▶ ReplicaSet ──▶ Pod ──▶ EndpointSlice, Endpoints ◀── Service
//!   PersistentVolumeClaim ◀──▶ PersistentVolume      ResourceQuota: what a namespace uses
//!   Namespace: empties what is terminating      garbage collector: follows owner references
//!   HorizontalPodAutoscaler ──▶ scale of what it names      default ServiceAccount and root CA in every namespace
//! ```
//!
//! Invariants:
//! - `plan` is a function of key, view and time; on a converged view it is empty.
//! - What ranges over all kinds ranges over discovery, never over a list of kinds.
//! - An object is controlled by one owner; an orphan is adopted only after a live read of the adopter.

pub mod autoscaler;
pub mod claim;
pub mod cronjob;
pub mod csr_cleaner;
pub mod daemonset;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage_collector;
mod history;
pub mod job;
pub mod namespace;
pub mod node;
pub mod node_lifecycle;
pub mod pod;
pub mod pod_gc;
pub mod replicaset;
pub mod resource_quota;
pub mod root_ca;
pub mod service_account;
pub mod statefulset;
pub mod taint_eviction;
pub mod volume;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Controller, Informer, Scope};
use tokio::sync::watch;

/// What the controllers must know about the cluster.
#[derive(Clone, Debug, Default)]
pub struct ControllersConfig {
    /// Certificates that clients in pods trust, PEM.
    pub root_ca_pem: String,
    pub node_grace: node_lifecycle::Grace,
}

/// Runs all controllers until `stop` turns true.
pub async fn run(client: Client, config: ControllersConfig, stop: watch::Receiver<bool>) {
    let controllers: Vec<Arc<dyn Controller>> = vec![
        Arc::new(deployment::DeploymentController),
        Arc::new(replicaset::ReplicaSetController),
        Arc::new(replicaset::ReplicationControllerController),
        Arc::new(daemonset::DaemonSetController),
        Arc::new(statefulset::StatefulSetController),
        Arc::new(job::JobController),
        Arc::new(cronjob::CronJobController),
        Arc::new(node_lifecycle::NodeLifecycleController { grace: config.node_grace }),
        Arc::new(taint_eviction::TaintEvictionController),
        Arc::new(pod_gc::PodGcController),
        Arc::new(disruption::DisruptionController),
        Arc::new(csr_cleaner::CsrCleaner),
        Arc::new(endpoints::EndpointsController),
        Arc::new(endpointslice::EndpointSliceController),
        Arc::new(endpointslice::EndpointSliceMirroringController),
        Arc::new(volume::PersistentVolumeBinder),
        Arc::new(volume::ClaimProtection),
        Arc::new(volume::VolumeProtection),
        Arc::new(volume::EphemeralVolumeController),
        Arc::new(service_account::ServiceAccountController),
        Arc::new(root_ca::RootCaController { pem: config.root_ca_pem }),
    ];
    tokio::join!(
        client::runner::run(client.clone(), controllers, stop.clone()),
        run_over_all_kinds(client, stop)
    );
}

/// How soon discovery is read again that was not complete.
const INCOMPLETE: Duration = Duration::from_secs(30);

/// Runs the controllers that range over all kinds; anew whenever a definition of custom resources or an APIService changes
/// what they are.
async fn run_over_all_kinds(client: Client, mut stop: watch::Receiver<bool>) {
    let definitions = Informer::<Definition>::start(&client, Scope::default());
    let registrations = Informer::<Registration>::start(&client, Scope::default());
    let memory: Arc<autoscaler::Memory> = Arc::default();
    let (mut changes, mut moves) = (definitions.subscribe(), registrations.subscribe());
    let mut kinds = tokio::select! {
        kinds = discover(&client) => kinds,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    loop {
        let resources = Arc::new(kinds.resources.clone());
        let unknown = kinds.unknown.clone();
        let controllers: Vec<Arc<dyn Controller>> = vec![
            Arc::new(namespace::NamespaceController { resources: resources.clone(), unknown }),
            Arc::new(resource_quota::ResourceQuotaController { resources: resources.clone() }),
            Arc::new(autoscaler::HorizontalController {
                resources: resources.clone(),
                memory: memory.clone(),
            }),
            Arc::new(garbage_collector::GarbageCollector { resources }),
        ];
        let (end, ended) = watch::channel(false);
        let running = client::runner::run(client.clone(), controllers, ended);
        let changed = async {
            loop {
                let clock = client.clock();
                let open = tokio::select! {
                    change = changes.recv() => change.is_some(),
                    change = moves.recv() => change.is_some(),
                    () = clock.sleep(INCOMPLETE), if !kinds.unknown.is_empty() => true,
                };
                if !open {
                    return None;
                }
                let found = discover(&client).await;
                if found != kinds {
                    return Some(found);
                }
            }
        };
        let next = async {
            let next = tokio::select! {
                next = changed => next,
                _ = stop.wait_for(|stop| *stop) => None,
            };
            end.send_replace(true);
            next
        };
        match tokio::join!(running, next).1 {
            Some(found) => kinds = found,
            None => return,
        }
    }
}

/// A CustomResourceDefinition, of which only the existence matters here: what it means is read from discovery.
#[derive(serde::Deserialize)]
struct Definition {}

impl client::Kind for Definition {
    fn gvr() -> api::GroupVersionResource {
        api::GroupVersionResource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("apiextensions.k8s.io/v1".to_owned(), "CustomResourceDefinition")
    }
}

/// An APIService; here too only its changes matter.
#[derive(serde::Deserialize)]
struct Registration {}

impl client::Kind for Registration {
    fn gvr() -> api::GroupVersionResource {
        api::GroupVersionResource::new("apiregistration.k8s.io", "v1", "apiservices")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("apiregistration.k8s.io/v1".to_owned(), "APIService")
    }
}

/// Reads discovery, as often as it takes.
async fn discover(client: &Client) -> discovery::Discovered {
    let mut backoff = client::clock::Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        match discovery::read(client).await {
            Ok(found) => return found,
            Err(status) => tracing::warn!(%status, "cannot read discovery"),
        }
        client.clock().sleep(backoff.next(client.clock().as_ref())).await;
    }
}

#[cfg(test)]
mod scenario;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod text;
