//! Netlink as far as this crate needs it: one blocking socket, one message writer, one attribute reader.
//!
//! ```text
//!   Writer ──bytes──▶ Socket ──▶ kernel ──▶ acknowledgements, dumps ──▶ attributes()
//!      ▲                 │
//!   route, nft, ct       └─ belongs for ever to the network namespace of the thread that opened it
//! ```
//!
//! The kernel works a request off inside `send`, so every acknowledgement waits in the receive queue when
//! `send` returns; nothing here waits for long. Formats: netlink(7), rtnetlink(7), linux/netlink.h.

mod listen;
pub(crate) mod route;
mod socket;
mod writer;

pub(crate) use listen::listen;
pub(crate) use socket::Socket;
pub(crate) use writer::{Message, Writer, attributes};

/// What the kernel said to a request.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// The kernel refused message `index` (counted from 0) of a request.
    #[error("the kernel refused netlink message {index}: {errno}")]
    Refused { index: usize, errno: rustix::io::Errno },
    /// A reply was cut short or not understood.
    #[error("netlink reply was malformed")]
    Malformed,
    /// No answer to a request that asked for one.
    #[error("no acknowledgement from the kernel")]
    NoAnswer,
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            NetlinkError::Socket(errno) | NetlinkError::Refused { errno, .. } => Some(*errno),
            NetlinkError::Malformed | NetlinkError::NoAnswer => None,
        }
    }
}

/// Turns the given errors (for instance "exists already") into success.
pub(crate) fn tolerate(
    result: Result<(), NetlinkError>,
    allowed: &[rustix::io::Errno],
) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.errno().is_some_and(|n| allowed.contains(&n)) => Ok(()),
        other => other,
    }
}
