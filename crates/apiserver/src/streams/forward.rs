//! Port-forward: each connection is a pair of streams, one for data and one that says what went wrong.

use std::collections::HashMap;
use std::io;

use api::stream::Connection;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::websocket::{self, Codec, Sink, Socket, Source};
use super::{Dial, spdy};

const CHUNK_BYTES: usize = 32 << 10;
/// Messages that wait to be sent or taken.
const QUEUE: usize = 16;
/// Pairs of which one stream is missing.
const MOST_HALVES: usize = 1024;

fn message(pod: &str, port: u16, error: &str) -> String {
    format!("error forwarding port {port} to pod {pod}: {error}")
}

/// Forwards each pair of streams that a SPDY client opens, until it opens no more.
pub(super) async fn over_streams(mut opened: mpsc::Receiver<spdy::Stream>, pod: String, dial: Dial) {
    let mut halves: HashMap<String, spdy::Stream> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = opened.recv() => stream,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let (Some(request), Some(port)) = (request_id(&stream), port(&stream)) else {
            stream.output.reset().await;
            continue;
        };
        let Some(other) = halves.remove(&request) else {
            halves.retain(|_, half| !half.input.is_closed() || half.header("streamtype") == "error");
            if halves.len() < MOST_HALVES {
                halves.insert(request, stream);
            } else {
                stream.output.reset().await;
            }
            continue;
        };
        let (data, error) =
            if stream.header("streamtype") == "data" { (stream, other) } else { (other, stream) };
        let (dial, pod) = (dial.clone(), pod.clone());
        connections.spawn(async move {
            let moved = match dial(port).await {
                Ok(connection) => carry(data, &error.output, connection).await.map_err(|e| e.to_string()),
                Err(status) => {
                    data.output.reset().await;
                    Err(status.message)
                }
            };
            if let Err(why) = moved {
                error.output.send(message(&pod, port, &why).into()).await;
                error.output.finish().await;
            }
        });
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a forwarded connection failed");
    }
}

/// What the two streams of a pair have in common. Old clients open the error stream first and number nothing.
fn request_id(stream: &spdy::Stream) -> Option<String> {
    let id = match (stream.header("requestid"), stream.header("streamtype")) {
        ("", "error") => stream.id.to_string(),
        ("", "data") => stream.id.checked_sub(2)?.to_string(),
        (id, "error" | "data") => id.to_owned(),
        _ => return None,
    };
    Some(id)
}

fn port(stream: &spdy::Stream) -> Option<u16> {
    stream.header("port").parse().ok().filter(|port| *port > 0)
}

/// Moves bytes both ways until both ways have ended, or the client breaks it off. The error stream ends with the
/// pod's half: some clients wait for that before they close theirs.
async fn carry(stream: spdy::Stream, error: &spdy::Output, connection: Connection) -> io::Result<()> {
    let spdy::Stream { input, broken, output, .. } = stream;
    let (mut from_pod, to_pod) = tokio::io::split(connection);
    let downwards = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            if from_pod.read_buf(&mut buffer).await? == 0 || !output.send(buffer.split().freeze()).await {
                break;
            }
        }
        output.finish().await;
        error.finish().await;
        Ok(())
    };
    let both = async {
        let (down, up) = tokio::join!(downwards, feed(input, to_pod));
        down.and(up)
    };
    tokio::select! {
        moved = both => moved,
        _ = broken => Ok(()),
    }
}

