//! Unpacking one layer: a tar stream, plain or compressed (gzip, zstd), into a folder in overlay form.
//!
//! Deleted files become character devices 0:0 and replaced folders get `trusted.overlay.opaque`, as overlayfs wants it
//! (OCI image specification, layer.md, "Whiteouts").

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::EntryType;

use super::tree::{Tree, relative};
use super::zstd;
use crate::error::{During as _, RuntimeError};

/// No honest layer comes near; a bomb stops here.
const MAX_LAYER_BYTES: u64 = 64 << 30;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A reader that hashes what passes.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Context,
    pub(super) count: u64,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Context::new(&SHA256), count: 0 }
    }

    pub(super) fn digest(self) -> String {
        format!(
            "sha256:{}",
            self.hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        )
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > MAX_LAYER_BYTES {
            return Err(io::Error::other("archive is too big"));
        }
        Ok(count)
    }
}

/// The plain bytes of a stream that may be compressed.
pub(super) fn decompress<'a, R: Read + 'a>(stream: R) -> Result<Box<dyn Read + 'a>, RuntimeError> {
    let mut reader = BufReader::with_capacity(128 * 1024, stream);
    let magic = io::BufRead::fill_buf(&mut reader).during(|| "cannot read an archive".into())?;
    if magic.starts_with(&zstd::MAGIC) {
        return Ok(Box::new(zstd::Frames::new(reader)));
    }
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    Ok(Box::new(reader))
}

/// Unpacks a layer into an existing empty folder; returns the digest of the plain tar and its size.
pub(super) fn unpack<R: Read>(stream: R, folder: &Path) -> Result<(String, u64), RuntimeError> {
    let mut plain = Hashing::new(decompress(stream)?);
    let tree = Tree::open(folder)?;
    let mut archive = tar::Archive::new(&mut plain);
    // Times of folders change while files are put into them.
    let mut folder_times: Vec<(PathBuf, Timespec)> = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = relative(&entry.path().map_err(broken)?)?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        let time = mtime(&entry);
        let is_dir = entry.header().entry_type() == EntryType::Directory;
        unpack_entry(&tree, &path, &mut entry).map_err(|error| match error {
            RuntimeError::Invalid(text) => RuntimeError::Invalid(format!("{}: {text}", path.display())),
            other => RuntimeError::Other(format!("{}: {other}", path.display())),
        })?;
        if is_dir {
            folder_times.push((path, time));
        }
    }
    for (path, time) in folder_times.into_iter().rev() {
        if let Ok(fd) = tree.look_up(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
            rustix::fs::futimens(&fd, &Timestamps { last_access: time, last_modification: time })?;
        }
    }
    io::copy(&mut plain, &mut io::sink()).map_err(broken)?;
    let size = plain.count;
    Ok((plain.digest(), size))
}

fn broken(error: io::Error) -> RuntimeError {
    RuntimeError::Invalid(format!("broken archive: {error}"))
}

fn mtime<R: Read>(entry: &tar::Entry<'_, R>) -> Timespec {
    let seconds = entry.header().mtime().unwrap_or(0);
    Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 }
}

fn unpack_entry<R: Read>(
    tree: &Tree,
    path: &Path,
    entry: &mut tar::Entry<'_, R>,
) -> Result<(), RuntimeError> {
    let Some(name) = path.file_name() else {
        // The root itself: only its rights matter.
        let fd = tree.look_up(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        return Ok(rustix::fs::fchmod(&fd, mode_of(entry)?)?);
    };
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        return whiteout(tree, path, name.as_bytes(), hidden);
    }
    let kind = entry.header().entry_type();
    let (folder, name) = tree.place(path, kind == EntryType::Directory)?;
    let mode = mode_of(entry)?;
    match kind {
        EntryType::Directory => match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        },
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600))?;
            let mut file = std::fs::File::from(fd);
            io::copy(entry, &mut file).map_err(broken)?;
            file.flush()?;
        }
        EntryType::Symlink => {
            let target = link_name(entry)?;
            rustix::fs::symlinkat(&target, &folder, name)?;
        }
        EntryType::Link => return hard_link(tree, &link_name(entry)?, &folder, name),
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let file_type = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let number = |part: io::Result<Option<u32>>| part.map_err(broken).map(|n| n.unwrap_or(0));
            let device = rustix::fs::makedev(
                number(entry.header().device_major())?,
                number(entry.header().device_minor())?,
            );
            rustix::fs::mknodat(&folder, name, file_type, mode, device)?;
        }
        other => return Err(RuntimeError::Invalid(format!("entry of unknown kind {other:?}"))),
    }
    finish_entry(&folder, name, entry, kind, mode)
}

