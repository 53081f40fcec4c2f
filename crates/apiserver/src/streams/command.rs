//! Exec and attach: five channels, over WebSocket messages or SPDY streams.
//!
//! Up to version 3 the outcome is plain text and only said when it is bad; from 4 on it is a Status; 5 can close stdin.

use api::Status;
use api::stream::{ExecOptions, ExecOutput, ExecSession, TerminalSize};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::spdy;
use super::websocket::{self, Codec, Sink, Socket, Source};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How long a SPDY client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest terminal size that is read.
const SIZE_LIMIT: usize = 1 << 10;

/// Carries a session until the command ends or the client goes away.
pub(super) async fn over_channels(
    socket: Socket,
    codec: Codec,
    version: u8,
    streams: ExecSession,
    options: &ExecOptions,
) {
    let (sink, source) = socket.split();
    let ExecSession { stdin, output, resize, exit } = streams;
    let mut sender = std::pin::pin!(send(sink, codec, version, output, exit, options));
    let mut receiver =
        std::pin::pin!(receive(source, codec, version, stdin.filter(|_| options.stdin), resize));
    tokio::select! {
        sent = &mut sender => match sent {
            // Closing with input unread would cut off what the client has not read yet.
            Ok(()) => if tokio::time::timeout(websocket::LINGER, receiver).await.is_err() {
                tracing::debug!("a WebSocket client did not close its connection");
            },
            Err(error) => tracing::debug!(%error, "exec client went away"),
        },
        () = &mut receiver => {}
    }
}

async fn send(
    mut sink: Sink,
    codec: Codec,
    version: u8,
    mut output: mpsc::Receiver<ExecOutput>,
    exit: oneshot::Receiver<Result<i32, Status>>,
    options: &ExecOptions,
) -> Result<(), Error> {
    // An empty message tells the client that the streams are open.
    let first = match (options.stdout, options.stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    sink.send(codec.message(first, &[])).await?;
    while let Some(piece) = output.recv().await {
        match piece {
            ExecOutput::Stdout(data) if options.stdout => sink.send(codec.message(STDOUT, &data)).await?,
            ExecOutput::Stderr(data) if options.stderr => sink.send(codec.message(STDERR, &data)).await?,
            ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
        }
    }
    if let Some(text) = last_words(&ended(exit, options).await, version) {
        sink.send(codec.message(ERROR, text.as_bytes())).await?;
    }
    websocket::close(&mut sink).await
}

/// How a session ends. Attaching ends well with the container, whatever that one's code is.
async fn ended(exit: oneshot::Receiver<Result<i32, Status>>, options: &ExecOptions) -> Result<i32, Status> {
    let ended = exit.await.unwrap_or_else(|_| Err(Status::internal("the command's outcome is unknown")));
    if options.command.is_empty() { ended.map(|_| 0) } else { ended }
}

/// What goes through the error channel at the end.
fn last_words(result: &Result<i32, Status>, version: u8) -> Option<String> {
    let status = outcome(result);
    if version >= 4 {
        return Some(status.to_string());
    }
    let failed = status["status"] != "Success";
    failed.then(|| status["message"].as_str().unwrap_or_default().to_owned())
}

/// The Status that ends a session.
fn outcome(result: &Result<i32, Status>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(status) => status.to_value(),
    }
}

async fn receive(
    mut source: Source,
    codec: Codec,
    version: u8,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<TerminalSize>,
) {
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        let Some((channel, data)) = codec.read(message) else { continue };
        match channel {
            STDIN if !data.is_empty() => {
                if let Some(sender) = &stdin
                    && sender.send(data).await.is_err()
                {
                    stdin = None;
                }
            }
            RESIZE => {
                if let Some(size) = terminal_size(&data)
                    && resize.send(size).await.is_err()
                {
                    tracing::trace!("the command has no terminal any more");
                }
            }
            CLOSE if version >= 5 && data.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

fn terminal_size(data: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let number = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: number("Width")?, height: number("Height")? })
}

/// The streams of one session.
#[derive(Default)]
struct Streams {
    error: Option<spdy::Stream>,
    stdin: Option<spdy::Stream>,
    stdout: Option<spdy::Stream>,
    stderr: Option<spdy::Stream>,
    resize: Option<spdy::Stream>,
}

