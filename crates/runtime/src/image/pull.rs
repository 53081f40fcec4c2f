//! Pulling an image from its registry or a mirror (OCI distribution specification 1.1).
//!
//! ```text
//! endpoint by endpoint, credential by credential:
//! reference ──▶ manifest (an index: the one for this machine) ──▶ configuration
//!                      └─ layers that aren't here, some at a time: fetch (resumed) ──▶ verify ──▶ unpack ──▶ verify
//! all there ──▶ the store's lock ──▶ layers take their places, the image gets its names
//! ```
//!
//! Nothing is taken on trust: manifests, configurations, blobs and plain layers are checked against the digest they are
//! asked by.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ingest::{Ingest, digest_of};
use super::manifest::{ConfigFile, Descriptor, Index, MAX_DOCUMENT_BYTES, Manifest};
use super::registries::{Credential, Endpoint, Registries};
use super::registry::{Blob, Registry};
use super::{ImageInfo, ImageStore, StoredImage, reference};
use crate::error::{During as _, RuntimeError};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Layers of one image that are fetched at a time.
const PARALLEL_LAYERS: usize = 3;
/// Broken transfers of one blob in a row that bring nothing new.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How long all endpoints together may take to say that they have an image which is here by import.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// What to pull, and as whom.
#[derive(Clone, Debug, Default)]
pub struct PullSpec {
    pub reference: String,
    /// Tried in their order on the image's own registry; none: anonymously.
    pub credentials: Vec<Credential>,
    pub registries: Registries,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub layers: usize,
    pub layers_done: usize,
    /// Compressed size of the layers that weren't here.
    pub bytes: u64,
    pub bytes_done: u64,
}

/// One pull from one endpoint as one user.
struct Session {
    registry: Registry,
    /// The image's name, for people.
    image: String,
    /// Tag or digest.
    version: String,
    ingest: Arc<Ingest>,
    slots: Semaphore,
    progress: watch::Sender<PullProgress>,
}

impl ImageStore {
    /// Pulls an image. One that was imported by hand under this very name is taken where no endpoint serves the name: on a
    /// machine without a registry what somebody brought there is meant.
    pub(crate) async fn pull(
        self: Arc<Self>,
        ingest: Arc<Ingest>,
        spec: PullSpec,
        progress: watch::Sender<PullProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        let name = reference::normalise(&spec.reference)?;
        let imported = self.imported(&name)?;
        let (registry, path) = name.split_once('/').unwrap_or_default();
        if registry == "podium.local" {
            let missing = || RuntimeError::NotFound(format!("image {name}: podium.local is no registry"));
            return imported.ok_or_else(missing);
        }
        let until = imported.as_ref().map(|_| Instant::now() + ASK_LIMIT);
        let repository = reference::repository(path);
        let mut last = RuntimeError::NotFound(format!("image {name}: no endpoint"));
        // Somebody has it, who did not get it over.
        let mut served = false;
        for endpoint in spec.registries.endpoints(registry)? {
            for credential in identities(&endpoint, &spec.credentials) {
                let session = Session {
                    registry: Registry::new(&endpoint, repository, credential)?,
                    image: format!("{}/{path}", endpoint.host),
                    // what was cut off begins with ':' or '@'
                    version: path.get(repository.len() + 1..).unwrap_or_default().to_owned(),
                    ingest: Arc::clone(&ingest),
                    slots: Semaphore::new(PARALLEL_LAYERS),
                    progress: progress.clone(),
                };
                if let Some(until) = until
                    && !session.serves(until).await
                {
                    continue;
                }
                match session.fetch(&self, &name, &format!("{registry}/{repository}")).await {
                    Ok(info) => return Ok(info),
                    Err(error) => {
                        tracing::warn!(image = %name, endpoint = %endpoint.host, %error, "cannot pull");
                        last = error;
                        served = true;
                    }
                }
            }
        }
        if !served && imported.is_some() {
            tracing::info!(image = %name, "no registry serves the image: the imported one is used");
        }
        imported.filter(|_| !served).ok_or(last)
    }

    fn imported(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let Some(info) = self.status(name)? else { return Ok(None) };
        let repository = reference::repository(name);
        let pulled = info.repo_digests.iter().any(|digest| reference::repository(digest) == repository);
        Ok((!pulled).then_some(info))
    }

    /// Moves the layers to their places and takes the image into the books, in one step for other processes.
    fn take_over(
        &self,
        ingest: &Ingest,
        image: &StoredImage,
        names: &[String],
    ) -> Result<ImageInfo, RuntimeError> {
        let _lock = self.lock()?;
        for diff_id in &image.layers {
            let unpacked = ingest.layer(diff_id);
            if unpacked.exists() {
                self.adopt_layer(&unpacked, diff_id)?;
            }
            if !self.layer_dir(diff_id).exists() {
                return Err(RuntimeError::Other(format!("layer {diff_id} was removed meanwhile")));
            }
        }
        self.add(image, names)?;
        Ok(self.load(&image.info.id)?.info)
    }
}

