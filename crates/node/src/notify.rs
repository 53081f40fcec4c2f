#![allow(unsafe_code)]
//! Waiting for the files of a folder to grow, appear, vanish or be renamed: inotify in the tokio reactor.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Tells that a folder's files were changed.
pub(crate) struct FileChanges {
    queue: AsyncFd<OwnedFd>,
    folder: PathBuf,
    /// A file that was only just made does not count.
    finished: bool,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Changed {
    Files,
    /// The folder itself is no longer there, and nothing more will be told.
    Gone,
}

impl FileChanges {
    /// Files that grow, appear or are moved in, from now on.
    pub(crate) fn below(folder: &Path) -> std::io::Result<Self> {
        Self::watch(folder, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO, false)
    }

    /// Files that come, go or were written to their end, from now on. What somebody still writes is not told.
    pub(crate) fn finished(folder: &Path) -> std::io::Result<Self> {
        let moved = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        let own = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        let files = WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::DELETE;
        Self::watch(folder, files | moved | own, true)
    }

    fn watch(folder: &Path, events: WatchFlags, finished: bool) -> std::io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, folder, events)?;
        // SAFETY: an OwnedFd keeps its descriptor open and always returns the same one.
        let queue = unsafe { AsyncFd::register(fd) }.map_err(std::io::Error::from)?;
        Ok(Self { queue, folder: folder.to_owned(), finished })
    }

    /// Waits for a change since the last call.
    pub(crate) async fn next(&self) -> std::io::Result<Changed> {
        loop {
            let mut ready = self.queue.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut changes = inotify::Reader::new(self.queue.get_ref(), &mut buffer);
            let mut found = None;
            // Which file it was does not matter: take all that are queued.
            while let Ok(event) = changes.next() {
                found = self.meaning(&event).max(found);
            }
            ready.clear_ready();
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn meaning(&self, event: &inotify::Event<'_>) -> Option<Changed> {
        let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
        if event.events().intersects(gone) {
            return Some(Changed::Gone);
        }
        if self.finished && event.events() == ReadFlags::CREATE {
            // Its writer will close it; a link is whole at once.
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            let made = name.and_then(|name| std::fs::symlink_metadata(self.folder.join(name)).ok());
            made.filter(|made| made.is_symlink() || made.nlink() > 1)?;
        }
        Some(Changed::Files)
    }
}
