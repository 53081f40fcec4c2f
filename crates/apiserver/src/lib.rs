//! The API server: the only owner of the store and the trust boundary for every caller, in-process ones too.
//!
//! ```text
//!   TLS + HTTP ─▶ url (decode) ─▶ authenticate ─▶ impersonate ─┐
//!                                                              ├─▶ authorize ─▶ registry verb ─▶ store
//!   ApiServer::call (identity given by the wiring) ────────────┘                     ▲
//!                                                     watch caches ◀── store.watch ──┘
//! ```
//!
//! Invariants:
//! - Every kind is a row of the table in [`resources`]; the registry's verbs are generic over rows.
//! - A write is one store transaction; nothing is written outside it.
//! - Stored bytes hold no resourceVersion; it is spliced in when they are sent, and never parsed for reading.

mod admission;
mod aggregation;
pub mod ambient;
mod authn;
mod authz;
mod bootstrap;
mod callout;
mod connect;
mod custom;
pub mod discovery;
mod documents;
mod gateway;
mod housekeeping;
mod http;
mod metrics;
pub mod openapi;
mod pipeline;
pub mod printing;
mod proxy;
mod registry;
pub mod resource;
pub mod resources;
mod server;
mod stored;
mod streams;
pub mod url;
mod usage;
mod watch_cache;

pub use documents::GIT_VERSION;
pub use gateway::{NoNodes, NodeGateway};
pub use resource::UserInfo;
pub use server::{ApiServer, FrontProxy, OpenError, ServerConfig};
