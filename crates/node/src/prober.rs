//! Probes: when to run them and what their results mean (pure), and the task that runs one.
//!
//! ```text
//!   container starts ─ initialDelay ─▶ probe ─ period ─▶ probe … ─▶ result past its threshold ─▶ pod worker
//!   a startup probe holds the other two back until it has passed
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::metrics::Counter;
use client::Clock;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::ports::{Runtime, RuntimeError};

/// Bytes of an answer that are read at most.
const MAX_ANSWER: usize = 10 * 1024;

/// Which of the three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
        }
    }

    /// A container's probe of this kind.
    pub fn of(self, container: &core::Container) -> Option<&core::Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Counts results of one probe. Pure: the caller brings the results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeState {
    success_threshold: u32,
    failure_threshold: u32,
    /// Results in a row of the same kind.
    run: u32,
    last: Option<bool>,
    verdict: Option<bool>,
}

impl ProbeState {
    /// No result yet.
    pub fn new(probe: &core::Probe) -> Self {
        let at_least_one = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            run: 0,
            last: None,
            verdict: None,
        }
    }

    /// Takes one result; returns the verdict when it is new: thresholds were reached and it differs from before.
    pub fn observe(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        Some(success)
    }
}

/// Delay before the first run of a probe on a container that has run for `age`.
pub fn first_delay(probe: &core::Probe, age: Duration) -> Duration {
    seconds(probe.initial_delay_seconds, 0).saturating_sub(age)
}

/// Time between runs.
pub fn period(probe: &core::Probe) -> Duration {
    seconds(probe.period_seconds, 10).max(Duration::from_secs(1))
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

/// A probe's news for the pod worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeNews {
    pub container_id: String,
    pub container: String,
    pub kind: ProbeKind,
    /// Thresholds were reached.
    pub verdict: Option<bool>,
    /// Why this run failed; every failure is reported for its event.
    pub failure: Option<String>,
}

/// What a probe task needs.
pub struct ProbeTarget {
    pub container_id: String,
    pub container: core::Container,
    pub pod_ip: Option<IpAddr>,
    /// How long the container has run.
    pub age: Duration,
}

/// Ends the probe when dropped.
pub struct RunningProbe(AbortHandle);

impl Drop for RunningProbe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a probe's task, which counts successes and failures.
pub fn start(
    kind: ProbeKind,
    target: ProbeTarget,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    news: mpsc::UnboundedSender<ProbeNews>,
    results: [Arc<Counter>; 2],
) -> RunningProbe {
    RunningProbe(client::spawn(run(kind, target, runtime, clock, news, results)).abort_handle())
}

async fn run(
    kind: ProbeKind,
    target: ProbeTarget,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    news: mpsc::UnboundedSender<ProbeNews>,
    [successes, failures]: [Arc<Counter>; 2],
) {
    let Some(probe) = kind.of(&target.container).cloned() else { return };
    let mut state = ProbeState::new(&probe);
    let wait = first_delay(&probe, target.age);
    if !wait.is_zero() {
        clock.sleep(wait).await;
    }
    loop {
        let began = clock.monotonic();
        let result = once(&probe, &target, &*runtime, &*clock).await;
        if result.is_ok() {
            successes.inc()
        } else {
            failures.inc()
        }
        let verdict = state.observe(result.is_ok());
        let failure = result.err();
        if verdict.is_some() || failure.is_some() {
            let (container_id, container) = (target.container_id.clone(), target.container.name.clone());
            if news.send(ProbeNews { container_id, container, kind, verdict, failure }).is_err() {
                return;
            }
        }
        if kind == ProbeKind::Startup && verdict.is_some() {
            return;
        }
        let spent = clock.monotonic().saturating_sub(began);
        clock.sleep(period(&probe).saturating_sub(spent)).await;
    }
}

