//! The engine's images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::{Engine, EngineConfig, blocking};
use crate::error::RuntimeError;
use crate::image::{ImageInfo, Layout, PullProgress, PullSpec};
use crate::spec::ContainerRecord;

impl Engine {
    /// An image by reference or id.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn image_status(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let (images, reference) = (Arc::clone(&self.images), reference.to_owned());
        blocking(move || images.status(&reference)).await
    }

    /// Fetches an image from its registry or a mirror; parts that are here already are not fetched again. An image that
    /// was imported by hand under the same name is taken where no endpoint serves it.
    ///
    /// # Errors
    /// `NotFound` where no endpoint has it, `Invalid` for a name or an image that can't be right, `Other` for what may
    /// pass: refused credentials, broken transfers. A later call goes on where this one broke off.
    pub async fn pull_image(
        &self,
        spec: PullSpec,
        progress: watch::Sender<PullProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        let images = Arc::clone(&self.images);
        let ingest = images.ingest().await?;
        images.pull(ingest, spec, progress).await
    }

    /// # Errors
    /// When the store can't be read.
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let images = Arc::clone(&self.images);
        blocking(move || images.list()).await
    }

    /// Removes a reference, and the image with its last one. Idempotent.
    ///
    /// # Errors
    /// `Invalid` while a container uses it; else when files can't be deleted.
    pub async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        let in_use: Vec<String> = self.state().containers.values().flat_map(images_of).collect();
        let (images, reference) = (Arc::clone(&self.images), reference.to_owned());
        blocking(move || images.remove(&reference, &in_use)).await
    }

    /// Imports a docker archive or an OCI layout, a tar file that may be gzipped.
    ///
    /// # Errors
    /// `Invalid` for an archive that is broken or hostile.
    pub async fn import_image(&self, archive: &Path) -> Result<Vec<ImageInfo>, RuntimeError> {
        let (images, archive) = (Arc::clone(&self.images), archive.to_owned());
        blocking(move || images.import(&archive)).await
    }

    /// Packs an image from an executable of this machine, unless it is there for this very executable.
    ///
    /// # Errors
    /// When a library of the executable isn't found or files can't be written.
    pub async fn ensure_builtin_image(
        &self,
        reference: &str,
        layout: Layout,
    ) -> Result<ImageInfo, RuntimeError> {
        let (images, reference) = (Arc::clone(&self.images), reference.to_owned());
        blocking(move || images.ensure_builtin(&reference, &layout)).await
    }
}

/// Ids of images that containers were made of, read from their records: for programs beside the engine.
pub(crate) fn images_in_use(config: &EngineConfig) -> Result<Vec<String>, RuntimeError> {
    let mut found = Vec::new();
    for sandbox in entries(&config.sandboxes())? {
        for record in entries(&sandbox.join("containers"))? {
            // a container may go while one looks
            let record = std::fs::read(&record).ok().and_then(|json| serde_json::from_slice(&json).ok());
            found.extend(record.iter().flat_map(images_of));
        }
    }
    Ok(found)
}

fn images_of(record: &ContainerRecord) -> impl Iterator<Item = String> {
    let status = &record.status;
    status.mounted_images.iter().chain([&status.image_id]).cloned()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    match std::fs::read_dir(folder) {
        Ok(all) => all.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
