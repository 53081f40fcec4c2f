//! Thresholds, requests and answers; the task against a clock that the test winds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::Clock;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::{ProbeKind, ProbeState, ProbeTarget, first_delay, http_get, port_of, start, status_code};
use crate::fake::FakeRuntime;
use crate::ports::{ContainerConfig, Runtime, SandboxConfig};

fn probe(value: serde_json::Value) -> core::Probe {
    serde_json::from_value(value).unwrap()
}

#[test]
fn thresholds() {
    // (results, thresholds of success and failure, verdicts)
    let table = [
        ("+", 1, 3, "+"),
        ("---", 1, 3, "..-"),
        ("--+---", 1, 3, "..+..-"),
        ("+++", 1, 3, "+.."),
        ("-+-++", 2, 1, "-...+"),
    ];
    for (results, success, failure, wanted) in table {
        let mut state =
            ProbeState::new(&probe(json!({"successThreshold": success, "failureThreshold": failure})));
        let verdicts: String = results
            .chars()
            .map(|c| match state.observe(c == '+') {
                Some(true) => '+',
                Some(false) => '-',
                None => '.',
            })
            .collect();
        assert_eq!(verdicts, wanted, "{results}");
    }
}

#[test]
fn delays_count_from_the_start_of_the_container() {
    let probe = probe(json!({"initialDelaySeconds": 10}));
    assert_eq!(first_delay(&probe, Duration::from_secs(4)), Duration::from_secs(6));
    assert_eq!(first_delay(&probe, Duration::from_secs(40)), Duration::ZERO);
}

#[test]
fn ports_and_answers() {
    let container: core::Container =
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
            .unwrap();
    let port = |value: serde_json::Value| port_of(&serde_json::from_value(value).unwrap(), &container).ok();
    assert_eq!(port(json!(8080)), Some(8080));
    assert_eq!(port(json!("web")), Some(80));
    assert_eq!(port(json!("other")), None);
    assert_eq!(status_code(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
    assert_eq!(status_code(b"SSH-2.0\r\n"), None);
}

/// Serves one answer and returns what was asked.
async fn serve(answer: &'static str) -> (u16, oneshot::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0u8; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        sender.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).unwrap();
    });
    (port, receiver)
}

fn target() -> ProbeTarget {
    ProbeTarget {
        container_id: "c".into(),
        container: core::Container::default(),
        pod_ip: Some("127.0.0.1".parse().unwrap()),
        age: Duration::ZERO,
    }
}

#[tokio::test]
async fn http_probes() {
    let (port, asked) = serve("HTTP/1.1 200 OK\r\n\r\n").await;
    let headers = json!([{"name": "Host", "value": "me"}, {"name": "X-A", "value": "b"}]);
    let action =
        serde_json::from_value(json!({"port": port, "path": "healthz?a=b", "httpHeaders": headers})).unwrap();
    assert_eq!(http_get(&action, &target()).await, Ok(()));
    let asked = asked.await.unwrap();
    assert!(
        asked.starts_with("GET /healthz?a=b HTTP/1.1\r\nHost: me\r\nUser-Agent: kube-probe/1.37\r\n"),
        "{asked}"
    );
    assert!(asked.contains("X-A: b\r\n"));
    let (port, _) = serve("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
    let action = serde_json::from_value(json!({"port": port})).unwrap();
    assert_eq!(http_get(&action, &target()).await.unwrap_err(), "HTTP probe failed with statuscode: 503");
}

#[tokio::test]
async fn https_probes_take_any_certificate() {
    let issued = rcgen::generate_simple_self_signed(vec!["elsewhere.example".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth().with_single_cert(vec![issued.cert.der().clone()], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
    });
    let action = serde_json::from_value(json!({"port": port, "scheme": "HTTPS"})).unwrap();
    assert_eq!(http_get(&action, &target()).await, Ok(()));
    server.await.unwrap();
    // a server that doesn't speak TLS fails it
    let (port, _) = serve("HTTP/1.1 200 OK\r\n\r\n").await;
    let action = serde_json::from_value(json!({"port": port, "scheme": "HTTPS"})).unwrap();
    assert!(http_get(&action, &target()).await.unwrap_err().starts_with("Get \"https://"));
}

/// Time stands still until the test winds it.
#[derive(Default)]
struct FakeClock {
    state: Mutex<(Duration, Vec<(Duration, oneshot::Sender<()>)>)>,
    slept: tokio::sync::Notify,
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().unwrap().0
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock().unwrap();
        let due = state.0 + delay;
        state.1.push((due, sender));
        self.slept.notify_one();
        receiver.map(drop).boxed()
    }

    fn random(&self) -> u64 {
        0
    }
}

impl FakeClock {
    /// Waits for a sleeper, then winds to its end; returns the time.
    async fn wind(&self) -> u64 {
        loop {
            {
                let mut state = self.state.lock().unwrap();
                state.1.retain(|(_, sender)| !sender.is_closed());
                state.1.sort_by_key(|(due, _)| *due);
                if !state.1.is_empty() {
                    let (due, sender) = state.1.remove(0);
                    state.0 = due;
                    sender.send(()).unwrap();
                    return due.as_secs();
                }
            }
            self.slept.notified().await;
        }
    }
}

#[tokio::test]
async fn a_probe_runs_on_its_timers() {
    let clock = Arc::new(FakeClock::default());
    let runtime = FakeRuntime::new(clock.clone());
    let sandbox = runtime.run_pod_sandbox(SandboxConfig::default()).await.unwrap().id;
    let config = ContainerConfig { name: "main".into(), ..ContainerConfig::default() };
    let id = runtime.create_container(&sandbox, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    runtime.set_exec_code("main", 1);
    let wanted = json!({"exec": {"command": ["x"]}, "initialDelaySeconds": 5, "periodSeconds": 3, "failureThreshold": 2});
    let container = core::Container { liveness_probe: Some(probe(wanted)), ..core::Container::default() };
    let target = ProbeTarget { container_id: id, container, ..target() };
    let (news, mut incoming) = mpsc::unbounded_channel();
    let running = start(ProbeKind::Liveness, target, runtime, clock.clone(), news, Default::default());
    assert_eq!(clock.wind().await, 5);
    assert_eq!(incoming.recv().await.unwrap().verdict, None);
    assert_eq!(clock.wind().await, 8);
    assert_eq!(incoming.recv().await.unwrap().verdict, Some(false));
    drop(running);
    assert!(incoming.recv().await.is_none(), "a dropped probe ends");
}
