//! Over TLS: identities, HTTP/1.1 and 2, watches as frames, exec over WebSocket, the end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::common::{Fixture, Pki, at, configmap};

pub(crate) struct Wire {
    pub(crate) f: Fixture,
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

fn der(
    issued: (rcgen::Certificate, rcgen::KeyPair),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivatePkcs8KeyDer::from(issued.1.serialize_der());
    (vec![issued.0.der().clone()], key.into())
}

fn server_tls(pki: &Pki) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
    let (chain, key) = der(pki.issue("localhost", &[]));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

impl Wire {
    pub(crate) async fn new() -> Self {
        let f = Fixture::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(Arc::clone(&f.server).serve(listener, server_tls(&f.pki), stopped));
        Self { f, address, stop, serving }
    }

    pub(crate) async fn connect(
        &self,
        alpn: &str,
        identity: Option<(&str, &[&str])>,
    ) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.f.pki.ca.der().clone()).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((name, groups)) => {
                let (chain, key) = der(self.f.pki.issue(name, groups));
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let socket = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), socket)
            .await
            .unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(
        &self,
        alpn: &str,
        identity: Option<(&str, &[&str])>,
        request: Request<Full<Bytes>>,
    ) -> Response<Incoming> {
        let io = TokioIo::new(self.connect(alpn, identity).await);
        if alpn == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        }
    }
}

pub(crate) const ADMIN: Option<(&str, &[&str])> = Some(("admin", &["system:masters"]));

pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let uri = format!("https://localhost{path}");
    Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(crate) async fn body(response: Response<Incoming>) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_decide() {
    let wire = Wire::new().await;
    for alpn in ["h2", "http/1.1"] {
        let pods = || request("GET", "/api/v1/namespaces/default/pods", "");
        assert_eq!(wire.send(alpn, ADMIN, pods()).await.status(), StatusCode::OK);
        let refused = wire.send(alpn, None, pods()).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(body(refused).await["message"].as_str().unwrap().contains("system:anonymous"));
        assert_eq!(wire.send(alpn, None, request("GET", "/version", "")).await.status(), StatusCode::OK);
        let mut wrong = request("GET", "/version", "");
        wrong.headers_mut().insert("authorization", "Bearer nonsense".parse().unwrap());
        assert_eq!(wire.send(alpn, None, wrong).await.status(), StatusCode::UNAUTHORIZED);
        let mut acting = pods();
        acting.headers_mut().insert("impersonate-user", "jane".parse().unwrap());
        assert_eq!(wire.send(alpn, ADMIN, acting).await.status(), StatusCode::FORBIDDEN);
        let mut not_allowed = request("GET", "/version", "");
        not_allowed.headers_mut().insert("impersonate-user", "admin".parse().unwrap());
        assert_eq!(wire.send(alpn, Some(("jane", &[])), not_allowed).await.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_authenticate() {
    let wire = Wire::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    wire.f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    let token =
        at("", "serviceaccounts", "default").request(api::Verb::Create, Some("default"), Some("token"));
    let token =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}})
            .to_string()
            .pipe(|body| wire.f.json(token.with_json(body)))
            .await
            .unwrap();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let mut who = request("POST", path, review.to_string());
    let header = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    who.headers_mut().insert("authorization", header.parse().unwrap());
    let answer = body(wire.send("h2", None, who).await).await;
    assert_eq!(answer["status"]["userInfo"]["username"], "system:serviceaccount:default:default");

    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abc123"},
        "stringData": {"token-id": "abc123", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}});
    wire.f.create(&at("", "secrets", "kube-system"), secret).await.unwrap();
    for (token, name) in
        [("abc123.0123456789abcdef", Some("system:bootstrap:abc123")), ("abc123.0123456789abcdee", None)]
    {
        let mut who = request("POST", path, review.to_string());
        who.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = body(wire.send("h2", None, who).await).await;
        assert_eq!(answer["status"]["userInfo"]["username"].as_str(), name);
    }
}

trait Pipe: Sized {
    fn pipe<T>(self, f: impl FnOnce(Self) -> T) -> T {
        f(self)
    }
}

