//! Groups of the API that another server serves, with a small such server: who it is told asks, what discovery shows, and
//! what happens while it does not answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::{ApiRequest, PatchType, Verb};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::common::{At, Fixture, Pki, at, brief, next};
use crate::webhooks::address_of_this_machine;
use crate::wire::{ADMIN, Wire, body, request};

const THINGS: &str = "/apis/g.example/v1/namespaces/n/things";

fn api_services() -> At {
    at("apiregistration.k8s.io", "apiservices", "")
}

/// The other server.
struct Extension {
    port: u16,
    bundle: String,
    down: Arc<AtomicBool>,
}

impl Extension {
    /// Starts it as real ones start: it reads from a ConfigMap whose certificates may name users.
    async fn start(f: &Fixture) -> Self {
        let authentication = at("", "configmaps", "kube-system");
        let told = f.get(&authentication, "extension-apiserver-authentication").await.unwrap();
        assert_eq!(told["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(told["data"]["requestheader-extra-headers-prefix"], "[\"X-Remote-Extra-\"]");
        let authority = told["data"]["requestheader-client-ca-file"].as_str().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        );
        let pki = Pki::new();
        let (certificate, key) = pki.issue("ext.n.svc", &[]);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let down = Arc::new(AtomicBool::new(false));
        let broken = Arc::clone(&down);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, broken) = (acceptor.clone(), Arc::clone(&broken));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service = service_fn(|request| respond(request, broken.load(Ordering::SeqCst)));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    connection.await.ok();
                });
            }
        });
        Self { port, bundle: BASE64_STANDARD.encode(&pki.ca_pem), down }
    }

    fn registration(&self) -> Value {
        json!({"metadata": {"name": "v1.g.example"}, "spec": {
            "group": "g.example", "version": "v1", "groupPriorityMinimum": 18500, "versionPriority": 10,
            "caBundle": self.bundle, "service": {"namespace": "n", "name": "ext", "port": 443}}})
    }

    fn slice(&self) -> Value {
        let own = address_of_this_machine().expect("checked before");
        json!({"metadata": {"name": "ext", "labels": {"kubernetes.io/service-name": "ext"}},
            "addressType": "IPv4", "ports": [{"name": "api", "port": self.port}],
            "endpoints": [{"addresses": [own], "conditions": {"ready": true}}]})
    }

    /// Service, endpoints and APIService; returns when requests are passed on.
    async fn install(&self, f: &Fixture) {
        f.create(&at("", "namespaces", ""), json!({"metadata": {"name": "n"}})).await.unwrap();
        f.create(&at("", "services", "n"), service()).await.unwrap();
        f.create(&at("discovery.k8s.io", "endpointslices", "n"), self.slice()).await.unwrap();
        f.create(&api_services(), self.registration()).await.unwrap();
        until(f, "True Passed: all checks passed").await;
    }
}

fn service() -> Value {
    json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"name": "api", "port": 443}]}})
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn respond(request: Request<Incoming>, down: bool) -> Result<Answer, Infallible> {
    let full = |code: u16, text: String| {
        let body = Full::new(Bytes::from(text)).boxed();
        Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
    };
    if down {
        return Ok(full(500, "out of order".into()));
    }
    let path = request.uri().path().to_owned();
    let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    Ok(match path.as_str() {
        "/apis/g.example/v1" => full(200, resources().to_string()),
        "/openapi/v3" => {
            let own = json!({"serverRelativeURL": "/openapi/v3/apis/g.example/v1?hash=AB"});
            full(200, json!({"paths": {"apis/g.example/v1": own}}).to_string())
        }
        "/openapi/v3/apis/g.example/v1" => full(200, json!({"openapi": "3.0.0"}).to_string()),
        "/apis/g.example/v1/namespaces/n/things/t/switch" => {
            let protocol = request.headers()["upgrade"].clone();
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(request).await.unwrap();
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            });
            let answer = Response::builder().status(101).header("connection", "upgrade");
            answer.header("upgrade", protocol).body(Full::default().boxed()).unwrap()
        }
        THINGS if watches => {
            let event = |name: &str| {
                let object = json!({"kind": "Thing", "metadata": {"name": name}});
                let line = json!({"type": "ADDED", "object": object}).to_string() + "\n";
                Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
            };
            // One event, and then silence: an answer that is read whole would never come.
            let events = futures_util::stream::iter([event("a")]).chain(futures_util::stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(events)))
        }
        "/apis/g.example/v1/namespaces/n/things/missing" => {
            let status = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "mine",
                "code": 404});
            full(404, status.to_string())
        }
        _ => {
            let (method, uri) = (request.method().to_string(), request.uri().to_string());
            let pairs = request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()));
            let mut headers: Vec<String> = pairs
                .filter(|h| h.starts_with("x-") || h.starts_with("host") || h.starts_with("auth"))
                .collect();
            headers.sort();
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            let sent = String::from_utf8_lossy(&sent).into_owned();
            full(201, json!({"method": method, "uri": uri, "headers": headers, "body": sent}).to_string())
        }
    })
}

