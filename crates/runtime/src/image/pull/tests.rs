//! Pulls from a registry on loopback that checks who asks, breaks transfers, and can lie.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;
use crate::image::registries::{HostConfig, Mirror, TlsConfig};

type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Default)]
struct State {
    /// By digest.
    blobs: BTreeMap<String, Vec<u8>>,
    /// By tag or digest: media type and content.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Who may come, by basic authentication at the token service; nobody: all.
    user: Option<(String, String)>,
    /// Bytes after which the next transfers of blobs break off.
    breaks: Vec<usize>,
    /// Paths of blobs and their ranges, in the order of the requests.
    asked: Vec<String>,
    /// Where blobs are had instead.
    elsewhere: Option<SocketAddr>,
    /// Whether somebody who asked for a blob said who it is.
    told: bool,
}

struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves an image under a tag, alone or below an index; returns the digest of what the tag names.
    fn add(&self, tag: &str, layers: &[(Vec<u8>, Vec<u8>)], in_index: bool) -> String {
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
        let mut top = (media_type(1), manifest.to_string().into_bytes());
        if in_index {
            let digest = sha256(&top.1);
            state.manifests.insert(digest.clone(), top);
            let index = json!({"schemaVersion": 2, "mediaType": media_type(0), "manifests": [
                {"digest": format!("sha256:{}", "0".repeat(64)), "platform": {"os": "other", "architecture": "no"}},
                {"digest": digest, "platform": {"os": "linux", "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }}},
            ]});
            top = (media_type(0), index.to_string().into_bytes());
        }
        let digest = sha256(&top.1);
        state.manifests.insert(digest.clone(), top.clone());
        state.manifests.insert(tag.to_owned(), top);
        digest
    }
}

fn media_type(number: usize) -> String {
    MANIFEST_TYPES.split(", ").nth(number).unwrap().to_owned()
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// These bytes, then the connection breaks. The pause lets them leave: an error overtakes what is still buffered.
fn broken(bytes: Vec<u8>) -> Body {
    let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from(bytes)))]);
    let end = futures_util::stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("broken"))
    });
    BodyExt::boxed(http_body_util::StreamBody::new(Box::pin(first.chain(end))))
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
    let found = state.blobs.get(&last).cloned();
    if found.is_none() && state.elsewhere.is_none() {
        return status(StatusCode::NOT_FOUND);
    }
    let bytes = found.unwrap_or_default();
    if let Some(address) = state.elsewhere {
        let mut response = status(StatusCode::TEMPORARY_REDIRECT);
        let location = format!("http://{address}{path}");
        response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).unwrap());
        return response;
    }
    state.told |= !authorization.is_empty();
    state.asked.push(format!("{} {range}", &last[7..13]));
    let from: usize =
        range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).map_or(0, |n| n.parse().unwrap());
    let rest = bytes[from..].to_vec();
    let length = rest.len();
    let body = match (bytes.len() > 1000).then(|| state.breaks.pop()).flatten() {
        Some(after) => broken(rest[..after].to_vec()),
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
fn layer(name: &str, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
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

struct Place {
    _dir: tempfile::TempDir,
    store: Arc<ImageStore>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(dir.path()).unwrap());
        Self { _dir: dir, store }
    }

    async fn pull(&self, spec: PullSpec) -> Result<ImageInfo, RuntimeError> {
        let (progress, seen) = watch::channel(PullProgress::default());
        let ingest = self.store.ingest().await?;
        let pulled = Arc::clone(&self.store).pull(ingest, spec, progress).await;
        let seen = *seen.borrow();
        assert!(pulled.is_err() || seen.layers_done == seen.layers, "{seen:?}");
        pulled
    }

    fn files(&self, reference: &str) -> Vec<String> {
        let layers = self.store.prepare(reference).unwrap().1;
        let names = layers.iter().map(|layer| {
            let names =
                std::fs::read_dir(layer).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>().join("+")
        });
        names.collect()
    }
}

