#![allow(unsafe_code)]
//! Waiting for the files of a folder to grow, appear or be renamed: inotify in the tokio reactor.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Tells that a file of a folder was changed.
pub(crate) struct FileChanges(AsyncFd<OwnedFd>);

impl FileChanges {
    /// Changes from now on.
    pub(crate) fn below(folder: &Path) -> std::io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, events)?;
        // SAFETY: an OwnedFd keeps its descriptor open and always returns the same one.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(std::io::Error::from)?))
    }

    /// Waits for a change since the last call.
    pub(crate) async fn next(&self) -> std::io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        // Which change it was does not matter: take all that are queued.
        while changes.next().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}
