//! Streams of commands and attached containers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use super::Answer;
use super::watcher::{into_tokio, read_reply};
use crate::error::RuntimeError;
use crate::spec::ExecResult;
use crate::wire::Reply;

const CHUNK_BYTES: usize = 32 * 1024;

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

/// A running command or an attachment. Dropping `exit` ends it: a command is killed, a container runs on.
pub struct ExecStreams {
    /// `None` without input. Dropping the sender closes the input.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Ends after the last output.
    pub output: mpsc::Receiver<ExecOutput>,
    /// Ignored without a terminal.
    pub resize: mpsc::Sender<TerminalSize>,
    /// Exit code, after the last output.
    pub exit: oneshot::Receiver<Result<i32, RuntimeError>>,
}

/// Wires the descriptors of a reply to channels.
pub(super) fn streams((stream, reply, fds): Answer) -> Result<ExecStreams, RuntimeError> {
    let Reply::Streams(which) = reply else {
        return Err(RuntimeError::Other("the shim answered nonsense".into()));
    };
    let mut fds = fds.into_iter();
    let mut next = |wanted: bool| if wanted { fds.next() } else { None };
    let (stdin, stdout, stderr, console) =
        (next(which.stdin), next(which.stdout), next(which.stderr), next(which.console));
    let (output_sender, output) = mpsc::channel(16);
    let (resize, resizes) = mpsc::channel(4);
    let (ended_sender, ended) = watch::channel(false);
    let mut readers = tokio::task::JoinSet::new();
    for (fd, wrap) in [(stdout, ExecOutput::Stdout as fn(Bytes) -> ExecOutput), (stderr, ExecOutput::Stderr)]
    {
        if let Some(fd) = fd {
            let pipe = pipe::Receiver::from_owned_fd(fd)?;
            readers.spawn(copy_pipe(pipe, wrap, output_sender.clone(), ended.clone()));
        }
    }
    let mut input = None;
    if let Some(fd) = stdin {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(feed_pipe(pipe::Sender::from_owned_fd(fd)?, receiver));
        input = Some(sender);
    }
    if let Some(fd) = console {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let console = Arc::new(crate::sys::async_fd(fd)?);
        tokio::spawn(resize_console(Arc::clone(&console), resizes));
        if !which.stdin {
            let (sender, receiver) = mpsc::channel(16);
            tokio::spawn(feed_console(Arc::clone(&console), receiver));
            input = Some(sender);
        }
        // An attached terminal's output comes by a pipe: the shim reads the terminal itself.
        if !which.stdout {
            readers.spawn(copy_console(console, output_sender.clone(), ended.clone()));
        }
    }
    drop(output_sender);
    let (mut exit_sender, exit) = oneshot::channel();
    let mut connection = into_tokio(stream)?;
    tokio::spawn(async move {
        let code = tokio::select! {
            reply = read_reply(&mut connection) => match reply {
                Ok(Some(Reply::Exit(code))) => Ok(code),
                Ok(_) => Err(RuntimeError::Other("the sandbox's shim went away".into())),
                Err(error) => Err(error),
            },
            // Nobody wants the outcome: closing the connection ends the command.
            () = exit_sender.closed() => return,
        };
        ended_sender.send_replace(true);
        while readers.join_next().await.is_some() {}
        // Nobody has to be listening.
        drop(exit_sender.send(code));
    });
    Ok(ExecStreams { stdin: input, output, resize, exit })
}

/// Runs to the end and keeps all output.
pub(super) async fn collect(mut streams: ExecStreams) -> Result<ExecResult, RuntimeError> {
    drop(streams.stdin.take());
    let mut result = ExecResult::default();
    while let Some(output) = streams.output.recv().await {
        match output {
            ExecOutput::Stdout(bytes) => result.stdout.extend(bytes),
            ExecOutput::Stderr(bytes) => result.stderr.extend(bytes),
        }
    }
    let code =
        streams.exit.await.map_err(|_| RuntimeError::Other("the command's outcome was lost".into()))?;
    result.exit_code = code?;
    Ok(result)
}

/// Copies until the end of the pipe, or, once the command has ended, until nothing is left: a process that it left
/// behind may hold the pipe open for ever.
async fn copy_pipe(
    mut pipe: pipe::Receiver,
    wrap: fn(Bytes) -> ExecOutput,
    to: mpsc::Sender<ExecOutput>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => read,
            _ = ended.wait_for(|ended| *ended) => match pipe.try_read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                read => read,
            },
        };
        match read {
            Ok(count) if count > 0 => {
                if to.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

async fn copy_console(
    console: Arc<AsyncFd<OwnedFd>>,
    to: mpsc::Sender<ExecOutput>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = console.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)) => read,
            _ = ended.wait_for(|ended| *ended) => {
                let mut rest = vec![0; CHUNK_BYTES];
                let read = rustix::io::read(console.get_ref().as_fd(), &mut rest);
                buffer = rest;
                match read {
                    Ok(count) => Ok(count),
                    Err(_) => return,
                }
            }
        };
        match read {
            Ok(count) if count > 0 => {
                if to.send(ExecOutput::Stdout(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return;
                }
            }
            // A terminal whose last user left says so by an error.
            Ok(_) | Err(_) => return,
        }
    }
}

async fn feed_pipe(mut pipe: pipe::Sender, mut from: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = from.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn feed_console(console: Arc<AsyncFd<OwnedFd>>, mut from: mpsc::Receiver<Bytes>) {
    while let Some(mut bytes) = from.recv().await {
        while !bytes.is_empty() {
            match console.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, &bytes)?)).await {
                Ok(count) => bytes = bytes.split_off(count),
                Err(_) => return,
            }
        }
    }
}

async fn resize_console(console: Arc<AsyncFd<OwnedFd>>, mut sizes: mpsc::Receiver<TerminalSize>) {
    while let Some(size) = sizes.recv().await {
        let size =
            rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        crate::error::log_failure(
            rustix::termios::tcsetwinsize(console.get_ref(), size),
            "cannot resize a terminal",
        );
    }
}
