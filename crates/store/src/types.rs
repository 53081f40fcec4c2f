//! The words of the store: what goes in, what comes out, and the trait every back end fulfils.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// Position in the total order of all operations; 0 is before the first.
pub type Revision = u64;

/// A key with its newest value, or its value at the revision asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// Revision of the put that made the key appear.
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
}

/// A piece of a range, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Whether keys follow after the last entry.
    pub more: bool,
    /// How many keys follow.
    pub remaining: u64,
    /// The revision that the page shows; pass it as `at` to read the next page of the same state.
    pub revision: Revision,
}

/// What must hold of a key for a transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Absent,
    ModifiedAt(Revision),
    Present,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(Bytes),
    /// Deleting an absent key uses up a revision and gives no event.
    Delete,
}

/// Conditions and operations that take effect together or not at all.
/// Limits: 128 operations, 1.5 MB of keys and values, each key at most once in `ops`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub conditions: Vec<(String, Condition)>,
    pub ops: Vec<(String, Op)>,
    /// Acknowledged before it is durable; a crash may lose it within about two seconds.
    pub relaxed: bool,
}

/// Outcome of a transaction: `ops[i]` got revision `first + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub first: Revision,
}

/// One operation as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: Arc<str>,
    /// `None` when the key was deleted.
    pub value: Option<Bytes>,
    /// Create revision of the value, or of the deleted one.
    pub create_revision: Revision,
    /// What the key held before.
    pub previous: Option<Entry>,
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    Event(Arc<Event>),
    /// Everything up to this revision has been delivered. An idle watcher sees only the newest.
    Progress(Revision),
}

/// Why a transaction did not (certainly) happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A condition does not hold; nothing was changed.
    #[error("a condition on {key} does not hold")]
    Conflict { key: String, current: Option<Entry> },
    /// The transaction breaks a limit; nothing was changed.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// It may or may not have happened: read back to find out.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The store no longer accepts transactions; this one did not happen.
    #[error("the store is closed")]
    Closed,
}

/// Why a read failed or a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision is older than the history that is kept.
    #[error("revision {requested} has been compacted, the oldest kept is {floor}")]
    Compacted { requested: Revision, floor: Revision },
    /// The revision has not happened yet.
    #[error("revision {requested} is newer than the current revision {current}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("the store is closed")]
    Closed,
    #[error("data directory in use: {0}")]
    InUse(String),
    /// Written by a newer release.
    #[error("{file} has format version {found}, this release reads up to {supported}")]
    NewerFormat { file: String, found: u32, supported: u32 },
    /// A file does not hold what was once synced to it.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt { file: String, offset: u64, what: String },
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// The last item of a watch that ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was slower than the history lasts: list again.
    #[error("the watch fell behind at revision {position}, the oldest kept is {floor}")]
    Lagged { position: Revision, floor: Revision },
    /// History was compacted past the watcher's position: list again.
    #[error("revision {position} has been compacted, the oldest kept is {floor}")]
    Compacted { position: Revision, floor: Revision },
    #[error("the store is closed")]
    Closed,
}

/// Items of a watch, in order. After an error it ends.
pub type WatchStream = BoxStream<'static, Result<WatchItem, WatchError>>;

/// A store. Every implementation passes the same contract suite.
pub trait Store: Send + Sync + 'static {
    /// The newest value of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// Keys that begin with `prefix`, come after the key `after`, at most `limit`, as of revision `at`
    /// (default: the current one).
    ///
    /// # Errors
    /// `Compacted` and `FutureRevision` when `at` is outside the kept history.
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Performs a transaction. Its effects are visible to every read that starts after the reply.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// Events with a revision above `after` of keys that begin with `prefix`: in order, each exactly once.
    ///
    /// # Errors
    /// `Compacted` and `FutureRevision` when `after` is outside the kept history.
    fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError>;

    /// The revision of the newest visible operation.
    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Forgets history so that `before` is the oldest revision that can still be read or watched from.
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Asks that every watch tells its progress soon. Back ends whose watches do so by themselves, such as
    /// the embedded one, do nothing.
    fn progress(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}