impl Pipe for String {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_read_and_refused() {
    let wire = Wire::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let mut unknown = configmap("a", json!({}), json!({}));
    unknown["surprise"] = 1.into();
    let created = wire.send("h2", ADMIN, request("POST", path, unknown.to_string())).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.headers()["warning"], "299 - \"unknown field \\\"surprise\\\"\"");
    let mut yaml = request("POST", path, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n");
    yaml.headers_mut().insert("content-type", "application/yaml".parse().unwrap());
    assert_eq!(wire.send("h2", ADMIN, yaml).await.status(), StatusCode::CREATED);
    let mut odd = request("POST", path, "x");
    odd.headers_mut().insert("content-type", "application/x-odd".parse().unwrap());
    assert_eq!(wire.send("h2", ADMIN, odd).await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = wire.send("h2", ADMIN, request("POST", path, vec![b' '; (3 << 20) + 1])).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let delete = request("DELETE", &format!("{path}/a"), r#"{"preconditions":{"uid":"other"}}"#);
    assert_eq!(wire.send("h2", ADMIN, delete).await.status(), StatusCode::CONFLICT);
    let nowhere = wire.send("h2", ADMIN, request("GET", "/apis/example.com/v1/things", "")).await;
    assert_eq!(nowhere.status(), StatusCode::NOT_FOUND);
    let health = wire.send("http/1.1", None, request("GET", "/readyz?verbose", "")).await;
    let text = health.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).ends_with("readyz check passed\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_frames_and_end_with_the_server() {
    let wire = Wire::new().await;
    let path = "/api/v1/namespaces/default/configmaps?watch=true&fieldSelector=metadata.name%3Da";
    let mut watch = wire.send("http/1.1", ADMIN, request("GET", path, "")).await.into_body();
    let configmaps = at("", "configmaps", "default");
    wire.f.create(&configmaps, configmap("a", json!({}), json!({}))).await.unwrap();
    let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(frame.starts_with(b"{\"type\":\"ADDED\",\"object\":{") && frame.ends_with(b"}\n"), "{frame:?}");
    wire.stop.send(true).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(3), watch.frame()).await.expect("the watch ends");
    assert!(end.is_none(), "{end:?}");
    tokio::time::timeout(Duration::from_secs(6), wire.serving).await.expect("the server ends").unwrap();
}

/// A server with a pod `p` on a node.
pub(crate) async fn wire_with_pod() -> Wire {
    let wire = Wire::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    wire.f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    wire.f.create(&at("", "pods", "default"), pod).await.unwrap();
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_tells_in_its_session_why_a_command_did_not_start() {
    let wire = wire_with_pod().await;
    let path = "/api/v1/namespaces/default/pods/p/exec?stdout=true&command=missing";
    let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    let stream = wire.connect("http/1.1", ADMIN).await;
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let mut last = Bytes::new();
    while let Some(Ok(Message::Binary(data))) = socket.next().await {
        last = data;
    }
    let status: Value = serde_json::from_slice(&last[1..]).unwrap();
    assert_eq!((last[0], &status["message"]), (3, &json!("Internal error occurred: no such command")));
    let plain = |query: &str| self::request("POST", &format!("{path}{query}"), "");
    let wrong = wire.send("h2", ADMIN, plain("&container=x")).await.into_body().collect().await.unwrap();
    let wrong: Value = serde_json::from_slice(&wrong.to_bytes()).unwrap();
    assert_eq!(wrong["message"], "container x is not valid for pod p", "whatever the protocol");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_speaks_channels() {
    let wire = wire_with_pod().await;
    let url = "wss://localhost/api/v1/namespaces/default/pods/p/exec?command=say&command=hello&stdin=true&stdout=true&stderr=true";
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    let stream = wire.connect("http/1.1", ADMIN).await;
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    socket.send(Message::Binary(Bytes::from_static(b"\0input"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
    let mut seen = Vec::new();
    while let Some(Ok(Message::Binary(data))) = socket.next().await {
        seen.push((data[0], String::from_utf8_lossy(&data[1..]).into_owned()));
    }
    assert_eq!(seen[..3], [(1, String::new()), (1, "say hello".into()), (2, "input".into())]);
    let status: Value = serde_json::from_str(&seen[3].1).unwrap();
    assert_eq!((seen[3].0, &status["reason"]), (3, &json!("NonZeroExitCode")));
    assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_tells_of_itself() {
    let wire = Wire::new().await;
    let get = async |identity, path: &str| {
        let response = wire.send("h2", identity, request("GET", path, "")).await;
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&bytes).into_owned())
    };
    let path = "/api/v1/namespaces/default/configmaps?watch=true";
    let _watch = wire.send("http/1.1", ADMIN, request("GET", path, "")).await;
    get(ADMIN, "/api/v1/namespaces/default/pods/none").await;
    assert_eq!(get(None, "/metrics").await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(Some(("prometheus", &["system:monitoring"])), "/metrics").await.0, StatusCode::OK);
    let (_, metrics) = get(ADMIN, "/metrics").await;
    let labels = |resource: &str, scope: &str, verb: &str| {
        format!(
            "component=\"apiserver\",dry_run=\"\",group=\"\",resource={resource:?},scope={scope:?},subresource=\"\",\
            verb={verb:?},version=\"v1\""
        )
    };
    for line in [
        format!("apiserver_request_total{{code=\"404\",{}}} 1", labels("pods", "resource", "GET")),
        format!("apiserver_longrunning_requests{{{}}} 1", labels("configmaps", "namespace", "WATCH")),
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1".to_owned(),
        "apiserver_storage_objects{resource=\"namespaces\"} 4".to_owned(),
        "# TYPE process_resident_memory_bytes gauge".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }

    let cases = [
        ("/livez?verbose", StatusCode::OK, "[+]ping ok\n[+]etcd ok\nlivez check passed\n"),
        (
            "/readyz?verbose&exclude=etcd",
            StatusCode::OK,
            "[+]ping ok\n[+]etcd excluded: ok\nreadyz check passed\n",
        ),
        ("/healthz/ping", StatusCode::OK, "ok"),
        ("/readyz?exclude=etcd", StatusCode::OK, "ok"),
    ];
    for (path, code, text) in cases {
        assert_eq!(get(ADMIN, path).await, (code, text.to_owned()), "{path}");
    }
    assert_eq!(get(ADMIN, "/livez/none").await.0, StatusCode::NOT_FOUND);
    // a client that keeps a document asks only whether it has changed
    let document = wire.send("h2", ADMIN, request("GET", "/openapi/v2", "")).await;
    let tag = document.headers()["etag"].clone();
    let mut again = request("GET", "/openapi/v2", "");
    again.headers_mut().insert("if-none-match", tag);
    assert_eq!(wire.send("h2", ADMIN, again).await.status(), StatusCode::NOT_MODIFIED);
}