fn mode_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Mode, RuntimeError> {
    Ok(Mode::from_raw_mode(entry.header().mode().map_err(broken)? & 0o7777))
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<PathBuf, RuntimeError> {
    let target = entry.link_name().map_err(broken)?;
    target
        .map(|target| target.into_owned())
        .ok_or_else(|| RuntimeError::Invalid("link without a target".into()))
}

/// Owner, rights (after the owner: chown clears set-uid), attributes, time.
fn finish_entry<R: Read>(
    folder: &std::os::fd::OwnedFd,
    name: &std::ffi::OsStr,
    entry: &mut tar::Entry<'_, R>,
    kind: EntryType,
    mode: Mode,
) -> Result<(), RuntimeError> {
    let old = entry.header().as_old();
    let uid = if is_blank(&old.uid) { 0 } else { id(entry.header().uid())? };
    let gid = if is_blank(&old.gid) { 0 } else { id(entry.header().gid())? };
    rustix::fs::chownat(
        folder,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let times = Timestamps { last_access: mtime(entry), last_modification: mtime(entry) };
    if kind != EntryType::Symlink {
        rustix::fs::chmodat(folder, name, mode, AtFlags::empty())?;
    }
    if matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::Directory) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        set_attributes(&fd, entry)?;
    }
    Ok(rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Some programs leave fields empty that they don't care about.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

fn id(number: io::Result<u64>) -> Result<u32, RuntimeError> {
    u32::try_from(number.map_err(broken)?).map_err(|_| RuntimeError::Invalid("owner out of range".into()))
}

/// File capabilities and user attributes; others belong to the host.
fn set_attributes<R: Read>(
    fd: &std::os::fd::OwnedFd,
    entry: &mut tar::Entry<'_, R>,
) -> Result<(), RuntimeError> {
    let Some(extensions) = entry.pax_extensions().map_err(broken)? else { return Ok(()) };
    for extension in extensions {
        let extension = extension.map_err(broken)?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        if name == b"security.capability" || name.starts_with(b"user.") {
            match rustix::fs::fsetxattr(fd, name, extension.value_bytes(), XattrFlags::empty()) {
                // The file system may have no user attributes.
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn hard_link(
    tree: &Tree,
    target: &Path,
    folder: &std::os::fd::OwnedFd,
    name: &std::ffi::OsStr,
) -> Result<(), RuntimeError> {
    let target = relative(target)?;
    let (Some(parent), Some(old_name)) = (target.parent(), target.file_name()) else {
        return Err(RuntimeError::Invalid("hard link to the root".into()));
    };
    let old = tree.look_up(parent, OFlags::PATH | OFlags::DIRECTORY);
    let linked = old.and_then(|old| rustix::fs::linkat(&old, old_name, folder, name, AtFlags::empty()));
    linked.map_err(|error| RuntimeError::Invalid(format!("hard link to {}: {error}", target.display())))
}

fn whiteout(tree: &Tree, path: &Path, name: &[u8], hidden: &[u8]) -> Result<(), RuntimeError> {
    let parent = path.parent().unwrap_or(Path::new(""));
    if name == OPAQUE {
        let folder = tree.make_dirs(parent)?;
        let fd = rustix::fs::openat(
            &folder,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        return Ok(rustix::fs::fsetxattr(&fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
    }
    // Other names of this form are reserved (AUFS).
    if hidden.is_empty() || hidden.starts_with(WHITEOUT) {
        return Ok(());
    }
    if hidden == b"." || hidden == b".." {
        return Err(RuntimeError::Invalid("whiteout of a folder's own name".into()));
    }
    let hidden = parent.join(std::ffi::OsStr::from_bytes(hidden));
    let (folder, name) = tree.place(&hidden, false)?;
    let mode = Mode::from_raw_mode(0o600);
    Ok(rustix::fs::mknodat(&folder, name, FileType::CharacterDevice, mode, rustix::fs::makedev(0, 0))?)
}

#[cfg(test)]
mod tests;
