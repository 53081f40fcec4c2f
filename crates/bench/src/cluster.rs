//! A Podium on an empty data directory, and a client of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use api::{ApiRequest, GroupVersionResource, ObjectKey, RequestOptions, WatchStream};
use base64::Engine as _;
use client::{Client, HttpTransport, Identity};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two questions while starting.
const STEP: Duration = Duration::from_millis(2);

pub(crate) struct Cluster {
    folder: PathBuf,
    podium: PathBuf,
    child: Child,
    pub(crate) client: Client,
    /// From the start of the process to the answer of /readyz, and to a node that is Ready.
    pub(crate) ready: Duration,
    pub(crate) node_ready: Duration,
    pub(crate) begun: Instant,
}

impl Cluster {
    pub(crate) async fn start(podium: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("podium-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let data = folder.join("data");
        let begun = Instant::now();
        let mut command = Command::new(podium);
        command.args(["up", "--node-name", "bench", "--listen", "127.0.0.1:6443", "--data-dir"]).arg(&data);
        let child = command
            .env("PODIUM_LOG", "error")
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start podium")?;
        let client = loop {
            if let Some(client) = connect(&data)
                && client.call(ApiRequest::path("/readyz")).await.is_ok()
            {
                break client;
            }
            ensure!(begun.elapsed() < PATIENCE, "not ready");
            tokio::time::sleep(STEP).await;
        };
        let ready = begun.elapsed();
        loop {
            let node = client.get::<Node>(&ObjectKey::new("", "bench")).await.ok();
            let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "no node is ready");
            tokio::time::sleep(STEP).await;
        }
        let node_ready = begun.elapsed();
        Ok(Self { folder, podium: podium.to_owned(), child, client, ready, node_ready, begun })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Pods from now on.
    pub(crate) async fn watch(&self) -> Result<WatchStream> {
        let list = self.client.list::<Pod>(Some("default"), RequestOptions::default()).await;
        let version = list.map_err(|status| anyhow!("cannot list pods: {status}"))?.resource_version;
        let options = RequestOptions { resource_version: Some(version), ..RequestOptions::default() };
        let pods = GroupVersionResource::new("", "v1", "pods");
        let watch = self.client.watch(&pods, Some("default"), options).await;
        watch.map_err(|status| anyhow!("cannot watch pods: {status}"))
    }

    /// Creates a pod that does nothing; gives the time until a watcher sees it Running.
    pub(crate) async fn pod_to_running(&self, name: &str, watch: &mut WatchStream) -> Result<Duration> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": idle()}))?;
        let begun = Instant::now();
        // the service account of a new namespace takes a moment
        while let Err(status) = self.client.create(Some("default"), &pod).await {
            ensure!(begun.elapsed() < PATIENCE, "cannot create a pod: {status}");
            tokio::time::sleep(STEP).await;
        }
        self.running(watch, |seen| seen == name, 1).await?;
        Ok(begun.elapsed())
    }

    /// Waits until this many pods of those chosen were seen Running and ready.
    pub(crate) async fn running(
        &self,
        watch: &mut WatchStream,
        chosen: impl Fn(&str) -> bool,
        count: usize,
    ) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        let wait = async {
            while let Some(event) = watch.next().await {
                let object: Value = serde_json::from_slice(&event.object)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let ready = object["status"]["containerStatuses"][0]["ready"] == true;
                if chosen(name) && object["status"]["phase"] == "Running" && ready {
                    seen.insert(name.to_owned());
                    if seen.len() >= count {
                        return Ok(());
                    }
                }
            }
            bail!("the watch ended")
        };
        tokio::time::timeout(PATIENCE, wait).await.context("pods do not run")?
    }

    /// Deletes everything in the default namespace that was made here, and waits for the pods' end.
    pub(crate) async fn clear(&self) -> Result<()> {
        for (group, resource) in [("apps", "deployments"), ("", "pods")] {
            let gvr = GroupVersionResource::new(group, "v1", resource);
            let mut request =
                ApiRequest::resource(api::Verb::DeleteCollection, gvr, Some("default"), None, None);
            request.options.grace_period_seconds = Some(0);
            self.client
                .call(request)
                .await
                .map_err(|status| anyhow!("cannot delete {resource}: {status}"))?;
        }
        let begun = Instant::now();
        while !self.pods().await?.is_empty() {
            ensure!(begun.elapsed() < PATIENCE, "pods do not end");
            tokio::time::sleep(STEP * 50).await;
        }
        Ok(())
    }

    pub(crate) async fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.client.list::<Pod>(Some("default"), RequestOptions::default()).await;
        Ok(list.map_err(|status| anyhow!("cannot list pods: {status}"))?.items)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let stopped = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = self.child.wait();
        let mut down = Command::new(&self.podium);
        let down = down.args(["down", "--purge", "--data-dir"]).arg(self.folder.join("data")).output();
        let removed = std::fs::remove_dir_all(&self.folder);
        if stopped.is_err() || ended.is_err() || !down.is_ok_and(|d| d.status.success()) || removed.is_err() {
            crate::say("bench: something was left behind");
        }
    }
}

/// A pod that sleeps.
pub(crate) fn idle() -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "main", "image": "podium.local/toolbox", "command": ["sleep", "3600"]}]})
}

fn connect(data: &Path) -> Option<Client> {
    let text = std::fs::read_to_string(data.join("admin.kubeconfig")).ok()?;
    let value = |field: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(&format!("{field}: "))).map(str::to_owned)
    };
    let decode = |field: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value(field)?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let identity = Identity::ClientCert {
        cert_pem: decode("client-certificate-data")?,
        key_pem: decode("client-key-data")?,
    };
    let transport = HttpTransport::new(&value("server")?, &decode("certificate-authority-data")?, identity);
    Some(Client::new(Arc::new(transport.ok()?), "bench"))
}
