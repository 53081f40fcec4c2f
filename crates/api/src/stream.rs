//! Streams between the API server and a node: logs, exec, attach, port-forward.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::Status;

/// Raw bytes as they come; an error ends the stream.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Bytes both ways, each way closed by itself.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a port of a pod.
pub type Connection = Box<dyn Duplex>;

/// What a node answers to a request for one of its own pages (health, metrics, statistics, logs).
pub struct NodeAnswer {
    /// HTTP status code.
    pub code: u16,
    pub content_type: String,
    pub body: ByteStream,
}

impl NodeAnswer {
    /// An answer in one piece.
    pub fn new(code: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = futures_util::stream::iter([Ok(body.into())]);
        Self { code, content_type: content_type.to_owned(), body: Box::pin(body) }
    }
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// Output of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A running exec or attach, seen from the API server. Dropping it ends the command's streams.
pub struct ExecSession {
    /// `None` when stdin was not asked for. Dropping the sender closes the command's stdin.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub output: mpsc::Receiver<ExecOutput>,
    /// Ignored without a terminal.
    pub resize: mpsc::Sender<TerminalSize>,
    /// Exit code (0–255) once the command has ended, after the last output.
    pub exit: oneshot::Receiver<Result<i32, Status>>,
}

/// Options of `pods/exec` and `pods/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// "" means the pod's default container.
    pub container: String,
    /// Empty for attach.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Options of `pods/log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since_seconds: Option<u64>,
    /// RFC 3339
    pub since_time: Option<String>,
}
