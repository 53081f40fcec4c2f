//! The image store: layers unpacked once by content, images by the digest of their configuration, names onto images.
//!
//! ```text
//! layers/HEX/          an unpacked layer in overlay form, named by the digest of its plain tar
//! images/HEX.json      what the runtime needs of an image's configuration, and its layers
//! names.json           reference -> image id
//! tmp/                 work in progress; emptied at start
//! ```

mod builtin;
mod elf;
mod import;
mod layer;
mod reference;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use builtin::Layout;

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
    /// Reference -> image id; also serialises writers.
    names: Mutex<BTreeMap<String, String>>,
}

impl ImageStore {
    pub(crate) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let tmp = dir.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).during(|| format!("cannot empty {}", tmp.display()))?;
        }
        for folder in [&dir.join("layers"), &dir.join("images"), &tmp] {
            fs::create_dir_all(folder).during(|| format!("cannot make {}", folder.display()))?;
        }
        let names = match fs::read(dir.join("names.json")) {
            Ok(json) => serde_json::from_slice(&json).during(|| "unreadable names of images".into())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { dir: dir.to_owned(), names: Mutex::new(names) })
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
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
            && let Some(id) = self.names().get(&name)
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
        let names = self.names();
        let own = names.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone());
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
        let Some(id) = self.resolve(reference)? else { return Ok(()) };
        let name = reference::normalise(reference).ok().filter(|name| self.names().contains_key(name));
        let others =
            self.names().iter().filter(|(other, of)| **of == id && Some(*other) != name.as_ref()).count();
        let goes = name.is_none() || others == 0;
        if goes && in_use.contains(&id) {
            return Err(RuntimeError::Invalid(format!("image {reference} is in use by a container")));
        }
        {
            let mut names = self.names();
            names.retain(|other, of| *of != id || (!goes && name.as_ref() != Some(other)));
            self.write_names(&names)?;
        }
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

    /// Takes an image whose layers are in place into the books.
    fn add(&self, image: &StoredImage, names: &[String]) -> Result<(), RuntimeError> {
        crate::shim::store(&self.image_file(&image.info.id), image)?;
        let mut known = self.names();
        for name in names {
            known.insert(name.clone(), image.info.id.clone());
        }
        self.write_names(&known)
    }

    fn write_names(&self, names: &BTreeMap<String, String>) -> Result<(), RuntimeError> {
        crate::shim::store(&self.dir.join("names.json"), names)
    }

    /// A fresh folder for work in progress.
    fn scratch(&self) -> Result<PathBuf, RuntimeError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let dir = self.dir.join("tmp").join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
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

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

#[cfg(test)]
mod tests;