fn resources() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "g.example/v1", "resources": [
        {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]},
        {"name": "things/switch", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": ["get"]},
    ]})
}

/// Status, reason and message of the condition.
async fn condition(f: &Fixture) -> String {
    let object = f.get(&api_services(), "v1.g.example").await.unwrap();
    let found =
        object["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Available");
    let text = |c: &Value, name: &str| c[name].as_str().unwrap_or_default().to_owned();
    found.map_or_else(String::new, |c| {
        format!("{} {}: {}", text(c, "status"), text(c, "reason"), text(c, "message"))
    })
}

/// Waits until the condition begins so.
async fn until(f: &Fixture, want: &str) {
    let reached = async {
        while !condition(f).await.starts_with(want) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), reached).await.is_err() {
        panic!("{want:?} was not reached, but {:?}", condition(f).await);
    }
}

/// A server with the other one behind it, where this machine has an address that may be dialled.
async fn setup() -> Option<(Wire, Extension)> {
    if address_of_this_machine().is_none() {
        println!("skipped: this machine has no address but loopback");
        return None;
    }
    let wire = Wire::new().await;
    let extension = Extension::start(&wire.f).await;
    Some((wire, extension))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_passed_on_in_the_name_of_their_user() {
    let Some((wire, extension)) = setup().await else { return };
    assert_eq!(wire.send("h2", ADMIN, request("GET", THINGS, "")).await.status(), StatusCode::NOT_FOUND);
    extension.install(&wire.f).await;
    let jane: Option<(&str, &[&str])> = Some(("jane", &["team"]));
    let refused = wire.send("h2", jane, request("GET", THINGS, "")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let text = body(refused).await["message"].to_string();
    assert!(text.contains("cannot list resource \\\"things\\\" in API group \\\"g.example\\\""), "{text}");
    let rbac = "rbac.authorization.k8s.io";
    let rules = json!([{"verbs": ["*"], "apiGroups": ["g.example"], "resources": ["things"]}]);
    wire.f
        .create(&at(rbac, "clusterroles", ""), json!({"metadata": {"name": "r"}, "rules": rules}))
        .await
        .unwrap();
    let binding = json!({"metadata": {"name": "r"}, "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "r"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "jane"}]});
    wire.f.create(&at(rbac, "clusterrolebindings", ""), binding).await.unwrap();
    for alpn in ["h2", "http/1.1"] {
        let mut sent = request("POST", &format!("{THINGS}?a=%20b"), "any body");
        for (name, value) in [
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-mine", "1"),
            ("content-type", "made/up"),
        ] {
            sent.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = wire.send(alpn, jane, sent).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let headers = [
            "host: ext.n.svc:443",
            "x-mine: 1",
            "x-remote-group: system:authenticated",
            "x-remote-group: team",
            "x-remote-user: jane",
        ];
        let want = json!({"method": "POST", "uri": format!("{THINGS}?a=%20b"), "body": "any body", "headers": headers});
        assert_eq!(body(answer).await, want);
    }
    let mut acting = request("GET", THINGS, "");
    for (name, value) in
        [("impersonate-user", "jane"), ("impersonate-uid", "7"), ("impersonate-extra-a%2fb", "c")]
    {
        acting.headers_mut().insert(name, value.parse().unwrap());
    }
    let headers = body(wire.send("h2", ADMIN, acting).await).await["headers"].to_string();
    assert!(headers.contains("x-remote-user: jane") && headers.contains("x-remote-uid: 7"), "{headers}");
    assert!(!headers.contains("masters") && !headers.contains("impersonate"), "{headers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_upgrades_go_through() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some((wire, extension)) = setup().await else { return };
    extension.install(&wire.f).await;
    let mut watch =
        wire.send("h2", ADMIN, request("GET", &format!("{THINGS}?watch=true"), "")).await.into_body();
    let first = tokio::time::timeout(Duration::from_secs(5), watch.frame()).await.expect("an event in time");
    assert!(first.unwrap().unwrap().into_data().unwrap().starts_with(b"{\"object\""));
    let io = TokioIo::new(wire.connect("http/1.1", ADMIN).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{THINGS}/t/switch")).header("host", "localhost");
    let request = request.header("connection", "Upgrade").header("upgrade", "my-protocol");
    let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut text = [0; 5];
    io.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_in_the_process_are_passed_on_too() {
    let Some((wire, extension)) = setup().await else { return };
    let f = &wire.f;
    extension.install(f).await;
    let things = at("g.example", "things", "n");
    let created = f.create(&things, json!({"a": 1})).await.unwrap();
    assert_eq!((&created["method"], &created["body"]), (&json!("POST"), &json!("{\"a\":1}")));
    let mut deleted = things.request(Verb::Delete, Some("t"), None);
    deleted.options.propagation_policy = Some("Background".into());
    assert!(f.json(deleted).await.unwrap()["body"].as_str().unwrap().contains("Background"));
    let missing = f.get(&things, "missing").await.unwrap_err();
    assert_eq!((missing.is_not_found(), missing.message.as_str()), (true, "mine"));
    let mut watch = f.watch(&things, Default::default()).await.unwrap();
    assert_eq!(brief(&mut watch).await, "ADDED a");
    let list = f.json(ApiRequest::path("/apis/g.example/v1")).await.unwrap();
    assert_eq!(list, resources());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_condition_says_why_nobody_answers() {
    let Some((wire, extension)) = setup().await else { return };
    let f = &wire.f;
    let code = async || wire.send("h2", ADMIN, request("GET", THINGS, "")).await.status().as_u16();
    f.create(&at("", "namespaces", ""), json!({"metadata": {"name": "n"}})).await.unwrap();
    f.create(&api_services(), extension.registration()).await.unwrap();
    assert_eq!(code().await, 503);
    until(f, "False ServiceNotFound: service/ext in \"n\" is not present").await;
    f.create(&at("", "services", "n"), service()).await.unwrap();
    until(f, "False EndpointsNotFound: cannot find endpointslices for service/ext in \"n\"").await;
    let slices = at("discovery.k8s.io", "endpointslices", "n");
    let mut slice = extension.slice();
    slice["endpoints"][0]["conditions"]["ready"] = false.into();
    f.create(&slices, slice).await.unwrap();
    until(f, "False MissingEndpoints: ").await;
    assert_eq!(code().await, 503);
    extension.down.store(true, Ordering::SeqCst);
    f.patch(&slices, "ext", PatchType::Merge, json!({"endpoints": extension.slice()["endpoints"]}))
        .await
        .unwrap();
    until(f, "False FailedDiscoveryCheck: failing or missing response from https://ext.n.svc:443/apis/g.example/v1").await;
    extension.down.store(false, Ordering::SeqCst);
    until(f, "True Passed").await;
    assert_eq!(code().await, 201);
    // What others write into the status stays, and an authority that vouches for nothing here is noticed.
    let mut object = f.get(&api_services(), "v1.g.example").await.unwrap();
    let mine = json!({"type": "Mine", "status": "True", "reason": "R", "message": "m"});
    object["status"]["conditions"].as_array_mut().unwrap().push(mine);
    f.update_status(&api_services(), "v1.g.example", &object).await.unwrap();
    let other = json!({"spec": {"caBundle": BASE64_STANDARD.encode(Pki::new().ca_pem)}});
    f.patch(&api_services(), "v1.g.example", PatchType::Merge, other).await.unwrap();
    until(f, "False FailedDiscoveryCheck").await;
    assert!(condition(f).await.contains("unknown authority"), "{}", condition(f).await);
    let object = f.get(&api_services(), "v1.g.example").await.unwrap();
    assert!(object["status"]["conditions"].to_string().contains("Mine"));
    let trusting = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    f.patch(&api_services(), "v1.g.example", PatchType::Merge, trusting).await.unwrap();
    until(f, "True Passed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_openapi_show_what_others_serve() {
    let Some((wire, extension)) = setup().await else { return };
    let f = &wire.f;
    extension.install(f).await;
    let path = async |path: &str| f.json(ApiRequest::path(path)).await.unwrap();
    let aggregated = async || {
        let mut request = ApiRequest::path("/apis");
        request.accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList".into();
        let list = f.json(request).await.unwrap();
        let found = list["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "g.example");
        found.map_or(Value::Null, |group| group["versions"][0].clone())
    };
    let groups = path("/apis").await;
    // More important than any other but the one that registers them.
    assert_eq!(groups["groups"][1]["name"], "g.example");
    assert_eq!(path("/apis/g.example").await["preferredVersion"]["groupVersion"], "g.example/v1");
    let shown = aggregated().await;
    assert_eq!(
        (&shown["freshness"], &shown["resources"][0]["resource"]),
        (&json!("Current"), &json!("things"))
    );
    assert_eq!(shown["resources"][0]["subresources"][0]["subresource"], "switch");
    let index = path("/openapi/v3").await;
    let place = "/openapi/v3/apis/g.example/v1?hash=AB";
    assert_eq!(index["paths"]["apis/g.example/v1"]["serverRelativeURL"], place);
    let document = wire.send("h2", ADMIN, request("GET", place, "")).await;
    assert_eq!(body(document).await["openapi"], "3.0.0");
    f.delete(&at("discovery.k8s.io", "endpointslices", "n"), "ext").await.unwrap();
    until(f, "False EndpointsNotFound").await;
    let shown = aggregated().await;
    assert_eq!(
        (&shown["freshness"], &shown["resources"][0]["resource"]),
        (&json!("Stale"), &json!("things"))
    );
    f.delete(&api_services(), "v1.g.example").await.unwrap();
    assert_eq!(aggregated().await, Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_here_is_registered() {
    let f = Fixture::new().await;
    let apps = f.get(&api_services(), "v1.apps").await.unwrap();
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(
        (&apps["spec"]["service"], &apps["spec"]["groupPriorityMinimum"]),
        (&Value::Null, &json!(17800))
    );
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    assert!(f.get(&api_services(), "v1.").await.is_ok(), "the core group");
    let mut watch = f.watch(&api_services(), Default::default()).await.unwrap();
    while next(&mut watch).await.1["metadata"]["name"] != "v2.autoscaling" {}
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version =
        json!({"name": "v3", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let crd = json!({"metadata": {"name": "as.c.example"}, "spec": {"group": "c.example", "scope": "Cluster",
        "names": {"plural": "as", "kind": "A"}, "versions": [version]}});
    let definitions = at("apiextensions.k8s.io", "customresourcedefinitions", "");
    f.create(&definitions, crd).await.unwrap();
    let wanted = async |watch: &mut _, want: &str| while brief(watch).await != want {};
    wanted(&mut watch, "ADDED v3.c.example").await;
    let made = f.get(&api_services(), "v3.c.example").await.unwrap();
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(made["spec"]["groupPriorityMinimum"], 1000);
    f.delete(&definitions, "as.c.example").await.unwrap();
    wanted(&mut watch, "DELETED v3.c.example").await;
    f.delete(&api_services(), "v1.apps").await.unwrap();
    wanted(&mut watch, "DELETED v1.apps").await;
    wanted(&mut watch, "ADDED v1.apps").await;
    // The numbers of a cluster may come from somebody else.
    let service = json!({"spec": {"service": {"name": "m", "namespace": "kube-system"}}});
    f.patch(&api_services(), "v1beta1.metrics.k8s.io", PatchType::Merge, service.clone()).await.unwrap();
    f.patch(&api_services(), "v1.batch", PatchType::Merge, service).await.unwrap();
    wanted(&mut watch, "MODIFIED v1.batch").await;
    wanted(&mut watch, "MODIFIED v1.batch").await;
    let batch = f.get(&api_services(), "v1.batch").await.unwrap();
    assert_eq!(
        (&batch["spec"]["service"], &batch["status"]["conditions"][0]["reason"]),
        (&Value::Null, &json!("Local"))
    );
    let metrics = f.get(&api_services(), "v1beta1.metrics.k8s.io").await.unwrap();
    assert_eq!(metrics["spec"]["service"]["name"], "m");
}
