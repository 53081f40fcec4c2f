//! A running Podium, seen through its API.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{ApiRequest, GroupVersionResource, ObjectKey, PatchType, RequestOptions, ResponseBody, Verb};
use base64::Engine as _;
use client::{Client, HttpTransport, Identity};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};

use crate::PATIENCE;

/// Namespace of the example.
pub(crate) const NAMESPACE: &str = "shop";

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    child: Child,
    client: Client,
    /// URL of the `curl` line that `up --apply` prints.
    pub(crate) curl_line: String,
    pub(crate) instance: String,
}

/// What the test needs to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) name: String,
    pub(crate) ip: String,
    pub(crate) ready: bool,
    pub(crate) restarts: i32,
    pub(crate) container_id: String,
}

impl Cluster {
    /// Runs the main job up to the line that says how to reach the application.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/web.yaml");
        let mut child = podium(&dir.path().join("data")).arg("--apply").arg(manifest).spawn().unwrap();
        let curl_line =
            wait_for_line(&mut child, |line| line.trim().strip_prefix("curl ").map(str::to_owned));
        let data = dir.path().join("data");
        let client = connect(&data);
        let instance = instance(&data);
        Self { dir, child, client, curl_line, instance }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts Podium again after it was killed.
    pub(crate) async fn restart(&mut self) {
        self.child = podium(&self.data_dir()).spawn().unwrap();
        wait_for_line(&mut self.child, |line| line.starts_with("cluster ready").then_some(()));
        self.client = connect(&self.data_dir());
    }

    /// Stops Podium with SIGTERM, then removes everything.
    pub(crate) fn down(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "SIGTERM is a clean stop");
        let status = Command::new(env!("CARGO_BIN_EXE_podium"))
            .args(["down", "--purge", "--data-dir"])
            .arg(self.data_dir())
            .status()
            .unwrap();
        assert!(status.success(), "down: {status}");
    }

    /// Asks again and again until a condition holds: conditions of a cluster come about by themselves.
    pub(crate) async fn eventually(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self).await {
            if begun.elapsed() > PATIENCE {
                let pods = self.client.list::<Pod>(None, RequestOptions::default()).await;
                for pod in pods.map(|list| list.items).unwrap_or_default() {
                    println!("{}", serde_json::to_string(&json!([pod.metadata.name, pod.status])).unwrap());
                }
                panic!("not within {} s: {what}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("   {what}: {:.1} s", begun.elapsed().as_secs_f64());
    }

    /// Body of a GET without TLS.
    pub(crate) fn get(&self, url: &str) -> String {
        self.try_get(url).unwrap_or_else(|| panic!("{url} does not answer"))
    }

    pub(crate) fn try_get(&self, url: &str) -> Option<String> {
        let (host, path) = url.strip_prefix("http://")?.split_once('/')?;
        let address = host.parse().ok()?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }

    pub(crate) async fn pod(&self, name: &str) -> Option<PodFacts> {
        let pod = self.client.get::<Pod>(&ObjectKey::new(NAMESPACE, name)).await.ok()?;
        facts(&pod)
    }

    /// Pods of the Deployment that are not being deleted.
    pub(crate) async fn web_pods(&self) -> Vec<PodFacts> {
        let options = RequestOptions { label_selector: Some("app=web".into()), ..RequestOptions::default() };
        let Ok(list) = self.client.list::<Pod>(Some(NAMESPACE), options).await else { return Vec::new() };
        list.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).filter_map(facts).collect()
    }

    /// Name and container of every running pod of the example.
    pub(crate) async fn containers(&self) -> BTreeSet<(String, String)> {
        let list = self.client.list::<Pod>(Some(NAMESPACE), RequestOptions::default()).await;
        let pods = list.map(|list| list.items).unwrap_or_default();
        let running = pods.iter().filter_map(facts).filter(|pod| pod.ready);
        running.map(|pod| (pod.name, pod.container_id)).collect()
    }

    /// Replica names in the newest lines of the client pod's log.
    pub(crate) async fn answering_replicas(&self) -> BTreeSet<String> {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let mut request = ApiRequest::resource(Verb::Get, pods, Some(NAMESPACE), Some("client"), Some("log"));
        request.options.extra.push(("tailLines".into(), "30".into()));
        let Ok(response) = self.client.call(request).await else { return BTreeSet::new() };
        let ResponseBody::Stream(mut stream) = response.body else { panic!("a log is a stream") };
        let mut bytes = Vec::new();
        while let Some(Ok(part)) = stream.next().await {
            bytes.extend_from_slice(&part);
        }
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter_map(|line| line.strip_prefix("hello from ")).map(str::to_owned).collect()
    }

    /// Addresses of the Service's ready endpoints.
    pub(crate) async fn ready_endpoints(&self) -> BTreeSet<String> {
        let slices = self.read("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices").await;
        let mut addresses = BTreeSet::new();
        for slice in slices["items"].as_array().into_iter().flatten() {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"] == true {
                    addresses.extend(endpoint["addresses"][0].as_str().map(str::to_owned));
                }
            }
        }
        addresses
    }

    pub(crate) async fn patch_deployment(&self, patch: &Value) {
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        let key = ObjectKey::new(NAMESPACE, "web");
        let options = RequestOptions::default();
        self.client.patch(&deployments, &key, None, PatchType::Strategic, patch, options).await.unwrap();
    }

    /// Whether the Deployment has just this many pods, all of the newest template and available.
    pub(crate) async fn rolled_out(&self, replicas: i64) -> bool {
        let web = self.read("/apis/apps/v1/namespaces/shop/deployments/web").await;
        let status = &web["status"];
        let is = |field: &str| status[field].as_i64().unwrap_or(0) == replicas;
        status["observedGeneration"] == web["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas", "readyReplicas"].into_iter().all(is)
            && self.web_pods().await.len() == usize::try_from(replicas).unwrap()
    }

    pub(crate) async fn delete_pod(&self, name: &str) {
        let pods = GroupVersionResource::new("", "v1", "pods");
        self.client.delete(&pods, &ObjectKey::new(NAMESPACE, name), RequestOptions::default()).await.unwrap();
    }

    pub(crate) async fn delete_namespace(&self, name: &str) {
        let namespaces = GroupVersionResource::new("", "v1", "namespaces");
        self.client.delete(&namespaces, &ObjectKey::new("", name), RequestOptions::default()).await.unwrap();
    }

    pub(crate) async fn namespace_exists(&self, name: &str) -> bool {
        self.read(&format!("/api/v1/namespaces/{name}")).await["metadata"]["name"] == name
    }

    /// Creates ConfigMaps one after the other from number `first` on while Podium is killed; returns the first number
    /// that was not acknowledged.
    pub(crate) async fn write_and_kill(&mut self, first: usize) -> usize {
        let client = self.client.clone();
        let (written, mut progress) = tokio::sync::watch::channel(first);
        let writer = tokio::spawn(async move {
            for number in first.. {
                written.send_replace(number);
                let map: ConfigMap =
                    serde_json::from_value(json!({"metadata": {"name": format!("written-{number}")}}))
                        .unwrap();
                if client.create(Some("default"), &map).await.is_err() {
                    return number;
                }
            }
            first
        });
        let begun = progress.wait_for(|number| *number >= first + 25);
        tokio::time::timeout(PATIENCE, begun).await.expect("writes are acknowledged").unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let number = writer.await.unwrap();
        assert!(number > first, "something was written");
        number
    }

    /// Numbers of the ConfigMaps that are there, in order.
    pub(crate) async fn written(&self) -> Vec<usize> {
        let list = self.client.list::<ConfigMap>(Some("default"), RequestOptions::default()).await.unwrap();
        let names = list.items.into_iter().filter_map(|map| map.metadata.name);
        let mut numbers: Vec<usize> =
            names.filter_map(|name| name.strip_prefix("written-").and_then(|n| n.parse().ok())).collect();
        numbers.sort_unstable();
        numbers
    }

    async fn read(&self, path: &str) -> Value {
        match self.client.call(ApiRequest::path(path)).await.and_then(api::ApiResponse::into_bytes) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Err(_) => Value::Null,
        }
    }
}

