//! The frames of a session between the API server and a node: one byte for the kind, four for the length (most
//! significant first), the payload.
//!
//! ```text
//!   API server ─▶ node   Stdin · StdinClosed · Resize
//!   node ─▶ API server   Stdout · Stderr · End (exit code or Status, as JSON), after which nothing comes
//! ```
//!
//! A session that ends without `End` was cut off.

use std::io;

use api::Status;
use api::stream::{ExecOptions, ExecOutput, ExecSession, LogOptions, TerminalSize};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "podium-session-v1";
/// Longest payload of a frame; both sides cut longer pieces.
const LONGEST: usize = 64 << 10;
/// Frames that wait for a slow reader.
const QUEUE: usize = 16;

/// What a session is about. Goes in the body of the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub verb: Verb,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdout: bool,
    #[serde(default)]
    pub stderr: bool,
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub follow: bool,
    #[serde(default)]
    pub previous: bool,
    #[serde(default)]
    pub timestamps: bool,
    #[serde(default)]
    pub tail_lines: Option<u64>,
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    #[serde(default)]
    pub since_seconds: Option<u64>,
    #[serde(default)]
    pub since_time: Option<String>,
    /// Of port-forward.
    #[serde(default)]
    pub port: u16,
}

/// Kind of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    #[default]
    Logs,
    Exec,
    Attach,
    /// No frames: the connection is the pod's from then on.
    Forward,
}

impl Call {
    /// A container's log.
    pub fn logs(namespace: &str, pod: &str, o: LogOptions) -> Self {
        Self {
            follow: o.follow,
            previous: o.previous,
            timestamps: o.timestamps,
            tail_lines: o.tail_lines,
            limit_bytes: o.limit_bytes,
            since_seconds: o.since_seconds,
            since_time: o.since_time,
            container: o.container,
            ..Self::about(Verb::Logs, namespace, pod)
        }
    }

    /// A connection to a port.
    pub fn forward(namespace: &str, pod: &str, port: u16) -> Self {
        Self { port, ..Self::about(Verb::Forward, namespace, pod) }
    }

    fn about(verb: Verb, namespace: &str, pod: &str) -> Self {
        Self { verb, namespace: namespace.into(), pod: pod.into(), ..Self::default() }
    }

    /// Exec or attach.
    pub fn streams(verb: Verb, namespace: &str, pod: &str, o: ExecOptions) -> Self {
        Self {
            container: o.container,
            command: o.command,
            stdin: o.stdin,
            stdout: o.stdout,
            stderr: o.stderr,
            tty: o.tty,
            ..Self::about(verb, namespace, pod)
        }
    }

    pub(super) fn log_options(&self) -> LogOptions {
        LogOptions {
            container: self.container.clone(),
            follow: self.follow,
            previous: self.previous,
            timestamps: self.timestamps,
            tail_lines: self.tail_lines,
            limit_bytes: self.limit_bytes,
            since_seconds: self.since_seconds,
            since_time: self.since_time.clone(),
        }
    }

