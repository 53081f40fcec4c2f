//! Exec and attach over WebSocket: the channel protocols `v4.channel.k8s.io` and `v5.channel.k8s.io`. The first byte
//! of a binary message is its channel; v5 adds a message that closes one (KEP-4006).

use api::Status;
use api::stream::{ExecOutput, ExecSession, TerminalSize};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::pipeline::Session;

/// Spoken protocols, best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The protocol that both sides speak, from the header `Sec-WebSocket-Protocol`.
pub(crate) fn negotiate(offered: &str) -> Option<&'static str> {
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol))
}

/// Carries a session until the command ends or the client goes away.
pub(crate) async fn run(upgraded: Upgraded, session: Session) {
    let socket: Socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (sink, stream) = socket.split();
    let Session { streams, options } = session;
    let ExecSession { stdin, output, resize, exit } = streams;
    tokio::select! {
        result = send(sink, output, exit, options.stdout, options.stderr) => {
            if let Err(error) = result {
                tracing::debug!(%error, "exec client went away");
            }
        }
        () = receive(stream, stdin.filter(|_| options.stdin), resize) => {}
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

async fn send(
    mut sink: SplitSink<Socket, Message>,
    mut output: mpsc::Receiver<ExecOutput>,
    exit: oneshot::Receiver<Result<i32, Status>>,
    stdout: bool,
    stderr: bool,
) -> Result<(), Error> {
    // An empty message tells the client that the streams are open.
    let first = match (stdout, stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    sink.send(frame(first, &[])).await?;
    while let Some(piece) = output.recv().await {
        match piece {
            ExecOutput::Stdout(data) if stdout => sink.send(frame(STDOUT, &data)).await?,
            ExecOutput::Stderr(data) if stderr => sink.send(frame(STDERR, &data)).await?,
            ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
        }
    }
    let result = exit.await.unwrap_or_else(|_| Err(Status::internal("the command's outcome is unknown")));
    sink.send(frame(ERROR, outcome(&result).to_string().as_bytes())).await?;
    // clients take a close without a code for a broken connection
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(normal))).await?;
    sink.close().await
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
    mut stream: SplitStream<Socket>,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<TerminalSize>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let data: Bytes = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let Some((&channel, rest)) = data.split_first() else { continue };
        match channel {
            STDIN if !rest.is_empty() => {
                if let Some(sender) = &stdin
                    && sender.send(data.slice(1..)).await.is_err()
                {
                    stdin = None;
                }
            }
            RESIZE => {
                if let Some(size) = terminal_size(rest)
                    && resize.send(size).await.is_err()
                {
                    tracing::trace!("the command has no terminal any more");
                }
            }
            CLOSE if rest.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

fn terminal_size(data: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let number = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: number("Width")?, height: number("Height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_common_protocol_is_spoken() {
        assert_eq!(negotiate("v4.channel.k8s.io, v5.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(negotiate("v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(negotiate("SPDY/3.1+portforward.k8s.io"), None);
    }

    #[test]
    fn exit_codes_become_a_status() {
        assert_eq!(outcome(&Ok(0))["status"], "Success");
        assert_eq!(outcome(&Ok(3))["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(outcome(&Err(Status::bad_request("x")))["reason"], "BadRequest");
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(
            terminal_size(br#"{"Width":80,"Height":24}"#),
            Some(TerminalSize { width: 80, height: 24 })
        );
        assert_eq!(terminal_size(b"{}"), None);
    }
}
