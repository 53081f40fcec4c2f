//! Writing files below a folder that may hold hostile links: every lookup stays inside (openat2, RESOLVE_IN_ROOT).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::error::{During as _, RuntimeError};

/// A folder as the root of all lookups.
pub(super) struct Tree {
    root: OwnedFd,
}

impl Tree {
    pub(super) fn open(folder: &Path) -> Result<Self, RuntimeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())
            .during(|| format!("cannot open {}", folder.display()))?;
        Ok(Self { root })
    }

    /// Opens what a path leads to, following links inside the tree.
    pub(super) fn look_up(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Opens a folder, making it and its parents where they are missing.
    pub(super) fn make_dirs(&self, path: &Path) -> Result<OwnedFd, RuntimeError> {
        let open = |path: &Path| self.look_up(path, OFlags::PATH | OFlags::DIRECTORY);
        match open(path) {
            Ok(found) => return Ok(found),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(RuntimeError::Invalid(format!("cannot open {}: {error}", path.display())));
            }
        }
        let (parent, name) = split(path)?;
        let folder = self.make_dirs(parent)?;
        match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                return Err(RuntimeError::Other(format!("cannot make {}: {error}", path.display())));
            }
        }
        // A dangling link with that name leads nowhere inside the tree.
        open(path).map_err(|error| RuntimeError::Invalid(format!("cannot open {}: {error}", path.display())))
    }

    /// Parent folder and name of an entry, with whatever had the name before removed, unless both are folders.
    pub(super) fn place<'a>(
        &self,
        path: &'a Path,
        is_dir: bool,
    ) -> Result<(OwnedFd, &'a OsStr), RuntimeError> {
        let (parent, name) = split(path)?;
        let folder = self.make_dirs(parent)?;
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
            Ok(stat) => match (FileType::from_raw_mode(stat.st_mode) == FileType::Directory, is_dir) {
                (true, true) => {}
                (true, false) => {
                    rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR).map_err(|error| {
                        RuntimeError::Invalid(format!("{} replaces a folder: {error}", path.display()))
                    })?;
                }
                (false, _) => rustix::fs::unlinkat(&folder, name, AtFlags::empty())?,
            },
        }
        Ok((folder, name))
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr), RuntimeError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(RuntimeError::Invalid(format!("{} names no file", path.display()))),
    }
}

/// A path of an archive relative to its root; `..` is refused.
pub(super) fn relative(path: &Path) -> Result<std::path::PathBuf, RuntimeError> {
    let mut clean = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => clean.push(part),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(RuntimeError::Invalid(format!("path {} leads outside", path.display())));
            }
        }
    }
    Ok(clean)
}