impl Drop for Cluster {
    /// After a failed assertion: leave nothing behind all the same.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        drop(self.child.kill());
        drop(self.child.wait());
        drop(
            Command::new(env!("CARGO_BIN_EXE_podium"))
                .args(["down", "--purge", "--data-dir"])
                .arg(self.data_dir())
                .status(),
        );
    }
}

fn podium(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podium"));
    command.args(["up", "--node-name", "e2e", "--listen", "0.0.0.0:6443", "--data-dir"]).arg(data_dir);
    command.stdout(Stdio::piped());
    command
}

/// Passes standard output on until a line is found; a thread goes on reading, so that Podium never blocks.
fn wait_for_line<T>(child: &mut Child, find: impl Fn(&str) -> Option<T>) -> T {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next().expect("podium ended early").unwrap();
        println!("   | {line}");
        if let Some(found) = find(&line) {
            std::thread::spawn(move || drain(lines));
            return found;
        }
    }
}

fn drain(lines: std::io::Lines<BufReader<ChildStdout>>) {
    for line in lines.map_while(Result::ok) {
        println!("   | {line}");
    }
}

/// A client over TLS with the administrator's certificate.
fn connect(data_dir: &Path) -> Client {
    let text = std::fs::read_to_string(data_dir.join("admin.kubeconfig")).unwrap();
    let value = |field: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{field}: "))).unwrap();
        line.to_owned()
    };
    let decode = |field: &str| {
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(value(field)).unwrap()).unwrap()
    };
    let identity = Identity::ClientCert {
        cert_pem: decode("client-certificate-data"),
        key_pem: decode("client-key-data"),
    };
    let ca = decode("certificate-authority-data");
    let transport = HttpTransport::new(&value("server"), &ca, identity).unwrap();
    Client::new(Arc::new(transport), "e2e")
}

/// As in the binary: three bytes of the digest of the data directory's path.
fn instance(data_dir: &Path) -> String {
    let path = data_dir.canonicalize().unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, path.as_os_str().as_encoded_bytes());
    digest.as_ref().iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}

fn facts(pod: &Pod) -> Option<PodFacts> {
    let status = pod.status.as_ref()?;
    let container = status.container_statuses.as_ref()?.first()?;
    Some(PodFacts {
        name: pod.metadata.name.clone()?,
        ip: status.pod_ip.clone().unwrap_or_default(),
        ready: container.ready,
        restarts: container.restart_count,
        container_id: container.container_id.clone().unwrap_or_default(),
    })
}
