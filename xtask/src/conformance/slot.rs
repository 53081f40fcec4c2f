//! A place for one run: a folder, held by a lock, so that several runs can go on at a time.
//!
//! Runs share the suite and the images. A cluster's folder, and with it its names and control groups, belongs to a
//! slot; its addresses lie in network namespaces of its own.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// More clusters than this no machine bears.
const SLOTS: usize = 16;

/// A slot that this process holds until it ends, however it ends.
pub(super) struct Slot {
    /// Of the run: the cluster's data, podium's program and its log.
    pub(super) folder: PathBuf,
    _lock: File,
}

impl Slot {
    /// Takes the first free slot. `clean` removes what a killed run left in a folder; it is called for every free slot.
    ///
    /// # Errors
    /// When all are taken, or none can be cleaned.
    pub(super) fn take(cache: &Path, clean: impl Fn(&Path) -> Result<()>) -> Result<Self> {
        let mut first = None;
        for number in 1..=SLOTS {
            let folder = cache.join("clusters").join(number.to_string());
            if first.is_some() && !folder.exists() {
                continue;
            }
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let Some(lock) = try_lock(&folder.join("lock"))? else { continue };
            match clean(&folder) {
                Ok(()) => first = first.or(Some(Self { folder, _lock: lock })),
                Err(error) => eprintln!("xtask: {} can't be cleaned: {error:#}", folder.display()),
            }
        }
        first.with_context(|| format!("no free slot out of {SLOTS} below {}", cache.display()))
    }
}

/// Waits for a lock; it ends with the file.
pub(super) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn two_runs_never_share_a_slot_and_a_free_one_is_cleaned_and_taken_again() {
        let cache = std::env::temp_dir().join(format!("podium-slots-{}", std::process::id()));
        let first = Slot::take(&cache, |_| Ok(())).unwrap();
        let second = Slot::take(&cache, |_| Ok(())).unwrap();
        assert_ne!(first.folder, second.folder);
        let (free, taken) = (first.folder.clone(), second.folder.clone());
        drop(first);
        let cleaned = std::cell::RefCell::new(Vec::new());
        let again = Slot::take(&cache, |folder| {
            cleaned.borrow_mut().push(folder.to_owned());
            Ok(())
        });
        assert_eq!(again.unwrap().folder, free);
        assert!(cleaned.borrow().contains(&free) && !cleaned.borrow().contains(&taken));
        let third = Slot::take(&cache, |folder| if folder == free { bail!("stuck") } else { Ok(()) });
        assert!(![free, taken].contains(&third.unwrap().folder));
        fs::remove_dir_all(&cache).unwrap();
    }
}
