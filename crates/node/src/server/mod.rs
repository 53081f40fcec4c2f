//! The node's own server: logs, exec, attach and port-forward for the API server, over mutual TLS.
//!
//! ```text
//!   API server ──TLS, its client certificate──▶ accept ─▶ GET /healthz and other pages
//!                                                     └▶ POST /session (a Call as JSON, Upgrade) ─▶ 101 ─▶ wire frames,
//!                                                                                             or a pod's bytes
//! ```
//!
//! Invariants:
//! - Whoever has no certificate of the cluster's authority is turned away in the handshake, and whoever is not the API
//!   server before anything is read of the request.
//! - An error before the session is an HTTP answer with a `Status`; after it, an `End` frame.

pub(crate) mod pages;
pub mod wire;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions, NodeAnswer};
use api::{Reason, Status};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::wire::{Call, Verb};
use crate::NodeAgent;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const CALL_LIMIT: usize = 1 << 20;
/// Wait after the listener failed to accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is served: [`NodeAgent`], or a stand-in in tests.
pub trait Streams: Send + Sync + 'static {
    fn logs<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>>;
    fn exec<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>>;
    fn attach<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>>;
    fn port_forward<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>>;
    fn page<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>>;
}

impl Streams for NodeAgent {
    fn logs<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        Box::pin(NodeAgent::logs(self, ns, pod, o))
    }

    fn exec<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(NodeAgent::exec(self, ns, pod, o))
    }

    fn attach<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(NodeAgent::attach(self, ns, pod, o))
    }

    fn port_forward<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>> {
        Box::pin(NodeAgent::port_forward(self, ns, pod, port))
    }

    fn page<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>> {
        Box::pin(NodeAgent::page(self, target))
    }
}

/// Serves until `stop` turns true. New connections use the newest configuration in `tls`, which must demand client
/// certificates of the cluster's authority; only the one with the common name `caller` is served.
pub async fn serve(
    streams: Arc<dyn Streams>,
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    caller: &str,
    mut stop: watch::Receiver<bool>,
) {
    let caller: Arc<str> = caller.into();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    let acceptor = TlsAcceptor::from(tls.borrow().clone());
                    let (streams, caller, stop) = (Arc::clone(&streams), Arc::clone(&caller), stop.clone());
                    client::spawn(connection(streams, acceptor, socket, caller, stop));
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's server cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = crate::agent::stopped(&mut stop) => return,
        }
    }
}

async fn connection(
    streams: Arc<dyn Streams>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    caller: Arc<str>,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let allowed = certificate.is_some_and(|der| common_name(der).as_deref() == Some(&*caller));
    let ending = stop.clone();
    let service = service_fn(move |request| {
        let (streams, stop) = (Arc::clone(&streams), ending.clone());
        async move { Ok::<_, Infallible>(respond(streams, allowed, request, stop).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        ended = served => if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        },
        () = crate::agent::stopped(&mut stop) => {}
    }
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, io::Error> {
    UnsyncBoxBody::new(Full::new(bytes.into()).map_err(|never: Infallible| match never {}))
}

async fn respond(
    streams: Arc<dyn Streams>,
    allowed: bool,
    request: Request<Incoming>,
    stop: watch::Receiver<bool>,
) -> Answer {
    if !allowed {
        return failure(&Status::new(Reason::Forbidden, "only the API server may talk to a node"));
    }
    let answer = match (request.method(), request.uri().path()) {
        (&Method::POST, "/session") => session(streams, request, stop).await,
        (&Method::GET, path) => {
            let target = request.uri().path_and_query().map_or(path, |target| target.as_str());
            streams.page(target).await.map(page)
        }
        _ => Err(Status::new(Reason::MethodNotAllowed, "a node's pages are only read")),
    };
    answer.unwrap_or_else(|status| failure(&status))
}

fn page(page: NodeAnswer) -> Answer {
    let mut answer = Response::new(UnsyncBoxBody::new(StreamBody::new(page.body.map_ok(Frame::data))));
    *answer.status_mut() = StatusCode::from_u16(page.code).unwrap_or(StatusCode::OK);
    if let Ok(value) = http::HeaderValue::from_str(&page.content_type) {
        answer.headers_mut().insert(CONTENT_TYPE, value);
    }
    answer
}

/// Opens the streams first, so that what is wrong is known while an HTTP answer can still tell it.
async fn session(
    streams: Arc<dyn Streams>,
    mut request: Request<Incoming>,
    stop: watch::Receiver<bool>,
) -> Result<Answer, Status> {
    let offered = request.headers().get(UPGRADE).is_some_and(|v| v == wire::PROTOCOL);
    if !offered {
        return Err(Status::bad_request(format!("a session needs the upgrade to {}", wire::PROTOCOL)));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let body = Limited::new(request.into_body(), CALL_LIMIT).collect().await;
    let body = body.map_err(|error| Status::bad_request(error.to_string()))?.to_bytes();
    let call: Call = serde_json::from_slice(&body).map_err(|e| Status::bad_request(e.to_string()))?;
    let (namespace, pod) = (call.namespace.as_str(), call.pod.as_str());
    let opened = match call.verb {
        Verb::Logs => Opened::Log(streams.logs(namespace, pod, call.log_options()).await?),
        Verb::Exec => Opened::Command(streams.exec(namespace, pod, call.exec_options()).await?),
        Verb::Attach => Opened::Command(streams.attach(namespace, pod, call.exec_options()).await?),
        Verb::Forward => Opened::Port(streams.port_forward(namespace, pod, call.port).await?),
    };
    client::spawn(async move {
        let moved = async {
            let mut io = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
            match opened {
                Opened::Log(log) => send_log(io, log).await,
                Opened::Command(session) => wire::serve(io, session).await,
                Opened::Port(mut pod) => tokio::io::copy_bidirectional(&mut io, &mut pod).await.map(drop),
            }
        };
        let mut stop = stop;
        tokio::select! {
            moved = moved => if let Err(error) = moved {
                tracing::debug!(%error, "a session broke");
            },
            () = crate::agent::stopped(&mut stop) => {}
        }
    });
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, http::HeaderValue::from_static(wire::PROTOCOL));
    Ok(answer)
}

enum Opened {
    Log(ByteStream),
    Command(ExecSession),
    Port(Connection),
}

/// Sends a log until it ends or nobody reads it any more.
async fn send_log(io: impl AsyncRead + AsyncWrite, mut log: ByteStream) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(io);
    let sent = async {
        while let Some(piece) = log.next().await {
            match piece {
                Ok(bytes) => wire::write(&mut to, wire::Frame::Stdout(bytes)).await?,
                Err(error) => {
                    wire::write(&mut to, wire::Frame::End(Err(Status::internal(error)))).await?;
                    return to.shutdown().await;
                }
            }
        }
        wire::write(&mut to, wire::Frame::End(Ok(0))).await?;
        to.shutdown().await
    };
    tokio::select! {
        sent = sent => sent,
        // A followed log may be silent for ever; the reader's going away must be noticed all the same.
        gone = wire::read(&mut from) => gone.map(drop),
    }
}

fn failure(status: &Status) -> Answer {
    let mut answer = Response::new(full(status.to_value().to_string()));
    *answer.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests;