impl Session {
    /// Whether the endpoint has the image for us, and says so in time.
    async fn serves(&self, until: Instant) -> bool {
        let asked = tokio::time::timeout_at(until, self.manifest(&self.version)).await;
        asked.is_ok_and(|answer| answer.is_ok())
    }

    async fn fetch(
        self,
        store: &Arc<ImageStore>,
        name: &str,
        repository: &str,
    ) -> Result<ImageInfo, RuntimeError> {
        let (mut bytes, top) = self.manifest(&self.version).await?;
        let shape: Descriptor = serde_json::from_value(serde_json::json!({
            "digest": top,
            "mediaType": parse::<serde_json::Value>(&bytes, "manifest")?["mediaType"].as_str().unwrap_or_default(),
        }))
        .during(|| "cannot read a manifest".into())?;
        let is_index = shape.is_index() || parse::<Manifest>(&bytes, "manifest").is_err();
        if is_index {
            let index: Index = parse(&bytes, "index")?;
            bytes = self.manifest(&index.ours()?.digest).await?.0;
        }
        let manifest: Manifest = parse(&bytes, "manifest")?;
        let config_bytes = self.document(&manifest.config).await?;
        let config: ConfigFile = parse(&config_bytes, "configuration")?;
        let diff_ids = config.diff_ids(manifest.layers.len())?.to_vec();
        let size = manifest.layers.iter().map(|layer| layer.size).sum();
        let image = StoredImage {
            info: config.describe(manifest.config.digest.clone(), size),
            layers: diff_ids.clone(),
        };
        let ingest = Arc::clone(&self.ingest);
        self.layers(store, manifest.layers, &diff_ids).await?;
        let names = vec![name.to_owned(), format!("{repository}@{top}")];
        let store = Arc::clone(store);
        let taken = tokio::task::spawn_blocking(move || store.take_over(&ingest, &image, &names)).await;
        taken.during(|| "cannot keep the image".into())?
    }

    /// The bytes of a manifest and their digest, which is the one asked for if one was.
    async fn manifest(&self, version: &str) -> Result<(Vec<u8>, String), RuntimeError> {
        let bytes = self.registry.manifest(version, MANIFEST_TYPES).await.map_err(|e| self.explain(e))?;
        let found = sha256(&bytes);
        if reference::is_digest(version) && version != found {
            let text = format!("the manifest of {} has the content of {found}", self.image);
            return Err(RuntimeError::Other(text));
        }
        Ok((bytes.to_vec(), found))
    }

    fn explain(&self, error: RuntimeError) -> RuntimeError {
        match error {
            RuntimeError::NotFound(text) => RuntimeError::NotFound(format!("{}: {text}", self.image)),
            other => RuntimeError::Other(format!("{}: {other}", self.image)),
        }
    }

