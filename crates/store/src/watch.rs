//! Watching. A watch is a position in the shared history: it holds no queue of its own, cannot hold up the
//! writer, and ends with `Lagged` when the history no longer reaches back to its position.
//!
//! What a watch guarantees: every event of its prefix with a revision above `after`, in order, exactly once;
//! `Progress(r)` only after all its events up to `r`; progress is told whenever others' events moved the
//! revision, and only the newest if the watcher was not listening.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use tokio::sync::watch;

use crate::shared::Shared;
use crate::types::{Event, Revision, StoreError, WatchError, WatchItem, WatchStream};

/// Events taken from the shared history at once.
const CHUNK: usize = 256;

struct Watcher {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    prefix: String,
    /// Every event up to here is delivered or in `ready`.
    position: Revision,
    /// The last revision that the consumer was told of.
    told: Revision,
    ready: VecDeque<Arc<Event>>,
    ended: bool,
}

/// Starts a watch.
///
/// # Errors
/// `Compacted` or `FutureRevision` when `after` is outside the kept history, `Closed`.
pub(crate) fn watch(shared: &Arc<Shared>, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
    let changed = shared.subscribe();
    shared.check(after, false)?;
    let watcher = Watcher {
        shared: Arc::clone(shared),
        changed,
        prefix: prefix.to_owned(),
        position: after,
        told: after,
        ready: VecDeque::new(),
        ended: false,
    };
    Ok(Box::pin(stream::unfold(watcher, |mut watcher| async move {
        let item = watcher.next().await?;
        Some((item, watcher))
    })))
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchItem, WatchError>> {
        if self.ended {
            return None;
        }
        loop {
            self.changed.mark_unchanged();
            match self.poll() {
                Ok(Some(item)) => return Some(Ok(item)),
                Ok(None) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
            if self.changed.changed().await.is_err() {
                self.ended = true;
                return Some(Err(WatchError::Closed));
            }
        }
    }

    /// The next item, if there is one now.
    fn poll(&mut self) -> Result<Option<WatchItem>, WatchError> {
        if self.ready.is_empty() {
            self.fill()?;
        }
        if let Some(event) = self.ready.pop_front() {
            self.told = event.revision;
            return Ok(Some(WatchItem::Event(event)));
        }
        if self.told < self.position {
            self.told = self.position;
            return Ok(Some(WatchItem::Progress(self.position)));
        }
        Ok(None)
    }

    fn fill(&mut self) -> Result<(), WatchError> {
        let published = self.shared.read();
        if published.closed {
            return Err(WatchError::Closed);
        }
        let (position, floor) = (self.position, published.history.floor());
        if position < published.history.compacted() {
            return Err(WatchError::Compacted { position, floor });
        }
        if position < floor {
            return Err(WatchError::Lagged { position, floor });
        }
        for event in published.history.after(self.position) {
            if event.key.starts_with(&self.prefix) {
                self.ready.push_back(Arc::clone(event));
                if self.ready.len() == CHUNK {
                    self.position = event.revision;
                    return Ok(());
                }
            }
        }
        self.position = published.revision;
        Ok(())
    }
}
