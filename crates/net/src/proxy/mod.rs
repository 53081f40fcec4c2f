//! The service proxy: makes Services and host ports reachable by rewriting packets in the kernel.
//!
//! ```text
//!   informers ─▶ View ─▶ rules_of(service) ─▶ Table (claims, delta) ─▶ one nftables transaction
//!                         pure, golden-tested      elements, O(changed)
//! ```
//!
//! One table for each address family that pods have; what follows holds for each of them.

mod health;
mod meter;
mod program;
pub mod ruleset;
mod run;
pub mod table;

pub use crate::pod_net::route_services;
pub use ruleset::{Backend, Frontend, Place, Protocol, Ruleset, Target, desired_rules, host_ports, rules_of};
pub use run::{ProxyConfig, run};
pub use table::Table;
