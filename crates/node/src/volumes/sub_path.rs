//! subPath mounts, resolved so that no symlink made by a container can lead out of the volume.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat, openat2};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Binds `sub_path` of `volume` to `target` (the host side of a container mount). The bind goes through an open
/// descriptor, so what was checked is what is mounted, whatever a container renames meanwhile.
///
/// # Errors
/// A path that leaves the volume, or the file system's error.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("failed to prepare subPath {sub_path:?}: {e}");
    let found = resolve(volume, sub_path)?;
    release(target).map_err(|e| failed(&e))?;
    let kind = fstat(&found).map_err(|e| failed(&e))?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed(&e))?;
    }
    if FileType::from_raw_mode(kind.st_mode) == FileType::Directory {
        std::fs::create_dir_all(target).map_err(|e| failed(&e))?;
    } else {
        std::fs::write(target, b"").map_err(|e| failed(&e))?;
    }
    mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), target).map_err(|e| failed(&e))
}

/// Takes a bind away, with its mount point; nothing happens when there is none.
///
/// # Errors
/// The file system's.
pub fn release(target: &Path) -> std::io::Result<()> {
    match unmount(target, UnmountFlags::DETACH) {
        // INVAL: no mount point.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let removed = if target.is_dir() { std::fs::remove_dir(target) } else { std::fs::remove_file(target) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Opens `sub_path` below `volume`; missing folders are made.
///
/// # Errors
/// As [`bind`].
pub fn resolve(volume: &Path, sub_path: &str) -> Result<OwnedFd, String> {
    let failed = |e: rustix::io::Errno| format!("failed to prepare subPath {sub_path:?}: {e}");
    let parts =
        names(sub_path).ok_or_else(|| format!("subPath {sub_path:?} must be relative and without '..'"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(volume, flags, Mode::empty()).map_err(failed)?;
    let mut relative = PathBuf::from(".");
    let mut found = reach(&root, &relative).map_err(failed)?;
    for name in parts {
        relative.push(name);
        found = match reach(&root, &relative) {
            Err(rustix::io::Errno::NOENT) => {
                match mkdirat(&found, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(failed(e)),
                }
                reach(&root, &relative).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
    }
    Ok(found)
}

fn names(sub_path: &str) -> Option<Vec<&OsStr>> {
    let mut names = Vec::new();
    for part in Path::new(sub_path).components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(names)
}

fn reach(root: &OwnedFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, relative, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOSYS) => walk(root, relative),
        other => other,
    }
}

/// Kernels before 5.6: follows no symlink at all.
fn walk(root: &OwnedFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(root, ".", flags, Mode::empty())?;
    for part in relative.components() {
        if let Component::Normal(name) = part {
            at = openat(&at, name, flags, Mode::empty())?;
            if FileType::from_raw_mode(fstat(&at)?.st_mode) == FileType::Symlink {
                return Err(rustix::io::Errno::LOOP);
            }
        }
    }
    Ok(at)
}
