//! `pods/proxy`, `services/proxy`, `nodes/proxy`: requests that go on to a server inside the cluster, and its answers.
//!
//! ```text
//!   /api/v1/namespaces/{ns}/pods|services/[{scheme}:]{name}[:{port}]/proxy[/{path}][?{query}]
//!   /api/v1/nodes/[{scheme}:]{name}[:{port}]/proxy[/{path}][?{query}]
//!      ──▶ authorize ──▶ locate (pod IP, a ready endpoint of the Service, the node) ──▶ dial ──▶ stream both ways
//! ```
//! A node without a port, or with the one of its own server, is asked for one of its pages through the gateway. A request
//! for an upgrade (WebSocket and whatever else) becomes a connection of bytes once the server has agreed.
//!
//! The API server dials pods itself. Redirects are handed to the client; links in HTML that start at the root are
//! written anew so that they lead through the proxy. Certificates of pods are not checked: nobody vouches for them.

mod html;
mod locate;
pub(crate) mod tls;
pub(crate) mod wire;

use std::io;
use std::net::SocketAddr;

use api::stream::ByteStream;
use api::{ApiRequest, GroupVersionResource, Object, ObjectKey, Status, Verb};
use futures_util::{Stream, StreamExt as _};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use self::locate::{Destination, Place};
use crate::authz::Attributes;
use crate::pipeline;
use crate::resource::{Reader, UserInfo};
use crate::server::ApiServer;
use crate::url;

/// A request for a proxy subresource, as its path says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// `pods`, `services` or `nodes`
    resource: String,
    /// "" for nodes
    namespace: String,
    /// With scheme and port: `https:web:443`
    name: String,
    /// Everything before `path`, as it was sent.
    prefix: String,
    /// From the slash after `proxy` on, as it was sent; "" without one.
    path: String,
}

impl Wanted {
    /// Reads a path; `None` when it is about something else.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.splitn(9, '/').collect();
        let (namespace, resource, name, length) = match parts[..] {
            [
                "",
                "api",
                "v1",
                "namespaces",
                namespace,
                resource @ ("pods" | "services"),
                name,
                "proxy",
                ..,
            ] => (namespace, resource, name, 8),
            ["", "api", "v1", "nodes", name, "proxy", ..] => ("", "nodes", name, 6),
            _ => return None,
        };
        let before: usize = parts[..length].iter().map(|part| part.len() + 1).sum();
        let rest = path.get(before - 1..).unwrap_or_default().to_owned();
        Some(Self {
            resource: resource.to_owned(),
            namespace: url::percent_decode(namespace).ok()?,
            name: url::percent_decode(name).ok()?,
            prefix: path[..path.len() - rest.len()].to_owned(),
            path: rest,
        })
    }
}

/// Authorizes a request and passes it on.
///
/// # Errors
/// The refusal, `NotFound` for a missing object, `ServiceUnavailable` when nobody answers there.
pub(crate) async fn forward(
    server: &ApiServer,
    caller: &UserInfo,
    impersonate: Option<UserInfo>,
    wanted: Wanted,
    mut request: Request<Incoming>,
) -> Result<Response<ByteStream>, Status> {
    let acting = authorize(server, caller, impersonate, &wanted, request.method()).await?;
    let gvr = GroupVersionResource::new("", "v1", &wanted.resource);
    if let Some(row) = server.registry.resources.get(&gvr) {
        let namespace = Some(&*wanted.namespace).filter(|namespace| !namespace.is_empty());
        let mut opened =
            ApiRequest::resource(Verb::Create, gvr, namespace, Some(&*wanted.name), Some("proxy"));
        opened.options.extra.push(("path".to_owned(), wanted.path.clone()));
        server.registry.admit_connect(&acting, &opened, &row).await?;
    }
    let destination = match locate(server, &wanted).await? {
        Place::Server(destination) => destination,
        Place::Node(node) => return page(server, &node, &wanted, &request).await,
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    if wanted.path.is_empty() && reads && upgrade.is_none() {
        return Ok(to_root(&wanted, request.uri().query()));
    }
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let mut request = rewritten(&wanted, request)?;
    if let Some(protocol) = upgrade {
        wire::want_upgrade(request.headers_mut(), protocol);
    }
    let response = send(&destination, request)
        .await
        .map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?;
    match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Ok(wire::join(client, response))
        }
        _ => Ok(answer(&wanted, response)),
    }
}

