//! Connections that stop being HTTP: exec, attach, port-forward and logs over WebSocket or SPDY/3.1.
//!
//! ```text
//!   headers ─▶ Wish ─▶ dialect (before anything is opened on a node) ─▶ 101 ─▶ task
//!     WebSocket   one channel byte per message      exec, attach (v5 … v1, base64), port-forward, logs
//!     WebSocket   SPDY frames in messages           port-forward
//!     SPDY/3.1    a stream per channel or pair      exec, attach (v4 … v1), port-forward
//! ```
//! Both sides of a session are bounded channels: whoever reads slowly slows down the writer, nothing piles up here.

mod command;
mod forward;
mod spdy;
mod websocket;

use std::io;
use std::sync::Arc;

use api::stream::{ByteStream, Connection, ExecOptions, ExecSession};
use api::{Reason, Status};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use futures_util::{SinkExt, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use self::websocket::Codec;

const SPDY: &str = "SPDY/3.1";
const SPDY_VERSIONS: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a client wants its connection to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// With the offered sub-protocols.
    WebSocket(Vec<String>),
    /// With the offered versions of what is spoken in its streams.
    Spdy(Vec<String>),
}

impl Wish {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
        let list = |name: &HeaderName| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            let words = values.flat_map(|value| value.split(',')).map(|word| word.trim().to_owned());
            words.filter(|word| !word.is_empty()).collect()
        };
        if upgrade.eq_ignore_ascii_case("websocket") {
            Some(Self::WebSocket(list(&header::SEC_WEBSOCKET_PROTOCOL)))
        } else if upgrade.eq_ignore_ascii_case(SPDY) {
            Some(Self::Spdy(list(&SPDY_VERSIONS)))
        } else {
            None
        }
    }
}

/// What both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// "" when the client named none.
    name: &'static str,
    carrier: Carrier,
    /// Of the remote command protocol, 1 to 5.
    version: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Channels(Codec),
    /// SPDY in WebSocket messages.
    Tunnel,
    Spdy,
}

const fn channels(name: &'static str, codec: Codec, version: u8) -> Dialect {
    Dialect { name, carrier: Carrier::Channels(codec), version }
}

const fn spdy(name: &'static str, version: u8) -> Dialect {
    Dialect { name, carrier: Carrier::Spdy, version }
}

/// Best first; the last is spoken with a client that names none.
const COMMAND_WEBSOCKET: [Dialect; 8] = [
    channels("v5.channel.k8s.io", Codec::Binary, 5),
    channels("v4.channel.k8s.io", Codec::Binary, 4),
    channels("v4.base64.channel.k8s.io", Codec::Base64, 4),
    channels("v3.channel.k8s.io", Codec::Binary, 3),
    channels("v2.channel.k8s.io", Codec::Binary, 2),
    channels("base64.channel.k8s.io", Codec::Base64, 1),
    channels("channel.k8s.io", Codec::Binary, 1),
    channels("", Codec::Binary, 1),
];

const COMMAND_SPDY: [Dialect; 5] = [
    spdy("v4.channel.k8s.io", 4),
    spdy("v3.channel.k8s.io", 3),
    spdy("v2.channel.k8s.io", 2),
    spdy("channel.k8s.io", 1),
    spdy("", 1),
];

const FORWARD_WEBSOCKET: [Dialect; 4] = [
    Dialect { name: "SPDY/3.1+portforward.k8s.io", carrier: Carrier::Tunnel, version: 1 },
    channels("v4.channel.k8s.io", Codec::Binary, 4),
    channels("v4.base64.channel.k8s.io", Codec::Base64, 4),
    channels("", Codec::Binary, 4),
];

const FORWARD_SPDY: [Dialect; 2] = [spdy("portforward.k8s.io", 1), spdy("", 1)];

const LOG_WEBSOCKET: [Dialect; 3] = [
    channels("binary.k8s.io", Codec::Binary, 1),
    channels("base64.binary.k8s.io", Codec::Base64, 1),
    channels("", Codec::Binary, 1),
];

