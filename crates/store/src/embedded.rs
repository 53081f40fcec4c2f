//! The production driver: one writer thread in front of the engine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::core::Outcome;
use crate::disk::{Disk, RealDisk};
use crate::engine::{Engine, Options};
use crate::shared::Shared;
use crate::types::{CommitError, Committed, Entry, Page, Revision, Store, StoreError, Txn, WatchStream};
use crate::watch;

/// Operations gathered into one write at most, so that a batch's buffer stays within bounds.
const MAX_BATCH_BYTES: usize = 8 << 20;

enum Message {
    Commit(Txn, oneshot::Sender<Outcome>),
    SnapshotDone(u64, std::io::Result<()>),
    Close,
}

/// The store in this process, kept in one directory.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    queue: Sender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens or creates the store in a directory.
    ///
    /// # Errors
    /// `InUse` when another process has it open, `NewerFormat`, `Corrupt`, `Io`.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, StoreError> {
        let disk = RealDisk::open(dir).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => StoreError::InUse(dir.display().to_string()),
            _ => StoreError::Io { what: format!("open {}", dir.display()), source },
        })?;
        Self::open_on(Arc::new(disk), options)
    }

    /// Opens or creates the store on a disk.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<Arc<Self>, StoreError> {
        let engine = Engine::open(disk, options)?;
        let shared = Arc::clone(engine.shared());
        let (queue, messages) = mpsc::channel();
        let writer = Writer {
            engine,
            messages,
            queue: queue.clone(),
            options,
            started: Instant::now(),
            cancelled: Arc::new(AtomicBool::new(false)),
            snapshot: None,
        };
        let thread = std::thread::Builder::new().name("store-writer".into());
        let writer = thread
            .spawn(move || writer.run())
            .map_err(|source| StoreError::Io { what: "start the writer thread".into(), source })?;
        Ok(Arc::new(Self { shared, queue, writer: Mutex::new(Some(writer)) }))
    }

    /// Finishes what is queued, makes everything durable and frees the directory. Blocks for a moment.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        if self.queue.send(Message::Close).is_err() {
            tracing::debug!("the writer has stopped already");
        }
        if writer.join().is_err() {
            tracing::error!("the store's writer thread panicked");
        }
    }

    /// Waits until the store is closed or has stopped because its disk failed.
    pub async fn closed(&self) {
        let mut changed = self.shared.subscribe();
        while !self.shared.read().closed {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for EmbeddedStore {
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
        Box::pin(async move {
            let (reply, outcome) = oneshot::channel();
            self.queue.send(Message::Commit(txn, reply)).map_err(|_| CommitError::Closed)?;
            let lost = || CommitError::Unknown("the store stopped before it answered".into());
            outcome.await.unwrap_or_else(|_| Err(lost()))
        })
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

struct Writer {
    engine: Engine,
    messages: Receiver<Message>,
    /// For the snapshot thread to report.
    queue: Sender<Message>,
    options: Options,
    started: Instant,
    cancelled: Arc<AtomicBool>,
    snapshot: Option<JoinHandle<()>>,
}

impl Writer {
    fn run(mut self) {
        let mut flush_at = None;
        let mut open = true;
        while open {
            let first = match flush_at {
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    self.messages.recv_timeout(Instant::saturating_duration_since(&at, Instant::now()))
                }
            };
            match first {
                Ok(message) => open = self.gather(message),
                Err(RecvTimeoutError::Timeout) => self.engine.flush(),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if !self.engine.is_dirty() {
                flush_at = None;
            } else if flush_at.is_none() {
                flush_at = Some(Instant::now() + self.options.relaxed_delay);
            }
        }
        self.finish();
    }

    /// Commits all transactions that wait now as one batch; false when the store is to close.
    fn gather(&mut self, first: Message) -> bool {
        let (mut txns, mut replies) = (Vec::new(), Vec::new());
        let mut open = true;
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Commit(txn, reply) => {
                    bytes += txn.ops.iter().map(size).sum::<usize>();
                    txns.push(txn);
                    replies.push(Some(reply));
                }
                Message::SnapshotDone(number, result) => self.finish_snapshot(number, result),
                Message::Close => open = false,
            }
            if !open || bytes >= MAX_BATCH_BYTES {
                break;
            }
            next = self.messages.try_recv().ok();
        }
        let now = self.started.elapsed();
        self.engine.commit(txns, now, |ticket, outcome| {
            if let Some(reply) = replies[ticket].take()
                && reply.send(outcome).is_err()
            {
                tracing::trace!("the caller of a commit is gone");
            }
        });
        self.start_snapshot();
        open
    }

    fn start_snapshot(&mut self) {
        let Some(job) = self.engine.begin_snapshot(&self.cancelled) else { return };
        let queue = self.queue.clone();
        let number = job.number;
        let thread = std::thread::Builder::new().name("store-snapshot".into());
        let started = thread.spawn(move || {
            let result = job.run();
            if queue.send(Message::SnapshotDone(number, result)).is_err() {
                tracing::debug!("the store closed before its snapshot was done");
            }
        });
        match started {
            Ok(thread) => self.snapshot = Some(thread),
            Err(error) => self.engine.finish_snapshot(number, Err(error)),
        }
    }

    fn finish_snapshot(&mut self, number: u64, result: std::io::Result<()>) {
        self.join_snapshot();
        self.engine.finish_snapshot(number, result);
    }

    fn join_snapshot(&mut self) {
        if self.snapshot.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the snapshot thread panicked");
        }
    }

    fn finish(mut self) {
        self.engine.close();
        self.cancelled.store(true, Ordering::Relaxed);
        self.join_snapshot();
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Commit(_, reply) = message
                && reply.send(Err(CommitError::Closed)).is_err()
            {
                tracing::trace!("the caller of a commit is gone");
            }
        }
    }
}

fn size((key, op): &(String, crate::types::Op)) -> usize {
    key.len() + if let crate::types::Op::Put(value) = op { value.len() } else { 0 }
}
