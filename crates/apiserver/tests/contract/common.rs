//! A server on a store of its own, and short words for requests.

use std::sync::{Arc, LazyLock};

use api::stream::{ByteStream, Connection, ExecOptions, ExecOutput, ExecSession, LogOptions, NodeAnswer};
use api::{
    ApiRequest, ApiResponse, Body, ContentType, GroupVersionResource, PatchType, RequestOptions,
    ResponseBody, Status, Verb, WatchStream,
};
use apiserver::{ApiServer, FrontProxy, NodeGateway, ServerConfig, UserInfo};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use store::{EmbeddedStore, Options, Store};

/// There is no command `missing`; otherwise echoes the command, then its standard input; the exit code is 3.
pub(crate) struct EchoNode;

impl EchoNode {
    fn session(options: ExecOptions) -> ExecSession {
        let (stdin, mut input) = tokio::sync::mpsc::channel::<bytes::Bytes>(8);
        let (output, receiver) = tokio::sync::mpsc::channel(8);
        let (resize, _) = tokio::sync::mpsc::channel(1);
        let (exited, exit) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let command = options.command.join(" ");
            output.send(ExecOutput::Stdout(command.into())).await.expect("a listener");
            while let Some(piece) = input.recv().await {
                output.send(ExecOutput::Stderr(piece)).await.expect("a listener");
            }
            exited.send(Ok(3)).expect("a listener");
        });
        ExecSession { stdin: Some(stdin), output: receiver, resize, exit }
    }
}

impl NodeGateway for EchoNode {
    fn logs<'a>(
        &'a self,
        node: &'a str,
        _: &'a str,
        pod: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        let text = format!("{node} {pod} {} tail={:?}\n", options.container, options.tail_lines);
        let stream: ByteStream = Box::pin(futures_util::stream::iter([Ok(text.into())]));
        Box::pin(async { Ok(stream) })
    }

    fn exec<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async {
            let missing = options.command.iter().any(|word| word == "missing");
            if missing { Err(Status::internal("no such command")) } else { Ok(Self::session(options)) }
        })
    }

    fn attach<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async { Ok(Self::session(options)) })
    }

    /// Port 7 echoes; nobody listens on any other.
    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>> {
        Box::pin(async move {
            if port != 7 {
                return Err(Status::internal("nobody listens"));
            }
            let (near, far) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(far);
                tokio::io::copy(&mut from, &mut to).await.expect("an open connection");
            });
            Ok(Box::new(near) as Connection)
        })
    }

    fn page<'a>(&'a self, node: &'a str, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>> {
        let body = format!("{node} {target}");
        Box::pin(async move { Ok(NodeAnswer::new(200, "text/plain", body)) })
    }
}

/// An authority of its own with a serving certificate for `localhost` and an administrator's certificate.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test-ca");
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        Self { ca_pem: ca.pem(), ca }
    }

    /// Certificate and key of a name; organisations are groups.
    pub(crate) fn issue(&self, name: &str, organisations: &[&str]) -> (rcgen::Certificate, rcgen::KeyPair) {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for organisation in organisations {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *organisation);
        }
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }
}

/// What all servers show to other API servers.
fn front_proxy() -> FrontProxy {
    static MADE: LazyLock<FrontProxy> = LazyLock::new(|| {
        let pki = Pki::new();
        let (cert, key) = pki.issue(FrontProxy::NAME, &[]);
        FrontProxy { ca_pem: pki.ca_pem, cert_pem: cert.pem(), key_pem: key.serialize_pem() }
    });
    MADE.clone()
}

pub(crate) struct Fixture {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) store: Arc<EmbeddedStore>,
    pub(crate) admin: UserInfo,
    pub(crate) pki: Pki,
    _directory: tempfile::TempDir,
}