/// Through plain HTTP.
fn spec(registry: &Registry, path: &str) -> PullSpec {
    let host = registry.address.to_string();
    let mirror = Mirror { endpoints: vec![format!("http://{host}")] };
    PullSpec {
        reference: format!("{host}/{path}"),
        registries: Registries { mirrors: [(host, mirror)].into(), ..Registries::default() },
        ..PullSpec::default()
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("PODIUM_TEST_REQUIRE").is_none(), "root is required");
        println!("skipped: needs root");
    }
    root
}

#[tokio::test]
async fn layers_keep_the_manifests_order_and_a_second_pull_fetches_none() {
    if !is_root() {
        return;
    }
    let (registry, place) = (Registry::start(None).await, Place::new());
    let layers: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| layer(name, name.as_bytes())).into();
    let digest = registry.add("1", &layers, true);
    let spec = spec(&registry, "team/app:1");
    let info = place.pull(spec.clone()).await.unwrap();
    assert_eq!(info.cmd, ["/a"]);
    assert_eq!(info.repo_tags, std::slice::from_ref(&spec.reference));
    assert_eq!(info.repo_digests, [format!("{}/team/app@{digest}", registry.address)]);
    assert_eq!(place.files(&spec.reference), ["a", "b", "c", "d", "e"]);

    registry.state().asked.clear();
    assert_eq!(place.pull(spec.clone()).await.unwrap(), info);
    assert_eq!(registry.state().asked.len(), 1, "the configuration alone");
    // by digest, and what the tag names now
    let by_digest = PullSpec { reference: info.repo_digests[0].clone(), ..spec.clone() };
    assert_eq!(place.pull(by_digest).await.unwrap().id, info.id);
    registry.add("1", &layers[..2], false);
    place.store.remove(&spec.reference, &[]).unwrap();
    assert_eq!(place.store.list().unwrap(), [], "the name by digest goes with the tag");
    assert_ne!(place.pull(spec.clone()).await.unwrap().id, info.id);
    assert_eq!(place.files(&spec.reference), ["a", "b"]);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_ended() {
    if !is_root() {
        return;
    }
    let (registry, place) = (Registry::start(None).await, Place::new());
    registry.add("1", &[layer("big", &[7; 50_000])], false);
    registry.state().breaks = vec![20_000, 10_000];
    place.pull(spec(&registry, "app:1")).await.unwrap();
    let ranges: Vec<_> = registry.state().asked.iter().map(|line| line[7..].to_owned()).collect();
    assert_eq!(ranges, ["", "", "bytes=10000-", "bytes=30000-"], "configuration, blob in three parts");
}

#[tokio::test]
async fn credentials_are_tried_in_turn_and_only_on_the_own_registry() {
    if !is_root() {
        return;
    }
    let (registry, place) = (Registry::start(None).await, Place::new());
    registry.add("1", &[layer("a", b"a")], false);
    registry.state().user = Some(("me".into(), "secret".into()));
    let anonymous = spec(&registry, "app:1");
    let error = place.pull(anonymous.clone()).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("auth"), "{error}");
    let credential = |password: &str| Credential { username: "me".into(), password: password.into() };
    let wrong = PullSpec { credentials: vec![credential("guess")], ..anonymous.clone() };
    assert!(place.pull(wrong).await.is_err());
    let right =
        PullSpec { credentials: vec![credential("guess"), credential("secret")], ..anonymous.clone() };
    place.pull(right).await.unwrap();

    // a mirror gets what the machine's owner has for it, never a pod's
    let host = registry.address.to_string();
    let mirrors = [("far.example".to_owned(), Mirror { endpoints: vec![format!("http://{host}")] })];
    let mut mirrored = PullSpec {
        reference: "far.example/app:1".into(),
        credentials: vec![credential("secret")],
        registries: Registries { mirrors: mirrors.into(), ..Registries::default() },
    };
    assert!(place.pull(mirrored.clone()).await.is_err());
    let own = HostConfig { auth: Some(credential("secret")), ..HostConfig::default() };
    mirrored.registries.configs.insert(host, own);
    let names = place.pull(mirrored).await.unwrap().repo_tags;
    assert!(names.contains(&"far.example/app:1".to_owned()), "{names:?}");
}