/// One of a node's own pages.
async fn page(
    server: &ApiServer,
    node: &str,
    wanted: &Wanted,
    request: &Request<Incoming>,
) -> Result<Response<ByteStream>, Status> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(url::method_not_allowed());
    }
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = if wanted.path.is_empty() { "/" } else { &wanted.path };
    let page = server.config.gateway.page(node, &format!("{path}{query}")).await?;
    let mut response = Response::new(page.body);
    *response.status_mut() = StatusCode::from_u16(page.code).unwrap_or(StatusCode::OK);
    if let Ok(value) = HeaderValue::from_str(&page.content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    Ok(response)
}

async fn authorize(
    server: &ApiServer,
    caller: &UserInfo,
    impersonate: Option<UserInfo>,
    wanted: &Wanted,
    method: &Method,
) -> Result<UserInfo, Status> {
    let acting = match impersonate {
        None => caller.clone(),
        Some(other) => pipeline::authorize_impersonation(server, caller, other).await?,
    };
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        // Only rules for every verb allow the others.
        _ => "",
    };
    let attributes = Attributes {
        verb,
        resource: &wanted.resource,
        subresource: "proxy",
        namespace: &wanted.namespace,
        name: &wanted.name,
        ..Attributes::default()
    };
    pipeline::check(server, &acting, &attributes).await?;
    Ok(acting)
}

/// Where a ready endpoint of a Service's port listens.
///
/// # Errors
/// `ServiceUnavailable` when it has none.
pub(crate) fn endpoint(
    service: &Object,
    slices: &[Object],
    name: &str,
    port: u16,
) -> Result<SocketAddr, Status> {
    let text = format!("https:{name}:{port}");
    let target = locate::Target::parse(&text)
        .ok_or_else(|| Status::bad_request(format!("invalid service {name:?}")))?;
    Ok(locate::service(service, slices, &target)?.address)
}

async fn locate(server: &ApiServer, wanted: &Wanted) -> Result<Place, Status> {
    let target = locate::Target::parse(&wanted.name).ok_or_else(|| {
        Status::bad_request(format!("invalid {} request {:?}", wanted.resource, wanted.name))
    })?;
    let reader: &dyn Reader = &server.registry;
    let gvr = GroupVersionResource::new("", "v1", &wanted.resource);
    let object = reader.get(&gvr, &ObjectKey::new(&*wanted.namespace, target.name)).await?;
    let object = object.ok_or_else(|| Status::not_found("", &wanted.resource, target.name))?;
    match wanted.resource.as_str() {
        "nodes" => locate::node(&object, &target),
        "pods" => {
            let nodes = reader.list(&GroupVersionResource::new("", "v1", "nodes"), None).await?;
            locate::pod(&object, &nodes, &target).map(Place::Server)
        }
        _ => {
            let slices = GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices");
            let slices = reader.list(&slices, Some(&wanted.namespace)).await?;
            locate::service(&object, &slices, &target).map(Place::Server)
        }
    }
}

/// Relative links of a page only work below a path that ends with a slash.
fn to_root(wanted: &Wanted, query: Option<&str>) -> Response<ByteStream> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Box::pin(futures_util::stream::empty()) as ByteStream);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", wanted.prefix)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The request as the pod gets it.
fn rewritten(wanted: &Wanted, request: Request<Incoming>) -> Result<Request<Incoming>, Status> {
    let (mut head, body) = request.into_parts();
    let host = head.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| head.headers.get(header::HOST)?.to_str().ok().map(str::to_owned));
    let mut target = if wanted.path.is_empty() { "/".to_owned() } else { wanted.path.clone() };
    if let Some(query) = head.uri.query() {
        target.push('?');
        target.push_str(query);
    }
    head.uri = target.parse().map_err(|_| Status::bad_request("malformed path"))?;
    head.version = http::Version::HTTP_11;
    head.extensions.clear();
    wire::strip(&mut head.headers);
    wire::remove_prefixed(&mut head.headers, "impersonate-");
    let forwarded = [
        (header::HOST, host.clone().unwrap_or_default()),
        (HeaderName::from_static("x-forwarded-host"), host.unwrap_or_default()),
        (HeaderName::from_static("x-forwarded-proto"), "https".to_owned()),
        (HeaderName::from_static("x-forwarded-uri"), format!("{}{}", wanted.prefix, wanted.path)),
    ];
    for (name, value) in forwarded {
        if let Ok(value) = HeaderValue::from_str(&value) {
            head.headers.insert(name, value);
        }
    }
    Ok(Request::from_parts(head, body))
}

