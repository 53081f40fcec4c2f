//! Blobs on their way from a registry: fetched into files that survive a failed attempt, verified, unpacked.
//!
//! ```text
//! ingest/PULLER/HEX.blob      what has come of a blob so far, named by its digest
//! ingest/PULLER/HEX.work/     a layer that is being unpacked, named by the digest of its plain tar
//! ingest/PULLER/HEX.layer/    an unpacked and verified layer, until an image takes it over
//! ingest/PULLER/lock          held by the one process that pulls here: the agent, or a command
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::hex;
use super::layer::{self, Hashing};
use crate::error::{During as _, RuntimeError, log_failure};

/// What nobody came back for is thrown away.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The folder of blobs under way.
pub(crate) struct Ingest {
    dir: PathBuf,
    _lock: fs::File,
    /// One pull at a time works on a blob.
    claims: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to work on one blob.
pub(super) type Claim = tokio::sync::OwnedMutexGuard<()>;

impl Ingest {
    /// Waits while another process pulls here.
    pub(super) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        fs::create_dir_all(dir).during(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join("lock");
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.during(|| format!("cannot open {}", path.display()))?;
        lock.lock().during(|| format!("cannot lock {}", path.display()))?;
        let ingest = Self { dir: dir.to_owned(), _lock: lock, claims: Mutex::default() };
        ingest.forget_old()?;
        Ok(ingest)
    }

    fn forget_old(&self) -> Result<(), RuntimeError> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            let is_lock = entry.file_name() == "lock";
            if !is_lock && age > KEPT {
                let path = entry.path();
                let gone = if metadata.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                log_failure(gone, "cannot remove the rest of an old pull");
            }
        }
        Ok(())
    }

    pub(super) async fn claim(&self, digest: &str) -> Claim {
        let own = {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, claim| claim.strong_count() > 0);
            let found = claims.get(digest).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let fresh = Arc::new(tokio::sync::Mutex::new(()));
                claims.insert(digest.to_owned(), Arc::downgrade(&fresh));
                fresh
            })
        };
        own.lock_owned().await
    }

    pub(super) fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{}.blob", hex(digest)))
    }

    /// An unpacked layer, by the digest of its plain tar.
    pub(super) fn layer(&self, diff_id: &str) -> PathBuf {
        self.dir.join(format!("{}.layer", hex(diff_id)))
    }

    /// Unpacks a fetched blob and deletes it. The caller has the claim.
    pub(super) fn unpack(&self, blob: &str, diff_id: &str) -> Result<(), RuntimeError> {
        let work = self.dir.join(format!("{}.work", hex(diff_id)));
        if work.exists() {
            fs::remove_dir_all(&work).during(|| format!("cannot empty {}", work.display()))?;
        }
        fs::create_dir(&work).during(|| format!("cannot make {}", work.display()))?;
        let path = self.blob(blob);
        let file = fs::File::open(&path).during(|| format!("cannot open {}", path.display()))?;
        let unpacked = layer::unpack(file, &work).and_then(|(found, _)| {
            let wrong = || RuntimeError::Invalid(format!("layer {blob} holds {found}, not {diff_id}"));
            (found == diff_id).then_some(()).ok_or_else(wrong)
        });
        log_failure(fs::remove_file(&path), "cannot remove a fetched blob");
        if let Err(error) = unpacked {
            log_failure(fs::remove_dir_all(&work), "cannot tidy up");
            return Err(error);
        }
        let place = self.layer(diff_id);
        fs::rename(&work, &place).during(|| format!("cannot keep a layer in {}", place.display()))
    }
}

/// The digest of a file's content.
pub(super) fn digest_of(path: &Path) -> Result<String, RuntimeError> {
    let file = fs::File::open(path).during(|| format!("cannot open {}", path.display()))?;
    let mut hashing = Hashing::new(file);
    std::io::copy(&mut hashing, &mut std::io::sink())?;
    Ok(hashing.digest())
}