impl Wish {
    /// # Errors
    /// When nothing of what is offered is spoken here, as in the following.
    pub(crate) fn for_command(&self) -> Result<Dialect, Status> {
        match self {
            Wish::WebSocket(offered) => choose(offered, &COMMAND_WEBSOCKET),
            Wish::Spdy(offered) => choose(offered, &COMMAND_SPDY),
        }
    }

    pub(crate) fn for_forward(&self) -> Result<Dialect, Status> {
        match self {
            Wish::WebSocket(offered) => choose(offered, &FORWARD_WEBSOCKET),
            Wish::Spdy(offered) => choose(offered, &FORWARD_SPDY),
        }
    }

    /// `None` when the log goes out as an ordinary answer.
    pub(crate) fn for_log(&self) -> Result<Option<Dialect>, Status> {
        match self {
            Wish::WebSocket(offered) => choose(offered, &LOG_WEBSOCKET).map(Some),
            Wish::Spdy(_) => Ok(None),
        }
    }
}

fn choose(offered: &[String], spoken: &[Dialect]) -> Result<Dialect, Status> {
    let wanted = |dialect: &&Dialect| match dialect.name {
        "" => offered.is_empty(),
        name => offered.iter().any(|offer| offer == name),
    };
    spoken.iter().find(wanted).copied().ok_or_else(|| {
        let names: Vec<&str> = spoken.iter().map(|d| d.name).filter(|name| !name.is_empty()).collect();
        let (offered, names) = (offered.join(", "), names.join(", "));
        Status::new(
            Reason::BadRequest,
            format!("unable to upgrade: the client speaks [{offered}], the server [{names}]"),
        )
    })
}

impl Dialect {
    /// Whether the ports are named in the request, and not by each stream.
    pub(crate) fn names_ports_first(self) -> bool {
        matches!(self.carrier, Carrier::Channels(_))
    }
}

/// Opens connections to ports of one pod.
pub(crate) type Dial = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<Connection, Status>> + Send + Sync>;

/// What a connection becomes.
pub(crate) struct Session {
    pub(crate) dialect: Dialect,
    pub(crate) what: What,
}

pub(crate) enum What {
    Command {
        streams: ExecSession,
        options: ExecOptions,
    },
    Forward {
        /// For error messages: `web, uid 1234`.
        pod: String,
        /// Empty when each stream names its own.
        ports: Vec<u16>,
        dial: Dial,
    },
    Log(ByteStream),
}

/// A request's way to become a session.
pub(crate) struct Offer {
    upgrade: OnUpgrade,
    /// Answer to the WebSocket key.
    accept: String,
    pub(crate) wish: Wish,
}

impl Offer {
    /// `None` when the client wants no upgrade that is known here.
    pub(crate) fn of<B>(request: &mut http::Request<B>) -> Option<Self> {
        let wish = Wish::of(request.headers())?;
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let accept = derive_accept_key(key.unwrap_or_default());
        Some(Self { upgrade: hyper::upgrade::on(request), accept, wish })
    }

    /// Starts the session as soon as the answer is out; returns the answer's headers. Its code is 101.
    pub(crate) fn accept(self, session: Session) -> HeaderMap {
        let dialect = session.dialect;
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => run(upgraded, session).await,
                Err(error) => tracing::debug!(%error, "the connection was not upgraded"),
            }
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let (protocol, name) = match dialect.carrier {
            Carrier::Spdy => (SPDY, SPDY_VERSIONS),
            Carrier::Channels(_) | Carrier::Tunnel => ("websocket", header::SEC_WEBSOCKET_PROTOCOL),
        };
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        if !dialect.name.is_empty() {
            headers.insert(name, HeaderValue::from_static(dialect.name));
        }
        if let (true, Ok(accept)) = (dialect.carrier != Carrier::Spdy, HeaderValue::from_str(&self.accept)) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        headers
    }
}

