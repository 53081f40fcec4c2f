//! Calls out to webhooks, for admission and for conversion: JSON over HTTPS to a URL or to a Service. How Services are
//! found and what is believed of those that answer is shared with the aggregation of other API servers.
//!
//! A Service is resolved to a ready endpoint here, so that webhooks depend neither on host rules nor on cluster DNS; its
//! certificate is that of `{name}.{namespace}.svc`.

pub(crate) mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, Object, ObjectKey, Reason, Status};
use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use store::{Entry, Store};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use self::tls::Trust;
pub(crate) use self::tls::trust_roots;
use crate::custom::Catalog;
use crate::proxy;
use crate::registry::negotiate::{self, Versioned};
use crate::registry::store_error;
use crate::resource::Resource;

/// The largest answer that is read.
const LARGEST_ANSWER: usize = 16 << 20;
const USUAL_PORT: u16 = 443;

/// How Services are found.
pub(crate) struct Network {
    store: Arc<dyn Store>,
    resources: Arc<Catalog>,
}

impl Network {
    pub(crate) fn new(store: &Arc<dyn Store>, resources: &Arc<Catalog>) -> Self {
        Self { store: Arc::clone(store), resources: Arc::clone(resources) }
    }

    fn row(&self, group: &str, resource: &str) -> Result<Arc<Resource>, Status> {
        let gvr = GroupVersionResource::new(group, "v1", resource);
        self.resources.get(&gvr).ok_or_else(|| Status::internal(format!("no row {resource}")))
    }

    /// Where a ready endpoint of a Service's port listens.
    pub(crate) async fn endpoint(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, Status> {
        let (services, slices) = (self.row("", "services")?, self.row("discovery.k8s.io", "endpointslices")?);
        let read = |row: &Resource, entry: Entry| {
            negotiate::read(row, &Versioned { value: entry.value, revision: entry.mod_revision })
        };
        let key = services.store_key(&ObjectKey::new(namespace, name));
        let service = self.store.get(&key).await.map_err(store_error)?;
        let service = read(&services, service.ok_or_else(|| Status::not_found("", "service", name))?)?;
        let prefix = format!("{}{namespace}/", slices.store_prefix());
        let page = self.store.range(&prefix, None, None, None).await.map_err(store_error)?;
        let slices: Vec<Object> =
            page.entries.into_iter().map(|entry| read(&slices, entry)).collect::<Result<_, _>>()?;
        proxy::endpoint(&service, &slices, name, port)
    }
}

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Url { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// A webhook as its `clientConfig` describes it.
pub(crate) struct Webhook {
    place: Place,
    path: String,
    tls: Result<Arc<ClientConfig>, String>,
}

/// Why a webhook gave no answer.
#[derive(Debug)]
pub(crate) struct CallError {
    /// What went wrong, as Kubernetes' client words it.
    pub(crate) reason: String,
}

impl Webhook {
    /// Reads a validated `clientConfig`.
    pub(crate) fn of(config: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        let (place, path) = if service.is_object() {
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok());
            let place = Place::Service {
                namespace: text(&service["namespace"]),
                name: text(&service["name"]),
                port: port.unwrap_or(USUAL_PORT),
            };
            (place, text(&service["path"]))
        } else {
            let url = text(&config["url"]);
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let (host, port) = split_port(authority);
            (Place::Url { host, port }, path.to_owned())
        };
        Self {
            place,
            path,
            tls: tls::client(&Trust::Bundle(config["caBundle"].as_str().unwrap_or_default()), None),
        }
    }

    fn server_name(&self) -> String {
        match &self.place {
            Place::Url { host, .. } => host.clone(),
            Place::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        }
    }

    fn authority(&self) -> String {
        let name = self.server_name();
        let name = if name.contains(':') { format!("[{name}]") } else { name };
        match &self.place {
            Place::Url { port: USUAL_PORT, .. } => name,
            Place::Url { port, .. } | Place::Service { port, .. } => format!("{name}:{port}"),
        }
    }

    /// Sends a review and gives the answer.
    ///
    /// # Errors
    /// When nobody answers in time, or not with success.
    pub(crate) async fn call(
        &self,
        network: &Network,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let path = format!("{path}?timeout={}s", timeout.as_secs());
        let described = |why: String| CallError {
            reason: format!("failed to call webhook: Post \"https://{}{path}\": {why}", self.authority()),
        };
        let exchange = self.exchange(network, &path, review);
        let (status, body) = match tokio::time::timeout(timeout, exchange).await {
            Err(_) => return Err(described("context deadline exceeded".to_owned())),
            Ok(Err(why)) => return Err(described(why)),
            Ok(Ok(answer)) => answer,
        };
        read(status, &body)
    }

    async fn exchange(
        &self,
        network: &Network,
        path: &str,
        review: &Value,
    ) -> Result<(http::StatusCode, Bytes), String> {
        let tls = self.tls.clone()?;
        let socket = self.dial(network).await?;
        let name = ServerName::try_from(self.server_name()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls).connect(name, socket).await.map_err(|e| tls::reason(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a webhook ended");
            }
        });
        // A caller that gives up takes its connection along.
        let _driver = Aborted(driver);
        let request = http::Request::post(path)
            .header(header::HOST, self.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, concat!("podium-apiserver/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(review.to_string())))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    }

    async fn dial(&self, network: &Network) -> Result<TcpStream, String> {
        let dialed = |target: String, result: io::Result<TcpStream>| {
            let socket = result.map_err(|error| format!("dial tcp {target}: {}", connect_reason(&error)))?;
            socket.set_nodelay(true).map_err(|error| error.to_string())?;
            Ok(socket)
        };
        match &self.place {
            Place::Url { host, port } => {
                let result = TcpStream::connect((host.as_str(), *port)).await;
                dialed(format!("{host}:{port}"), result)
            }
            Place::Service { namespace, name, port } => {
                let address = network.endpoint(namespace, name, *port).await;
                let address = address.map_err(|status| status.message)?;
                dialed(address.to_string(), TcpStream::connect(address).await)
            }
        }
    }
}

/// A task that ends with its owner.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn connect_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        _ => error.to_string(),
    }
}

fn split_port(authority: &str) -> (String, u16) {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = rest.strip_prefix(':').and_then(|port| port.parse().ok());
        return (host.to_owned(), port.unwrap_or(USUAL_PORT));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(USUAL_PORT)),
        None => (authority.to_owned(), USUAL_PORT),
    }
}

