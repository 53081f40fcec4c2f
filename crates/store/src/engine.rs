//! Core, log and snapshots put together, without threads: what a driver performs for a batch.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::core::{Core, Input, Outcome, Output};
use crate::disk::Disk;
use crate::frame::Record;
pub use crate::history::HistoryBudget;
use crate::log::Log;
use crate::recovery;
use crate::shared::Shared;
use crate::snapshot;
use crate::types::{StoreError, Txn};

/// Settings of an embedded store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Events kept for watches and for reads of older revisions.
    pub history: HistoryBudget,
    /// Bytes after which a new log segment begins.
    pub segment_bytes: u64,
    /// A snapshot is made when the log has grown by this and by as much as the live data.
    pub snapshot_min_bytes: u64,
    /// How long a relaxed transaction may wait for a sync.
    pub relaxed_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history: HistoryBudget { events: 100_000, bytes: 64 << 20, age: Duration::from_secs(300) },
            segment_bytes: 64 << 20,
            snapshot_min_bytes: 16 << 20,
            relaxed_delay: Duration::from_secs(2),
        }
    }
}

/// A store without a driver.
pub(crate) struct Engine {
    core: Core,
    log: Log,
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    options: Options,
    snapshot: Snapshot,
    failed: bool,
}

enum Snapshot {
    /// None is being made; the next when the log reaches this many bytes.
    Idle { at_replay_bytes: u64 },
    /// One is being made that covers this many bytes of the log.
    Running { covers: u64 },
}

impl Engine {
    /// Recovers the state and starts a new log segment.
    pub(crate) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, StoreError> {
        let found = recovery::recover(&*disk, options.history)?;
        let core = Core::new(found.index.clone(), found.revision);
        let bounds = (found.revision, found.revision);
        let mut log = Log::start(Arc::clone(&disk), found.next_segment, options.segment_bytes, bounds)
            .map_err(|source| StoreError::Io { what: "start a log segment".into(), source })?;
        log.add_replay_bytes(found.replayed_bytes);
        tracing::info!(revision = found.revision, replayed_bytes = found.replayed_bytes, "store opened");
        let shared = Arc::new(Shared::new(found.revision, found.index, found.history));
        let snapshot = Snapshot::Idle { at_replay_bytes: 0 };
        Ok(Self { core, log, disk, shared, options, snapshot, failed: false })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether relaxed transactions wait for a sync.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.failed && self.log.is_dirty()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Performs a batch and calls `reply` for each transaction, in order, when its outcome is known.
    pub(crate) fn commit(&mut self, txns: Vec<Txn>, now: Duration, mut reply: impl FnMut(usize, Outcome)) {
        let mut inputs = vec![Input::Batch(txns)];
        while let Some(input) = inputs.pop() {
            for output in self.core.step(input) {
                match output {
                    Output::Write { frames, sync } => {
                        let written = self.write(&frames, sync).map_err(|e| e.to_string());
                        inputs.push(Input::Written(written));
                    }
                    Output::Publish { revision, index, events } => {
                        self.shared.publish(revision, index, events, now);
                    }
                    Output::Reply(ticket, outcome) => reply(ticket, outcome),
                    Output::Stop => self.fail(),
                }
            }
        }
    }

    fn write(&mut self, frames: &[u8], sync: bool) -> std::io::Result<()> {
        let result = self.log.append(frames, sync).and_then(|()| {
            if self.log.is_full() {
                self.log.rotate(self.core.revision(), self.core.reserved())
            } else {
                Ok(())
            }
        });
        if let Err(error) = &result {
            tracing::error!(%error, "cannot write the log; the store stops");
        }
        result
    }

    fn fail(&mut self) {
        self.failed = true;
        self.core.stop();
        self.shared.close();
    }

    /// Makes relaxed transactions durable.
    pub(crate) fn flush(&mut self) {
        if !self.is_dirty() {
            return;
        }
        if let Err(error) = self.log.sync() {
            tracing::error!(%error, "cannot sync the log; the store stops");
            self.fail();
        }
    }

    /// A snapshot to make, when it is time: run it anywhere, then call [`Engine::finish_snapshot`].
    pub(crate) fn begin_snapshot(&mut self, cancelled: &Arc<AtomicBool>) -> Option<snapshot::Job> {
        let Snapshot::Idle { at_replay_bytes } = self.snapshot else { return None };
        let size = self.log.replay_bytes();
        let due = self.options.snapshot_min_bytes.max(self.core.live_bytes()).max(at_replay_bytes);
        if self.failed || size < due {
            return None;
        }
        if let Err(error) = self.log.rotate(self.core.revision(), self.core.reserved()) {
            tracing::error!(%error, "cannot start a log segment; the store stops");
            self.fail();
            return None;
        }
        self.snapshot = Snapshot::Running { covers: size };
        Some(snapshot::Job {
            disk: Arc::clone(&self.disk),
            number: self.log.number(),
            revision: self.core.revision(),
            index: self.core.index().clone(),
            cancelled: Arc::clone(cancelled),
        })
    }

    /// Removes what a finished snapshot covers. A failed one is tried again when the log has grown more.
    pub(crate) fn finish_snapshot(&mut self, number: u64, result: std::io::Result<()>) {
        let Snapshot::Running { covers } = self.snapshot else { return };
        let result = result.and_then(|()| {
            self.log.forget_replay_bytes(covers);
            snapshot::remove_older(&*self.disk, number)
        });
        let mut at_replay_bytes = 0;
        if let Err(error) = result {
            tracing::warn!(%error, "cannot make a snapshot; the log keeps growing meanwhile");
            at_replay_bytes = self.log.replay_bytes() + self.options.snapshot_min_bytes;
        }
        self.snapshot = Snapshot::Idle { at_replay_bytes };
    }

    /// Ends the log so that the next start need not skip revisions.
    pub(crate) fn close(&mut self) {
        if !self.failed {
            let mut frame = Vec::new();
            Record::CleanStop.put(&mut frame);
            if let Err(error) = self.log.append(&frame, true) {
                tracing::error!(%error, "cannot end the log");
            }
        }
        self.fail();
    }
}
