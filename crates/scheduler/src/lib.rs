//! Placement of pods on nodes.
//!
//! ```text
//!   informers ──deltas──▶ Snapshot ──┐
//!       │                            ├─▶ schedule (pure) ──▶ Bind: assume, POST binding ──▶ forget if it failed
//!       └──pending pods──▶ Queue ────┘              └──────▶ Unschedulable: condition, event, wait for a hint;
//!                                                            preempt (pure) ──▶ Nomination: evict the victims
//! ```
//!
//! Invariants:
//! - A decision is a function of the snapshot, the pod and two numbers that choose between equals.
//! - A node never gets more than its allocatable resources: what is decided is reserved at once.
//! - A pod that nothing would take is tried again only when something changed that can help it.
//! - Events and status are never on the path from a pod's creation to its binding.

pub mod cycle;
pub mod hints;
pub mod node;
pub mod pod;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod selection;
pub mod snapshot;
pub mod volumes;

mod claims;
mod counters;
mod meter;
mod plugins;
mod quantity;
mod report;
mod run;
mod topology;

pub use run::run;
