//! What a user does to the cluster, and what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions, Status};
use client::Client;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::node::retry;
use crate::random::Random;

pub(crate) const NAMESPACE: &str = "default";
const DEPLOYMENTS: [&str; 3] = ["red", "green", "blue"];
const STEPS: usize = 24;

/// What the cluster must come to, and what it must have kept.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Replicas and version of the template.
    pub(crate) deployments: BTreeMap<String, (i64, u64)>,
    /// Acknowledged value of each ConfigMap; and the newest that was tried, which may have been written too.
    pub(crate) maps: BTreeMap<String, (u64, u64)>,
}

pub(crate) struct User {
    client: Client,
    random: Random,
    cluster: Arc<Cluster>,
    wanted: Wanted,
}

impl User {
    pub(crate) fn new(client: Client, seed: u64, cluster: Arc<Cluster>) -> Self {
        Self { client, random: Random::new(seed, "workload"), cluster, wanted: Wanted::default() }
    }

    /// Works against the cluster for a while.
    pub(crate) async fn work(mut self) -> Wanted {
        for name in DEPLOYMENTS {
            let replicas = 1 + i64::try_from(self.random.below(6)).unwrap_or(0);
            self.wanted.deployments.insert(name.into(), (replicas, 0));
            let object = deployment(name, replicas, 0);
            retry(&self.client, async || match self.client.create(Some(NAMESPACE), &object).await {
                Err(status) if !status.is_already_exists() => Err(status),
                Ok(_) | Err(_) => Ok(()),
            })
            .await;
        }
        for _ in 0..STEPS {
            tokio::time::sleep(self.random.millis(0, 6000)).await;
            match self.random.below(10) {
                0 | 1 => self.scale().await,
                2 => self.roll().await,
                3 | 4 => self.delete_a_pod().await,
                5 => self.cluster.crash_soon(),
                _ => self.write().await,
            }
        }
        self.wanted
    }

    fn pick(&self) -> &'static str {
        DEPLOYMENTS[usize::try_from(self.random.below(3)).unwrap_or(0)]
    }

    async fn scale(&mut self) {
        let name = self.pick();
        let replicas = i64::try_from(self.random.below(9)).unwrap_or(0);
        self.patch(name, &json!({"spec": {"replicas": replicas}})).await;
        self.wanted.deployments.entry(name.into()).or_default().0 = replicas;
    }

    async fn roll(&mut self) {
        let name = self.pick();
        let version = 1 + self.wanted.deployments[name].1;
        self.patch(name, &json!({"spec": {"template": template(name, version)}})).await;
        self.wanted.deployments.entry(name.into()).or_default().1 = version;
    }

    async fn patch(&self, name: &str, patch: &Value) {
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        let key = ObjectKey::new(NAMESPACE, name);
        retry(&self.client, async || {
            let options = RequestOptions::default();
            let kind = PatchType::Strategic;
            self.client.patch(&deployments, &key, None, kind, patch, options).await.map(drop)
        })
        .await;
    }

    async fn delete_a_pod(&self) {
        let Ok(pods) = self.client.list::<Pod>(Some(NAMESPACE), RequestOptions::default()).await else {
            return;
        };
        let names: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
        let Some(name) =
            usize::try_from(self.random.below(names.len() as u64)).ok().and_then(|n| names.get(n))
        else {
            return;
        };
        let pods = GroupVersionResource::new("", "v1", "pods");
        let key = ObjectKey::new(NAMESPACE, name);
        if let Err(status) = self.client.delete(&pods, &key, RequestOptions::default()).await {
            tracing::debug!(%status, "the pod stays");
        }
    }

    /// Writes a ConfigMap once, without trying again: what counts is whether it was acknowledged.
    async fn write(&mut self) {
        let name = format!("map-{}", self.random.below(5));
        let value = self.wanted.maps.values().map(|(_, tried)| *tried).max().unwrap_or(0) + 1;
        let known = self.wanted.maps.entry(name.clone()).or_insert((0, 0));
        known.1 = value;
        let outcome = set(&self.client, &name, value).await;
        if outcome.is_ok() {
            known.0 = value;
        }
    }
}

async fn set(client: &Client, name: &str, value: u64) -> Result<(), Status> {
    let maps = GroupVersionResource::new("", "v1", "configmaps");
    let data = json!({"data": {"value": value.to_string()}});
    let key = ObjectKey::new(NAMESPACE, name);
    match client.patch(&maps, &key, None, PatchType::Merge, &data, RequestOptions::default()).await {
        Err(status) if status.is_not_found() => {}
        outcome => return outcome.map(drop),
    }
    let mut object = data;
    object["metadata"] = json!({"name": name});
    let map: ConfigMap = serde_json::from_value(object).map_err(Status::internal)?;
    client.create(Some(NAMESPACE), &map).await.map(drop)
}

fn template(name: &str, version: u64) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{
            "name": "main", "image": "simulated", "env": [{"name": "VERSION", "value": version.to_string()}],
            "resources": {"requests": {"cpu": "250m"}},
        }]},
    })
}

fn deployment(name: &str, replicas: i64, version: u64) -> Deployment {
    let value = json!({
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, version)},
    });
    serde_json::from_value(value).expect("the example is a Deployment")
}

/// How long the cluster may take to come to rest once nothing fails any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
