//! Errors at the crate's boundary.

use serde::{Deserialize, Serialize};

/// Why a runtime call failed. Also travels from the shim to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox, container or image.
    #[error("not found: {0}")]
    NotFound(String),
    /// The request can't be carried out, now or later, until its author changes it.
    #[error("{0}")]
    Invalid(String),
    /// A command did not end within its time.
    #[error("command timed out")]
    Timeout,
    /// The machine refused or something broke.
    #[error("{0}")]
    Other(String),
}

impl From<std::io::Error> for RuntimeError {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<rustix::io::Errno> for RuntimeError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Other(error.to_string())
    }
}

/// Adds what was being done to an error of the machine.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, RuntimeError>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, RuntimeError> {
        self.map_err(|error| RuntimeError::Other(format!("{}: {error}", what())))
    }
}

/// Logs a failure that must not stop the caller.
pub(crate) fn log_failure<T, E: std::fmt::Display>(result: Result<T, E>, what: &str) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}
