//! Names that are not ours: asked of the host's resolvers, byte for byte.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const DNS_PORT: u16 = 53;
const LARGEST_UDP: usize = 4096;

/// The host's resolvers, read again whenever their file changes.
pub(super) struct Upstreams {
    file: PathBuf,
    /// our own addresses: asking them would go round in circles
    own: Vec<IpAddr>,
    known: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

/// How a query arrived, and so how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Udp,
    Tcp,
}

impl Upstreams {
    pub(super) fn new(file: &Path, own: Vec<IpAddr>) -> Self {
        Self { file: file.to_owned(), own, known: Mutex::new((None, Vec::new())) }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let changed = std::fs::metadata(&self.file).and_then(|m| m.modified()).ok();
        let mut known = self.known.lock().expect("no holder of the lock panics");
        if changed.is_none() || known.0 != changed {
            let text = std::fs::read_to_string(&self.file).unwrap_or_else(|error| {
                tracing::warn!(file = %self.file.display(), %error, "no resolvers for names outside the cluster");
                String::new()
            });
            *known = (changed, name_servers(&text, &self.own));
        }
        known.1.clone()
    }

    /// The reply of the first resolver that gives one; `None` if none does.
    pub(super) async fn ask(&self, query: &[u8], channel: Channel) -> Option<Vec<u8>> {
        let servers = self.servers();
        for server in std::iter::repeat_n(&servers, ROUNDS).flatten() {
            let asked = match channel {
                Channel::Udp => timeout(PATIENCE, ask_udp(*server, query)).await,
                Channel::Tcp => timeout(PATIENCE, ask_tcp(*server, query)).await,
            };
            match asked {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::debug!(%server, %error, "resolver failed"),
                Err(_) => tracing::debug!(%server, "resolver did not answer in time"),
            }
        }
        None
    }
}

/// The `nameserver` lines of resolv.conf(5), without our own addresses; a file without any means the local host.
fn name_servers(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<IpAddr> {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A zone after % names an interface; such addresses are not reachable without it.
        words.next()?.parse().ok()
    };
    let mut all: Vec<IpAddr> = text.lines().filter_map(address).collect();
    if all.is_empty() {
        all.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    all.retain(|a| !own.contains(a));
    all.into_iter().map(|a| SocketAddr::new(a, DNS_PORT)).collect()
}

/// A fresh socket, and so a fresh random port, per query: replies are hard to forge.
async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; LARGEST_UDP];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if answers(query, &buffer[..n]) {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    if answers(query, &reply) {
        Ok(reply)
    } else {
        Err(std::io::Error::other("the reply is to another query"))
    }
}

/// A response with the query's id and its question (name, type and class, whatever the letters' case).
fn answers(query: &[u8], reply: &[u8]) -> bool {
    const HEADER: usize = 12;
    const RESPONSE: u8 = 0x80;
    let question_end = |m: &[u8]| -> Option<usize> {
        let mut at = HEADER;
        loop {
            match usize::from(*m.get(at)?) {
                0 => return Some(at + 5),
                n => at += n + 1,
            }
        }
    };
    let question = |m: &[u8]| Some(m.get(HEADER..question_end(m)?)?.to_ascii_lowercase());
    reply.get(..2) == query.get(..2)
        && reply.get(2).is_some_and(|flags| flags & RESPONSE != 0)
        && question(query).is_some()
        && question(query) == question(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# c\nsearch a b\nnameserver 127.0.0.53\nnameserver\t2001:db8::1 # x\nnameserver 10.244.0.1\n\
                    nameserver fe80::1%eth0\noptions ndots:2\n";
        let own = ["10.244.0.1".parse().unwrap()];
        let expected: Vec<SocketAddr> =
            vec!["127.0.0.53:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(name_servers(text, &own), expected);
        assert_eq!(name_servers("search a\n", &own), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(name_servers("nameserver 10.244.0.1\n", &own), []);
    }

    #[test]
    fn only_the_reply_to_our_question_counts() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bC\x00\x00\x01\x00\x01";
        let mut reply = query.to_vec();
        assert!(!answers(query, &reply), "a query is no reply");
        reply[2] |= 0x80;
        reply.extend(b"more");
        assert!(answers(query, &reply));
        reply[13] = b'A';
        assert!(answers(query, &reply), "case does not matter");
        reply[13] = b'x';
        assert!(!answers(query, &reply));
        assert!(!answers(query, &reply[..7]));
    }
}