/// Runs a probe once.
async fn once(
    probe: &core::Probe,
    target: &ProbeTarget,
    runtime: &dyn Runtime,
    clock: &dyn Clock,
) -> Result<(), String> {
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match runtime.exec_sync(&target.container_id, command, timeout).await {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => Err(text_of(&[result.stdout, result.stderr].concat())),
            Err(RuntimeError::Timeout) => {
                Err(format!("command timed out: timed out after {}s", timeout.as_secs()))
            }
            Err(error) => Err(error.to_string()),
        };
    }
    let attempt = async {
        if let Some(http) = &probe.http_get {
            http_get(http, target).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = host_of(tcp.host.as_deref(), target)?;
            let port = port_of(&tcp.port, &target.container)?;
            connect(&host, port).await.map(drop)
        } else if let Some(health) = &probe.grpc {
            let host = host_of(None, target)?;
            let port = port_of(&IntOrString::Int(health.port), &target.container)?;
            let stream = connect(&host, port).await?;
            grpc::check(stream, &format!("{host}:{port}"), health.service.as_deref().unwrap_or_default())
                .await
        } else {
            Err("this kind of probe is not supported by the node".into())
        }
    };
    tokio::select! {
        result = attempt => result,
        () = clock.sleep(timeout) => {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into())
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    let end = bytes.len().min(MAX_ANSWER);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn host_of(host: Option<&str>, target: &ProbeTarget) -> Result<String, String> {
    match host.filter(|h| !h.is_empty()) {
        Some(host) => Ok(host.into()),
        None => target.pod_ip.map(|ip| ip.to_string()).ok_or_else(|| "the pod has no address".into()),
    }
}

/// A number, or the name of one of the container's ports.
pub fn port_of(port: &IntOrString, container: &core::Container) -> Result<u16, String> {
    let named = |name: &str| {
        let found = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
        found.map(|p| p.container_port)
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => named(name).or_else(|| name.parse().ok()),
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    number.ok_or_else(|| format!("couldn't find port: {port:?}"))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let shown = if bare.contains(':') { format!("[{bare}]:{port}") } else { format!("{bare}:{port}") };
    TcpStream::connect((bare, port)).await.map_err(|e| format!("dial tcp {shown}: connect: {e}"))
}

/// GET; 200..=399 is a success.
async fn http_get(http: &core::HTTPGetAction, target: &ProbeTarget) -> Result<(), String> {
    match http_code(http, target).await? {
        200..=399 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

/// Code of the answer to a GET with HTTP/1.1.
pub(crate) async fn http_code(http: &core::HTTPGetAction, target: &ProbeTarget) -> Result<u16, String> {
    let host = host_of(http.host.as_deref(), target)?;
    let port = port_of(&http.port, &target.container)?;
    let secure = http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS"));
    let scheme = if secure { "https" } else { "http" };
    let path = http.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{scheme}://{host}:{port}{slash}{path}");
    let failed = |why: String| format!("Get {url:?}: {why}");
    let stream = connect(&host, port).await.map_err(&failed)?;
    let request = http_request(http, &format!("{host}:{port}"), &format!("{slash}{path}"));
    let code = if secure {
        answer_code(tls::connect(&host, stream).await.map_err(&failed)?, &request).await
    } else {
        answer_code(stream, &request).await
    };
    code.map_err(failed)
}

/// Sends a request and reads the status line: what follows does not count.
async fn answer_code(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    request: &str,
) -> Result<u16, String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut limited = (&mut stream).take(MAX_ANSWER as u64);
    let mut chunk = [0u8; 1024];
    while !answer.windows(2).any(|w| w == b"\r\n") {
        let count = limited.read(&mut chunk).await.map_err(|e| e.to_string())?;
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    match status_code(&answer) {
        Some(code) => Ok(code),
        None if answer.is_empty() => Err("EOF".into()),
        None => Err("malformed HTTP response".into()),
    }
}

fn http_request(http: &core::HTTPGetAction, host: &str, path: &str) -> String {
    let mut host = host.to_owned();
    let (mut agent, mut accept) = ("kube-probe/1.37".to_owned(), "*/*".to_owned());
    let mut others = String::new();
    for header in http.http_headers.iter().flatten() {
        match header.name.to_ascii_lowercase().as_str() {
            "host" => host.clone_from(&header.value),
            "user-agent" => agent.clone_from(&header.value),
            "accept" => accept.clone_from(&header.value),
            _ => others.push_str(&format!("{}: {}\r\n", header.name, header.value)),
        }
    }
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: {accept}\r\n{others}Connection: close\r\n\r\n"
    )
}

/// Code of a status line.
fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\r').next()?;
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}

mod grpc;
mod tls;

#[cfg(test)]
mod tests;
