//! Writes a set of files so that readers see the old set or the new one, never a mixture.
//!
//! ```text
//!   volume/file    -> ..data/file
//!   volume/..data  -> ..1700000000_1     (renamed over in one step)
//!   volume/..1700000000_1/file
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::{Payload, PayloadFile};

const DATA: &str = "..data";

/// Makes `dir` hold exactly `payload`. Does nothing when it already does.
///
/// # Errors
/// A path that leaves the volume, or the file system's.
pub fn write(dir: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    std::fs::create_dir_all(dir)?;
    let current = std::fs::read_link(dir.join(DATA)).ok();
    if current.as_ref().is_some_and(|name| holds(&dir.join(name), payload)) {
        return link_top(dir, payload);
    }
    let fresh = fresh_name(dir)?;
    write_files(&dir.join(&fresh), payload, fs_group)?;
    let temporary = dir.join("..data_tmp");
    remove_file(&temporary)?;
    symlink(&fresh, &temporary)?;
    std::fs::rename(&temporary, dir.join(DATA))?;
    link_top(dir, payload)?;
    remove_stale(dir, payload, &fresh)
}

/// Relative, without `..` components, and not in the writer's own name space.
fn check(path: &str) -> io::Result<()> {
    let mut parts = Path::new(path).components();
    let plain = !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)));
    if plain && !path.starts_with("..") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?} in the volume")))
}

fn fresh_name(dir: &Path) -> io::Result<String> {
    for number in 0u64.. {
        let name = format!("..{number:06}");
        match std::fs::create_dir(dir.join(&name)) {
            Ok(()) => return Ok(name),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("no free version name"))
}

fn write_files(version: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    std::fs::set_permissions(version, std::fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = version.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        write_file(&target, file, fs_group)?;
    }
    Ok(())
}

fn write_file(target: &Path, file: &PayloadFile, fs_group: Option<u32>) -> io::Result<()> {
    std::fs::write(target, &file.bytes)?;
    // The group of a pod may read what its owner may.
    let mode = if fs_group.is_some() { file.mode | ((file.mode & 0o400) >> 3) } else { file.mode };
    if let Some(group) = fs_group {
        chown(target, None, Some(group))?;
    }
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(mode))
}

/// Whether a version has exactly these files, contents and modes.
fn holds(version: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if list(version, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let target = version.join(path);
        let same_mode = |m: std::fs::Metadata| m.permissions().mode() & 0o7707 == file.mode & 0o7707;
        found.contains(Path::new(path))
            && std::fs::metadata(&target).is_ok_and(same_mode)
            && std::fs::read(&target).is_ok_and(|bytes| bytes == file.bytes)
    })
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn first_parts(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect()
}

fn link_top(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in first_parts(payload) {
        let wanted = Path::new(DATA).join(name);
        let link = dir.join(name);
        if std::fs::read_link(&link).ok().as_ref() == Some(&wanted) {
            continue;
        }
        remove_file(&link)?;
        symlink(&wanted, &link)?;
    }
    Ok(())
}

/// Links whose file is gone, then old versions.
fn remove_stale(dir: &Path, payload: &Payload, fresh: &str) -> io::Result<()> {
    let names = first_parts(payload);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == fresh || names.contains(name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