/// The review in an answer, or what the answer says is wrong.
fn read(code: http::StatusCode, body: &[u8]) -> Result<Value, CallError> {
    let tree: Result<Value, _> = serde_json::from_slice(body);
    if code.is_success() {
        return tree.map_err(|error| CallError {
            reason: format!("failed to call webhook: couldn't get the review: {error}"),
        });
    }
    let own = tree.ok().filter(|tree| tree["kind"] == "Status" && tree["status"] == "Failure");
    let status = own.map_or_else(|| refusal(code, body), |tree| Status::from_value(&tree, code.as_u16()));
    Err(CallError { reason: format!("failed to call webhook: {}", status.message) })
}

fn refusal(code: http::StatusCode, body: &[u8]) -> Status {
    let (reason, text) = match code.as_u16() {
        404 => (Reason::NotFound, "the server could not find the requested resource".to_owned()),
        401 => {
            (Reason::Unauthorized, "the server has asked for the client to provide credentials".to_owned())
        }
        403 => (Reason::Forbidden, "forbidden".to_owned()),
        400 => (Reason::BadRequest, "the server rejected our request for an unknown reason".to_owned()),
        500.. => {
            let told: String = String::from_utf8_lossy(body).trim().chars().take(2048).collect();
            (
                Reason::InternalError,
                format!("an error on the server ({told:?}) has prevented the request from succeeding"),
            )
        }
        other => (
            Reason::Unknown,
            format!("the server responded with the status code {other} but did not return more information"),
        ),
    };
    Status { code: code.as_u16(), ..Status::new(reason, text) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_read() {
        let table = [
            (json!({"url": "https://a.example"}), "a.example", "a.example", ""),
            (json!({"url": "https://a.example:8443/x/y"}), "a.example", "a.example:8443", "/x/y"),
            (json!({"url": "https://[::1]:8443/x"}), "::1", "[::1]:8443", "/x"),
            (
                json!({"service": {"name": "s", "namespace": "n", "port": 8443, "path": "/p"}}),
                "s.n.svc",
                "s.n.svc:8443",
                "/p",
            ),
            (json!({"service": {"name": "s", "namespace": "n"}}), "s.n.svc", "s.n.svc:443", ""),
        ];
        for (config, name, authority, path) in table {
            let webhook = Webhook::of(&config);
            assert_eq!(
                (webhook.server_name().as_str(), webhook.authority().as_str(), webhook.path.as_str()),
                (name, authority, path)
            );
        }
    }

    #[test]
    fn answers_are_reviews_or_refusals() {
        let ok = http::StatusCode::OK;
        assert_eq!(read(ok, b"{\"a\":1}").unwrap(), json!({"a": 1}));
        assert!(read(ok, b"oops").is_err());
        let missing = read(http::StatusCode::NOT_FOUND, b"x").unwrap_err();
        assert_eq!(
            missing.reason,
            "failed to call webhook: the server could not find the requested resource"
        );
        let own = json!({"kind": "Status", "status": "Failure", "message": "mine", "code": 418});
        let own = read(http::StatusCode::IM_A_TEAPOT, own.to_string().as_bytes()).unwrap_err();
        assert_eq!(own.reason, "failed to call webhook: mine");
    }
}
