//! The simulator's driver: everything happens within the call, on the caller's thread, in the same order for
//! the same calls. Relaxed transactions become durable when [`InlineStore::flush`] is called.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::disk::Disk;
use crate::engine::{Engine, Options};
use crate::shared::Shared;
use crate::types::{CommitError, Committed, Entry, Page, Revision, Store, StoreError, Txn, WatchStream};
use crate::watch;

/// A store without threads and without a clock of its own.
pub struct InlineStore {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    engine: Engine,
    now: Duration,
}

impl InlineStore {
    /// Opens or creates the store on a disk.
    ///
    /// # Errors
    /// `NewerFormat`, `Corrupt`, `Io`.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Arc<Self>, StoreError> {
        let engine = Engine::open(disk, options)?;
        let shared = Arc::clone(engine.shared());
        Ok(Arc::new(Self { shared, state: Mutex::new(State { engine, now: Duration::ZERO }) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the time by which history ages, counted from any fixed point.
    pub fn set_time(&self, now: Duration) {
        self.state().now = now;
    }

    /// Makes relaxed transactions durable.
    pub fn flush(&self) {
        self.state().engine.flush();
    }

    /// Commits several transactions as one group.
    pub fn commit_group(&self, txns: Vec<Txn>) -> Vec<Result<Committed, CommitError>> {
        let mut state = self.state();
        let now = state.now;
        let mut outcomes = Vec::new();
        state.engine.commit(txns, now, |_, outcome| outcomes.push(outcome));
        if let Some(job) = state.engine.begin_snapshot(&Arc::new(AtomicBool::new(false))) {
            let result = job.run();
            state.engine.finish_snapshot(job.number, result);
        }
        outcomes
    }

    /// Whether the store stopped because its disk failed, or was closed.
    pub fn has_stopped(&self) -> bool {
        self.state().engine.has_failed()
    }

    /// Makes everything durable and ends the log.
    pub fn close(&self) {
        self.state().engine.close();
    }
}

impl Store for InlineStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { self.shared.get(key) })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move { self.shared.range(prefix, after, limit, at) })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        Box::pin(async move { self.commit_group(vec![txn]).pop().unwrap_or(Err(CommitError::Closed)) })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
        watch::watch(&self.shared, prefix, after)
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move { self.shared.current_revision() })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.shared.compact(before) })
    }
}
