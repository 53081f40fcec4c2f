//! The transport over HTTP/2 and TLS: what a client on another machine, or a test, uses.

use std::sync::Arc;
use std::time::Duration;

use api::stream::ByteStream;
use api::{ApiRequest, ApiResponse, ResponseBody, Status, Target, Verb, WatchEvent, WatchStream};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::client::Transport;

/// A connection that does not answer a ping within this time is dropped.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Who a client is.
pub enum Identity {
    ClientCert { cert_pem: String, key_pem: String },
    Token(String),
}

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the server address {0:?} is not https://HOST:PORT")]
    Address(String),
    #[error("malformed certificate or key")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificates can't be used")]
    Tls(#[from] rustls::Error),
}

/// Requests over one shared HTTP/2 connection, made again when it breaks.
pub struct HttpTransport {
    /// HOST:PORT
    authority: String,
    server_name: ServerName<'static>,
    connector: TlsConnector,
    bearer: Option<String>,
    /// whom the caller acts as
    acting_as: Option<String>,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl HttpTransport {
    /// A transport to `https://HOST:PORT` that trusts the authorities in `ca_pem`. It connects at the first request.
    ///
    /// # Errors
    /// When the URL or a PEM text is malformed.
    pub fn new(url: &str, ca_pem: &str, identity: Identity) -> Result<Self, HttpError> {
        let malformed = || HttpError::Address(url.to_owned());
        let authority = url.strip_prefix("https://").ok_or_else(malformed)?.trim_end_matches('/').to_owned();
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        port.parse::<u16>().map_err(|_| malformed())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| malformed())?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let (mut config, bearer) = match identity {
            Identity::ClientCert { cert_pem, key_pem } => {
                let chain =
                    CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
                let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
                (builder.with_client_auth_cert(chain, key)?, None)
            }
            Identity::Token(token) => (builder.with_no_client_auth(), Some(format!("Bearer {token}"))),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let connection = Mutex::new(None);
        Ok(Self { authority, server_name, connector, bearer, acting_as: None, connection })
    }

    /// The same caller acting as another user, which it must be allowed to (`impersonate`).
    #[must_use]
    pub fn acting_as(self, user: &str) -> Self {
        Self { acting_as: Some(user.to_owned()), ..self }
    }

    async fn send(&self, request: http::Request<Full<Bytes>>) -> Result<http::Response<Incoming>, Status> {
        let mut sender = self.connection().await?;
        let response = sender.send_request(request).await;
        response.map_err(|error| Status::unavailable(format!("{}: {error}", self.authority)))
    }

    /// The living connection, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, Status> {
        let mut slot = self.connection.lock().await;
        if let Some(sender) = slot.as_mut() {
            if sender.ready().await.is_ok() {
                return Ok(sender.clone());
            }
            *slot = None;
        }
        let sender =
            self.connect().await.map_err(|e| Status::unavailable(format!("{}: {e}", self.authority)))?;
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        // Without a limit, an attempt made while the wire is cut goes on for minutes after it is mended.
        let connect = async {
            let tcp = TcpStream::connect(self.authority.as_str()).await?;
            tcp.set_nodelay(true)?;
            self.connector.connect(self.server_name.clone(), tcp).await
        };
        let tls = tokio::time::timeout(CONNECT_TIMEOUT, connect).await??;
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(tls));
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        crate::clock::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the API server ended");
            }
        });
        Ok(sender)
    }

    fn encode(&self, request: &ApiRequest) -> Result<http::Request<Full<Bytes>>, Status> {
        let parts = request.to_http();
        let uri = format!("https://{}{}", self.authority, parts.target);
        let accept = if request.accept.is_empty() { "application/json" } else { &request.accept };
        let mut builder = http::Request::builder().method(parts.method).uri(uri).header(ACCEPT, accept);
        if !request.user_agent.is_empty() {
            builder = builder.header(USER_AGENT, &request.user_agent);
        }
        if let Some(bearer) = &self.bearer {
            builder = builder.header(AUTHORIZATION, bearer);
        }
        if let Some(user) = &self.acting_as {
            builder = builder.header("impersonate-user", user);
        }
        if let Some(content_type) = parts.content_type {
            builder = builder.header(CONTENT_TYPE, content_type);
        }
        builder.body(Full::new(parts.body)).map_err(|error| Status::bad_request(error.to_string()))
    }
}

impl Transport for HttpTransport {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        Box::pin(async move {
            let watch = request.verb == Verb::Watch;
            let log = matches!(&request.target, Target::Resource { subresource: Some(s), .. } if s == "log");
            let response = self.send(self.encode(&request)?).await?;
            let code = response.status().as_u16();
            let header =
                |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let content_type = header("content-type").to_owned();
            let warnings = response.headers().get_all("warning").iter();
            let warnings = warnings.filter_map(|w| w.to_str().ok()).map(warning_text).collect();
            let body = response.into_body();
            if code >= 400 {
                return Err(failure(code, body).await);
            }
            let body = if watch {
                ResponseBody::Watch(events(body))
            } else if log {
                ResponseBody::Stream(bytes_of(body))
            } else {
                let whole = body.collect().await.map_err(|e| Status::unavailable(e.to_string()))?;
                ResponseBody::Bytes(vec![whole.to_bytes()])
            };
            Ok(ApiResponse { code, content_type, body, warnings })
        })
    }

    fn host(&self) -> &str {
        &self.authority
    }
}

/// The text of `299 - "text"` (RFC 7234, section 5.5).
fn warning_text(header: &str) -> String {
    header
        .split_once('"')
        .map_or(header, |(_, text)| text.strip_suffix('"').unwrap_or(text))
        .replace("\\\"", "\"")
}

async fn failure(code: u16, body: Incoming) -> Status {
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(value) if value["kind"] == "Status" => Status::from_value(&value, code),
        Ok(_) | Err(_) => {
            let mut status = Status::internal(String::from_utf8_lossy(&bytes));
            status.code = code;
            status
        }
    }
}

fn bytes_of(body: Incoming) -> ByteStream {
    Box::pin(body.into_data_stream().map(|part| part.map_err(std::io::Error::other)))
}

/// A watch as lines of JSON; the stream ends with the connection or at the first line that is no event.
fn events(body: Incoming) -> WatchStream {
    let parts = body.into_data_stream();
    Box::pin(stream::unfold((parts, BytesMut::new()), |(mut parts, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1).freeze();
                return Some((WatchEvent::from_line(&line)?, (parts, buffer)));
            }
            match parts.next().await? {
                Ok(part) => buffer.extend_from_slice(&part),
                Err(error) => {
                    tracing::debug!(%error, "a watch broke");
                    return None;
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_be_https_with_a_port() {
        for url in ["http://a:1", "https://a", "https://a:x", ""] {
            let made = HttpTransport::new(url, "", Identity::Token(String::new()));
            assert!(matches!(made, Err(HttpError::Address(_))), "{url}");
        }
        assert!(HttpTransport::new("https://[::1]:6443/", "", Identity::Token(String::new())).is_ok());
    }

    #[test]
    fn warnings_lose_their_frame() {
        assert_eq!(warning_text("299 - \"unknown field \\\"spec.a\\\"\""), "unknown field \"spec.a\"");
    }
}
