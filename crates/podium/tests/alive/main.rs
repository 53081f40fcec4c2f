//! What a control plane has to live through: ageing certificates, full disks, clocks that are set, kills.
//!
//! Each test starts a `podium server` of its own on a free port of the loopback interface.

#![allow(clippy::unwrap_used, reason = "a test")]

mod attacks;
mod certificates;
mod disk;
mod pages;
mod server;
