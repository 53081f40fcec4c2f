//! Durable truth: a small multi-version key-value store with conditional transactions and watches. It
//! holds bytes only and knows nothing of Kubernetes.
//!
//! ```text
//!   commit ──▶ queue ──▶ writer thread ── core.step(batch) ──▶ log: append, one fdatasync ──▶ publish ──▶ replies
//!                                                                                               │
//!   get, range ◀── immutable snapshot of the index ◀────────────────────────────────────────────┤
//!   watch      ◀── shared history, read by position ◀───────────────────────────────────────────┘
//!
//!   directory:  lock   snapshot-N   log-N  log-N+1 …      (state = snapshot-N, then log-N and later, replayed)
//! ```
//!
//! Invariants:
//! - Each operation has a revision of its own; revisions only grow and none is ever used twice, not even
//!   those of relaxed transactions that a crash has lost.
//! - A durable transaction is visible, and acknowledged, only after the log holding it was synced; a
//!   transaction is in the log completely or not at all.
//! - Readers never wait for the disk and never see part of a transaction's batch.
//! - After a failed write or sync nothing is acknowledged any more: what the disk holds is then unknown.
//! - [`core`] decides and does no I/O; the drivers ([`EmbeddedStore`], [`InlineStore`]) perform.

pub mod backup;
pub mod disk;
pub mod sim;

mod core;
mod embedded;
mod engine;
mod frame;
mod history;
mod inline;
mod log;
mod map;
mod recovery;
mod shared;
mod snapshot;
mod types;
mod watch;

pub use embedded::EmbeddedStore;
pub use engine::{HistoryBudget, Options};
pub use inline::InlineStore;
pub use types::{
    CommitError, Committed, Condition, Entry, Event, Op, Page, Revision, Store, StoreError, Txn, WatchError,
    WatchItem, WatchStream,
};
