//! The server on the wire: TLS, HTTP/1.1 and 2 by ALPN, decoding of requests, encoding of answers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::codec::protobuf;
use api::{ApiRequest, ApiResponse, Body, ContentType, Reason, ResponseBody, Status, Verb, WatchEvent};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming as RequestBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::aggregation::{self, ApiService};
use crate::authn;
use crate::pipeline::{Incoming, Outcome};
use crate::registry::codec;
use crate::registry::negotiate::{Form, Forms, Media, WATCH_PROTOBUF};
use crate::resource::UserInfo;
use crate::server::ApiServer;
use crate::streams::Offer;
use crate::{metrics, proxy, url};

/// Largest request body, as upstream.
const BODY_LIMIT: usize = 3 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long requests may go on after the stop was asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after the listener failed to accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type ResponseBytes = UnsyncBoxBody<Bytes, io::Error>;

impl ApiServer {
    /// Serves until `stop` turns true; watches then end and requests under way are finished.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        mut stop: watch::Receiver<bool>,
    ) {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving the API");
        }
        let acceptor = TlsAcceptor::from(tls);
        let graceful = Arc::new(GracefulShutdown::new());
        let stopped = stop.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => {
                        let (server, acceptor) = (Arc::clone(&self), acceptor.clone());
                        tokio::spawn(connection(server, acceptor, socket, Arc::clone(&graceful), stopped.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                // the guard in the result must not live across an await
                () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
            }
        }
        drop(listener);
        // Connections hold a reference only while they shake hands.
        if let Some(graceful) = Arc::into_inner(graceful)
            && tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err()
        {
            tracing::info!("connections still open after the stop are dropped");
        }
    }
}

