//! Importing archives: docker's (`manifest.json`) and OCI layouts (`index.json`), as tar files, plain or gzipped.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::OFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::layer::{self, Hashing};
use super::manifest::{ConfigFile, Descriptor, Index, MAX_DOCUMENT_BYTES, Manifest};
use super::tree::{Tree, relative};
use super::{ImageInfo, ImageStore, StoredImage, reference};
use crate::error::{During as _, RuntimeError};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An archive's files, unpacked for reading.
struct Unpacked {
    tree: Tree,
}

impl ImageStore {
    /// Imports every image of an archive; all of an image is checked before its name points to it.
    pub(crate) fn import(&self, archive: &Path) -> Result<Vec<ImageInfo>, RuntimeError> {
        let _lock = self.lock()?;
        let scratch = self.scratch()?;
        let imported = self.import_into(archive, &scratch);
        std::fs::remove_dir_all(&scratch)?;
        imported
    }

    fn import_into(&self, archive: &Path, scratch: &Path) -> Result<Vec<ImageInfo>, RuntimeError> {
        let file = File::open(archive).during(|| format!("cannot open {}", archive.display()))?;
        layer::unpack(file, scratch)?;
        let files = Unpacked { tree: Tree::open(scratch)? };
        if files.exists("manifest.json") {
            let entries: Vec<DockerEntry> = files.json("manifest.json")?;
            return entries.iter().map(|entry| self.import_docker(&files, entry)).collect();
        }
        if !files.exists("index.json") {
            return Err(RuntimeError::Invalid("neither a docker archive nor an OCI layout".into()));
        }
        let index: Index = files.json("index.json")?;
        index.manifests.iter().map(|descriptor| self.import_oci(&files, descriptor)).collect()
    }

    fn import_docker(&self, files: &Unpacked, entry: &DockerEntry) -> Result<ImageInfo, RuntimeError> {
        let names = entry.repo_tags.iter().flatten().map(|tag| reference::normalise(tag));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        self.import_layers(files, &entry.config, &entry.layers, names)
    }

    fn import_oci(&self, files: &Unpacked, descriptor: &Descriptor) -> Result<ImageInfo, RuntimeError> {
        let mut names = Vec::new();
        for key in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
            // The second may be a bare tag; that alone names nothing.
            let name = descriptor.annotations.get(key).filter(|name| name.contains(['/', ':']));
            if let (Some(name), true) = (name, names.is_empty()) {
                names.push(reference::normalise(name)?);
            }
        }
        let path = files.verified_blob(&descriptor.digest)?;
        let manifest: Manifest = if descriptor.is_index() {
            let index: Index = files.json(&path)?;
            files.json(&files.verified_blob(&index.ours()?.digest)?)?
        } else {
            files.json(&path)?
        };
        let config = files.verified_blob(&manifest.config.digest)?;
        let layers: Vec<String> =
            manifest.layers.iter().map(|l| files.verified_blob(&l.digest)).collect::<Result<_, _>>()?;
        self.import_layers(files, &config, &layers, names)
    }

    fn import_layers(
        &self,
        files: &Unpacked,
        config_path: &str,
        layers: &[String],
        names: Vec<String>,
    ) -> Result<ImageInfo, RuntimeError> {
        let id = files.digest(config_path)?;
        let config: ConfigFile = files.json(config_path)?;
        let diff_ids = config.diff_ids(layers.len())?.to_vec();
        let mut size_bytes = 0;
        for (path, digest) in layers.iter().zip(&diff_ids) {
            let unpacked = self.scratch()?;
            let (found, size) = layer::unpack(files.open(path)?, &unpacked).inspect_err(|_| {
                crate::error::log_failure(std::fs::remove_dir_all(&unpacked), "cannot tidy up")
            })?;
            if found != *digest {
                std::fs::remove_dir_all(&unpacked)?;
                return Err(RuntimeError::Invalid(format!("layer {path} is {found}, not {digest}")));
            }
            size_bytes += size;
            self.adopt_layer(&unpacked, digest)?;
        }
        let info = config.describe(id, size_bytes);
        let image = StoredImage { info, layers: diff_ids };
        self.add(&image, &names)?;
        Ok(self.load(&image.info.id)?.info)
    }
}

impl Unpacked {
    fn open(&self, path: &str) -> Result<File, RuntimeError> {
        let path = relative(Path::new(path))?;
        let fd = self.tree.look_up(&path, OFlags::RDONLY | OFlags::NONBLOCK);
        let file =
            File::from(fd.map_err(|error| RuntimeError::Invalid(format!("{}: {error}", path.display())))?);
        if !file.metadata()?.is_file() {
            return Err(RuntimeError::Invalid(format!("{} is no file", path.display())));
        }
        Ok(file)
    }

    fn exists(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, RuntimeError> {
        let mut bytes = Vec::new();
        self.open(path)?.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| RuntimeError::Invalid(format!("{path}: {error}")))
    }

    fn digest(&self, path: &str) -> Result<String, RuntimeError> {
        let mut hashing = Hashing::new(self.open(path)?);
        std::io::copy(&mut hashing, &mut std::io::sink())?;
        Ok(hashing.digest())
    }

    /// The path of a blob whose content has the digest it is named by.
    fn verified_blob(&self, digest: &str) -> Result<String, RuntimeError> {
        if !reference::is_digest(digest) {
            return Err(RuntimeError::Invalid(format!("{digest:?} is no supported digest")));
        }
        let path = format!("blobs/sha256/{}", super::hex(digest));
        let found = self.digest(&path)?;
        if found != digest {
            return Err(RuntimeError::Invalid(format!("blob {digest} has the content of {found}")));
        }
        Ok(path)
    }
}
