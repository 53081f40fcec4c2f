//! Admission webhooks over real HTTPS: who is asked, what they may change, and what their refusal says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use api::{PatchType, Verb};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::common::{At, Fixture, Pki, at, configmap, configmaps};

type Handler = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A webhook server: what its handler gives becomes the response; every request is remembered.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) bundle: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    /// A server with a certificate for some name; `handler` gets path and review and gives the whole answer.
    pub(crate) async fn start(
        name: &str,
        handler: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        let pki = Pki::new();
        let (certificate, key) = pki.issue(name, &[]);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, handler, log) = (acceptor.clone(), Arc::clone(&handler), Arc::clone(&log));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service = service_fn(|request| answer(&handler, &log, request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    connection.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { address, bundle: BASE64_STANDARD.encode(&pki.ca_pem), seen }
    }

    /// One webhook of a configuration that sends ConfigMaps of namespace `default` here.
    fn hook(&self, name: &str, change: Value) -> Value {
        let mut hook = json!({"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://localhost:{}/{name}", self.address.port()), "caBundle": self.bundle},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
        for (field, value) in change.as_object().unwrap() {
            hook[field] = value.clone();
        }
        hook
    }

    /// Paths of the requests so far, without the query.
    fn asked(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(path, _)| path.trim_start_matches('/').to_owned()).collect()
    }

    pub(crate) fn last(&self) -> Value {
        self.seen.lock().unwrap().last().expect("a request").1.clone()
    }
}

async fn answer(
    handler: &Arc<Handler>,
    log: &Mutex<Vec<(String, Value)>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    if path.contains("hang") {
        std::future::pending::<()>().await;
    }
    let answer = handler(&path, &review);
    log.lock().unwrap().push((path, review));
    Ok(Response::new(Full::new(Bytes::from(answer.to_string()))))
}

/// An AdmissionReview with a response.
fn review(request: &Value, response: Value) -> Value {
    let mut response = response;
    response["uid"] = request["request"]["uid"].clone();
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(operations.to_string())})
}

fn configurations(kind: &str) -> At {
    at("admissionregistration.k8s.io", &format!("{kind}webhookconfigurations"), "")
}

async fn install(f: &Fixture, kind: &str, name: &str, hooks: Vec<Value>) {
    let object = json!({"metadata": {"name": name}, "webhooks": hooks});
    f.create(&configurations(kind), object).await.unwrap();
}

