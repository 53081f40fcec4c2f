//! `podium`: Kubernetes as one small binary.
//!
//! ```text
//!   main ──▶ hidden runtime sub-commands (spawner, shim, container init): before any thread exists
//!        ──▶ toolbox applets, when called by an applet's name (inside podium.local/toolbox)
//!        ──▶ cli: up · server · agent · token · backup · restore · down · image · version
//!
//!   up = control plane (store, API server, controllers, scheduler) + node (runtime, network, agent, proxy, DNS)
//! ```
//!
//! Invariants:
//! - This crate wires and configures; decisions live in the crates below it.
//! - It is the only place where the traits of one crate are plugged with the types of another ([`adapters`]).

mod adapters;
mod agent;
mod apply;
mod backup;
mod bootstrap;
mod cli;
mod cluster_dns;
mod config;
mod control_plane;
mod down;
mod host;
mod housekeeping;
mod image;
mod logging;
mod memory;
mod node_part;
mod progress;
mod registries;
mod restore;
mod token;
mod toolbox;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = runtime::dispatch() {
        return code;
    }
    if let Some(code) = toolbox::dispatch() {
        return code;
    }
    memory::settle();
    cli::run()
}
