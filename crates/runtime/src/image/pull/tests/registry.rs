//! A registry on loopback that checks who asks, breaks transfers, dawdles, and can lie. It is shared with the tests of the
//! program: it needs nothing of this crate.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;

const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"];

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Default)]
pub(crate) struct State {
    /// By digest.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// By tag or digest: media type and content.
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Who may come, by basic authentication at the token service; nobody: all.
    pub(crate) user: Option<(String, String)>,
    /// Bytes after which the next transfers of blobs break off.
    pub(crate) breaks: Vec<usize>,
    /// In the middle of blobs of more than 50,000 bytes.
    pub(crate) pause: Duration,
    /// Paths of blobs and their ranges, in the order of the requests.
    pub(crate) asked: Vec<String>,
    /// Where blobs are had instead.
    pub(crate) elsewhere: Option<SocketAddr>,
    /// Whether somebody who asked for a blob said who it is.
    pub(crate) told: bool,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let (state, address) = (Arc::clone(&registry.state), registry.address);
        tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (state, tls) = (Arc::clone(&state), tls.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(&state, address, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    // a broken transfer is an error here too
                    let _ended = match tls {
                        None => server.serve_connection(TokioIo::new(socket), service).await,
                        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
                            Ok(socket) => server.serve_connection(TokioIo::new(socket), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        registry
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves an image under a tag, alone or below an index; returns the digest of what the tag names.
    pub(crate) fn add(&self, tag: &str, layers: &[(Vec<u8>, Vec<u8>)], in_index: bool) -> String {
        let mut state = self.state();
        let diff_ids: Vec<String> = layers.iter().map(|(plain, _)| sha256(plain)).collect();
        let config = json!({"config": {"Cmd": ["/a"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let mut describe = |bytes: &[u8]| {
            state.blobs.insert(sha256(bytes), bytes.to_vec());
            json!({"mediaType": "any", "digest": sha256(bytes), "size": bytes.len()})
        };
        let layers: Vec<_> = layers.iter().map(|(_, packed)| describe(packed)).collect();
        let manifest = json!({"schemaVersion": 2, "config": describe(&config), "layers": layers});
        let mut top = (MANIFEST_TYPES[1].to_owned(), manifest.to_string().into_bytes());
        if in_index {
            let digest = sha256(&top.1);
            state.manifests.insert(digest.clone(), top);
            let index = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPES[0], "manifests": [
                {"digest": format!("sha256:{}", "0".repeat(64)), "platform": {"os": "other", "architecture": "no"}},
                {"digest": digest, "platform": {"os": "linux", "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }}},
            ]});
            top = (MANIFEST_TYPES[0].to_owned(), index.to_string().into_bytes());
        }
        let digest = sha256(&top.1);
        state.manifests.insert(digest.clone(), top.clone());
        state.manifests.insert(tag.to_owned(), top);
        digest
    }
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// These bytes, then the connection breaks. The pause lets them leave: an error overtakes what is still buffered.
fn broken(bytes: Vec<u8>) -> Body {
    let first = futures_util::stream::iter([Ok(hyper::body::Frame::data(Bytes::from(bytes)))]);
    let end = futures_util::stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("broken"))
    });
    BodyExt::boxed(http_body_util::StreamBody::new(Box::pin(first.chain(end))))
}

/// Half of the bytes, and the others after a pause.
fn late(bytes: Vec<u8>, pause: Duration) -> Body {
    let bytes = Bytes::from(bytes);
    let (first, rest) = (bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..));
    let first = futures_util::stream::iter([Ok(hyper::body::Frame::data(first))]);
    let rest = futures_util::stream::once(async move {
        tokio::time::sleep(pause).await;
        Ok(hyper::body::Frame::data(rest))
    });
    BodyExt::boxed(http_body_util::StreamBody::new(Box::pin(first.chain(rest))))
}

fn answer(
    state: &Mutex<State>,
    address: SocketAddr,
    request: &Request<hyper::body::Incoming>,
) -> Response<Body> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let header = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let status = |status: StatusCode| {
        let mut response = Response::new(full(Vec::new()));
        *response.status_mut() = status;
        response
    };
    let path = request.uri().path();
    let authorization = header(header::AUTHORIZATION).unwrap_or_default();
    if let Some((name, password)) = &state.user {
        if path == "/token" {
            let wanted = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
            let scope = request.uri().query().unwrap_or_default();
            return match authorization == wanted && scope.contains("pull") {
                true => Response::new(full(json!({"token": "t0"}).to_string().into_bytes())),
                false => status(StatusCode::UNAUTHORIZED),
            };
        }
        if authorization != "Bearer t0" {
            let mut response = status(StatusCode::UNAUTHORIZED);
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::try_from(challenge).unwrap());
            return response;
        }
    }
    if path == "/v2/" {
        return status(StatusCode::OK);
    }
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    if path.contains("/manifests/") {
        let Some((kind, bytes)) = state.manifests.get(&last) else { return status(StatusCode::NOT_FOUND) };
        let mut response = Response::new(full(bytes.clone()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::try_from(kind).unwrap());
        return response;
    }
    let range = header(header::RANGE).unwrap_or_default().to_owned();
    if let Some(address) = state.elsewhere {
        let mut response = status(StatusCode::TEMPORARY_REDIRECT);
        let location = format!("http://{address}{path}");
        response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).unwrap());
        return response;
    }
    let Some(bytes) = state.blobs.get(&last).cloned() else { return status(StatusCode::NOT_FOUND) };
    state.told |= !authorization.is_empty();
    state.asked.push(format!("{} {range}", &last[7..13]));
    let from: usize =
        range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).map_or(0, |n| n.parse().unwrap());
    let rest = bytes[from..].to_vec();
    let length = rest.len();
    let large = bytes.len() > 1000;
    let body = match large.then(|| state.breaks.pop()).flatten() {
        Some(after) => broken(rest[..after].to_vec()),
        None if bytes.len() > 50_000 && !state.pause.is_zero() => late(rest, state.pause),
        None => full(rest),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// A layer's plain tar with one file, and its packed form.
pub(crate) fn layer(name: &str, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).unwrap();
    let plain = archive.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    (plain, gzip.finish().unwrap())
}
