//! The image store: layers unpacked once by content, images by the digest of their configuration, names onto images.
//!
//! ```text
//! layers/HEX/          an unpacked layer in overlay form, named by the digest of its plain tar
//! images/HEX.json      what the runtime needs of an image's configuration, and its layers
//! names.json           reference -> image id
//! tmp/                 work in progress; emptied when a store is opened
//! ingest/              blobs that are being pulled: they outlive a failed attempt and a restart
//! lock                 held by the one writer of all processes: `podium image import` works beside a running agent
//! ```
//!
//! Invariant: `names.json` is only replaced whole and by the holder of the lock; readers read it again when it changed.

mod anybody;
mod builtin;
mod elf;
mod import;
mod ingest;
mod layer;
mod manifest;
mod pull;
mod reference;
mod registries;
mod registry;
mod tree;
mod zstd;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, watch};

pub use builtin::Layout;
pub use pull::{PullProgress, PullSpec};
pub use registries::{Credential, HostConfig, Mirror, Registries, TlsConfig};

use ingest::Ingest;

use crate::engine::EngineConfig;
use crate::error::{During as _, RuntimeError};

/// An image on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Names with a digest.
    pub repo_digests: Vec<String>,
    /// Names with a tag.
    pub repo_tags: Vec<String>,
    pub size_bytes: u64,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    /// `uid`, `uid:gid`, a name, or "".
    pub user: String,
    pub stop_signal: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct StoredImage {
    info: ImageInfo,
    /// Digests of the layers' plain tars, the lowest first.
    layers: Vec<String>,
}

pub(crate) struct ImageStore {
    dir: PathBuf,
    names: Mutex<Names>,
    /// Where the agent's pulls are under way; opened by the first.
    ingest: OnceCell<Arc<Ingest>>,
}

/// What was last read of the file of names.
#[derive(Default)]
struct Names {
    /// Inode, modification time in seconds and nanoseconds: a replaced file differs in one of them.
    version: Option<(u64, i64, i64)>,
    /// Reference -> image id.
    ids: BTreeMap<String, String>,
}

