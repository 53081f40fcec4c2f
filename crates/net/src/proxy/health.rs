//! Health check ports: a load balancer outside asks each node whether it has endpoints of a service whose
//! `externalTrafficPolicy` is Local, and sends nothing to nodes that have none.
//!
//! The answer is that of Kubernetes' own proxy: 200 or 503, and how many endpoints there are, as JSON and as a header.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use api::ObjectKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A client that says nothing for so long is cut off.
const IDLE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(5);

/// The open health check ports.
#[derive(Default)]
pub(super) struct HealthChecks {
    ports: HashMap<ObjectKey, Port>,
}

struct Port {
    number: u16,
    endpoints: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl HealthChecks {
    /// Records a service's port (0: none) and how many endpoints are here.
    pub(super) fn set(&mut self, key: &ObjectKey, number: u16, endpoints: usize) {
        if number == 0 {
            self.ports.remove(key);
            return;
        }
        if let Some(port) = self.ports.get(key).filter(|port| port.number == number) {
            port.endpoints.send_replace(endpoints);
            return;
        }
        // The old port, if any, is closed first: another service may have it already.
        self.ports.remove(key);
        let (endpoints, count) = watch::channel(endpoints);
        let server = tokio::spawn(serve(key.clone(), number, count));
        self.ports.insert(key.clone(), Port { number, endpoints, server });
    }
}

async fn serve(key: ObjectKey, number: u16, count: watch::Receiver<usize>) {
    loop {
        let error = match listen(number).await {
            Ok(listener) => accept(&listener, &key, &count).await,
            Err(error) => error,
        };
        tracing::warn!(service = %key, port = number, %error, "health check port failed; opening it again");
        tokio::time::sleep(RETRY).await;
    }
}

/// On the addresses of both families, or of IPv4 alone where the kernel has no other.
async fn listen(number: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, number)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).await,
    }
}

async fn accept(listener: &TcpListener, key: &ObjectKey, count: &watch::Receiver<usize>) -> std::io::Error {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return error,
        };
        let answer = answer(key, *count.borrow());
        tokio::spawn(async move {
            if tokio::time::timeout(IDLE, converse(stream, &answer)).await.is_err() {
                tracing::trace!("a health check client said nothing");
            }
        });
    }
}

/// One request, whatever it asks for, and the answer.
async fn converse(mut stream: TcpStream, answer: &str) {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
            Ok(_) | Err(_) => return,
        }
    }
    if let Err(error) = stream.write_all(answer.as_bytes()).await {
        tracing::trace!(%error, "a health check client left early");
    }
}

fn answer(key: &ObjectKey, endpoints: usize) -> String {
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = serde_json::json!({
        "service": {"namespace": &*key.namespace, "name": &*key.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    })
    .to_string();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n\
         x-load-balancing-endpoint-weight: {endpoints}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn a_node_says_whether_it_has_endpoints() {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, key) = (free(), ObjectKey::new("ns", "web"));
        let mut checks = HealthChecks::default();
        checks.set(&key, port, 2);
        let mut text = None;
        while text.is_none() {
            tokio::task::yield_now().await;
            text = ask(port).await;
        }
        let text = text.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("-weight: 2\r\n"), "{text}");
        assert!(text.contains(r#""localEndpoints":2"#) && text.contains(r#""name":"web""#), "{text}");
        checks.set(&key, port, 0);
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503 "));
        checks.set(&key, 0, 0);
        while ask(port).await.is_some() {
            tokio::task::yield_now().await;
        }
    }
}
