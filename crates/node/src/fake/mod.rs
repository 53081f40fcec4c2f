//! A container runtime and a pod network that exist in memory only: for tests and the simulator.
//!
//! Images are known or pullable by name; containers run until [`FakeRuntime::exit`] or a stop.

mod network;
mod runtime;
#[cfg(test)]
pub(crate) mod situation;

pub use network::FakeNetwork;
pub use runtime::FakeRuntime;
