//! What readers see: the published index, revision and history. The writer replaces it batch by batch.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;

use crate::history::History;
use crate::map::Map;
use crate::types::{Entry, Event, Page, Revision, StoreError};

pub(crate) struct Published {
    pub(crate) revision: Revision,
    pub(crate) index: Map,
    pub(crate) history: History,
    pub(crate) closed: bool,
}

/// Shared by the writer, readers and watchers. The lock is held for moments: to copy a pointer or a few events.
pub(crate) struct Shared {
    published: RwLock<Published>,
    changed: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(revision: Revision, index: Map, history: History) -> Self {
        let published = RwLock::new(Published { revision, index, history, closed: false });
        Self { published, changed: watch::Sender::new(()) }
    }

    /// The published state. Nothing panics while it is being changed, so poison has no meaning here.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Published)) {
        change(&mut self.published.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }

    /// A receiver that is told of every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn publish(&self, revision: Revision, index: Map, events: Vec<Arc<Event>>, now: Duration) {
        self.change(|published| {
            published.revision = revision;
            published.index = index;
            published.history.push(events, now);
        });
    }

    /// Ends all reads and watches.
    pub(crate) fn close(&self) {
        self.change(|published| published.closed = true);
    }

    pub(crate) fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.check(before, true)?;
        self.change(|published| published.history.compact(before));
        Ok(())
    }

    pub(crate) fn current_revision(&self) -> Result<Revision, StoreError> {
        let published = self.read();
        published.open()?;
        Ok(published.revision)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let index = {
            let published = self.read();
            published.open()?;
            published.index.clone()
        };
        Ok(index.get(key).cloned())
    }

    /// Whether `revision` lies in the kept history; `or_older` accepts older ones too.
    pub(crate) fn check(&self, revision: Revision, or_older: bool) -> Result<(), StoreError> {
        let published = self.read();
        published.open()?;
        published.check(revision).or_else(|error| match error {
            StoreError::Compacted { .. } if or_older => Ok(()),
            error => Err(error),
        })
    }

    pub(crate) fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        let in_range = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let (mut index, revision, undo) = {
            let published = self.read();
            published.open()?;
            let revision = at.unwrap_or(published.revision);
            published.check(revision)?;
            // The first event of a key after `revision` tells what the key held then.
            let later = published.history.after(revision).rev().filter(|e| in_range(&e.key));
            let undo: BTreeMap<Arc<str>, Option<Entry>> =
                later.map(|e| (Arc::clone(&e.key), e.previous.clone())).collect();
            (published.index.clone(), revision, undo)
        };
        for (key, previous) in undo {
            match previous {
                Some(entry) => index.insert(entry),
                None => index.remove(&key),
            };
        }
        let before_start = |key: &str| key < prefix || after.is_some_and(|after| key <= after);
        let before_end = |key: &str| key < prefix || key.starts_with(prefix);
        let total = index.rank(before_end).saturating_sub(index.rank(before_start));
        let count = limit.map_or(total, |limit| limit.min(total));
        let entries: Vec<Entry> = index.iter_from(before_start).take(count).cloned().collect();
        Ok(Page { entries, more: count < total, remaining: (total - count) as u64, revision })
    }
}

impl Published {
    fn open(&self) -> Result<(), StoreError> {
        if self.closed { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn check(&self, requested: Revision) -> Result<(), StoreError> {
        let floor = self.history.floor();
        if requested > self.revision {
            return Err(StoreError::FutureRevision { requested, current: self.revision });
        }
        if requested < floor {
            return Err(StoreError::Compacted { requested, floor });
        }
        Ok(())
    }
}
