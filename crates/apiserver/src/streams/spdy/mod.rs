//! SPDY/3.1, the server's side: streams that a client opens over one connection, or over WebSocket messages.
//!
//! ```text
//!   bytes ─▶ Decoder ─▶ reader ─▶ Stream::input, one bounded channel per stream
//!   bytes ◀─ Encoder ◀─ writer ◀─ one bounded channel ◀─ Output of every stream
//! ```
//! Invariants:
//! - A stream whose input nobody takes holds up its connection: clients of Kubernetes know no flow control, and memory
//!   is not theirs to fill. Those that do know it are told how much was taken.
//! - The other side's window is not waited for, as these clients never open it.

mod dictionary;
mod frame;

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream as Incoming, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use self::frame::{Decoder, Encoder, Frame, Headers};

/// Frames of all streams that wait to be sent.
const QUEUE: usize = 32;
/// Pieces of one stream that wait to be taken.
const INPUT_QUEUE: usize = 16;
/// Frames are sent together up to this many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// Streams that one client may have at a time.
const MOST_STREAMS: usize = 4096;
/// How long the other side may take to close after it was told the end.
const LINGER: Duration = Duration::from_secs(5);
/// Longest data frame that is sent.
const DATA_BYTES: usize = 64 << 10;
const STATUS_REFUSED: u32 = 3;
const STATUS_CANCEL: u32 = 5;

/// A stream that the client opened.
pub(super) struct Stream {
    pub(super) id: u32,
    headers: Headers,
    /// Ends when the client has sent everything.
    pub(super) input: mpsc::Receiver<Bytes>,
    /// Completes when the client has broken the stream off, or is gone.
    pub(super) broken: oneshot::Receiver<()>,
    pub(super) output: Output,
}

impl Stream {
    /// The first header of this name, "" without one.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// The server's half of a stream.
#[derive(Clone)]
pub(super) struct Output {
    stream: u32,
    frames: mpsc::Sender<Frame>,
}

impl Output {
    /// Sends data; false when the connection is gone.
    pub(super) async fn send(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_BYTES));
            let frame = Frame::Data { stream: self.stream, bytes: piece, fin: false };
            if self.frames.send(frame).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends this half.
    pub(super) async fn finish(&self) {
        self.put(Frame::Data { stream: self.stream, bytes: Bytes::new(), fin: true }).await;
    }

    /// Breaks the stream off, both halves.
    pub(super) async fn reset(&self) {
        self.put(Frame::Reset { stream: self.stream, status: STATUS_CANCEL }).await;
    }

    /// A client that is gone needs nothing more.
    async fn put(&self, frame: Frame) {
        drop(self.frames.send(frame).await);
    }
}

/// Where the connection's bytes go.
pub(super) trait Outgoing {
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Says that nothing more comes.
    fn close(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Serves a connection. `handle` gets the client's streams; when it returns, the client is told the end.
pub(super) async fn serve<H: Future<Output = ()>>(
    incoming: impl Incoming<Item = io::Result<Bytes>> + Unpin,
    outgoing: impl Outgoing,
    handle: impl FnOnce(mpsc::Receiver<Stream>) -> H,
) {
    let (frames, queue) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(QUEUE);
    let mut reader = pin!(read(incoming, frames.clone(), opened));
    let mut writer = pin!(write(outgoing, queue));
    let handler = pin!(handle(streams));
    tokio::select! {
        () = handler => {}
        ended = &mut reader => return log(ended),
        ended = &mut writer => return log(ended),
    }
    let goodbye = async {
        let said = frames.send(Frame::GoAway { last: 0, status: 0 });
        let (said, written) = tokio::join!(said, writer);
        drop(said);
        log(written);
        // Closing with input unread would cut off what the client has not read yet.
        log(reader.await);
    };
    if tokio::time::timeout(LINGER, goodbye).await.is_err() {
        tracing::debug!("a SPDY client did not close its connection");
    }
}

fn log(ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a SPDY connection broke");
    }
}

/// What the reader knows of a stream.
struct Open {
    /// `None` once the client has sent everything.
    input: Option<mpsc::Sender<Bytes>>,
    broken: oneshot::Sender<()>,
}

async fn read(
    mut incoming: impl Incoming<Item = io::Result<Bytes>> + Unpin,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut decoder = Decoder::new();
    let mut streams: HashMap<u32, Open> = HashMap::new();
    while let Some(bytes) = incoming.next().await {
        decoder.push(&bytes?);
        while let Some(frame) = decoder.next().map_err(io::Error::other)? {
            match frame {
                Frame::SynStream { stream, headers, fin } => {
                    // Those whose users have dropped them are over.
                    streams.retain(|_, open| !open.broken.is_closed());
                    if streams.len() >= MOST_STREAMS || streams.contains_key(&stream) {
                        let refused = Frame::Reset { stream, status: STATUS_REFUSED };
                        frames.send(refused).await.map_err(gone)?;
                        continue;
                    }
                    let (new, open) = open(stream, headers, fin, &frames);
                    streams.insert(stream, open);
                    let reply = Frame::SynReply { stream, headers: Headers::new(), fin: false };
                    frames.send(reply).await.map_err(gone)?;
                    // Whoever handles the streams may have seen enough.
                    drop(opened.send(new).await);
                }
                Frame::Data { stream, bytes, fin } => {
                    let Some(open) = streams.get_mut(&stream) else { continue };
                    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    if let (Some(input), false) = (&open.input, bytes.is_empty()) {
                        // Data for a stream whose user has gone is thrown away.
                        drop(input.send(bytes).await);
                    }
                    if fin {
                        open.input = None;
                    }
                    if length > 0 {
                        for stream in [0, stream] {
                            let taken = Frame::WindowUpdate { stream, bytes: length };
                            frames.send(taken).await.map_err(gone)?;
                        }
                    }
                }
                Frame::Reset { stream, .. } => {
                    let user = streams.remove(&stream).map(|open| open.broken.send(()));
                    tracing::trace!(stream, heard = user == Some(Ok(())), "the client broke a stream off");
                }
                // The client's pings have odd numbers; even ones would answer ours.
                Frame::Ping(id) if id % 2 == 1 => frames.send(Frame::Ping(id)).await.map_err(gone)?,
                Frame::Ping(_)
                | Frame::SynReply { .. }
                | Frame::GoAway { .. }
                | Frame::WindowUpdate { .. } => {}
            }
        }
    }
    Ok(())
}

fn open(id: u32, headers: Headers, fin: bool, frames: &mpsc::Sender<Frame>) -> (Stream, Open) {
    let (sender, input) = mpsc::channel(INPUT_QUEUE);
    let (break_off, broken) = oneshot::channel();
    let output = Output { stream: id, frames: frames.clone() };
    let stream = Stream { id, headers, input, broken, output };
    (stream, Open { input: (!fin).then_some(sender), broken: break_off })
}

/// Sends frames, several at once when they wait; ends after GOAWAY.
async fn write(mut outgoing: impl Outgoing, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        let mut last = false;
        while let Some(frame) = next.take() {
            last = matches!(frame, Frame::GoAway { .. });
            encoder.encode(&frame, &mut buffer);
            if !last && buffer.len() < BATCH_BYTES {
                next = frames.try_recv().ok();
            }
        }
        outgoing.send(buffer.split().freeze()).await?;
        if last {
            return outgoing.close().await;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) use self::frame::Frame as TestFrame;

#[cfg(test)]
pub(super) mod tests;