    pub(super) fn exec_options(&self) -> ExecOptions {
        ExecOptions {
            container: self.container.clone(),
            command: self.command.clone(),
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
            tty: self.tty,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Stdin(Bytes),
    StdinClosed,
    Resize(TerminalSize),
    Stdout(Bytes),
    Stderr(Bytes),
    /// Exit code, or why there is none.
    End(Result<i32, Status>),
}

/// Writes a frame.
///
/// # Errors
/// When the connection is gone.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: Frame) -> io::Result<()> {
    let (kind, payload) = match frame {
        Frame::Stdin(bytes) => (0, bytes),
        Frame::StdinClosed => (1, Bytes::new()),
        Frame::Resize(TerminalSize { width, height }) => {
            (2, [width.to_be_bytes(), height.to_be_bytes()].concat().into())
        }
        Frame::Stdout(bytes) => (3, bytes),
        Frame::Stderr(bytes) => (4, bytes),
        Frame::End(Ok(code)) => (5, json!({"exitCode": code}).to_string().into()),
        Frame::End(Err(status)) => (5, json!({"status": status.to_value()}).to_string().into()),
    };
    let mut rest = payload;
    loop {
        let piece = rest.split_to(rest.len().min(LONGEST));
        let length = u32::try_from(piece.len()).expect("a piece is shorter than LONGEST");
        to.write_u8(kind).await?;
        to.write_u32(length).await?;
        to.write_all(&piece).await?;
        if rest.is_empty() {
            return to.flush().await;
        }
    }
}

/// Reads a frame; `None` at the end of the connection.
///
/// # Errors
/// When the connection breaks within a frame, or what comes is no frame.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let kind = match from.read_u8().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = from.read_u32().await? as usize;
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if length > LONGEST {
        return Err(wrong("a frame that is too long"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    let payload = Bytes::from(payload);
    Ok(Some(match kind {
        0 => Frame::Stdin(payload),
        1 => Frame::StdinClosed,
        2 => match payload[..] {
            [a, b, c, d] => Frame::Resize(TerminalSize {
                width: u16::from_be_bytes([a, b]),
                height: u16::from_be_bytes([c, d]),
            }),
            _ => return Err(wrong("a malformed size")),
        },
        3 => Frame::Stdout(payload),
        4 => Frame::Stderr(payload),
        5 => {
            let value: Value = serde_json::from_slice(&payload)?;
            match value["exitCode"].as_i64() {
                Some(code) => Frame::End(Ok(i32::try_from(code).unwrap_or(-1))),
                None => Frame::End(Err(Status::from_value(&value["status"], 500))),
            }
        }
        _ => return Err(wrong("a frame of an unknown kind")),
    }))
}

/// The node's end of exec and attach: moves frames until the command has ended or the connection is gone.
///
/// # Errors
/// When the connection breaks; dropping the session then ends the command's streams.
pub async fn serve(io: impl AsyncRead + AsyncWrite, session: ExecSession) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(io);
    let ExecSession { mut stdin, mut output, resize, exit } = session;
    let incoming = async {
        while let Some(frame) = read(&mut from).await? {
            match frame {
                Frame::Stdin(bytes) => {
                    let open = match &stdin {
                        Some(stdin) => stdin.send(bytes).await.is_ok(),
                        None => false,
                    };
                    if !open {
                        stdin = None;
                    }
                }
                Frame::StdinClosed => stdin = None,
                // A command that has ended needs no size.
                Frame::Resize(size) => drop(resize.send(size).await),
                Frame::Stdout(_) | Frame::Stderr(_) | Frame::End(_) => {}
            }
        }
        Ok::<_, io::Error>(())
    };
    let outgoing = async {
        while let Some(piece) = output.recv().await {
            let frame = match piece {
                ExecOutput::Stdout(bytes) => Frame::Stdout(bytes),
                ExecOutput::Stderr(bytes) => Frame::Stderr(bytes),
            };
            write(&mut to, frame).await?;
        }
        let end = exit.await.unwrap_or_else(|_| Err(Status::internal("the command was lost")));
        write(&mut to, Frame::End(end)).await?;
        to.shutdown().await
    };
    tokio::select! {
        sent = outgoing => sent,
        // The other side is gone: nobody reads on.
        received = incoming => received,
    }
}

/// The API server's end of exec and attach.
pub fn open(io: impl AsyncRead + AsyncWrite + Send + 'static, options: &ExecOptions) -> ExecSession {
    let (mut from, mut to) = tokio::io::split(io);
    let (stdin_sender, mut stdin) = mpsc::channel::<Bytes>(QUEUE);
    let (resize_sender, mut resize) = mpsc::channel::<TerminalSize>(QUEUE);
    let (output_sender, output) = mpsc::channel(QUEUE);
    let (exit_sender, exit) = oneshot::channel();
    let upwards = async move {
        let (mut more_input, mut more_sizes) = (true, true);
        while more_input || more_sizes {
            let frame = tokio::select! {
                piece = stdin.recv(), if more_input => match piece {
                    Some(bytes) => Frame::Stdin(bytes),
                    None => {
                        more_input = false;
                        Frame::StdinClosed
                    }
                },
                size = resize.recv(), if more_sizes => match size {
                    Some(size) => Frame::Resize(size),
                    None => {
                        more_sizes = false;
                        continue;
                    }
                },
            };
            write(&mut to, frame).await?;
        }
        Ok::<_, io::Error>(())
    };
    let downwards = async move {
        let end = loop {
            let frame = tokio::select! {
                frame = read(&mut from) => frame,
                () = output_sender.closed() => return,
            };
            let piece = match frame {
                Ok(Some(Frame::Stdout(bytes))) => ExecOutput::Stdout(bytes),
                Ok(Some(Frame::Stderr(bytes))) => ExecOutput::Stderr(bytes),
                Ok(Some(Frame::End(end))) => break end,
                Ok(Some(Frame::Stdin(_) | Frame::StdinClosed | Frame::Resize(_))) => continue,
                Ok(None) => break Err(Status::unavailable("the node ended the session early")),
                Err(error) => break Err(Status::unavailable(format!("the session broke: {error}"))),
            };
            if output_sender.send(piece).await.is_err() {
                return;
            }
        };
        // Whoever has dropped the session does not ask for its end.
        drop(exit_sender.send(end));
    };
    client::spawn(async move {
        tokio::pin!(downwards);
        tokio::select! {
            () = &mut downwards => {}
            sent = upwards => {
                if let Err(error) = sent {
                    tracing::debug!(%error, "input of a session was not sent");
                }
                downwards.await;
            }
        }
    });
    let stdin = options.stdin.then_some(stdin_sender);
    ExecSession { stdin, output, resize: resize_sender, exit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_as_they_went() {
        let (mut a, mut b) = tokio::io::duplex(1 << 20);
        let status = Status::bad_request("no such container");
        let frames = [
            Frame::Stdin(Bytes::from_static(b"in")),
            Frame::StdinClosed,
            Frame::Resize(TerminalSize { width: 300, height: 2 }),
            Frame::Stdout(Bytes::from_static(b"out")),
            Frame::Stderr(Bytes::from_static(b"err")),
            Frame::End(Ok(137)),
        ];
        for frame in &frames {
            write(&mut a, frame.clone()).await.unwrap();
            assert_eq!(read(&mut b).await.unwrap().as_ref(), Some(frame));
        }
        write(&mut a, Frame::End(Err(status))).await.unwrap();
        let Some(Frame::End(Err(status))) = read(&mut b).await.unwrap() else { panic!("an end") };
        assert_eq!((status.code, status.message.as_str()), (400, "no such container"));
        write(&mut a, Frame::Stdout(vec![7; LONGEST + 1].into())).await.unwrap();
        drop(a);
        let mut lengths = Vec::new();
        while let Some(Frame::Stdout(bytes)) = read(&mut b).await.unwrap() {
            lengths.push(bytes.len());
        }
        assert_eq!(lengths, [LONGEST, 1]);
    }

    #[tokio::test]
    async fn noise_is_an_error() {
        for bytes in
            [&[9, 0, 0, 0, 0][..], &[3, 255, 255, 255, 255], &[3, 0, 0, 0, 9, 1], &[2, 0, 0, 0, 1, 1]]
        {
            let mut from = bytes;
            assert!(read(&mut from).await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_session_carries_input_output_and_the_exit_code() {
        let (near, far) = tokio::io::duplex(64);
        let options = ExecOptions { stdin: true, ..ExecOptions::default() };
        let session = open(near, &options);
        // A command that answers what it reads in capitals, and ends with 3 at the end of its input.
        let (stdin_sender, mut stdin) = mpsc::channel::<Bytes>(1);
        let (output_sender, output) = mpsc::channel(1);
        let (exit_sender, exit) = oneshot::channel();
        let (resize, _sizes) = mpsc::channel(1);
        tokio::spawn(serve(far, ExecSession { stdin: Some(stdin_sender), output, resize, exit }));
        tokio::spawn(async move {
            while let Some(bytes) = stdin.recv().await {
                output_sender.send(ExecOutput::Stdout(bytes.to_ascii_uppercase().into())).await.unwrap();
            }
            exit_sender.send(Ok(3)).unwrap();
        });
        let ExecSession { stdin, mut output, exit, .. } = session;
        let stdin = stdin.unwrap();
        stdin.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(output.recv().await, Some(ExecOutput::Stdout(Bytes::from_static(b"HELLO"))));
        drop(stdin);
        assert_eq!(output.recv().await, None);
        assert_eq!(exit.await.unwrap().unwrap(), 3);
    }

    #[tokio::test]
    async fn a_session_that_is_cut_off_ends_with_an_error() {
        let (near, far) = tokio::io::duplex(64);
        let session = open(near, &ExecOptions::default());
        drop(far);
        assert!(session.exit.await.unwrap().is_err());
    }
}
