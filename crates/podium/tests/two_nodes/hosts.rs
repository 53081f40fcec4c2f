//! The hosts, and the cluster seen through its API.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::{ApiRequest, GroupVersionResource, ObjectKey, PatchType, RequestOptions, ResponseBody, Verb};
use base64::Engine as _;
use client::{Client, HttpTransport, Identity};
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::PATIENCE;

const SERVER: &str = "https://192.168.77.1:6443";

/// Time after which the control plane gives a silent node up.
const GRACE: &str = "4s";
const LEASE_SECONDS: &str = "4";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The namespaces of the test itself.
    First,
    /// In the same segment as the first.
    Second,
    /// In another segment, behind a router.
    Third,
}

const ALL: [Host; 3] = [Host::Third, Host::Second, Host::First];

/// A host other than the first.
struct Remote {
    node: &'static str,
    data: PathBuf,
    /// Holds the namespaces.
    holder: Child,
    agent: Option<Child>,
}

pub(crate) struct Hosts {
    dir: tempfile::TempDir,
    /// Holds the namespace of the switch and router.
    router: Child,
    server: Child,
    remotes: [Remote; 2],
    client: Client,
    access: Access,
}

/// Contents of the administrator's kubeconfig.
struct Access {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
}

impl Hosts {
    /// Lays the wires and starts the first host.
    ///
    /// ```text
    ///   first 192.168.77.1 ──┐ segment, a bridge
    ///   second 192.168.77.2 ─┴─ 192.168.77.254 router 192.168.78.254 ── 192.168.78.2 third
    /// ```
    ///
    /// Each has an IPv6 address too (fd77::1, fd77::2, fd78::2); the router has none, so that IPv6 gets no further than
    /// the segment by itself.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let router = holder();
        let remote =
            |node: &'static str| Remote { node, data: dir.path().join(node), holder: holder(), agent: None };
        let remotes = [remote("two"), remote("three")];
        let pid = |holder: &Child| holder.id().to_string();
        let at_router = pid(&router);
        for command in ["link set lo up", "link add segment type bridge", "link set segment up"] {
            ip(Some(&at_router), command);
        }
        ip(Some(&at_router), "addr add 192.168.77.254/24 dev segment");
        let (second, third) = (pid(&remotes[0].holder), pid(&remotes[1].holder));
        let wires = [
            (None, ["192.168.77.1/24", "fd77::1/64"], Some("segment"), "192.168.78.0/24 via 192.168.77.254"),
            (
                Some(&second),
                ["192.168.77.2/24", "fd77::2/64"],
                Some("segment"),
                "192.168.78.0/24 via 192.168.77.254",
            ),
            (Some(&third), ["192.168.78.2/24", "fd78::2/64"], None, "default via 192.168.78.254"),
        ];
        for (number, (host, [address, sixth], bridge, route)) in wires.into_iter().enumerate() {
            let (host, port) = (host.map(String::as_str), format!("port{number}"));
            let into = host.map_or(std::process::id().to_string(), str::to_owned);
            let pair = format!("link add {port} type veth peer name cable netns {into}");
            ip(Some(&at_router), &pair);
            match bridge {
                Some(bridge) => drop(ip(Some(&at_router), &format!("link set {port} master {bridge}"))),
                None => drop(ip(Some(&at_router), &format!("addr add 192.168.78.254/24 dev {port}"))),
            }
            ip(Some(&at_router), &format!("link set {port} up"));
            ip(host, "link set lo up");
            ip(host, &format!("addr add {address} dev cable"));
            ip(host, &format!("addr add {sixth} dev cable nodad"));
            ip(host, "link set cable up");
            ip(host, &format!("route add {route}"));
        }
        let forwarding = Command::new("nsenter")
            .args(["--target", &at_router, "--net", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
            .status();
        assert!(forwarding.unwrap().success());

        let mut server = Command::new(env!("CARGO_BIN_EXE_podium"))
            .args(["up", "--node-name", "one", "--node-ip", "192.168.77.1"])
            .args(["--node-monitor-grace-period", GRACE, "--node-lease-duration-seconds", LEASE_SECONDS])
            .arg("--data-dir")
            .arg(dir.path().join("one"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_line(&mut server, |line| line.starts_with("cluster ready"));
        let access = Access::read(&dir.path().join("one"));
        let identity =
            Identity::ClientCert { cert_pem: access.cert_pem.clone(), key_pem: access.key_pem.clone() };
        let transport = HttpTransport::new(SERVER, &access.ca_pem, identity).unwrap();
        let client = Client::new(Arc::new(transport), "two-nodes");
        Self { dir, router, server, remotes, client, access }
    }

    fn data_dir(&self, host: Host) -> PathBuf {
        match self.remote(host) {
            None => self.dir.path().join("one"),
            Some(remote) => remote.data.clone(),
        }
    }

    fn remote(&self, host: Host) -> Option<&Remote> {
        match host {
            Host::First => None,
            Host::Second => Some(&self.remotes[0]),
            Host::Third => Some(&self.remotes[1]),
        }
    }

    fn remote_mut(&mut self, host: Host) -> &mut Remote {
        match host {
            Host::First => panic!("the first host has no agent of its own"),
            Host::Second => &mut self.remotes[0],
            Host::Third => &mut self.remotes[1],
        }
    }

    /// ip(8) on a host.
    pub(crate) fn ip(&self, host: Host, arguments: &str) -> String {
        let pid = self.remote(host).map(|remote| remote.holder.id().to_string());
        ip(pid.as_deref(), arguments)
    }

    /// `podium` on a host, with its data directory.
    fn podium(&self, host: Host, arguments: &[&str]) -> Command {
        let mut command = match self.remote(host) {
            None => Command::new(env!("CARGO_BIN_EXE_podium")),
            Some(remote) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &remote.holder.id().to_string(), "--net", "--mount"]);
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

    /// Starts the agent of a host and waits until its node is ready.
    pub(crate) fn join(&mut self, host: Host, token: Option<&str>) {
        let node = self.remote_mut(host).node;
        let mut arguments = vec!["agent", "--server", SERVER, "--node-name", node];
        arguments.extend(["--node-lease-duration-seconds", LEASE_SECONDS]);
        arguments.extend(token.iter().flat_map(|token| ["--token", token]));
        let mut agent = self.podium(host, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        wait_for_line(&mut agent, |line| line.starts_with(&format!("node {node} is part of the cluster")));
        self.remote_mut(host).agent = Some(agent);
    }

    /// SIGTERM is a clean stop.
    pub(crate) fn stop_agent(&mut self, host: Host) {
        terminate(&mut self.remote_mut(host).agent.take().unwrap());
    }

    pub(crate) fn kill_agent(&mut self, host: Host) {
        let mut agent = self.remote_mut(host).agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub(crate) fn down(&mut self) {
        self.stop_agent(Host::Second);
        self.stop_agent(Host::Third);
        terminate(&mut self.server);
        for host in ALL {
            let output = self.output(host, &["down", "--purge"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// A certificate ("client" or "serving") of the second host, as it is on its disk.
    pub(crate) fn certificate(&self, purpose: &str) -> String {
        let file = self.data_dir(Host::Second).join(format!("node-pki/{purpose}.crt"));
        std::fs::read_to_string(file).unwrap()
    }

    /// Gives the second host a certificate of which most of its life is over; returns it.
    pub(crate) fn age_certificate(&self, purpose: &str) -> String {
        let pki = self.data_dir(Host::First).join("pki");
        let read = |file: &str| std::fs::read_to_string(pki.join(file)).unwrap();
        let key = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
        let key = KeyPair::generate().unwrap();
        let serving = purpose == "serving";
        let names = if serving { vec!["two".to_owned()] } else { Vec::new() };
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:two");
        let usage =
            if serving { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![usage];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(600)).into();
        params.not_after = (now + Duration::from_secs(60)).into();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        let own = self.data_dir(Host::Second).join("node-pki");
        std::fs::write(own.join(format!("{purpose}.key")), key.serialize_pem()).unwrap();
        std::fs::write(own.join(format!("{purpose}.crt")), &certificate).unwrap();
        certificate
    }

    /// The certificate that the second host's own server shows, as PEM has it between its lines.
    pub(crate) async fn shown_certificate(&self) -> String {
        let connector = self.access.connector();
        let tcp = tokio::net::TcpStream::connect("192.168.77.2:10250").await.unwrap();
        let stream = connector.connect("two".try_into().unwrap(), tcp).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        base64::engine::general_purpose::STANDARD.encode(&chain[0])
    }

    /// Interfaces and routes that are neither the cable's nor the loopback's, and the data.
    pub(crate) fn leftovers(&self, host: Host) -> Vec<String> {
        let links = self.ip(host, "-o link show");
        let routes = self.ip(host, "route show table all type unicast");
        let routes = routes + &self.ip(host, "route show type unreachable");
        let routes = routes + &self.ip(host, "-6 route show");
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
        self.create_in("", resource, object).await;
    }

    pub(crate) async fn create_in(&self, group: &str, resource: &str, object: Value) {
        let gvr = GroupVersionResource::new(group, "v1", resource);
        let request = ApiRequest::resource(Verb::Create, gvr, Some("default"), None, None);
        self.client.call(request.with_json(object.to_string())).await.unwrap();
    }

    pub(crate) async fn delete(&self, group: &str, resource: &str, name: &str) {
        let gvr = GroupVersionResource::new(group, "v1", resource);
        let request = ApiRequest::resource(Verb::Delete, gvr, Some("default"), Some(name), None);
        self.client.call(request).await.unwrap();
    }

    /// Lets pods be placed on a node, or not.
    pub(crate) async fn cordon(&self, node: &str, unschedulable: bool) {
        let (gvr, key) = (GroupVersionResource::new("", "v1", "nodes"), ObjectKey::new("", node));
        let patch = serde_json::json!({"spec": {"unschedulable": unschedulable}});
        let options = RequestOptions::default();
        self.client.patch(&gvr, &key, None, PatchType::Merge, &patch, options).await.unwrap();
    }

    /// Status of a node's condition Ready.
    pub(crate) async fn ready(&self, node: &str) -> String {
        let node = self.read(&format!("/api/v1/nodes/{node}")).await;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|c| c["type"] == "Ready");
        ready.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
    }

    /// (name, node, is ready, is being deleted) of the pods of an app.
    pub(crate) async fn pods_of(&self, app: &str) -> Vec<(String, String, bool, bool)> {
        let pods = self.read("/api/v1/namespaces/default/pods").await;
        let of_app = |pod: &&Value| pod["metadata"]["labels"]["app"] == app;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let brief = |pod: &Value| {
            let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
            let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
            (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), ready, deleted)
        };
        pods["items"].as_array().into_iter().flatten().filter(of_app).map(brief).collect()
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

    /// The IPv6 address of a pod that has one.
    pub(crate) async fn sixth_address(&self, name: &str) -> String {
        let pod = self.pod(name).await;
        let both = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        let address = both.get(1).and_then(|ip| ip["ip"].as_str());
        address.unwrap_or_else(|| panic!("{name} has two addresses: {both:?}")).to_owned()
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
        let script = script.replace('(', "%28").replace(')', "%29").replace('&', "%26").replace('>', "%3E");
        let script = script.replace('[', "%5B").replace(']', "%5D");
        let path = format!("{name}/exec?command=sh&command=-c&command={script}&stdout=true&stderr=true");
        let mut socket = self.socket(&path, "v5.channel.k8s.io").await;
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

    /// A WebSocket to a pod.
    async fn socket(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let url = format!("wss://192.168.77.1:6443/api/v1/namespaces/default/pods/{path}");
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        tokio_tungstenite::client_async(request, self.access.connect().await).await.unwrap().0
    }

    /// Waits for a text in what a pod writes from now on.
    pub(crate) async fn attach(&self, name: &str, want: &str) {
        let mut socket = self.socket(&format!("{name}/attach?stdout=true"), "v5.channel.k8s.io").await;
        let heard = async {
            let mut output = String::new();
            while !output.contains(want) {
                let message = socket.next().await.expect("the container goes on").unwrap().into_data();
                output.push_str(&String::from_utf8_lossy(&message[1..]));
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("no {want:?} from {name}"));
    }

    /// What a pod's web server answers through a forwarded port.
    pub(crate) async fn forwarded(&self, name: &str, port: u16) -> String {
        let path = format!("{name}/portforward?ports={port}");
        let mut socket = self.socket(&path, "v4.channel.k8s.io").await;
        let request = "\0GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        socket.send(Message::Binary(request.into())).await.unwrap();
        let mut channels = [Vec::new(), Vec::new()];
        while let Some(Ok(Message::Binary(data))) = socket.next().await {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
        let [data, error] = channels.map(|bytes| {
            assert_eq!(bytes[..2], port.to_le_bytes(), "the port comes first");
            String::from_utf8_lossy(&bytes[2..]).into_owned()
        });
        format!("{}{error}", data.split_once("\r\n\r\n").map_or("", |(_, body)| body))
    }
}

impl Drop for Hosts {
    /// Also after a failed assertion: leave nothing behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let agents = self.remotes.iter_mut().filter_map(|remote| remote.agent.as_mut());
            for child in agents.chain([&mut self.server]) {
                drop(child.kill());
                drop(child.wait());
            }
            for host in ALL {
                drop(self.output(host, &["down", "--purge"]));
            }
        }
        let holders = self.remotes.iter_mut().map(|remote| &mut remote.holder);
        for holder in holders.chain([&mut self.router]) {
            drop(holder.kill());
            drop(holder.wait());
        }
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

    fn connector(&self) -> tokio_rustls::TlsConnector {
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
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let tcp = tokio::net::TcpStream::connect("192.168.77.1:6443").await.unwrap();
        self.connector().connect("192.168.77.1".try_into().unwrap(), tcp).await.unwrap()
    }
}

/// A process that does nothing in namespaces of its own.
fn holder() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 3600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(&mut holder, |line| line == "ready");
    holder
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
