//! Requests that go on to another API server, with the name of their user in headers that the client certificate vouches for
//! (Kubernetes, "Configure the Aggregation Layer").

use std::io;

use api::stream::ByteStream;
use api::{ApiRequest, ApiResponse, ResponseBody, Status, Verb, WatchEvent, WatchStream};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::ApiService;
use crate::callout::tls;
use crate::pipeline;
use crate::proxy::wire;
use crate::resource::UserInfo;
use crate::server::ApiServer;
use crate::url;

/// The largest answer that is read for a caller in this process.
const LARGEST_ANSWER: usize = 64 << 20;

/// Authorizes a request and passes it on, its body unread.
///
/// # Errors
/// The refusal, or `ServiceUnavailable` when the other server does not answer.
pub(crate) async fn pass(
    server: &ApiServer,
    caller: &UserInfo,
    impersonate: Option<UserInfo>,
    service: &ApiService,
    mut request: Request<Incoming>,
) -> Result<Response<ByteStream>, Status> {
    let acting = match impersonate {
        None => caller.clone(),
        Some(other) => pipeline::authorize_impersonation(server, caller, other).await?,
    };
    let uri = request.uri();
    let wanted = url::decode(request.method().as_str(), uri.path(), uri.query().unwrap_or_default())?;
    pipeline::authorize(server, &acting, &wanted).await?;
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    head.extensions.clear();
    wire::strip(&mut head.headers);
    wire::remove_prefixed(&mut head.headers, "impersonate-");
    if let Some(protocol) = upgrade {
        wire::want_upgrade(&mut head.headers, protocol);
    }
    let response = available(service)?.send(server, &acting, Request::from_parts(head, body)).await?;
    if let Some(client) = client.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS) {
        return Ok(wire::join(client, response));
    }
    let (mut head, body) = response.into_parts();
    head.version = http::Version::default();
    head.extensions.clear();
    wire::strip(&mut head.headers);
    let pieces = body.into_data_stream().map(|piece| piece.map_err(io::Error::other));
    Ok(Response::from_parts(head, Box::pin(pieces)))
}

/// Passes on an authorized request of a caller in this process.
///
/// # Errors
/// What the other server answers but success, or `ServiceUnavailable` when it does not answer.
pub(crate) async fn call(
    server: &ApiServer,
    user: &UserInfo,
    service: &ApiService,
    request: &ApiRequest,
) -> Result<ApiResponse, Status> {
    let response = available(service)?.send(server, user, encoded(request)?).await?;
    let code = response.status().as_u16();
    let text =
        |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let content_type = text(response.headers().get(header::CONTENT_TYPE));
    let body = response.into_body();
    if code >= 400 {
        return Err(failure(code, body).await);
    }
    let body = match request.verb {
        Verb::Watch => ResponseBody::Watch(events(body)),
        _ => ResponseBody::Bytes(vec![whole(body).await.map_err(Status::unavailable)?]),
    };
    Ok(ApiResponse { code, content_type, body, warnings: Vec::new() })
}

/// An APIService whose server answered when it was asked last.
fn available(service: &ApiService) -> Result<&ApiService, Status> {
    if service.available { Ok(service) } else { Err(Status::unavailable("service unavailable")) }
}

impl ApiService {
    /// Sends a request as somebody.
    ///
    /// # Errors
    /// `ServiceUnavailable` when nobody answers.
    pub(super) async fn send<B>(
        &self,
        server: &ApiServer,
        user: &UserInfo,
        request: Request<B>,
    ) -> Result<Response<Incoming>, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let remote = self.remote.as_ref().ok_or_else(|| Status::internal("an API that is served here"))?;
        let failed = |why: String| Status::unavailable(format!("error trying to reach service: {why}"));
        let tls = remote.tls.clone().map_err(failed)?;
        let name = ServerName::try_from(remote.server_name()).map_err(|error| failed(error.to_string()))?;
        let network = server.registry.network();
        let address = network.endpoint(&remote.namespace, &remote.service, remote.port).await;
        let address = address.map_err(|status| failed(status.message))?;
        let dial = async {
            let socket = wire::dial(address).await.map_err(|error| format!("dial tcp {address}: {error}"))?;
            TlsConnector::from(tls).connect(name, socket).await.map_err(|error| tls::reason(&error))
        };
        let stream = tokio::time::timeout(wire::DIAL_TIMEOUT, dial)
            .await
            .map_err(|_| failed(format!("dial tcp {address}: i/o timeout")))?
            .map_err(failed)?;
        let request = addressed(request, &format!("{}:{}", remote.server_name(), remote.port), user)?;
        wire::exchange(stream, request).await.map_err(|error| failed(error.to_string()))
    }
}

