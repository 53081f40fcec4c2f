//! What pods have left in the node's folders that were deleted while no agent ran.
//!
//! Pods that the runtime still has are removed by workers of their own; here go the folders of those that nobody has any
//! more, as after a reboot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::volumes;

/// Uids of pods that have a folder of volumes or logs and are not `known`.
pub fn find(pods: &Path, logs: &Path, known: &BTreeSet<String>) -> BTreeSet<String> {
    let volumes = names(pods).map(|(name, _)| name);
    let logs = names(logs).filter_map(|(name, _)| uid_of_log_dir(&name).map(str::to_owned));
    volumes.chain(logs).filter(|uid| !known.contains(uid)).collect()
}

/// Unmounts and removes the folders of these pods.
///
/// # Errors
/// The file system's, for the first pod that fails; the others are removed.
pub fn remove(pods: &Path, logs: &Path, uids: &BTreeSet<String>) -> std::io::Result<()> {
    let mut outcome = Ok(());
    for uid in uids {
        outcome = outcome.and(volumes::tear_down(&volumes::pod_dir(pods, uid)));
    }
    let left = names(logs).filter(|(name, _)| uid_of_log_dir(name).is_some_and(|uid| uids.contains(uid)));
    for (_, path) in left {
        outcome = outcome.and(std::fs::remove_dir_all(path));
    }
    outcome
}

/// The last part of `<namespace>_<name>_<uid>`: no part has an underscore.
fn uid_of_log_dir(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    let uid = parts.nth(2)?;
    parts.next().is_none().then_some(uid)
}

/// Folders in a folder.
fn names(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
}
