//! The node agent: runs the pods that are bound to this node.
//!
//! ```text
//!   API ──pods──▶ agent ──▶ PodWorker (one a pod) ──▶ pod_actions ──▶ effects: volumes, sandbox, network, images
//!    ▲                          ▲   │                                     │
//!    └──────── status ◀── pod_status└──── observe ◀── Runtime events ◀────┘
//! ```
//!
//! Invariants:
//! - `pod_actions` and `pod_status` are pure; only workers act, and each pod has one.
//! - A worker is level-triggered: whatever wakes it, it decides from what it observes.
//! - Nothing durable is kept here: containers, logs and restart counts live in the runtime, so that a new agent
//!   adopts what runs.
//! - From creation to Running nothing sleeps or polls, and no Event is waited for.

pub mod admission;
pub mod affinity;
pub mod agent;
pub mod config;
pub mod container_config;
pub mod env;
pub mod events;
pub mod eviction;
pub mod fake;
pub mod fields;
pub mod hooks;
pub mod hosts_file;
pub mod image_gc;
pub mod images;
pub mod leftovers;
pub mod local_storage;
pub mod logs;
mod meter;
pub mod node_status;
mod notify;
pub mod observed;
pub mod pod_actions;
pub mod pod_status;
pub mod ports;
mod pressure;
pub mod prober;
pub mod pull_secrets;
pub mod references;
pub mod resize;
pub mod resolv_conf;
pub mod resources;
pub mod server;
pub mod static_pods;
pub mod usage;
pub mod view;
pub mod volumes;
mod worker;

pub use agent::NodeAgent;
pub use config::NodeConfig;