/// Gives a pod what the client sends. A pod that has gone before it read everything is no error.
async fn feed(mut input: mpsc::Receiver<Bytes>, mut to_pod: WriteHalf<Connection>) -> io::Result<()> {
    let fed = async {
        while let Some(bytes) = input.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await
    };
    match fed.await {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Forwards the ports that the request names: port number `n` has the channels `2n` for data and `2n + 1` for errors. The
/// first message of each is its port, least significant byte first.
pub(super) async fn over_channels(socket: Socket, codec: Codec, pod: &str, ports: Vec<u16>, dial: &Dial) {
    let (sink, source) = socket.split();
    let (messages, queue) = mpsc::channel(QUEUE);
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (number, port) in (0u8..).zip(ports) {
        let (sender, input) = mpsc::channel(QUEUE);
        inputs.push(sender);
        let out = Channels { data: number * 2, codec, messages: messages.clone() };
        let (pod, dial) = (pod.to_owned(), dial.clone());
        connections.spawn(async move { out.forward(&pod, port, &dial, input).await });
    }
    drop(messages);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    let sent = async { tokio::join!(write(sink, queue), all).0 };
    tokio::select! {
        sent = sent => if let Err(error) = sent {
            tracing::debug!(%error, "a port-forward client went away");
        },
        () = take(source, codec, inputs) => {}
    }
}

/// The way back to the client of one port.
struct Channels {
    data: u8,
    codec: Codec,
    messages: mpsc::Sender<Message>,
}

impl Channels {
    async fn forward(&self, pod: &str, port: u16, dial: &Dial, input: mpsc::Receiver<Bytes>) {
        for channel in [self.data, self.data + 1] {
            self.send(channel, &port.to_le_bytes()).await;
        }
        let moved = match dial(port).await {
            Err(status) => Err(status.message),
            Ok(connection) => self.carry(input, connection).await.map_err(|error| error.to_string()),
        };
        if let Err(why) = moved {
            self.send(self.data + 1, message(pod, port, &why).as_bytes()).await;
        }
    }

    async fn carry(&self, input: mpsc::Receiver<Bytes>, connection: Connection) -> io::Result<()> {
        let (mut from_pod, to_pod) = tokio::io::split(connection);
        let downwards = async {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            while from_pod.read_buf(&mut buffer).await? > 0 && self.send(self.data, &buffer).await {
                buffer.clear();
            }
            Ok(())
        };
        tokio::select! {
            // The client cannot close its half: the pod's end is the end.
            moved = downwards => moved,
            Err(error) = feed(input, to_pod) => Err(error),
        }
    }

    /// False when the client has gone.
    async fn send(&self, channel: u8, data: &[u8]) -> bool {
        self.messages.send(self.codec.message(channel, data)).await.is_ok()
    }
}

async fn write(
    mut sink: Sink,
    mut messages: mpsc::Receiver<Message>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    while let Some(message) = messages.recv().await {
        sink.send(message).await?;
    }
    websocket::close(&mut sink).await
}

/// Hands data to its port until the client closes.
async fn take(mut source: Source, codec: Codec, mut inputs: Vec<mpsc::Sender<Bytes>>) {
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        let Some((channel, data)) = codec.read(message) else { continue };
        let input = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel.is_multiple_of(2));
        if let Some(input) = input {
            // Data for a pod that has gone is thrown away.
            drop(input.send(data).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::Status;

    use super::super::spdy::TestFrame as Frame;
    use super::super::spdy::tests::Client;
    use super::*;

    /// Port 7 echoes and then ends its half; nobody listens on any other.
    fn client() -> Client {
        let dial: Dial = Arc::new(|port| {
            Box::pin(async move {
                if port != 7 {
                    return Err(Status::internal("nobody listens"));
                }
                let (near, far) = tokio::io::duplex(64);
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(far);
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                    to.shutdown().await.unwrap();
                });
                Ok(Box::new(near) as Connection)
            })
        });
        Client::of(|opened| over_streams(opened, "web, uid 1".into(), dial))
    }

    fn open(stream: u32, kind: &str, port: &str) -> Frame {
        let headers = [("streamtype", kind), ("port", port), ("requestid", "0")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Frame::SynStream { stream, headers, fin: false }
    }

    fn data(stream: u32, text: &str, fin: bool) -> Frame {
        Frame::Data { stream, bytes: text.to_owned().into(), fin }
    }

    /// Opens a pair; returns what comes after both were accepted.
    async fn opened(port: &str) -> Client {
        let mut client = client();
        for (stream, kind) in [(1, "error"), (3, "data")] {
            client.send(open(stream, kind, port)).await;
            assert!(matches!(client.receive().await, Some(Frame::SynReply { .. })));
        }
        client
    }

    #[tokio::test]
    async fn a_pair_of_streams_is_a_connection() {
        let mut client = opened("7").await;
        client.send(data(3, "hello", false)).await;
        assert_eq!(client.receive().await, Some(data(3, "hello", false)));
        client.send(data(3, "", true)).await;
        assert_eq!(client.receive().await, Some(data(3, "", true)));
        assert_eq!(client.receive().await, Some(data(1, "", true)), "no error");
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_on_the_error_stream() {
        let mut client = opened("8").await;
        assert!(matches!(client.receive().await, Some(Frame::Reset { stream: 3, .. })));
        let text = "error forwarding port 8 to pod web, uid 1: Internal error occurred: nobody listens";
        assert_eq!(client.receive().await, Some(data(1, text, false)));
        assert_eq!(client.receive().await, Some(data(1, "", true)));
    }

    #[tokio::test]
    async fn a_stream_without_a_port_is_refused() {
        let mut client = client();
        client.send(open(1, "data", "0")).await;
        client.receive().await;
        assert!(matches!(client.receive().await, Some(Frame::Reset { stream: 1, .. })));
    }
}
