//! Informers and the runner against a server in memory.

mod informer;
mod queue;
mod recorder;
mod runner;
