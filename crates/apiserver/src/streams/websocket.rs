//! Messages of the WebSocket channel protocols: the first byte is the channel, or, with base64, its digit.

use std::io;
use std::time::Duration;

use api::stream::ByteStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long a client may take to close after it was told the end.
pub(super) const LINGER: Duration = Duration::from_secs(5);

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;
pub(super) type Sink = SplitSink<Socket, Message>;
pub(super) type Source = SplitStream<Socket>;

/// How bytes are put into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Binary,
    Base64,
}

impl Codec {
    /// Data of a channel.
    pub(super) fn message(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Codec::Binary => {
                let mut bytes = BytesMut::with_capacity(data.len() + 1);
                bytes.put_u8(channel);
                bytes.put_slice(data);
                Message::Binary(bytes.freeze())
            }
            Codec::Base64 => {
                let mut text = String::from(char::from(b'0' + channel));
                STANDARD.encode_string(data, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// Channel and data of a message; `None` for one that carries none.
    pub(super) fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut data: Bytes = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return None,
        };
        let channel = *data.first()?;
        let rest = data.split_off(1);
        match self {
            Codec::Binary => Some((channel, rest)),
            Codec::Base64 => Some((channel.checked_sub(b'0')?, STANDARD.decode(&rest).ok()?.into())),
        }
    }
}

/// Ends a socket; clients take a close without a code for a broken connection.
pub(super) async fn close(sink: &mut Sink) -> Result<(), Error> {
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(normal))).await?;
    sink.close().await
}

/// Reads until the client has closed: closing with input unread would cut off what it has not read yet.
pub(super) async fn drain(mut source: Source) {
    let ended = async { while let Some(Ok(_)) = source.next().await {} };
    if tokio::time::timeout(LINGER, ended).await.is_err() {
        tracing::debug!("a WebSocket client did not close its connection");
    }
}

/// What binary messages carry, as one stream of bytes.
pub(super) fn payloads(source: Source) -> impl Stream<Item = io::Result<Bytes>> + Send {
    source.filter_map(async |message| match message {
        Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(io::Error::other(error))),
    })
}

/// Sends a log, a message for each piece, until it ends or the client goes away.
pub(super) async fn send_log(socket: Socket, codec: Codec, mut log: ByteStream) {
    let (mut sink, mut source) = socket.split();
    let sent = async {
        while let Some(piece) = log.next().await {
            let Ok(piece) = piece else { break };
            let message = match codec {
                Codec::Binary => Message::Binary(piece),
                Codec::Base64 => Message::Text(STANDARD.encode(&piece).into()),
            };
            sink.send(message).await?;
        }
        close(&mut sink).await
    };
    let gone = async { while let Some(Ok(_)) = source.next().await {} };
    tokio::select! {
        sent = sent => match sent {
            Ok(()) => drain(source).await,
            Err(error) => tracing::debug!(%error, "a log's reader went away"),
        },
        () = gone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_channel_and_data() {
        for codec in [Codec::Binary, Codec::Base64] {
            let message = codec.message(3, b"hello");
            assert_eq!(codec.read(message), Some((3, Bytes::from_static(b"hello"))), "{codec:?}");
        }
        assert_eq!(Codec::Base64.message(1, b"\n"), Message::Text("1Cg==".into()));
        assert_eq!(Codec::Base64.read(Message::Text("0!".into())), None);
        assert_eq!(Codec::Binary.read(Message::Binary(Bytes::new())), None);
    }
}