/// Carries a session until one of its ends is gone.
async fn run(upgraded: Upgraded, session: Session) {
    let Session { dialect, what } = session;
    let io = TokioIo::new(upgraded);
    if dialect.carrier == Carrier::Spdy {
        return over_spdy(io, dialect, what).await;
    }
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    match (dialect.carrier, what) {
        (Carrier::Channels(codec), What::Command { streams, options }) => {
            command::over_channels(socket, codec, dialect.version, streams, &options).await;
        }
        (Carrier::Channels(codec), What::Forward { pod, ports, dial }) => {
            forward::over_channels(socket, codec, &pod, ports, &dial).await;
        }
        (Carrier::Channels(codec), What::Log(log)) => websocket::send_log(socket, codec, log).await,
        (Carrier::Tunnel, What::Forward { pod, dial, .. }) => {
            let (sink, stream) = socket.split();
            let stream = Box::pin(websocket::payloads(stream));
            spdy::serve(stream, sink, |streams| forward::over_streams(streams, pod, dial)).await;
        }
        (Carrier::Tunnel | Carrier::Spdy, _) => tracing::error!("a dialect that was not negotiated"),
    }
}

async fn over_spdy(io: TokioIo<Upgraded>, dialect: Dialect, what: What) {
    let (reader, writer) = tokio::io::split(io);
    let bytes = Box::pin(unfold((reader, BytesMut::new()), |(mut reader, mut buffer)| async {
        buffer.reserve(16 << 10);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.split().freeze()), (reader, buffer))),
            Err(error) => Some((Err(error), (reader, buffer))),
        }
    }));
    match what {
        What::Command { streams, options } => {
            let handle = |opened| command::over_streams(opened, dialect.version, streams, options);
            spdy::serve(bytes, writer, handle).await;
        }
        What::Forward { pod, dial, .. } => {
            spdy::serve(bytes, writer, |opened| forward::over_streams(opened, pod, dial)).await;
        }
        What::Log(_) => tracing::error!("a dialect that was not negotiated"),
    }
}

impl spdy::Outgoing for tokio::io::WriteHalf<TokioIo<Upgraded>> {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write_all(&bytes).await?;
        self.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.shutdown().await
    }
}

impl spdy::Outgoing for websocket::Sink {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        SinkExt::send(self, bytes.into()).await.map_err(io::Error::other)
    }

    async fn close(&mut self) -> io::Result<()> {
        websocket::close(self).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(pairs: &[(&str, &str)]) -> Option<Wish> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Wish::of(&headers)
    }

    #[test]
    fn the_best_common_dialect_is_spoken() {
        let websocket = |offers: &str| wish(&[("upgrade", "WebSocket"), ("sec-websocket-protocol", offers)]);
        let name = |wish: Option<Wish>| wish.unwrap().for_command().map(|d| (d.name, d.version));
        assert_eq!(name(websocket("v4.channel.k8s.io, v5.channel.k8s.io")), Ok(("v5.channel.k8s.io", 5)));
        assert_eq!(name(websocket("base64.channel.k8s.io")), Ok(("base64.channel.k8s.io", 1)));
        assert_eq!(name(wish(&[("upgrade", "websocket")])), Ok(("", 1)));
        assert_eq!(name(websocket("chat")).unwrap_err().code, 400);
        let spdy = wish(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        assert_eq!(name(spdy), Ok(("v4.channel.k8s.io", 4)));
        let tunnel = websocket("SPDY/3.1+portforward.k8s.io").unwrap();
        assert_eq!(tunnel.for_forward().map(|d| d.carrier), Ok(Carrier::Tunnel));
        assert!(tunnel.for_command().is_err());
        assert_eq!(websocket("").unwrap().for_log().unwrap().map(|d| d.name), Some(""));
        assert_eq!(wish(&[("upgrade", "h2c")]), None);
    }
}
