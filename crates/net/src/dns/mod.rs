//! Cluster DNS: names of Services and pods from memory, everything else from the host's resolvers.
//!
//! ```text
//!   informers ─▶ Zone ──┐
//!   query ──────────────┴▶ answer() ─▶ ours: reply        (pure)
//!                                   └▶ not ours: forward() ─▶ /etc/resolv.conf
//! ```
//!
//! Records follow the Kubernetes DNS-Based Service Discovery specification, version 1.1.0.

mod answer;
mod forward;
mod run;
mod server;
mod zone;

pub use answer::answer;
pub use run::{DnsConfig, run};
pub use zone::Zone;