    /// A small blob, verified.
    async fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
        if !reference::is_digest(&wanted.digest) {
            return Err(RuntimeError::Invalid(format!("{:?} is no supported digest", wanted.digest)));
        }
        let mut blob = self.registry.blob(&wanted.digest, 0).await.map_err(|e| self.explain(e))?;
        let mut bytes = Vec::new();
        while let Some(part) = blob.next().await {
            bytes.extend_from_slice(&part.during(|| format!("cannot fetch {}", wanted.digest))?);
            if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
                return Err(RuntimeError::Invalid(format!("{} is too big", wanted.digest)));
            }
        }
        let found = sha256(&bytes);
        if found != wanted.digest {
            return Err(RuntimeError::Other(format!("blob {} has the content of {found}", wanted.digest)));
        }
        Ok(bytes)
    }

    /// Sees to it that all layers are unpacked here or in the store.
    async fn layers(
        self,
        store: &Arc<ImageStore>,
        layers: Vec<Descriptor>,
        diff_ids: &[String],
    ) -> Result<(), RuntimeError> {
        let missing: Vec<(Descriptor, String)> = layers
            .into_iter()
            .zip(diff_ids.iter().cloned())
            .filter(|(_, diff_id)| !store.layer_dir(diff_id).exists())
            .collect();
        if let Some((bad, _)) = missing.iter().find(|(layer, _)| !reference::is_digest(&layer.digest)) {
            return Err(RuntimeError::Invalid(format!("{:?} is no supported digest", bad.digest)));
        }
        self.progress.send_replace(PullProgress {
            layers: missing.len(),
            bytes: missing.iter().map(|(layer, _)| layer.size).sum(),
            ..PullProgress::default()
        });
        let session = Arc::new(self);
        let mut tasks = JoinSet::new();
        for (layer, diff_id) in missing {
            let (session, store) = (Arc::clone(&session), Arc::clone(store));
            tasks.spawn(async move { session.layer(&store, &layer, &diff_id).await });
        }
        // the first failure ends the others: dropped tasks stop, and their files are there for the next attempt
        while let Some(done) = tasks.join_next().await {
            done.during(|| "a transfer broke".into())??;
        }
        Ok(())
    }

    async fn layer(&self, store: &ImageStore, layer: &Descriptor, diff_id: &str) -> Result<(), RuntimeError> {
        let slot = self.slots.acquire().await.during(|| "the pull has ended".into())?;
        let claim = self.ingest.claim(diff_id).await;
        if !store.layer_dir(diff_id).exists() && !self.ingest.layer(diff_id).exists() {
            self.blob(layer).await?;
            let (ingest, digest, diff_id) =
                (Arc::clone(&self.ingest), layer.digest.clone(), diff_id.to_owned());
            // the claim lives as long as the work, whether somebody still waits or not
            let work = move || ingest.unpack(&digest, &diff_id).map(|()| drop(claim));
            tokio::task::spawn_blocking(work).await.during(|| "cannot unpack".into())??;
        }
        drop(slot);
        self.progress.send_modify(|progress| progress.layers_done += 1);
        Ok(())
    }

    /// Fetches a blob into its file, going on where an earlier attempt broke off, and verifies it.
    async fn blob(&self, layer: &Descriptor) -> Result<(), RuntimeError> {
        let path = self.ingest.blob(&layer.digest);
        let (mut failures, mut pause) = (0, FIRST_PAUSE);
        loop {
            let before = size_of(&path);
            let Err(error) = self.transfer(layer, &path).await else { break };
            if matches!(error, RuntimeError::NotFound(_) | RuntimeError::Invalid(_)) {
                return Err(error);
            }
            failures = if size_of(&path) > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(error);
            }
            tracing::info!(blob = %layer.digest, %error, "a transfer broke; going on");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        let file = path.clone();
        let found = tokio::task::spawn_blocking(move || digest_of(&file)).await;
        let found = found.during(|| "cannot verify".into())??;
        if found != layer.digest {
            std::fs::remove_file(&path)?;
            return Err(RuntimeError::Other(format!("blob {} has the content of {found}", layer.digest)));
        }
        Ok(())
    }

    /// One transfer: from the file's end to the blob's.
    async fn transfer(&self, layer: &Descriptor, path: &Path) -> Result<(), RuntimeError> {
        let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
        let mut have = file.metadata().await?.len();
        if have > layer.size {
            file.set_len(0).await?;
            have = 0;
        }
        if have == layer.size && have > 0 {
            return Ok(());
        }
        let blob = self.registry.blob(&layer.digest, have).await;
        let mut blob = blob.map_err(|error| self.explain(error))?;
        if !blob.is_part {
            file.set_len(0).await?;
            have = 0;
        }
        let copied = self.copy(&mut blob, &mut file, layer, have).await;
        // what has come counts, however the transfer ended
        file.flush().await?;
        copied
    }

    async fn copy(
        &self,
        blob: &mut Blob,
        file: &mut tokio::fs::File,
        layer: &Descriptor,
        mut have: u64,
    ) -> Result<(), RuntimeError> {
        let digest = layer.digest.as_str();
        while let Some(part) = blob.next().await {
            let part = part.during(|| format!("cannot fetch {digest}"))?;
            have += part.len() as u64;
            if have > layer.size {
                let text = format!("blob {digest} is longer than {} bytes", layer.size);
                return Err(RuntimeError::Invalid(text));
            }
            file.write_all(&part).await?;
            self.progress.send_modify(|progress| progress.bytes_done += part.len() as u64);
        }
        if have < layer.size {
            return Err(RuntimeError::Other(format!(
                "blob {digest} ended after {have} of {} bytes",
                layer.size
            )));
        }
        Ok(())
    }
}

/// As whom to ask an endpoint: the machine's own credential, the pod's on the image's own registry, else nobody.
fn identities(endpoint: &Endpoint, credentials: &[Credential]) -> Vec<Option<Credential>> {
    let pods = credentials.iter().filter(|_| endpoint.is_origin);
    let all: Vec<_> = endpoint.auth.iter().chain(pods).cloned().map(Some).collect();
    if all.is_empty() { vec![None] } else { all }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|error| RuntimeError::Invalid(format!("broken {what}: {error}")))
}

fn sha256(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    format!("sha256:{}", hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn size_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests;