async fn connection(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    graceful: Arc<GracefulShutdown>,
    stop: watch::Receiver<bool>,
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
    let peer = certificate.and_then(|certificate| authn::x509::user(certificate));
    let service = service_fn(move |request| {
        let (server, peer, stop) = (Arc::clone(&server), peer.clone(), stop.clone());
        async move { Ok::<_, Infallible>(respond(&server, peer, request, stop).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(1000);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let connection = graceful.watch(connection);
    drop(graceful);
    if let Err(error) = connection.await {
        tracing::debug!(error, "connection ended");
    }
}

/// One request, from wire to wire.
async fn respond(
    server: &ApiServer,
    peer: Option<UserInfo>,
    mut request: Request<RequestBody>,
    stop: watch::Receiver<bool>,
) -> Response<ResponseBytes> {
    match Onward::of(server, request.uri().path()).await {
        Ok(Some(onward)) => return passed(server, peer, onward, request, stop).await,
        Ok(None) => {}
        Err(status) => return failure(&status, ""),
    }
    let offer = Offer::of(&mut request);
    let wanted = Conditional::of(&request);
    let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let result = async {
        let user = authenticate(server, peer, request.headers()).await?;
        let impersonate = impersonated(request.headers())?;
        let upgrade = offer.as_ref().map(|offer| offer.wish.clone());
        let request = decode(server, request).await?;
        metrics::measured(server, &user, Incoming { request, impersonate, upgrade }).await
    };
    match result.await {
        Ok(Outcome::Response(response)) => match wanted {
            Some(wanted) => wanted.answer(response, stop),
            None => encode(response, stop),
        },
        Ok(Outcome::Session(session)) => match offer {
            Some(offer) => switched(offer.accept(session)),
            None => failure(&Status::bad_request("Upgrade request required"), &accept),
        },
        Err(status) => failure(&status, &accept),
    }
}

/// Where a request goes on to.
enum Onward {
    Proxy(proxy::Wanted),
    /// The server of another group of the API.
    Server(Arc<ApiService>),
}

impl Onward {
    /// `None` for what is answered here.
    async fn of(server: &ApiServer, path: &str) -> Result<Option<Self>, Status> {
        if let Some(wanted) = proxy::Wanted::of(path) {
            return Ok(Some(Self::Proxy(wanted)));
        }
        Ok(aggregation::route(server, path).await?.map(Self::Server))
    }
}

/// One request that goes on to somebody else; its body is not read here.
async fn passed(
    server: &ApiServer,
    peer: Option<UserInfo>,
    onward: Onward,
    request: Request<RequestBody>,
    mut stop: watch::Receiver<bool>,
) -> Response<ResponseBytes> {
    let result = async {
        let user = authenticate(server, peer, request.headers()).await?;
        let impersonate = impersonated(request.headers())?;
        match onward {
            Onward::Proxy(wanted) => proxy::forward(server, &user, impersonate, wanted, request).await,
            Onward::Server(other) => aggregation::pass(server, &user, impersonate, &other, request).await,
        }
    };
    let stopped = async move {
        drop(stop.wait_for(|stop| *stop).await);
    };
    match result.await {
        Ok(response) => response.map(|body| {
            let frames = body.take_until(stopped).map(|piece| piece.map(Frame::data));
            UnsyncBoxBody::new(StreamBody::new(frames))
        }),
        Err(status) => failure(&status, ""),
    }
}

async fn authenticate(
    server: &ApiServer,
    peer: Option<UserInfo>,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    if let Some(user) = peer {
        return Ok(user);
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(authn::anonymous()) };
    let header = header.to_str().map_err(|_| authn::unauthorized())?;
    let (scheme, token) = header.split_once(' ').ok_or_else(authn::unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(authn::unauthorized());
    }
    let now = jiff::Timestamp::now();
    if let Some((id, secret)) = authn::bootstrap_token::parts(token.trim()) {
        return authn::bootstrap_token::authenticate(id, secret, &server.registry, now).await;
    }
    let tokens = &server.registry.tokens;
    let audiences = tokens.api_audiences();
    Ok(tokens.authenticate(token.trim(), &audiences, &server.registry, now).await?.0)
}

/// Whom the caller wants to act as, from the `Impersonate-*` headers.
fn impersonated(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let mut user = UserInfo::default();
    let mut any = false;
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix("impersonate-") else { continue };
        let value =
            value.to_str().map_err(|_| Status::bad_request(format!("malformed header {name}")))?.to_owned();
        any = true;
        match what {
            "user" => user.name = value,
            "uid" => user.uid = value,
            "group" => user.groups.push(value),
            _ => {
                if let Some(key) = what.strip_prefix("extra-") {
                    user.extra.entry(key.to_owned()).or_default().push(value);
                }
            }
        }
    }
    if any && user.name.is_empty() {
        let text = "requested impersonation without impersonating a user";
        return Err(Status::new(Reason::InternalError, text));
    }
    Ok(any.then_some(user))
}

async fn decode(server: &ApiServer, request: Request<RequestBody>) -> Result<ApiRequest, Status> {
    let (head, body) = request.into_parts();
    let text = |name: HeaderName| {
        head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let mut decoded =
        url::decode(head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or_default())?;
    decoded.accept = text(ACCEPT);
    decoded.user_agent = text(USER_AGENT);
    if matches!(decoded.verb, Verb::Get | Verb::List | Verb::Watch) {
        return Ok(decoded);
    }
    let bytes = Limited::new(body, BODY_LIMIT).collect().await.map_err(body_error)?.to_bytes();
    if bytes.is_empty() {
        return Ok(decoded);
    }
    let media = text(CONTENT_TYPE);
    let content_type = ContentType::parse(&media).ok_or_else(|| {
        Status::new(
            Reason::UnsupportedMediaType,
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
    })?;
    if matches!(decoded.verb, Verb::Delete | Verb::DeleteCollection) {
        let options = codec::delete_options(&server.table, &Body { content_type, bytes })?;
        url::merge_delete_options(&mut decoded.options, &options)?;
    } else {
        decoded.body = Some(Body { content_type, bytes });
    }
    Ok(decoded)
}

/// A read of a document that clients keep: they send back the digest of what they have.
struct Conditional {
    known: String,
}

impl Conditional {
    fn of(request: &Request<RequestBody>) -> Option<Self> {
        let path = request.uri().path();
        let document = path.starts_with("/openapi/") || matches!(path, "/api" | "/apis");
        let known = request.headers().get(http::header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
        document.then(|| Self { known: known.unwrap_or_default().to_owned() })
    }

    fn answer(self, response: ApiResponse, stop: watch::Receiver<bool>) -> Response<ResponseBytes> {
        let ResponseBody::Bytes(parts) = &response.body else { return encode(response, stop) };
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        parts.iter().for_each(|part| digest.update(part));
        let digest = digest.finish();
        let tag =
            digest.as_ref().iter().fold(String::from("\""), |hex, byte| hex + &format!("{byte:02X}")) + "\"";
        let same = self.known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag);
        let mut answer = encode(response, stop);
        set(&mut answer, http::header::ETAG, &tag);
        set(&mut answer, http::header::VARY, "Accept");
        if same {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            *answer.body_mut() = full(Bytes::new());
            answer.headers_mut().remove(CONTENT_TYPE);
        }
        answer
    }
}

fn body_error(error: Box<dyn std::error::Error + Send + Sync>) -> Status {
    if error.is::<LengthLimitError>() {
        let text = format!("Request entity too large: limit is {BODY_LIMIT}");
        return Status::new(Reason::RequestEntityTooLarge, text);
    }
    Status::bad_request(format!("cannot read the request body: {error}"))
}

fn encode(response: ApiResponse, mut stop: watch::Receiver<bool>) -> Response<ResponseBytes> {
    let stopped = async move {
        drop(stop.wait_for(|stop| *stop).await);
    };
    let body = match response.body {
        ResponseBody::Bytes(mut parts) if parts.len() == 1 => full(parts.remove(0)),
        ResponseBody::Bytes(parts) => full(parts.concat().into()),
        ResponseBody::Watch(events) => {
            let binary = response.content_type == WATCH_PROTOBUF;
            let frame = move |event: WatchEvent| {
                if binary { protobuf::watch_frame(event.kind, &event.object) } else { watch_line(&event) }
            };
            let frames = events.take_until(stopped).map(move |event| Ok(Frame::data(frame(event))));
            UnsyncBoxBody::new(StreamBody::new(frames))
        }
        ResponseBody::Stream(stream) => UnsyncBoxBody::new(StreamBody::new(
            stream.take_until(stopped).map(|piece| piece.map(Frame::data)),
        )),
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(response.code).unwrap_or(StatusCode::OK);
    set(&mut answer, CONTENT_TYPE, &response.content_type);
    set(&mut answer, http::header::CACHE_CONTROL, "no-cache, private");
    for warning in &response.warnings {
        let text = format!("299 - {}", quoted(warning));
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            answer.headers_mut().append(http::header::WARNING, value);
        }
    }
    answer
}

/// A quoted string of a header: no control characters, quotes and backslashes escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// `{"type":"ADDED","object":…}` and a line feed.
fn watch_line(event: &WatchEvent) -> Bytes {
    let mut out = BytesMut::with_capacity(event.object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event.kind.as_str().as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(&event.object);
    out.put_slice(b"}\n");
    out.freeze()
}

fn full(bytes: Bytes) -> ResponseBytes {
    UnsyncBoxBody::new(Full::new(bytes).map_err(|never: Infallible| match never {}))
}

/// A Status in the encoding that the client likes best, as far as one can see.
fn failure(status: &Status, accept: &str) -> Response<ResponseBytes> {
    let form = Form::negotiate(accept, "", false, Forms::ALL).unwrap_or(Form::JSON);
    let form = if form.media == Media::Protobuf { form } else { Form::JSON };
    let tree = status.to_value();
    let body = form.encode(&tree).unwrap_or_else(|_| tree.to_string().into());
    let mut answer = Response::new(full(body));
    *answer.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(&mut answer, CONTENT_TYPE, form.media_type());
    set(&mut answer, http::header::CACHE_CONTROL, "no-cache, private");
    if let Some(seconds) = status.retry_after_seconds {
        set(&mut answer, http::header::RETRY_AFTER, &seconds.to_string());
    }
    answer
}

fn set(answer: &mut Response<ResponseBytes>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// The answer after which the connection is no longer HTTP.
fn switched(headers: HeaderMap) -> Response<ResponseBytes> {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        assert_eq!(quoted("unknown field \"spec.x\"\n"), "\"unknown field \\\"spec.x\\\" \"");
    }

    #[test]
    fn impersonation_needs_a_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(impersonated(&headers).unwrap(), None);
        headers.append("Impersonate-Group", HeaderValue::from_static("a"));
        assert!(impersonated(&headers).is_err());
        headers.append("Impersonate-User", HeaderValue::from_static("jane"));
        headers.append("Impersonate-Group", HeaderValue::from_static("b"));
        headers.append("Impersonate-Extra-scopes", HeaderValue::from_static("view"));
        let user = impersonated(&headers).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups.len(), user.extra["scopes"].len()), ("jane", 2, 1));
    }
}