/// Adds the name of the webhook to `data.order`.
fn append(path: &str, request: &Value) -> Value {
    let order = request["request"]["object"]["data"]["order"].as_str().unwrap_or_default();
    let order = format!("{order}{}", path.trim_start_matches('/').split('.').next().unwrap());
    review(request, patch(json!([{"op": "add", "path": "/data/order", "value": order}])))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutating_webhooks_run_by_name_and_again_when_they_ask_for_it() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", append).await;
    let eager = json!({"reinvocationPolicy": "IfNeeded"});
    install(&f, "mutating", "b", vec![server.hook("c.x.y", json!({})), server.hook("a.x.y", json!({}))])
        .await;
    install(&f, "mutating", "a", vec![server.hook("e.x.y", eager)]).await;
    let made = f.create(&configmaps(), configmap("m", json!({}), json!({"x": "y"}))).await.unwrap();
    assert_eq!(made["data"]["order"], "ecae");
    assert_eq!(server.asked(), ["e.x.y", "c.x.y", "a.x.y", "e.x.y"]);
    let seen = server.last();
    assert_eq!(seen["request"]["operation"], "CREATE");
    assert_eq!(seen["request"]["name"], "m");
    assert_eq!(seen["request"]["namespace"], "default");
    assert_eq!(seen["request"]["userInfo"]["username"], "admin");
    assert_eq!(seen["request"]["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(seen["request"]["oldObject"], Value::Null);
    // An update is not what the rules are about.
    f.patch(&configmaps(), "m", PatchType::Merge, json!({"data": {"x": "z"}})).await.unwrap();
    assert_eq!(server.asked().len(), 4);
    // Gone means gone at once.
    f.delete(&configurations("mutating"), "a").await.unwrap();
    f.delete(&configurations("mutating"), "b").await.unwrap();
    f.create(&configmaps(), configmap("n", json!({}), json!({}))).await.unwrap();
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_changes_is_defaulted_and_validated() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", |path, request| {
        let value = if path.contains("bad") {
            json!({"name": "x y", "image": "i"})
        } else {
            json!({"name": "i", "image": "i", "unknown": 1})
        };
        review(request, patch(json!([{"op": "add", "path": "/spec/initContainers", "value": [value]}])))
    })
    .await;
    let rules =
        json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    f.create(&at("", "serviceaccounts", "default"), json!({"metadata": {"name": "default"}})).await.unwrap();
    let pods = at("", "pods", "default");
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    install(&f, "mutating", "good", vec![server.hook("good.x.y", json!({"rules": rules}))]).await;
    let made = f.create(&pods, pod("a")).await.unwrap();
    let init = &made["spec"]["initContainers"][0];
    assert_eq!(init["terminationMessagePolicy"], "File");
    assert_eq!(init["unknown"], Value::Null);
    let seen = server.last();
    assert_eq!(seen["request"]["object"]["spec"]["containers"][0]["terminationMessagePolicy"], "File");
    install(&f, "mutating", "zz", vec![server.hook("bad.x.y", json!({"rules": rules}))]).await;
    let refused = f.create(&pods, pod("b")).await.unwrap_err();
    assert_eq!(refused.code, 422);
    assert!(refused.message.contains("spec.initContainers[0].name"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_the_webhook_and_its_reason() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", |_, request| {
        let result = match request["request"]["name"].as_str().unwrap() {
            "plain" => json!(null),
            "reason" => json!({"reason": "Forbidden", "code": 403}),
            "fine" => return review(request, json!({"allowed": true, "warnings": ["be careful"]})),
            _ => json!({"message": "never", "code": 418}),
        };
        review(request, json!({"allowed": false, "status": result}))
    })
    .await;
    let every = json!({"rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let maps = configmaps();
    f.create(&maps, configmap("kept", json!({}), json!({}))).await.unwrap();
    install(&f, "validating", "v", vec![server.hook("deny.x.y", every)]).await;
    let denied = "admission webhook \"deny.x.y\" denied the request";
    for (name, code, message) in [
        ("plain", 400, format!("{denied} without explanation")),
        ("reason", 403, format!("{denied}: Forbidden")),
        ("message", 418, format!("{denied}: never")),
    ] {
        let status = f.create(&maps, configmap(name, json!({}), json!({}))).await.unwrap_err();
        assert_eq!((status.code, status.message), (code, message));
    }
    let allowed = maps.request(Verb::Create, None, None);
    let fine = configmap("fine", json!({}), json!({})).to_string();
    let response = f.send(&f.admin, allowed.with_json(fine)).await.unwrap();
    assert_eq!(response.warnings, ["be careful"]);
    for refused in [
        f.delete(&maps, "kept").await,
        f.patch(&maps, "kept", PatchType::Merge, json!({"data": {"a": "b"}})).await,
        f.json(maps.request(Verb::DeleteCollection, None, None)).await,
    ] {
        assert_eq!(refused.unwrap_err().message, format!("{denied}: never"));
    }
    assert_eq!(f.get(&maps, "kept").await.unwrap()["data"], json!({}));
    // The configuration itself cannot be held hostage.
    f.delete(&configurations("validating"), "v").await.unwrap();
    f.delete(&maps, "kept").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_policy_decides_about_webhooks_that_do_not_answer() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", |_, request| review(request, json!({"allowed": true}))).await;
    let maps = configmaps();
    let make = async |name: &str| f.create(&maps, configmap(name, json!({}), json!({}))).await;
    let slow = |policy: &str| server.hook("hang.x.y", json!({"failurePolicy": policy, "timeoutSeconds": 1}));
    install(&f, "validating", "v", vec![slow("Fail")]).await;
    let refused = make("a").await.unwrap_err();
    let port = server.address.port();
    let want = format!(
        "Internal error occurred: failed calling webhook \"hang.x.y\": failed to call webhook: Post \
         \"https://localhost:{port}/hang.x.y?timeout=1s\": context deadline exceeded"
    );
    assert_eq!((refused.code, refused.message), (500, want));
    f.delete(&configurations("validating"), "v").await.unwrap();
    install(&f, "validating", "v", vec![slow("Ignore")]).await;
    make("a").await.unwrap();
    f.delete(&configurations("validating"), "v").await.unwrap();
    // A server that the bundle does not vouch for.
    let other = Server::start("localhost", |_, _| Value::Null).await;
    let mut hook = server.hook("x.x.y", json!({}));
    hook["clientConfig"]["caBundle"] = other.bundle.as_str().into();
    install(&f, "validating", "v", vec![hook]).await;
    let refused = make("b").await.unwrap_err().message;
    assert!(refused.contains("x509: certificate signed by unknown authority"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_dry_runs_and_streams() {
    let f = Fixture::new().await;
    let server = Server::start("localhost", |_, request| review(request, json!({"allowed": false}))).await;
    let selected = json!({"namespaceSelector": {"matchLabels": {"team": "a"}},
        "objectSelector": {"matchLabels": {"app": "web"}}});
    install(&f, "validating", "v", vec![server.hook("s.x.y", selected)]).await;
    f.create(&at("", "namespaces", ""), json!({"metadata": {"name": "n", "labels": {"team": "a"}}}))
        .await
        .unwrap();
    let inside = at("", "configmaps", "n");
    let map = |name: &str, labels: Value| configmap(name, labels, json!({}));
    f.create(&configmaps(), map("a", json!({"app": "web"}))).await.unwrap();
    f.create(&inside, map("b", json!({"app": "db"}))).await.unwrap();
    f.create(&inside, map("c", json!({"app": "web"}))).await.unwrap_err();
    assert_eq!(server.asked().len(), 1);
    // Unselected side effects: a dry run is told to the webhook.
    let mut request =
        inside.request(Verb::Create, None, None).with_json(map("d", json!({"app": "web"})).to_string());
    request.options.dry_run = true;
    f.json(request).await.unwrap_err();
    assert_eq!(server.last()["request"]["dryRun"], true);
    assert_eq!(server.last()["request"]["options"]["dryRun"], json!(["All"]));
    // Streams.
    let rules = json!([{"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach"]}]);
    install(&f, "validating", "w", vec![server.hook("attach.x.y", json!({"rules": rules}))]).await;
    f.create(&at("", "serviceaccounts", "default"), json!({"metadata": {"name": "default"}})).await.unwrap();
    let pods = at("", "pods", "default");
    f.create(
        &pods,
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}),
    )
    .await
    .unwrap();
    let mut attach = pods.request(Verb::Create, Some("p"), Some("attach"));
    attach.options.extra = vec![("stdin".into(), "true".into()), ("container".into(), "a".into())];
    let refused = f.json(attach).await.unwrap_err().message;
    assert_eq!(refused, "admission webhook \"attach.x.y\" denied the request without explanation");
    let seen = server.last();
    assert_eq!(seen["request"]["operation"], "CONNECT");
    assert_eq!(seen["request"]["subResource"], "attach");
    assert_eq!(
        seen["request"]["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "a"})
    );
}

/// The source address of the default route; connecting a UDP socket sends nothing.
pub(crate) fn address_of_this_machine() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.254:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_resolved_and_scales_are_shown_as_such() {
    let f = Fixture::new().await;
    let server = Server::start("hook.n.svc", |_, request| {
        review(request, patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 2}])))
    })
    .await;
    f.create(&at("", "namespaces", ""), json!({"metadata": {"name": "n"}})).await.unwrap();
    let ports = json!({"ports": [{"name": "x", "port": 8443}]});
    f.create(&at("", "services", "n"), json!({"metadata": {"name": "hook"}, "spec": ports})).await.unwrap();
    let hook = server.hook("scale.x.y", json!({
        "clientConfig": {"service": {"name": "hook", "namespace": "n", "port": 8443, "path": "/p"}, "caBundle": server.bundle},
        "rules": [{"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"]}]}));
    let deployments = at("apps", "deployments", "n");
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    f.create(&deployments, json!({"metadata": {"name": "d"}, "spec": spec})).await.unwrap();
    install(&f, "mutating", "m", vec![hook]).await;
    let scale = |replicas: i64| {
        let body = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"replicas": replicas}});
        deployments.request(Verb::Update, Some("d"), Some("scale")).with_json(body.to_string())
    };
    let refused = f.json(scale(5)).await.unwrap_err().message;
    assert!(refused.contains("no endpoints available for service"), "{refused}");
    // An endpoint on loopback is refused: the server would be made to call itself.
    let Some(own) = address_of_this_machine() else {
        println!("skipped: this machine has no address but loopback");
        return;
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "s", "namespace": "n", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "x", "port": server.address.port()}],
        "endpoints": [{"addresses": [own], "conditions": {"ready": true}}]});
    f.create(&at("discovery.k8s.io", "endpointslices", "n"), slice).await.unwrap();
    let scaled = f.json(scale(5)).await.unwrap();
    assert_eq!(scaled["spec"]["replicas"], 2);
    let seen = server.last();
    assert_eq!(seen["request"]["kind"]["kind"], "Scale");
    assert_eq!(seen["request"]["object"]["spec"]["replicas"], 5);
    assert_eq!(seen["request"]["oldObject"]["spec"]["replicas"], 1);
    assert_eq!(f.get(&deployments, "d").await.unwrap()["spec"]["replicas"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_webhook_keeps_the_server_from_starting() {
    let f = Fixture::new().await;
    let roles = At { namespace: None, ..at("rbac.authorization.k8s.io", "clusterroles", "") };
    f.delete(&roles, "view").await.unwrap();
    let nobody = json!({"clientConfig": {"url": "https://127.0.0.1:9"}, "rules": [{"operations": ["*"],
        "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    let server = Server::start("localhost", |_, _| Value::Null).await;
    install(&f, "validating", "v", vec![server.hook("nobody.x.y", nobody)]).await;
    let refused = f.create(&configmaps(), configmap("a", json!({}), json!({}))).await.unwrap_err().message;
    assert!(refused.contains("dial tcp 127.0.0.1:9: connect: connection refused"), "{refused}");
    let store = Arc::clone(&f.store) as Arc<dyn store::Store>;
    let again = apiserver::ApiServer::open(store, crate::common::config(&f.pki)).await.unwrap();
    let request = roles.request(Verb::Get, Some("view"), None);
    again.call(&f.admin, request).await.unwrap();
}
