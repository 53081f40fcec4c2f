//! The node agent.

pub mod ports;
