//! The two hosts, and the cluster seen through its API.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::{ApiRequest, GroupVersionResource, ResponseBody, Verb};
use base64::Engine as _;
use client::{Client, HttpTransport, Identity};
use futures_util::StreamExt as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::PATIENCE;

const SERVER: &str = "https://192.168.77.1:6443";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// The namespaces of the test itself.
    First,
    Second,
}

pub(crate) struct TwoHosts {
    dir: tempfile::TempDir,
    /// Holds the namespaces of the second host.
    holder: Child,
    server: Child,
    agent: Option<Child>,
    client: Client,
    access: Access,
}

/// Contents of the administrator's kubeconfig.
struct Access {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
}

impl TwoHosts {
    /// Makes the second host, joins both by a cable and starts the first.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 3600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_line(&mut holder, |line| line == "ready");
        let pid = holder.id().to_string();
        ip(None, "link set lo up");
        ip(None, "link add cable type veth peer name cable2");
        ip(None, &format!("link set cable2 netns {pid}"));
        ip(None, "addr add 192.168.77.1/24 dev cable");
        ip(None, "link set cable up");
        ip(Some(&pid), "link set lo up");
        ip(Some(&pid), "link set cable2 name cable");
        ip(Some(&pid), "addr add 192.168.77.2/24 dev cable");
        ip(Some(&pid), "link set cable up");
        let mut server = Command::new(env!("CARGO_BIN_EXE_podium"))
            .args(["up", "--node-name", "one", "--node-ip", "192.168.77.1", "--data-dir"])
            .arg(dir.path().join("first"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_line(&mut server, |line| line.starts_with("cluster ready"));
        let access = Access::read(&dir.path().join("first"));
        let identity =
            Identity::ClientCert { cert_pem: access.cert_pem.clone(), key_pem: access.key_pem.clone() };
        let transport = HttpTransport::new(SERVER, &access.ca_pem, identity).unwrap();
        let client = Client::new(Arc::new(transport), "two-nodes");
        Self { dir, holder, server, agent: None, client, access }
    }

    fn data_dir(&self, host: Host) -> PathBuf {
        self.dir.path().join(if host == Host::First { "first" } else { "second" })
    }

    /// `podium` on a host, with its data directory.
    fn podium(&self, host: Host, arguments: &[&str]) -> Command {
        let mut command = match host {
            Host::First => Command::new(env!("CARGO_BIN_EXE_podium")),
            Host::Second => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &self.holder.id().to_string(), "--net", "--mount"]);
                command.arg(env!("CARGO_BIN_EXE_podium"));
                command
            }
        };
        command.args(arguments).arg("--data-dir").arg(self.data_dir(host));
        command
    }

    fn output(&self, host: Host, arguments: &[&str]) -> Output {
        self.podium(host, arguments).output().unwrap()
    }

    /// Makes a token and takes it out of the printed command.
    pub(crate) fn new_token(&self) -> String {
        let output = self.output(Host::First, &["token", "create"]);
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(line.starts_with(&format!("podium agent --server {SERVER} --token ")), "{line:?}");
        line.split_whitespace().last().unwrap().to_owned()
    }

    pub(crate) fn tokens(&self) -> String {
        String::from_utf8(self.output(Host::First, &["token", "list"]).stdout).unwrap()
    }

    pub(crate) fn delete_token(&self, id: &str) {
        assert!(self.output(Host::First, &["token", "delete", id]).status.success());
    }

    /// Tries to join with a token that must not do; returns the error.
    pub(crate) fn refused(&self, token: &str) -> String {
        let output = self.output(Host::Second, &["agent", "--server", SERVER, "--token", token]);
        assert!(!output.status.success(), "joined with a wrong token");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts the agent of the second host and waits until its node is ready.
    pub(crate) fn join(&mut self, token: Option<&str>) {
        let mut arguments = vec!["agent", "--server", SERVER, "--node-name", "two"];
        arguments.extend(token.iter().flat_map(|token| ["--token", token]));
        let mut agent = self.podium(Host::Second, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        wait_for_line(&mut agent, |line| line.starts_with("node two is part of the cluster"));
        self.agent = Some(agent);
    }

    /// SIGTERM is a clean stop.
    pub(crate) fn stop_agent(&mut self) {
        terminate(&mut self.agent.take().unwrap());
    }

    pub(crate) fn down(&mut self) {
        self.stop_agent();
        terminate(&mut self.server);
        for host in [Host::Second, Host::First] {
            let output = self.output(host, &["down", "--purge"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// The client certificate of the second host, as it is on its disk.
    pub(crate) fn certificate(&self) -> String {
        std::fs::read_to_string(self.data_dir(Host::Second).join("node-pki/client.crt")).unwrap()
    }

    /// Gives the second host a certificate of which most of its life is over; returns it.
    pub(crate) fn age_certificate(&self) -> String {
        let pki = self.data_dir(Host::First).join("pki");
        let read = |file: &str| std::fs::read_to_string(pki.join(file)).unwrap();
        let key = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:two");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(600)).into();
        params.not_after = (now + Duration::from_secs(60)).into();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        let own = self.data_dir(Host::Second).join("node-pki");
        std::fs::write(own.join("client.key"), key.serialize_pem()).unwrap();
        std::fs::write(own.join("client.crt"), &certificate).unwrap();
        certificate
    }

    /// Interfaces and routes that are neither the cable's nor the loopback's, and the data.
    pub(crate) fn leftovers(&self, host: Host) -> Vec<String> {
        let pid = (host == Host::Second).then(|| self.holder.id().to_string());
        let links = ip(pid.as_deref(), "-o link show");
        let routes = ip(pid.as_deref(), "route show table all type unicast");
        let routes = routes + &ip(pid.as_deref(), "route show type unreachable");
        let foreign =
            |line: &&str| !line.contains("cable") && !line.contains(": lo:") && !line.contains("dev lo");
        let mut left: Vec<String> =
            links.lines().chain(routes.lines()).filter(foreign).map(str::to_owned).collect();
        left.extend(self.data_dir(host).exists().then(|| "the data directory".to_owned()));
        left
    }

    pub(crate) async fn eventually(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self).await {
            if begun.elapsed() > PATIENCE {
                println!("{:#}", self.read("/api/v1/pods").await);
                panic!("not within {} s: {what}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("   {what}: {:.1} s", begun.elapsed().as_secs_f64());
    }

    pub(crate) async fn create(&self, resource: &str, object: Value) {
        let gvr = GroupVersionResource::new("", "v1", resource);
        let request = ApiRequest::resource(Verb::Create, gvr, Some("default"), None, None);
        self.client.call(request.with_json(object.to_string())).await.unwrap();
    }

    pub(crate) async fn read(&self, path: &str) -> Value {
        match self.client.call(ApiRequest::path(path)).await.and_then(api::ApiResponse::into_bytes) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Err(_) => Value::Null,
        }
    }

    async fn pod(&self, name: &str) -> Value {
        self.read(&format!("/api/v1/namespaces/default/pods/{name}")).await
    }

    /// Address of a pod, once it is ready.
    pub(crate) async fn running(&self, name: &str) -> String {
        self.eventually(&format!("{name} is ready"), async |t| {
            t.pod(name).await["status"]["containerStatuses"][0]["ready"] == true
        })
        .await;
        self.pod(name).await["status"]["podIP"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn container(&self, name: &str) -> Value {
        let pod = self.pod(name).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        pod["status"]["containerStatuses"][0]["containerID"].clone()
    }

    pub(crate) async fn log(&self, name: &str) -> String {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let request = ApiRequest::resource(Verb::Get, pods, Some("default"), Some(name), Some("log"));
        let Ok(response) = self.client.call(request).await else { return String::new() };
        let ResponseBody::Stream(mut stream) = response.body else { panic!("a log is a stream") };
        let mut bytes = Vec::new();
        while let Some(Ok(part)) = stream.next().await {
            bytes.extend_from_slice(&part);
        }
        String::from_utf8(bytes).unwrap()
    }

    /// Runs a script in a pod; returns its standard output and the status that ends the session.
    pub(crate) async fn exec(&self, name: &str, script: &str) -> (String, Value) {
        let script = script.replace(' ', "%20").replace(';', "%3B").replace('$', "%24");
        let script = script.replace('(', "%28").replace(')', "%29");
        let url = format!(
            "wss://192.168.77.1:6443/api/v1/namespaces/default/pods/{name}/exec?command=sh&command=-c&command={script}&stdout=true&stderr=true"
        );
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        let (mut socket, _) =
            tokio_tungstenite::client_async(request, self.access.connect().await).await.unwrap();
        let (mut output, mut status) = (String::new(), Value::Null);
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(data) = message {
                match data[0] {
                    3 => status = serde_json::from_slice(&data[1..]).unwrap(),
                    1 => output.push_str(&String::from_utf8_lossy(&data[1..])),
                    _ => {}
                }
            }
        }
        (output, status)
    }
}

impl Drop for TwoHosts {
    /// Also after a failed assertion: leave nothing behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for child in self.agent.iter_mut().chain([&mut self.server]) {
                drop(child.kill());
                drop(child.wait());
            }
            for host in [Host::Second, Host::First] {
                drop(self.output(host, &["down", "--purge"]));
            }
        }
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

impl Access {
    fn read(data_dir: &Path) -> Self {
        let text = std::fs::read_to_string(data_dir.join("admin.kubeconfig")).unwrap();
        let decode = |field: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{field}: "))).unwrap();
            String::from_utf8(base64::engine::general_purpose::STANDARD.decode(line).unwrap()).unwrap()
        };
        Self {
            ca_pem: decode("certificate-authority-data"),
            cert_pem: decode("client-certificate-data"),
            key_pem: decode("client-key-data"),
        }
    }

    async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(self.cert_pem.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap(),
                )
                .unwrap();
        let tcp = tokio::net::TcpStream::connect("192.168.77.1:6443").await.unwrap();
        let name = "192.168.77.1".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }
}

fn terminate(child: &mut Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM)
        .unwrap();
    assert!(child.wait().unwrap().success(), "SIGTERM is a clean stop");
}

/// ip(8) on the first host, or in the network namespace of a process.
fn ip(pid: Option<&str>, arguments: &str) -> String {
    let mut command = match pid {
        None => Command::new("ip"),
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["--target", pid, "--net", "ip"]);
            command
        }
    };
    let output = command.args(arguments.split(' ')).output().expect("ip (iproute2) starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Passes standard output on until a line is found; a thread goes on reading, so that nobody blocks.
fn wait_for_line(child: &mut Child, found: impl Fn(&str) -> bool) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next().expect("the process ended early").unwrap();
        println!("   | {line}");
        if found(&line) {
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("   | {line}")));
            return;
        }
    }
}
