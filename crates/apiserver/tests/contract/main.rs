//! The API's contract, checked over `ApiServer::call` with the embedded store, and once over TLS.

#![allow(clippy::unwrap_used)] // tests: a failure here is a failed test
// The layout of a test that has the whole server in it is deep.
#![recursion_limit = "256"]

mod aggregation;
mod autoscaling;
mod binary;
mod common;
mod conversion;
mod custom;
mod deletion;
mod identity;
mod joining;
mod lists;
mod patches;
mod pods;
mod policies;
mod proxy;
mod quota;
mod rbac;
mod streams;
mod verbs;
mod watches;
mod webhooks;
mod wire;
