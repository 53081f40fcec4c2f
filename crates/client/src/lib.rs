//! Speaking to the API: requests, caches, the work queue and the one generic runner of controllers.
//!
//! ```text
//!   Transport ◀── Client ◀── Informer (list + watch) ──changes──▶ WorkQueue ──key──▶ Controller::plan
//!       ▲                                                             ▲                   │
//!       └───────────────── actions, in order ◀── runner ◀── Plan ─────┴─── back-off ──────┘
//! ```
//!
//! Invariants:
//! - Everything above the store uses this crate; identity is the transport's.
//! - A decision (`plan`) is a function of a key, a view and the time; only the runner performs effects.
//! - No polling: informers watch, the runner waits for changes and timers.
//! - Time, randomness and task spawning come in through `clock`.

pub mod client;
pub mod clock;
pub mod informer;
pub mod kind;

pub use client::{Client, Transport};
pub use clock::{Clock, SystemClock, spawn};
pub use informer::{Informer, Scope};
pub use kind::{Cached, Change, Kind, List, Metadata};