impl ImageStore {
    pub(crate) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        fs::create_dir_all(dir).during(|| format!("cannot make {}", dir.display()))?;
        let store = Self { dir: dir.to_owned(), names: Mutex::default(), ingest: OnceCell::new() };
        // nobody else's work in progress is thrown away
        let _lock = store.lock()?;
        let tmp = dir.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).during(|| format!("cannot empty {}", tmp.display()))?;
        }
        for folder in [&dir.join("layers"), &dir.join("images"), &tmp] {
            fs::create_dir_all(folder).during(|| format!("cannot make {}", folder.display()))?;
        }
        drop(store.names()?);
        Ok(store)
    }

    pub(crate) async fn ingest(&self) -> Result<Arc<Ingest>, RuntimeError> {
        let place = self.dir.join("ingest/agent");
        let open = async || {
            let opened = tokio::task::spawn_blocking(move || Ingest::open(&place)).await;
            opened.during(|| "cannot open the folder of pulls".into())?.map(Arc::new)
        };
        self.ingest.get_or_try_init(open).await.cloned()
    }

    /// Waits until no other writer is at work, in this process or another; the lock goes with the file.
    fn lock(&self) -> Result<fs::File, RuntimeError> {
        let path = self.dir.join("lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.during(|| format!("cannot open {}", path.display()))?;
        file.lock().during(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// The names as they are now on disk.
    fn names(&self) -> Result<std::sync::MutexGuard<'_, Names>, RuntimeError> {
        use std::os::unix::fs::MetadataExt as _;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match fs::File::open(self.dir.join("names.json")) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                *names = Names::default();
                return Ok(names);
            }
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        let version = Some((found.ino(), found.mtime(), found.mtime_nsec()));
        if names.version != version {
            let mut json = Vec::new();
            file.read_to_end(&mut json)?;
            names.ids = serde_json::from_slice(&json).during(|| "unreadable names of images".into())?;
            names.version = version;
        }
        Ok(names)
    }

    fn image_file(&self, id: &str) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", hex(id)))
    }

    fn layer_dir(&self, digest: &str) -> PathBuf {
        self.dir.join("layers").join(hex(digest))
    }

    /// The id that a reference, an id or the beginning of an id stands for.
    fn resolve(&self, reference: &str) -> Result<Option<String>, RuntimeError> {
        if reference::is_digest(reference) {
            return Ok(self.image_file(reference).exists().then(|| reference.to_owned()));
        }
        if let Ok(name) = reference::normalise(reference)
            && let Some(id) = self.names()?.ids.get(&name)
        {
            return Ok(Some(id.clone()));
        }
        let is_hex = reference.len() >= 12 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return reference::normalise(reference).map(|_| None);
        }
        let mut ids = self.ids()?;
        ids.retain(|id| hex(id).starts_with(reference));
        Ok(if ids.len() == 1 { ids.pop() } else { None })
    }

    fn ids(&self) -> Result<Vec<String>, RuntimeError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.dir.join("images"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ids.extend(name.strip_suffix(".json").map(|hex| format!("sha256:{hex}")));
        }
        ids.sort();
        Ok(ids)
    }

    fn load(&self, id: &str) -> Result<StoredImage, RuntimeError> {
        let json =
            fs::read(self.image_file(id)).map_err(|_| RuntimeError::NotFound(format!("image {id}")))?;
        let mut image: StoredImage =
            serde_json::from_slice(&json).during(|| format!("unreadable image {id}"))?;
        let names = self.names()?;
        let own = names.ids.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone());
        let (digests, tags) = own.partition(|name| name.contains('@'));
        image.info.repo_digests = digests;
        image.info.repo_tags = tags;
        Ok(image)
    }

    pub(crate) fn status(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        self.resolve(reference)?.map(|id| self.load(&id).map(|image| image.info)).transpose()
    }

    /// What a container of an image needs: its configuration and its layers, the lowest first.
    pub(crate) fn prepare(&self, reference: &str) -> Result<(ImageInfo, Vec<PathBuf>), RuntimeError> {
        let id =
            self.resolve(reference)?.ok_or_else(|| RuntimeError::NotFound(format!("image {reference}")))?;
        let image = self.load(&id)?;
        let layers = image.layers.iter().map(|digest| self.layer_dir(digest)).collect();
        Ok((image.info, layers))
    }

    pub(crate) fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.ids()?.iter().map(|id| self.load(id).map(|image| image.info)).collect()
    }

    /// Removes a name, or an image with all its names; layers go with their last image. `in_use`: ids of images of
    /// containers.
    pub(crate) fn remove(&self, reference: &str, in_use: &[String]) -> Result<(), RuntimeError> {
        let _lock = self.lock()?;
        let Some(id) = self.resolve(reference)? else { return Ok(()) };
        let mut known = self.names()?.ids.clone();
        let name = reference::normalise(reference).ok().filter(|name| known.contains_key(name));
        // the name by digest came along with the tag
        let comes_along = |other: &str| {
            let tag = name.as_deref().filter(|name| !name.contains('@'));
            other.contains('@') && tag.map(reference::repository) == Some(reference::repository(other))
        };
        let remaining = known.iter().filter(|(other, of)| **of == id && Some(*other) != name.as_ref());
        let others = remaining.filter(|(other, _)| !comes_along(other)).count();
        let goes = name.is_none() || others == 0;
        if goes && in_use.contains(&id) {
            return Err(RuntimeError::Invalid(format!("image {reference} is in use by a container")));
        }
        known.retain(|other, of| *of != id || (!goes && name.as_ref() != Some(other)));
        self.write_names(&known)?;
        if goes {
            fs::remove_file(self.image_file(&id))?;
            self.remove_unused_layers()?;
        }
        Ok(())
    }

    fn remove_unused_layers(&self) -> Result<(), RuntimeError> {
        let mut used = Vec::new();
        for id in self.ids()? {
            used.extend(self.load(&id)?.layers.iter().map(|digest| hex(digest).to_owned()));
        }
        for entry in fs::read_dir(self.dir.join("layers"))? {
            let entry = entry?;
            if !used.contains(&entry.file_name().to_string_lossy().into_owned()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes an image whose layers are in place into the books. The caller holds the lock.
    fn add(&self, image: &StoredImage, names: &[String]) -> Result<(), RuntimeError> {
        crate::shim::store(&self.image_file(&image.info.id), image)?;
        let mut known = self.names()?.ids.clone();
        for name in names {
            known.insert(name.clone(), image.info.id.clone());
        }
        self.write_names(&known)
    }

    fn write_names(&self, names: &BTreeMap<String, String>) -> Result<(), RuntimeError> {
        crate::shim::store(&self.dir.join("names.json"), names)
    }

    /// A fresh folder for work in progress. The caller holds the lock.
    fn scratch(&self) -> Result<PathBuf, RuntimeError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // two processes in different pid namespaces may have the same id, but then one has the lock
        let dir = self.dir.join("tmp").join(format!("{}-{count}", std::process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir).during(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir(&dir).during(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Moves an unpacked layer to its place. One that is there already is the same.
    fn adopt_layer(&self, unpacked: &Path, digest: &str) -> Result<(), RuntimeError> {
        let place = self.layer_dir(digest);
        if place.exists() {
            fs::remove_dir_all(unpacked)?;
            return Ok(());
        }
        fs::rename(unpacked, &place).during(|| format!("cannot keep a layer in {}", place.display()))
    }
}

/// Imports the images of an archive (docker's or an OCI layout, plain or gzipped) without an engine. An engine that runs
/// on the same data directory sees them from then on.
///
/// # Errors
/// `Invalid` for an archive that is broken or hostile; else when files can't be written.
pub fn import_image(config: &EngineConfig, archive: &Path) -> Result<Vec<ImageInfo>, RuntimeError> {
    ImageStore::open(&config.images())?.import(archive)
}

/// The images of a data directory, without an engine.
///
/// # Errors
/// When they can't be read.
pub fn list_images(config: &EngineConfig) -> Result<Vec<ImageInfo>, RuntimeError> {
    ImageStore::open(&config.images())?.list()
}

/// Pulls an image without an engine; one that runs on the same data directory sees it from then on.
///
/// # Errors
/// As [`crate::Engine::pull_image`].
pub async fn pull_image(
    config: &EngineConfig,
    spec: PullSpec,
    progress: watch::Sender<PullProgress>,
) -> Result<ImageInfo, RuntimeError> {
    let store = Arc::new(ImageStore::open(&config.images())?);
    // apart from what a running agent holds
    let place = config.images().join("ingest/by-hand");
    let ingest = tokio::task::spawn_blocking(move || Ingest::open(&place)).await;
    let ingest = ingest.during(|| "cannot wait for another pull".into())??;
    store.pull(Arc::new(ingest), spec, progress).await
}

/// Removes a name, or by its id an image with all its names, without an engine.
///
/// # Errors
/// `NotFound` without such an image, `Invalid` while a container uses it.
pub fn remove_image(config: &EngineConfig, reference: &str) -> Result<(), RuntimeError> {
    let store = ImageStore::open(&config.images())?;
    if store.status(reference)?.is_none() {
        return Err(RuntimeError::NotFound(format!("image {reference}")));
    }
    store.remove(reference, &crate::engine::images_in_use(config)?)
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

#[cfg(test)]
mod tests;
