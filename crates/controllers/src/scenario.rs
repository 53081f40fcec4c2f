//! All controllers on a server in memory, with nodes that make pods ready.

use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey};
use client::Controller;
use client::testing::MiniServer;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::discovery::ApiResource;

pub(crate) fn gvr(name: &str) -> GroupVersionResource {
    let group = match name {
        "deployments" | "replicasets" => "apps",
        "endpointslices" => "discovery.k8s.io",
        _ => "",
    };
    GroupVersionResource::new(group, "v1", name)
}

const SERVED: [(&str, &str, bool); 9] = [
    ("pods", "Pod", true),
    ("configmaps", "ConfigMap", true),
    ("serviceaccounts", "ServiceAccount", true),
    ("services", "Service", true),
    ("events", "Event", true),
    ("namespaces", "Namespace", false),
    ("deployments", "Deployment", true),
    ("replicasets", "ReplicaSet", true),
    ("endpointslices", "EndpointSlice", true),
];

/// The served resources, as discovery would list them.
pub(crate) fn resources() -> Vec<ApiResource> {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"].map(str::to_owned).to_vec();
    let one = |(name, kind, namespaced): (&str, &str, bool)| ApiResource {
        gvr: gvr(name),
        kind: kind.into(),
        namespaced,
        verbs: verbs.clone(),
        versions: vec!["v1".into()],
    };
    SERVED.into_iter().map(one).collect()
}

pub(crate) struct Cluster {
    pub(crate) server: MiniServer,
    _stop: watch::Sender<bool>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let server = MiniServer::new();
        for (name, kind, namespaced) in SERVED {
            server.serve(gvr(name), kind, namespaced);
        }
        let (stop, stopped) = watch::channel(false);
        let config = crate::ControllersConfig { root_ca_pem: "PEM".into(), ..Default::default() };
        client::spawn(crate::run(server.client(), config, stopped));
        let cluster = Self { server, _stop: stop };
        cluster.create("namespaces", json!({"metadata": {"name": "default"}})).await;
        cluster
    }

    /// Nodes: every pod gets an address and becomes ready; a deleted pod ends.
    pub(crate) fn start_nodes(&self) {
        self.server.set_graceful("pods");
        let server = self.server.clone();
        client::spawn(async move {
            let pods = client::Informer::<crate::pod::Pod>::start(&server.client(), client::Scope::default());
            let mut changes = pods.subscribe();
            let mut addresses = 0_u32;
            while let Some(change) = changes.recv().await {
                let Some(pod) = change.new else { continue };
                if pod.deleting {
                    server.remove(&gvr("pods"), &pod.key);
                } else if pod.object.status.phase.is_empty() {
                    addresses += 1;
                    let status = json!({
                        "phase": "Running", "podIP": format!("10.0.0.{addresses}"),
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                    });
                    let mut objects = server.objects("pods").into_iter();
                    if let Some(mut object) =
                        objects.find(|object| object["metadata"]["uid"] == pod.uid.as_str())
                    {
                        object["status"] = status;
                        server.put(&gvr("pods"), object);
                    }
                }
            }
        });
    }

    pub(crate) async fn create(&self, resource: &str, object: Value) {
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let request =
            api::ApiRequest::resource(api::Verb::Create, gvr(resource), namespace.as_deref(), None, None);
        self.server.client().call(request.with_json(object.to_string())).await.unwrap();
    }

    pub(crate) async fn patch(&self, resource: &str, key: &ObjectKey, patch: Value) {
        let options = api::RequestOptions::default();
        let client = self.server.client();
        client.patch(&gvr(resource), key, None, api::PatchType::Merge, &patch, options).await.unwrap();
    }

    pub(crate) async fn delete(&self, resource: &str, key: &ObjectKey, policy: &str) {
        let options = api::RequestOptions { propagation_policy: Some(policy.into()), ..Default::default() };
        self.server.client().delete(&gvr(resource), key, options).await.unwrap();
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        self.server.objects(resource)
    }

    pub(crate) fn one(&self, resource: &str, name: &str) -> Value {
        let found = self.all(resource).into_iter().find(|object| object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} among {resource}"))
    }

    /// Waits for something to become true and shows the world when it does not.
    pub(crate) async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        for _ in 0..4000 {
            if test(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let world: Vec<Value> =
            ["deployments", "replicasets", "pods"].iter().flat_map(|r| self.all(r)).collect();
        panic!("never: {what}\n{}", serde_json::to_string_pretty(&world).unwrap());
    }
}

/// One of each controller, for tests that range over all.
pub(crate) fn controllers() -> Vec<Arc<dyn Controller>> {
    let resources = Arc::new(resources());
    vec![
        Arc::new(crate::deployment::DeploymentController),
        Arc::new(crate::replicaset::ReplicaSetController),
        Arc::new(crate::endpointslice::EndpointSliceController),
        Arc::new(crate::namespace::NamespaceController { resources: resources.clone(), unknown: Vec::new() }),
        Arc::new(crate::service_account::ServiceAccountController),
        Arc::new(crate::root_ca::RootCaController { pem: "PEM".into() }),
        Arc::new(crate::garbage_collector::GarbageCollector { resources }),
    ]
}

/// A deployment like that of the examples.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    })
}
