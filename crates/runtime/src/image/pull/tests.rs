//! Pulls from a registry on loopback that checks who asks, breaks transfers, and can lie.

use super::*;
use crate::image::registries::{HostConfig, Mirror, TlsConfig};

mod registry;

use registry::{Registry, layer};

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
async fn an_import_gives_way_to_a_registry_that_serves_its_name() {
    if !is_root() {
        return;
    }
    let (registry, place) = (Registry::start(None).await, Place::new());
    let spec = spec(&registry, "app:1");
    let archive = place._dir.path().join("a.tar");
    std::fs::write(&archive, crate::image::tests::docker_archive(false)).unwrap();
    let imported = place.store.import(&archive).unwrap().pop().unwrap();
    place.store.add(&place.store.load(&imported.id).unwrap(), std::slice::from_ref(&spec.reference)).unwrap();
    assert_eq!(place.pull(spec.clone()).await.unwrap().id, imported.id, "nobody serves it");
    registry.add("1", &[layer("a", b"a")], false);
    registry.state().user = Some(("me".into(), "secret".into()));
    assert_eq!(place.pull(spec.clone()).await.unwrap().id, imported.id, "nobody serves it to us");
    registry.state().user = None;
    let pulled = place.pull(spec.clone()).await.unwrap();
    assert_ne!(pulled.id, imported.id);
    registry.state().manifests.clear();
    assert!(place.pull(spec).await.is_err(), "what came from a registry is asked for there");
}