pub(crate) fn config(pki: &Pki) -> ServerConfig {
    ServerConfig {
        service_cidrs: vec!["10.96.0.0/16".into()],
        cluster_cidrs: vec!["10.244.0.0/16".into()],
        node_port_range: (30000, 32767),
        advertise: "192.0.2.1:6443".parse().unwrap(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
        service_account_key_pem: rcgen::KeyPair::generate().unwrap().serialize_pem(),
        root_ca_pem: pki.ca_pem.clone(),
        client_ca_pem: pki.ca_pem.clone(),
        front_proxy: Some(front_proxy()),
        gateway: Arc::new(EchoNode),
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), Options::default()).unwrap();
        let pki = Pki::new();
        let server = ApiServer::open(Arc::clone(&store) as Arc<dyn Store>, config(&pki)).await.unwrap();
        let admin = UserInfo::new("admin", &["system:masters", "system:authenticated"]);
        Self { server, store, admin, pki, _directory: directory }
    }

    /// A server on the same store whose cluster has IPv6 too.
    pub(crate) async fn again_with_two_families(self) -> Self {
        let mut config = config(&self.pki);
        config.service_cidrs.push("fd00:10:96::/112".into());
        config.cluster_cidrs.push("fd00:10:244::/56".into());
        let server = ApiServer::open(Arc::clone(&self.store) as Arc<dyn Store>, config).await.unwrap();
        Self { server, ..self }
    }

    pub(crate) async fn send(&self, user: &UserInfo, request: ApiRequest) -> Result<ApiResponse, Status> {
        self.server.call(user, request).await
    }

    pub(crate) async fn json(&self, request: ApiRequest) -> Result<Value, Status> {
        let bytes = self.send(&self.admin, request).await?.into_bytes()?;
        Ok(serde_json::from_slice(&bytes).expect("an answer in JSON"))
    }

    pub(crate) async fn create(&self, at: &At, object: Value) -> Result<Value, Status> {
        self.json(at.request(Verb::Create, None, None).with_json(object.to_string())).await
    }

    pub(crate) async fn get(&self, at: &At, name: &str) -> Result<Value, Status> {
        self.json(at.request(Verb::Get, Some(name), None)).await
    }

    pub(crate) async fn update(&self, at: &At, name: &str, object: &Value) -> Result<Value, Status> {
        self.json(at.request(Verb::Update, Some(name), None).with_json(object.to_string())).await
    }

    pub(crate) async fn update_status(&self, at: &At, name: &str, object: &Value) -> Result<Value, Status> {
        self.json(at.request(Verb::Update, Some(name), Some("status")).with_json(object.to_string())).await
    }

    pub(crate) async fn delete(&self, at: &At, name: &str) -> Result<Value, Status> {
        self.json(at.request(Verb::Delete, Some(name), None)).await
    }

    pub(crate) async fn patch(
        &self,
        at: &At,
        name: &str,
        kind: PatchType,
        patch: Value,
    ) -> Result<Value, Status> {
        self.json(patch_request(at, name, kind, &patch)).await
    }

    pub(crate) async fn list(&self, at: &At, options: RequestOptions) -> Result<Value, Status> {
        let mut request = at.request(Verb::List, None, None);
        request.options = options;
        self.json(request).await
    }

    pub(crate) async fn watch(&self, at: &At, options: RequestOptions) -> Result<WatchStream, Status> {
        let mut request = at.request(Verb::Watch, None, None);
        request.options = options;
        match self.send(&self.admin, request).await?.body {
            ResponseBody::Watch(stream) => Ok(stream),
            ResponseBody::Bytes(_) | ResponseBody::Stream(_) => panic!("no watch"),
        }
    }
}

pub(crate) fn patch_request(at: &At, name: &str, kind: PatchType, patch: &Value) -> ApiRequest {
    let mut request = at.request(Verb::Patch, Some(name), None);
    request.options.field_manager = Some("tester".into());
    request.body = Some(Body { content_type: ContentType::Patch(kind), bytes: patch.to_string().into() });
    request
}

/// A collection.
#[derive(Clone)]
pub(crate) struct At {
    pub(crate) gvr: GroupVersionResource,
    pub(crate) namespace: Option<String>,
}

pub(crate) fn at(group: &str, resource: &str, namespace: &str) -> At {
    let gvr = GroupVersionResource::new(group, "v1", resource);
    At { gvr, namespace: Some(namespace.to_owned()).filter(|n| !n.is_empty()) }
}

pub(crate) fn configmaps() -> At {
    at("", "configmaps", "default")
}

impl At {
    pub(crate) fn request(&self, verb: Verb, name: Option<&str>, subresource: Option<&str>) -> ApiRequest {
        let mut request =
            ApiRequest::resource(verb, self.gvr.clone(), self.namespace.as_deref(), name, subresource);
        request.user_agent = "tester/1".into();
        request
    }
}

/// A ConfigMap.
pub(crate) fn configmap(name: &str, labels: Value, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data})
}

/// The next event within five seconds: kind and object.
pub(crate) async fn next(stream: &mut WatchStream) -> (String, Value) {
    let event = tokio::time::timeout(std::time::Duration::from_secs(5), stream.next()).await;
    let event = event.expect("an event in time").expect("an open watch");
    (event.kind.as_str().to_owned(), serde_json::from_slice(&event.object).expect("an object in JSON"))
}

/// `ADDED a` for short.
pub(crate) async fn brief(stream: &mut WatchStream) -> String {
    let (kind, object) = next(stream).await;
    format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or_default())
}
