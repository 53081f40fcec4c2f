//! Plugs the types of one crate into the traits that another one declares.

pub(crate) mod gateway;
pub(crate) mod local;
pub(crate) mod network;
pub(crate) mod remote;
pub(crate) mod runtime;
