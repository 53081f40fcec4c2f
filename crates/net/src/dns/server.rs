//! UDP and TCP listeners on one address.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::answer::{UDP_BYTES, answer, empty_reply};
use super::forward::{Channel, Upstreams};
use super::zone::Zone;

/// Queries waiting for a resolver, and TCP connections, at one time; more are refused.
const LIMIT: usize = 1024;
/// A client that says nothing for so long is cut off.
const IDLE: Duration = Duration::from_secs(10);
/// Replies to clients that do not say more (RFC 1035).
const PLAIN_UDP_BYTES: u16 = 512;

/// What every listener shares.
pub(super) struct Service {
    zone: Arc<RwLock<Zone>>,
    upstreams: Upstreams,
    forwarding: Semaphore,
    connections: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(zone: Arc<RwLock<Zone>>, upstreams: Upstreams) -> Self {
        let (forwarding, connections) = (Semaphore::new(LIMIT), Arc::new(Semaphore::new(LIMIT)));
        Self { zone, upstreams, forwarding, connections }
    }

    /// The reply if the zone has it all; otherwise what still has to be asked elsewhere.
    fn at_once(&self, request: &Message) -> Result<Message, Option<Message>> {
        let zone = self.zone.read().expect("no writer of the zone panics");
        match answer(request, &zone) {
            Some(reply) if dangling_alias(&reply).is_none_or(|target| zone.contains(&target)) => Ok(reply),
            other => Err(other),
        }
    }

    /// The rest of the work for a query that [`Service::at_once`] could not finish.
    async fn elsewhere(
        &self,
        request: &Message,
        bytes: &[u8],
        begun: Option<Message>,
        channel: Channel,
    ) -> Vec<u8> {
        let Ok(_permit) = self.forwarding.try_acquire() else {
            return failure(request);
        };
        let Some(mut reply) = begun else {
            return self.upstreams.ask(bytes, channel).await.unwrap_or_else(|| failure(request));
        };
        // An ExternalName service: clients expect the addresses behind the alias too.
        let mut behind = request.clone();
        if let (Some(target), Some(query)) = (dangling_alias(&reply), behind.queries.first_mut()) {
            query.set_name(target);
            if let Ok(question) = behind.to_vec() {
                let found = self.upstreams.ask(&question, channel).await;
                if let Some(found) = found.and_then(|f| Message::from_vec(&f).ok()) {
                    reply.add_answers(found.answers);
                }
            }
        }
        encode(&reply, udp_limit(request, channel)).unwrap_or_else(|| failure(request))
    }
}

/// Serves UDP until the socket fails.
pub(super) async fn serve_udp(socket: UdpSocket, service: Arc<Service>) -> io::Error {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    loop {
        let (n, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier reply that could not be delivered.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => return e,
        };
        let Some(request) = parse(&buffer[..n]) else { continue };
        match service.at_once(&request) {
            Ok(reply) => {
                let limit = udp_limit(&request, Channel::Udp);
                let bytes = encode(&reply, limit).unwrap_or_else(|| failure(&request));
                send(&socket, &bytes, client).await;
            }
            Err(begun) => {
                let (bytes, socket, service) =
                    (buffer[..n].to_vec(), Arc::clone(&socket), Arc::clone(&service));
                tokio::spawn(async move {
                    let reply = service.elsewhere(&request, &bytes, begun, Channel::Udp).await;
                    send(&socket, &reply, client).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "DNS reply not sent");
    }
}

/// Serves TCP until the listener fails.
pub(super) async fn serve_tcp(listener: TcpListener, service: Arc<Service>) -> io::Error {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => return e,
        };
        let Ok(permit) = Arc::clone(&service.connections).try_acquire_owned() else { continue };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &service).await {
                tracing::trace!(%error, "DNS connection ended");
            }
            drop(permit);
        });
    }
}

/// Queries of one connection, one after the other.
async fn converse(mut stream: TcpStream, service: &Service) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(request) = parse(&bytes) else { return Ok(()) };
        let reply = match service.at_once(&request) {
            Ok(reply) => encode(&reply, u16::MAX).unwrap_or_else(|| failure(&request)),
            Err(begun) => service.elsewhere(&request, &bytes, begun, Channel::Tcp).await,
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await?;
    }
}

/// A request; malformed ones that still have a header get a reply that says so, the rest nothing.
fn parse(bytes: &[u8]) -> Option<Message> {
    use hickory_proto::op::MessageType;
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Some(message),
        Ok(_) => None,
        Err(_) => {
            // No question: `answer` calls that a format error.
            let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
            let is_query = bytes.get(2)? & 0x80 == 0;
            is_query.then(|| Message::new(id, MessageType::Query, OpCode::Query))
        }
    }
}

/// The alias at the end of a reply whose target is still to be looked up.
fn dangling_alias(reply: &Message) -> Option<hickory_proto::rr::Name> {
    let wanted = reply.queries.first()?.query_type();
    match &reply.answers.last()?.data {
        RData::CNAME(target) if wanted != RecordType::CNAME => Some(target.0.clone()),
        _ => None,
    }
}

fn udp_limit(request: &Message, channel: Channel) -> u16 {
    match (channel, &request.edns) {
        (Channel::Tcp, _) => u16::MAX,
        (Channel::Udp, None) => PLAIN_UDP_BYTES,
        (Channel::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_BYTES, UDP_BYTES),
    }
}

/// The reply in bytes; one that does not fit says so and is empty, and the client comes back over TCP.
fn encode(reply: &Message, limit: u16) -> Option<Vec<u8>> {
    let attempt =
        |m: &Message| m.to_vec().inspect_err(|e| tracing::warn!(error = %e, "DNS reply not encoded")).ok();
    let bytes = attempt(reply)?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    if !reply.additionals.is_empty() {
        let mut shorter = reply.clone();
        shorter.additionals.clear();
        return encode(&shorter, limit);
    }
    attempt(&reply.truncate())
}

fn failure(request: &Message) -> Vec<u8> {
    let mut reply = empty_reply(request);
    reply.metadata.response_code = ResponseCode::ServFail;
    // A reply with nothing but the question always encodes; if not, silence is an answer too.
    reply.to_vec().unwrap_or_default()
}