/// The request as the other server gets it: for its path, in the user's name.
fn addressed<B>(request: Request<B>, authority: &str, user: &UserInfo) -> Result<Request<B>, Status> {
    let (mut head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    head.uri = target.parse().map_err(|_| Status::bad_request("malformed path"))?;
    head.version = http::Version::HTTP_11;
    wire::remove_prefixed(&mut head.headers, "x-remote-");
    name_user(&mut head.headers, user)?;
    let authority = HeaderValue::from_str(authority).map_err(Status::internal)?;
    head.headers.insert(header::HOST, authority);
    Ok(Request::from_parts(head, body))
}

fn name_user(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), Status> {
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::try_from(name).map_err(Status::internal)?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| Status::bad_request("the user's name or groups cannot be in a header"))?;
        headers.append(name, value);
        Ok::<_, Status>(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escaped(key)), value)?;
        }
    }
    Ok(())
}

/// A key as part of a header's name: percent-encoded where such names have no letters for it.
fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes().fold(String::new(), |out, byte| {
        if plain(byte) { out + &char::from(byte).to_string() } else { out + &format!("%{byte:02X}") }
    })
}

/// A request of a caller in this process as HTTP.
fn encoded(request: &ApiRequest) -> Result<Request<Full<Bytes>>, Status> {
    let parts = request.to_http();
    let accept = if request.accept.is_empty() { "application/json" } else { &request.accept };
    let mut builder =
        Request::builder().method(parts.method).uri(parts.target).header(header::ACCEPT, accept);
    if !request.user_agent.is_empty() {
        builder = builder.header(header::USER_AGENT, &request.user_agent);
    }
    if let Some(content_type) = parts.content_type {
        builder = builder.header(header::CONTENT_TYPE, content_type);
    }
    builder.body(Full::new(parts.body)).map_err(|error| Status::bad_request(error.to_string()))
}

pub(super) async fn whole(body: Incoming) -> Result<Bytes, String> {
    let body = Limited::new(body, LARGEST_ANSWER).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

/// A refusal of the other server, which is a Status or some text.
async fn failure(code: u16, body: Incoming) -> Status {
    let bytes = whole(body).await.unwrap_or_default();
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(value) if value["kind"] == "Status" => Status::from_value(&value, code),
        Ok(_) | Err(_) => Status { code, ..Status::internal(String::from_utf8_lossy(&bytes)) },
    }
}

/// A watch as lines of JSON; it ends with the connection or at the first line that is no event.
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
                    tracing::debug!(%error, "a watch of another server broke");
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
    fn the_user_is_named_and_nobody_else() {
        let mut user = UserInfo::new("jane", &["a", "b"]);
        user.uid = "u1".into();
        user.extra.insert("example.com/scopes".into(), vec!["x".into(), "y".into()]);
        let request = Request::get("https://outside:6443/apis/g/v1/things?watch=true")
            .header("x-remote-user", "admin")
            .header("x-remote-group", "system:masters")
            .header("x-remote-extra-mine", "1")
            .body(())
            .unwrap();
        let sent = addressed(request, "s.n.svc:443", &user).unwrap();
        assert_eq!(sent.uri(), "/apis/g/v1/things?watch=true");
        let mut headers: Vec<String> = sent
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.sort();
        assert_eq!(
            headers,
            [
                "host: s.n.svc:443",
                "x-remote-extra-example.com%2fscopes: x",
                "x-remote-extra-example.com%2fscopes: y",
                "x-remote-group: a",
                "x-remote-group: b",
                "x-remote-uid: u1",
                "x-remote-user: jane",
            ]
        );
    }
}
