//! Waiting for what the kernel has to say.
#![allow(unsafe_code)]

use std::io;

use tokio::io::unix::AsyncFd;

use super::Socket;

/// Puts a socket under the care of the runtime.
pub(crate) fn listen(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, which is neither replaced nor closed before the socket is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}