#[tokio::test]
async fn other_hosts_give_blobs_and_do_not_learn_who_asks() {
    if !is_root() {
        return;
    }
    let (registry, store) = (Registry::start(None).await, Registry::start(None).await);
    registry.add("v1", &[layer("a", b"a")], false);
    {
        let mut state = registry.state();
        store.state().blobs = std::mem::take(&mut state.blobs);
        state.elsewhere = Some(store.address);
        state.user = Some(("me".into(), "secret".into()));
    }
    let mut spec = spec(&registry, "app:v1");
    spec.credentials = vec![Credential { username: "me".into(), password: "secret".into() }];
    let reference = spec.reference.clone();
    let place = Place::new();
    place.pull(spec).await.unwrap();
    assert_eq!(place.files(&reference), ["a"]);
    assert_eq!(store.state().asked.len(), 2, "configuration and layer");
    assert!(!store.state().told);
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_refused() {
    if !is_root() {
        return;
    }
    let (registry, place) = (Registry::start(None).await, Place::new());
    let (plain, packed) = layer("a", b"a");
    let missing = spec(&registry, "app:none");
    assert!(matches!(place.pull(missing).await, Err(RuntimeError::NotFound(_))));

    registry.add("1", &[(plain.clone(), packed.clone())], false);
    registry.state().blobs.get_mut(&sha256(&packed)).unwrap()[20] ^= 1;
    let one = spec(&registry, "app:1");
    let error = place.pull(one.clone()).await.unwrap_err().to_string();
    assert!(error.contains("content of") || error.contains("igest"), "{error}");

    let (_, other) = layer("b", b"b");
    registry.add("2", &[(plain, other)], false);
    let error = place.pull(spec(&registry, "app:2")).await.unwrap_err().to_string();
    assert!(error.contains("holds sha256:"), "{error}");

    let digest = registry.add("3", &[layer("c", b"c")], false);
    let lie = registry.state().manifests["2"].clone();
    registry.state().manifests.insert(digest.clone(), lie);
    let by_digest = spec(&registry, &format!("app@{digest}"));
    let error = place.pull(by_digest).await.unwrap_err().to_string();
    assert!(error.contains("content of") || error.contains("igest"), "{error}");
    assert_eq!(place.store.list().unwrap(), []);
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named() {
    if !is_root() {
        return;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let (registry, place) = (Registry::start(Some(Arc::new(tls))).await, Place::new());
    registry.add("1", &[layer("a", b"a")], false);
    let host = registry.address.to_string();
    let mut spec = PullSpec { reference: format!("{host}/app:1"), ..PullSpec::default() };
    assert!(place.pull(spec.clone()).await.is_err());
    let file = place._dir.path().join("ca.pem");
    std::fs::write(&file, signed.cert.pem()).unwrap();
    let tls = TlsConfig { ca_file: Some(file), insecure_skip_verify: false };
    spec.registries.configs.insert(host, HostConfig { tls: Some(tls), auth: None });
    place.pull(spec).await.unwrap();
}

#[tokio::test]
async fn what_was_imported_by_hand_is_taken_as_it_is() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let archive = place._dir.path().join("a.tar");
    std::fs::write(&archive, crate::image::tests::docker_archive(false)).unwrap();
    let imported = place.store.import(&archive).unwrap().pop().unwrap();
    let spec = PullSpec { reference: "app:1".into(), ..PullSpec::default() };
    assert_eq!(place.pull(spec).await.unwrap().id, imported.id);
}
