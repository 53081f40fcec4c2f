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
pub mod controller;
pub mod http;
pub mod informer;
pub mod kind;
pub mod meter;
mod perform;
pub mod queue;
pub mod recorder;
pub mod runner;
pub mod tls;

pub use client::{Client, Transport};
pub use clock::{Clock, SystemClock, spawn};
pub use controller::{Action, Controller, InformerSet, Outcome, Plan, Read, View, Watch};
pub use http::{HttpError, HttpTransport, Identity};
pub use informer::{Informer, Scope};
pub use kind::{Cached, Change, Kind, List, Metadata};
pub use meter::QueueMeter;
pub use queue::WorkQueue;
pub use recorder::{EventRecorder, EventType};
pub use runner::NAMESPACE_TERMINATING;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
