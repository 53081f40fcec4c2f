//! The controllers on the real API server and store, under their own identity: RBAC, admission and validation count.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::sync::Arc;
use std::time::Duration;

use api::{
    ApiRequest, ApiResponse, GroupVersionResource, ObjectKey, PatchType, RequestOptions, Status, Verb,
};
use apiserver::{ApiServer, NoNodes, ServerConfig, UserInfo};
use client::{Client, Transport};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;

struct Local(Arc<ApiServer>, UserInfo);

impl Transport for Local {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        self.0.call(&self.1, request)
    }
}

fn gvr(name: &str) -> GroupVersionResource {
    let group = match name {
        "deployments" | "replicasets" => "apps",
        "endpointslices" => "discovery.k8s.io",
        _ => "",
    };
    GroupVersionResource::new(group, "v1", name)
}

struct Cluster {
    admin: Client,
    _dir: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store::EmbeddedStore::open(dir.path(), store::Options::default()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let config = ServerConfig {
            service_cidrs: vec!["10.96.0.0/16".into()],
            cluster_cidrs: vec!["10.244.0.0/16".into()],
            node_port_range: (30000, 32767),
            advertise: "127.0.0.1:6443".parse().unwrap(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            service_account_key_pem: key.serialize_pem(),
            root_ca_pem: "PEM".into(),
            client_ca_pem: String::new(),
            front_proxy: None,
            gateway: Arc::new(NoNodes),
        };
        let server = ApiServer::open(store, config).await.unwrap();
        let client = |name: &str, group: &str| {
            let groups = vec![group.to_owned(), "system:authenticated".to_owned()];
            let user = UserInfo { name: name.into(), groups, ..UserInfo::default() };
            Client::new(Arc::new(Local(server.clone(), user)), "test")
        };
        let (stop, stopped) = watch::channel(false);
        let config = controllers::ControllersConfig { root_ca_pem: "PEM".into(), ..Default::default() };
        let manager = client("system:kube-controller-manager", "system:authenticated");
        client::spawn(controllers::run(manager, config, stopped));
        let cluster = Self { admin: client("admin", "system:masters"), _dir: dir, _stop: stop };
        client::spawn(run_nodes(cluster.admin.clone()));
        cluster
    }

    async fn create(&self, resource: &str, object: Value) {
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let request = ApiRequest::resource(Verb::Create, gvr(resource), namespace.as_deref(), None, None);
        self.admin.call(request.with_json(object.to_string())).await.unwrap();
    }

    async fn patch(&self, resource: &str, name: &str, patch: Value) {
        let key = ObjectKey::new("shop", name);
        let options = RequestOptions::default();
        self.admin.patch(&gvr(resource), &key, None, PatchType::Merge, &patch, options).await.unwrap();
    }

    async fn delete(&self, resource: &str, key: &ObjectKey, policy: &str) {
        let options = RequestOptions { propagation_policy: Some(policy.into()), ..RequestOptions::default() };
        self.admin.delete(&gvr(resource), key, options).await.unwrap();
    }

    async fn all(&self, resource: &str) -> Vec<Value> {
        let namespace = (resource != "namespaces").then_some("shop");
        let request = ApiRequest::resource(Verb::List, gvr(resource), namespace, None, None);
        let list = self.admin.object(request).await.unwrap();
        list.get(&["items"]).and_then(Value::as_array).cloned().unwrap_or_default()
    }

    async fn until(&self, what: &str, resource: &str, test: impl Fn(&[Value]) -> bool) {
        for _ in 0..600 {
            if test(&self.all(resource).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut world = String::new();
        for resource in ["deployments", "replicasets", "pods", "endpointslices"] {
            for mut object in self.all(resource).await {
                object["metadata"]["managedFields"] = Value::Null;
                world.push_str(&format!("{resource} {object}\n"));
            }
        }
        panic!("never: {what}\n{world}");
    }

    async fn until_rolled_out(&self, replicas: usize, image: &str) {
        self.until(&format!("{replicas} of {image}"), "deployments", |all| {
            let [web] = all else { return false };
            let wanted = |field: &str| web["status"][field].as_u64().unwrap_or(0) == replicas as u64;
            ["replicas", "updatedReplicas", "availableReplicas"].into_iter().all(wanted)
                && web["status"]["observedGeneration"] == web["metadata"]["generation"]
        })
        .await;
        self.until(&format!("{replicas} pods of {image}"), "pods", |pods| {
            pods.len() == replicas && pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == image)
        })
        .await;
    }
}

/// Makes every pod ready and ends deleted ones, as nodes do.
async fn run_nodes(admin: Client) {
    let pods = client::Informer::<controllers::pod::Pod>::start(&admin, client::Scope::default());
    let mut changes = pods.subscribe();
    let mut address = 0;
    while let Some(change) = changes.recv().await {
        let Some(pod) = change.new else { continue };
        let result = if pod.deleting {
            let options = RequestOptions { grace_period_seconds: Some(0), ..RequestOptions::default() };
            admin.delete(&gvr("pods"), &pod.key, options).await
        } else if !pod.object.is_ready() {
            address += 1;
            let status = json!({"status": {
                "phase": "Running", "podIP": format!("10.244.0.{address}"), "podIPs": [{"ip": format!("10.244.0.{address}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }});
            let options = RequestOptions::default();
            admin
                .patch(&gvr("pods"), &pod.key, Some("status"), PatchType::Merge, &status, options)
                .await
                .map(drop)
        } else {
            Ok(())
        };
        if let Err(status) = result {
            assert!(status.is_not_found() || status.is_conflict(), "{status}");
        }
    }
}

fn web(replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_application_lives_and_dies() {
    let cluster = Cluster::start().await;
    cluster
        .create("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .await;
    let named = |name: &'static str| move |all: &[Value]| all.iter().any(|o| o["metadata"]["name"] == name);
    cluster.until("an account", "serviceaccounts", named("default")).await;
    cluster.until("certificates", "configmaps", named("kube-root-ca.crt")).await;
    cluster
        .create(
            "services",
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
            }),
        )
        .await;
    cluster.create("deployments", web(3, "one")).await;
    cluster.until_rolled_out(3, "one").await;
    let endpoints = |wanted: usize| {
        move |slices: &[Value]| {
            let count = |slice: &Value| slice["endpoints"].as_array().map_or(0, Vec::len);
            slices.iter().map(count).sum::<usize>() == wanted
        }
    };
    cluster.until("three endpoints", "endpointslices", endpoints(3)).await;

    cluster.patch("deployments", "web", json!({"spec": {"replicas": 20}})).await;
    cluster.until_rolled_out(20, "one").await;
    let template = json!({"spec": {"containers": [{"name": "main", "image": "two"}]}});
    cluster.patch("deployments", "web", json!({"spec": {"template": template}})).await;
    cluster.until_rolled_out(20, "two").await;
    cluster.patch("deployments", "web", json!({"spec": {"replicas": 1}})).await;
    cluster.until_rolled_out(1, "two").await;

    let pods = cluster.all("pods").await;
    let name = pods[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.delete("pods", &ObjectKey::new("shop", &*name), "Background").await;
    cluster
        .until("a replacement", "pods", |pods| {
            pods.len() == 1 && pods[0]["metadata"]["name"] != name.as_str()
        })
        .await;

    cluster.delete("deployments", &ObjectKey::new("shop", "web"), "Foreground").await;
    cluster.until("no deployment", "deployments", <[Value]>::is_empty).await;
    cluster.until("no sets", "replicasets", <[Value]>::is_empty).await;
    cluster.until("no pods", "pods", <[Value]>::is_empty).await;

    cluster.create("deployments", web(3, "one")).await;
    cluster.until_rolled_out(3, "one").await;
    cluster.delete("namespaces", &ObjectKey::new("", "shop"), "Background").await;
    let gone = |all: &[Value]| all.iter().all(|namespace| namespace["metadata"]["name"] != "shop");
    cluster.until("no namespace", "namespaces", gone).await;
    for resource in
        ["pods", "replicasets", "deployments", "services", "endpointslices", "configmaps", "serviceaccounts"]
    {
        assert!(cluster.all(resource).await.is_empty(), "{resource} left");
    }
}
