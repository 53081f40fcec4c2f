//! The seeded simulator: a whole control plane on a virtual clock, in one thread, with faults.
//!
//! ```text
//!   workload ─┐                        ┌─ delays, lost requests and answers, conflicts, cut watches
//!   controllers ──▶ Client ──▶ Faulty ─┴─▶ ApiServer ──▶ InlineStore ──▶ SimDisk (crashes, torn writes)
//!   scheduler ─┘                                              │
//!   fake nodes                                            Observer ──▶ trace: every change of every key, hashed
//! ```
//!
//! Everything above the store is the real code. One number, the seed, decides what the workload does, what fails and
//! when, and every random number inside. The same seed gives the same trace; a failure is a seed and a commit.
//!
//! Where chance could come in, and what is in its place:
//! - time: tokio's paused clock, which jumps to the next timer when nobody can go on; `client::Clock`;
//!   `apiserver::ambient`
//! - uids, generated names, choices: `apiserver::ambient`, `client::Clock::random`
//! - the order of tasks: one thread; tokio's queue is first in, first out
//! - chance inside of libraries (hash seeds, `select!`, the order in which waiters are woken): [`entropy`], which is why a
//!   run needs a process of its own
//! - disk: `store::sim::SimDisk`

pub mod entropy;

mod check;
mod clock;
mod cluster;
mod faults;
mod node;
mod observer;
mod random;
mod workload;
mod world;

pub use world::{Report, run};