async fn send(destination: &Destination, request: Request<Incoming>) -> io::Result<Response<Incoming>> {
    let Destination { address, tls } = *destination;
    let dial = async {
        let socket = wire::dial(address).await?;
        let stream: Box<dyn Connected> =
            if tls { Box::new(tls::connect(socket, address.ip()).await?) } else { Box::new(socket) };
        Ok(stream)
    };
    let stream = tokio::time::timeout(wire::DIAL_TIMEOUT, dial)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("dial {address}: timeout")))?
        .map_err(|error: io::Error| io::Error::new(error.kind(), format!("dial {address}: {error}")))?;
    wire::exchange(stream, request).await
}

/// A connection, encrypted or not.
trait Connected: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connected for S {}

/// The answer as the client gets it.
fn answer(wanted: &Wanted, response: Response<Incoming>) -> Response<ByteStream> {
    let (mut head, body) = response.into_parts();
    head.version = http::Version::default();
    head.extensions.clear();
    wire::strip(&mut head.headers);
    let pieces = body.into_data_stream().map(|piece| piece.map_err(io::Error::other));
    let text = |name: HeaderName| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let plain = matches!(text(header::CONTENT_ENCODING), "" | "identity");
    let body: ByteStream = if plain && text(header::CONTENT_TYPE).starts_with("text/html") {
        head.headers.remove(header::CONTENT_LENGTH);
        Box::pin(relinked(pieces, html::Relinker::new(&wanted.prefix)))
    } else {
        Box::pin(pieces)
    };
    Response::from_parts(head, body)
}

fn relinked(
    pieces: impl Stream<Item = io::Result<bytes::Bytes>> + Send,
    relinker: html::Relinker,
) -> impl Stream<Item = io::Result<bytes::Bytes>> + Send {
    let ended = futures_util::stream::once(async { None });
    pieces.map(Some).chain(ended).scan(relinker, |relinker, piece| {
        let out = match piece {
            Some(Ok(bytes)) => Ok(relinker.push(&bytes)),
            Some(Err(error)) => Err(error),
            None => Ok(relinker.finish()),
        };
        futures_util::future::ready(Some(out))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_were_sent() {
        let wanted = Wanted::of("/api/v1/namespaces/a/pods/https%3Aweb:8443/proxy/x%2Fy//z/").unwrap();
        assert_eq!((wanted.name.as_str(), wanted.path.as_str()), ("https:web:8443", "/x%2Fy//z/"));
        assert_eq!(wanted.prefix, "/api/v1/namespaces/a/pods/https%3Aweb:8443/proxy");
        assert_eq!(Wanted::of("/api/v1/namespaces/a/services/web/proxy").unwrap().path, "");
        assert_eq!(Wanted::of("/api/v1/namespaces/a/services/web/proxy/").unwrap().path, "/");
        let node = Wanted::of("/api/v1/nodes/n1:10250/proxy/logs/a//b/c/d").unwrap();
        assert_eq!((node.name.as_str(), node.path.as_str()), ("n1:10250", "/logs/a//b/c/d"));
        assert_eq!((node.prefix.as_str(), node.namespace.as_str()), ("/api/v1/nodes/n1:10250/proxy", ""));
        for other in [
            "/api/v1/namespaces/a/pods/web/log",
            "/api/v1/namespaces/a/configmaps/web/proxy/x",
            "/api/v1/namespaces/a/pods/web",
            "/api/v1/nodes/n1",
        ] {
            assert_eq!(Wanted::of(other), None, "{other}");
        }
    }
}