impl Streams {
    /// Waits until the client has opened all that it asked for; `None` when it goes away before.
    async fn opened(
        opened: &mut mpsc::Receiver<spdy::Stream>,
        options: &ExecOptions,
        version: u8,
    ) -> Option<Self> {
        let mut streams = Self::default();
        let resizes = options.tty && version >= 3;
        let complete = |s: &Self| {
            s.error.is_some()
                && (s.stdin.is_some() || !options.stdin)
                && (s.stdout.is_some() || !options.stdout)
                && (s.stderr.is_some() || !options.stderr || options.tty)
                && (s.resize.is_some() || !resizes)
        };
        while !complete(&streams) {
            let stream = opened.recv().await?;
            match stream.header("streamtype") {
                "error" => streams.error = Some(stream),
                "stdin" => streams.stdin = Some(stream),
                "stdout" => streams.stdout = Some(stream),
                "stderr" => streams.stderr = Some(stream),
                "resize" => streams.resize = Some(stream),
                other => tracing::debug!(other, "a stream of an unknown type"),
            }
        }
        Some(streams)
    }
}

/// Carries a session over the streams that a SPDY client opens, until the command ends.
pub(super) async fn over_streams(
    mut opened: mpsc::Receiver<spdy::Stream>,
    version: u8,
    session: ExecSession,
    options: ExecOptions,
) {
    let waited = tokio::time::timeout(OPEN_TIMEOUT, Streams::opened(&mut opened, &options, version));
    let Ok(Some(streams)) = waited.await else {
        return tracing::debug!("a SPDY client did not open its streams");
    };
    let ExecSession { stdin, mut output, resize, exit } = session;
    let input = async {
        if let (Some(stream), Some(stdin)) = (streams.stdin, stdin) {
            feed(stream, stdin).await;
        }
    };
    let sizes = async {
        if let Some(stream) = streams.resize {
            feed_sizes(stream, resize).await;
        }
    };
    let (stdout, stderr, error) = (streams.stdout, streams.stderr, streams.error);
    let outgoing = async {
        while let Some(piece) = output.recv().await {
            let (stream, data) = match piece {
                ExecOutput::Stdout(data) => (&stdout, data),
                ExecOutput::Stderr(data) => (&stderr, data),
            };
            if let Some(stream) = stream
                && !stream.output.send(data).await
            {
                return;
            }
        }
        let result = ended(exit, &options).await;
        if let (Some(text), Some(error)) = (last_words(&result, version), &error) {
            error.output.send(text.into()).await;
        }
        for stream in [&stdout, &stderr, &error].into_iter().flatten() {
            stream.output.finish().await;
        }
    };
    let mut outgoing = std::pin::pin!(outgoing);
    tokio::select! {
        () = &mut outgoing => {}
        ((), ()) = async { tokio::join!(input, sizes) } => outgoing.await,
    }
}

async fn feed(mut stream: spdy::Stream, stdin: mpsc::Sender<Bytes>) {
    while let Some(bytes) = stream.input.recv().await {
        if stdin.send(bytes).await.is_err() {
            // The command reads no more; what still comes is thrown away.
            while stream.input.recv().await.is_some() {}
        }
    }
}

/// Sizes come as JSON objects one after the other, cut anywhere.
async fn feed_sizes(mut stream: spdy::Stream, resize: mpsc::Sender<TerminalSize>) {
    let mut text = Vec::new();
    while let Some(bytes) = stream.input.recv().await {
        text.extend_from_slice(&bytes);
        for size in take_sizes(&mut text) {
            if resize.send(size).await.is_err() {
                tracing::trace!("the command has no terminal any more");
            }
        }
    }
}

/// Takes the whole objects off the front.
fn take_sizes(text: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    while let Some(end) = text.iter().position(|byte| *byte == b'}') {
        let object: Vec<u8> = text.drain(..=end).collect();
        sizes.extend(terminal_size(&object));
    }
    if text.len() > SIZE_LIMIT {
        text.clear();
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_become_a_status() {
        assert_eq!(outcome(&Ok(0))["status"], "Success");
        assert_eq!(outcome(&Ok(3))["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(outcome(&Err(Status::bad_request("x")))["reason"], "BadRequest");
    }

    #[test]
    fn old_versions_say_only_what_went_wrong() {
        assert_eq!(last_words(&Ok(0), 1), None);
        let text = last_words(&Ok(7), 3);
        assert_eq!(text.as_deref(), Some("command terminated with non-zero exit code: exit status 7"));
        assert!(last_words(&Ok(0), 4).unwrap().contains("Success"));
    }

    #[test]
    fn sizes_are_read() {
        let size = TerminalSize { width: 80, height: 24 };
        assert_eq!(terminal_size(br#"{"Width":80,"Height":24}"#), Some(size));
        assert_eq!(terminal_size(b"{}"), None);
        let mut text = br#"{"Width":80,"Height":24}{"Wid"#.to_vec();
        assert_eq!(take_sizes(&mut text), [size]);
        text.extend_from_slice(br#"th":80,"Height":24}"#);
        assert_eq!(take_sizes(&mut text), [size]);
    }
}
