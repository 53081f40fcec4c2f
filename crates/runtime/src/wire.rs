//! The protocol between agent, spawner and shims: frames on unix stream sockets.
//!
//! A frame is a little-endian u32 length and that many bytes of JSON; file descriptors ride on its first byte
//! (SCM_RIGHTS). Every frame carries the version of its sender; a reader refuses what it doesn't know.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{During as _, RuntimeError};
use crate::spec::{ContainerPlan, ContainerRecord, ExecSpec, Resources, SandboxPlan};

/// Version of the protocol this program speaks. Older shims live on after an upgrade, so a change is additive.
pub(crate) const VERSION: u32 = 1;
/// A container's environment and mounts are the biggest part of any frame.
const MAX_FRAME_BYTES: usize = 16 << 20;
const MAX_FDS: usize = 4;

/// From the agent to the spawner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum SpawnRequest {
    /// Start a shim; it answers on the descriptor that comes along.
    Shim(Box<SandboxPlan>),
}

/// From the agent to a shim, one per connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answered by a snapshot and then by an event for every change.
    Watch,
    Create(Box<ContainerPlan>),
    Start {
        id: String,
    },
    /// To the first process, or to every process of the container.
    Signal {
        id: String,
        signal: i32,
        all: bool,
    },
    /// Change the limits of a container or, without an id, of the sandbox.
    Limit {
        id: Option<String>,
        resources: Resources,
    },
    Remove {
        id: String,
    },
    /// Answered with the streams' descriptors and, when the command has ended, its exit code.
    Exec {
        id: String,
        spec: ExecSpec,
    },
    /// Answered with the streams' descriptors and, when the container has ended, its exit code.
    Attach {
        id: String,
        /// Also the way in; an older agent does not say and gets none.
        #[serde(default)]
        stdin: bool,
    },
    /// Answered with an unconnected TCP socket of the sandbox's network namespace.
    Socket {
        ipv6: bool,
    },
    /// Kill all containers and give the network namespace back.
    StopSandbox,
    /// Stop, forget everything and exit.
    Shutdown,
}

/// Which descriptors come with a reply, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The terminal's controlling side.
    pub(crate) console: bool,
}

/// From a shim to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Failed(RuntimeError),
    Snapshot(Vec<ContainerRecord>),
    Changed(Box<ContainerRecord>),
    Streams(Streams),
    /// The socket's descriptor comes along.
    Socket,
    Exit(i32),
}

#[derive(Serialize, Deserialize)]
struct Frame<T> {
    version: u32,
    body: T,
}

/// Encodes one frame, length first.
pub(crate) fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, RuntimeError> {
    let json =
        serde_json::to_vec(&Frame { version: VERSION, body }).during(|| "cannot encode a message".into())?;
    let length = u32::try_from(json.len()).during(|| "message too long".into())?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}

/// Decodes what follows a frame's length.
pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, RuntimeError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version = serde_json::from_slice(json).during(|| "unreadable message".into())?;
    if version.version != VERSION {
        return Err(RuntimeError::Other(format!("message of unknown version {}", version.version)));
    }
    serde_json::from_slice::<Frame<T>>(json).map(|frame| frame.body).during(|| "unreadable message".into())
}

/// Checks a frame's length before memory is reserved for it.
pub(crate) fn frame_length(prefix: [u8; 4]) -> Result<usize, RuntimeError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(RuntimeError::Other(format!("message of {length} bytes is too long")));
    }
    Ok(length)
}

/// Sends a frame with descriptors, blocking.
pub(crate) fn send<T: Serialize>(
    mut stream: &UnixStream,
    body: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), RuntimeError> {
    let bytes = encode(body)?;
    let mut sent = 0;
    if !fds.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(RuntimeError::Other("too many descriptors in one message".into()));
        }
        sent = rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .during(|| "cannot send".into())?;
    }
    stream.write_all(&bytes[sent..]).during(|| "cannot send".into())
}

/// Receives a frame and its descriptors, blocking; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(
    mut stream: &UnixStream,
) -> Result<Option<(T, Vec<OwnedFd>)>, RuntimeError> {
    let mut prefix = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut prefix)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .during(|| "cannot receive".into())?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[received.bytes..]).during(|| "cannot receive".into())?;
    let mut json = vec![0; frame_length(prefix)?];
    stream.read_exact(&mut json).during(|| "cannot receive".into())?;
    Ok(Some((decode(&json)?, fds)))
}

/// One question to a shim and its first answer; the connection stays open for further frames.
pub(crate) fn ask(
    socket: &Path,
    request: &Request,
) -> Result<(UnixStream, Reply, Vec<OwnedFd>), RuntimeError> {
    let stream = connect(socket)?;
    let timeout = Some(std::time::Duration::from_secs(60));
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    send(&stream, request, &[])?;
    match receive(&stream)? {
        Some((Reply::Failed(error), _)) => Err(error),
        Some((reply, fds)) => Ok((stream, reply, fds)),
        None => Err(RuntimeError::Other("the sandbox's shim went away".into())),
    }
}

/// Connects through the folder's descriptor: the path of a socket may be longer than sockaddr_un allows.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream, RuntimeError> {
    let (_folder, path) = short(socket)?;
    UnixStream::connect(path).during(|| "cannot reach the shim".into())
}

/// Listens like [`connect`] connects.
pub(crate) fn listen(socket: &Path) -> Result<std::os::unix::net::UnixListener, RuntimeError> {
    let (_folder, path) = short(socket)?;
    std::os::unix::net::UnixListener::bind(path).during(|| format!("cannot listen on {}", socket.display()))
}

fn short(socket: &Path) -> Result<(OwnedFd, std::path::PathBuf), RuntimeError> {
    use std::os::fd::AsRawFd as _;
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(RuntimeError::Other(format!("{} is no socket path", socket.display())));
    };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())
        .during(|| format!("cannot open {}", folder.display()))?;
    let path = Path::new("/proc/self/fd").join(fd.as_fd().as_raw_fd().to_string()).join(name);
    Ok((fd, path))
}

#[cfg(test)]
mod tests;
