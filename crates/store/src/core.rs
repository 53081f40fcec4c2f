//! The deterministic heart: `step(input) -> outputs`. It decides which transactions succeed, numbers them
//! and says what must be written, published and answered, in this order. It never waits, reads no clock and
//! touches no disk.

use std::sync::Arc;

use crate::frame::{self, Record};
use crate::map::Map;
use crate::types::{CommitError, Committed, Condition, Entry, Event, Op, Revision, Txn};

/// Operations in a transaction.
pub(crate) const MAX_OPS: usize = 128;
/// Bytes of keys and values in a transaction.
pub(crate) const MAX_BYTES: usize = 1_500_000;
const MAX_KEY: usize = 4096;
/// Revisions that one `Reserve` record sets aside for relaxed transactions.
const RESERVE_BLOCK: u64 = 10_000;

/// Number of a transaction within its batch.
pub(crate) type Ticket = usize;
pub(crate) type Outcome = Result<Committed, CommitError>;

pub(crate) enum Input {
    /// Transactions in the order in which they take effect. The next input must be `Written`.
    Batch(Vec<Txn>),
    /// The write that was asked for is done, or failed.
    Written(Result<(), String>),
}

pub(crate) enum Output {
    /// Append to the log and, if `sync`, make it and everything before durable.
    Write {
        frames: Vec<u8>,
        sync: bool,
    },
    Publish {
        revision: Revision,
        index: Map,
        events: Vec<Arc<Event>>,
    },
    Reply(Ticket, Outcome),
    /// The disk can no longer be trusted: answer nothing else.
    Stop,
}

/// State of the store as of the newest transaction, published or not.
pub(crate) struct Core {
    index: Map,
    revision: Revision,
    published: Revision,
    reserved: Revision,
    /// Bytes of keys and values in the index.
    live_bytes: u64,
    stopped: bool,
    staged: Vec<Arc<Event>>,
    outcomes: Vec<Outcome>,
}

impl Core {
    pub(crate) fn new(index: Map, revision: Revision) -> Self {
        let live_bytes = index.iter().map(size).sum();
        Self {
            index,
            revision,
            published: revision,
            reserved: revision,
            live_bytes,
            stopped: false,
            staged: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn reserved(&self) -> Revision {
        self.reserved
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn index(&self) -> &Map {
        &self.index
    }

    /// Refuses everything from now on.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Batch(txns) if self.stopped => {
                (0..txns.len()).map(|ticket| Output::Reply(ticket, Err(CommitError::Closed))).collect()
            }
            Input::Batch(txns) => self.batch(txns),
            Input::Written(Ok(())) => self.written(),
            Input::Written(Err(reason)) => self.failed(&reason),
        }
    }

    /// Decides all transactions of a batch. Refusals are answered with the rest too, because what refused
    /// them may not be durable yet.
    fn batch(&mut self, txns: Vec<Txn>) -> Vec<Output> {
        let mut frames = Vec::new();
        let mut sync = false;
        for txn in txns {
            let first = self.revision + 1;
            let outcome = self.check(&txn).map(|()| Committed { first });
            if outcome.is_ok() && !txn.ops.is_empty() {
                sync |= !txn.relaxed;
                frame::put_txn(&mut frames, first, &txn.ops);
                self.apply(txn.ops);
            }
            self.outcomes.push(outcome);
        }
        if !sync && !frames.is_empty() && self.revision > self.reserved {
            self.reserved = self.revision + RESERVE_BLOCK;
            Record::Reserve { until: self.reserved }.put(&mut frames);
            sync = true;
        }
        if frames.is_empty() { self.written() } else { vec![Output::Write { frames, sync }] }
    }

    fn written(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        let events = std::mem::take(&mut self.staged);
        if self.published < self.revision {
            self.published = self.revision;
            outputs.push(Output::Publish { revision: self.revision, index: self.index.clone(), events });
        }
        let outcomes = std::mem::take(&mut self.outcomes).into_iter().enumerate();
        outputs.extend(outcomes.map(|(ticket, outcome)| Output::Reply(ticket, outcome)));
        outputs
    }

    fn failed(&mut self, reason: &str) -> Vec<Output> {
        self.stopped = true;
        self.staged.clear();
        let mut outputs = vec![Output::Stop];
        let outcomes = std::mem::take(&mut self.outcomes).into_iter().enumerate();
        outputs.extend(outcomes.map(|(ticket, outcome)| {
            let invalid = matches!(outcome, Err(CommitError::Invalid(_)));
            let outcome = if invalid { outcome } else { Err(CommitError::Unknown(reason.to_owned())) };
            Output::Reply(ticket, outcome)
        }));
        outputs
    }

    fn check(&self, txn: &Txn) -> Result<(), CommitError> {
        check_limits(txn).map_err(CommitError::Invalid)?;
        for (key, condition) in &txn.conditions {
            let current = self.index.get(key);
            let holds = match condition {
                Condition::Absent => current.is_none(),
                Condition::Present => current.is_some(),
                Condition::ModifiedAt(revision) => current.is_some_and(|e| e.mod_revision == *revision),
            };
            if !holds {
                return Err(CommitError::Conflict { key: key.clone(), current: current.cloned() });
            }
        }
        Ok(())
    }

    fn apply(&mut self, ops: Vec<(String, Op)>) {
        for (key, op) in ops {
            self.revision += 1;
            if let Some(event) = apply(&mut self.index, self.revision, key, op) {
                let before = event.previous.as_ref().map_or(0, size);
                let after = event.value.as_ref().map_or(0, |v| (event.key.len() + v.len()) as u64);
                self.live_bytes = self.live_bytes + after - before;
                self.staged.push(Arc::new(event));
            }
        }
    }
}

/// Performs one operation on an index; gives what a watcher sees of it.
pub(crate) fn apply(index: &mut Map, revision: Revision, key: String, op: Op) -> Option<Event> {
    match op {
        Op::Put(value) => {
            let (key, create_revision) = match index.get(&key) {
                Some(entry) => (Arc::clone(&entry.key), entry.create_revision),
                None => (Arc::from(key), revision),
            };
            let entry = Entry {
                key: Arc::clone(&key),
                value: value.clone(),
                create_revision,
                mod_revision: revision,
            };
            let previous = index.insert(entry);
            Some(Event { revision, key, value: Some(value), create_revision, previous })
        }
        Op::Delete => {
            let previous = index.remove(&key)?;
            let (key, create_revision) = (Arc::clone(&previous.key), previous.create_revision);
            Some(Event { revision, key, value: None, create_revision, previous: Some(previous) })
        }
    }
}

fn size(entry: &Entry) -> u64 {
    (entry.key.len() + entry.value.len()) as u64
}

fn check_limits(txn: &Txn) -> Result<(), String> {
    if txn.ops.len() > MAX_OPS {
        return Err(format!("{} operations, at most {MAX_OPS} are allowed", txn.ops.len()));
    }
    let mut keys: Vec<&str> = txn.ops.iter().map(|(key, _)| key.as_str()).collect();
    if keys.iter().any(|key| key.is_empty() || key.len() > MAX_KEY) {
        return Err(format!("a key must have 1 to {MAX_KEY} bytes"));
    }
    let bytes: usize = keys.iter().map(|key| key.len()).sum::<usize>()
        + txn.ops.iter().map(|(_, op)| if let Op::Put(value) = op { value.len() } else { 0 }).sum::<usize>();
    if bytes > MAX_BYTES {
        return Err(format!("{bytes} bytes, at most {MAX_BYTES} are allowed"));
    }
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("key {} occurs twice", pair[0])),
        None => Ok(()),
    }
}
