//! Rules of others (Docker's, a host firewall's) that drop packets of pods. They are never changed; who runs the machine is
//! told.
//!
//! ```text
//!   chains of others at the hooks `forward` and `input` ─▶ any that may drop? ─▶ probe: packets from pod to pod and from
//!                                                          (else: nothing to do)   pod to node ─▶ Report
//! ```
//!
//! A drop policy alone proves nothing, as other rules of that table may accept our packets; so two namespaces are attached
//! like pods for a moment and talk. Formats: linux/netfilter/nf_tables.h.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::UnshareFlags;

use crate::address::Family;
use crate::netlink::{NetlinkError, Socket, attributes};
use crate::pod_net::{PodNet, PodNetError};

/// How long one packet may take there and back, and how many are sent.
const PATIENCE: Duration = Duration::from_millis(300);
const ATTEMPTS: u32 = 3;

/// What was found; nothing if all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Packets between pods of this node don't arrive.
    pub between_pods: bool,
    /// Packets from pods to this node don't arrive: no DNS, no services of the node itself.
    pub to_node: bool,
    /// Chains of others that may be the reason.
    pub chains: Vec<String>,
}

impl Report {
    pub fn is_blocked(&self) -> bool {
        self.between_pods || self.to_node
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.between_pods, self.to_node) {
            (true, true) => "between pods, and from pods to this node",
            (true, false) => "between pods",
            (false, true) => "from pods to this node",
            (false, false) => return write!(f, "no traffic of pods is dropped"),
        };
        write!(f, "packet rules on this machine drop traffic {what}; look at {}", self.chains.join(", "))
    }
}

/// Looks for rules that may drop, and if there are any whether they do. Takes a few milliseconds when there are none.
///
/// # Errors
/// When the kernel can't be asked or the probes can't be attached.
pub async fn check(net: &PodNet, own_tables: &str) -> Result<Report, PodNetError> {
    let own = own_tables.to_owned();
    let asked = tokio::task::spawn_blocking(move || suspects(&own)).await;
    let chains = asked
        .map_err(|_| PodNetError::Worker)?
        .map_err(|source| PodNetError::Netlink { step: "list the machine's packet rules", source })?;
    if chains.is_empty() {
        return Ok(Report::default());
    }
    let probes = [Probe::start("probe-a"), Probe::start("probe-b")];
    let outcome = talk(net, &probes).await;
    for probe in &probes {
        net.detach(probe.id).await?;
    }
    let (between_pods, to_node) = outcome?;
    Ok(Report { between_pods, to_node, chains })
}

async fn talk(net: &PodNet, probes: &[Probe; 2]) -> Result<(bool, bool), PodNetError> {
    let mut other = None;
    for probe in probes {
        let netns = probe.netns.clone().ok_or(PodNetError::Worker)?;
        other = net.attach(probe.id, &netns).await?.into_iter().find(IpAddr::is_ipv4);
    }
    let (Some(other), Some(gateway)) = (other, net.gateway(Family::V4)) else {
        // Only packets of IPv4 are tried.
        return Ok((false, false));
    };
    let peer = probes[1].run(move || echo((Ipv4Addr::UNSPECIFIED, 0).into())).await?;
    let node = echo((gateway, 0).into());
    let mut blocked = [false, false];
    for (blocked, (address, port)) in blocked.iter_mut().zip([(other, peer), (gateway, node)]) {
        // No port is no proof of anything.
        let Ok(port) = port else { continue };
        *blocked = !probes[0].run(move || answers((address, port).into())).await?;
    }
    Ok((blocked[0], blocked[1]))
}

/// Answers packets for a short while; returns the port.
fn echo(at: SocketAddr) -> io::Result<u16> {
    let socket = UdpSocket::bind(at)?;
    socket.set_read_timeout(Some(PATIENCE * (2 * ATTEMPTS)))?;
    let port = socket.local_addr()?.port();
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            if let Err(error) = socket.send_to(&buffer[..n], client) {
                tracing::debug!(%error, "an answer to a probe was not sent");
            }
        }
    });
    Ok(port)
}

fn answers(to: SocketAddr) -> bool {
    let ask = || -> io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 8]).map(drop)
    };
    (0..ATTEMPTS).any(|_| ask().is_ok())
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which ends with it.
struct Probe {
    id: &'static str,
    netns: Option<PathBuf>,
    jobs: mpsc::Sender<Job>,
}

impl Probe {
    fn start(id: &'static str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: only this thread's network namespace changes; no descriptors are unshared.
            let alone = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            let thread = rustix::thread::gettid().as_raw_nonzero();
            if alone.is_err() || ready.send(thread).is_err() {
                return;
            }
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        let path = |thread| PathBuf::from(format!("/proc/{}/task/{thread}/ns/net", std::process::id()));
        Self { id, netns: started.recv().ok().map(path), jobs }
    }

    /// Runs a job inside and waits for it.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PodNetError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let job = move || {
            if answer.send(job()).is_err() {
                tracing::debug!("nobody waits for a probe");
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| PodNetError::Worker)?;
        answered.await.map_err(|_| PodNetError::Worker)
    }
}

/// The filtering chains of others that see forwarded or incoming packets and may drop them: those with that policy, and
/// those with any rule at all.
fn suspects(own_tables: &str) -> Result<Vec<String>, NetlinkError> {
    const GET_CHAIN: u16 = 10 << 8 | 4;
    let mut found = Vec::new();
    Socket::netfilter()?.dump(
        GET_CHAIN,
        &[0; 4],
        |_| {},
        |_, body| {
            found.extend(suspect(body).filter(|chain| !chain.table.starts_with(own_tables)));
        },
    )?;
    // The older kind of tables is not listed there.
    let older = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    let mut chains: Vec<String> = found.iter().map(ToString::to_string).collect();
    chains.extend(older.lines().filter(|l| *l == "filter").map(|_| "iptables -L".to_owned()));
    Ok(chains)
}

struct Chain {
    family: u8,
    table: String,
    name: String,
    drops: bool,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == 1 { "inet" } else { "ip" };
        let policy = if self.drops { " (policy drop)" } else { "" };
        write!(f, "`nft list chain {family} {} {}`{policy}", self.table, self.name)
    }
}

fn suspect(body: &[u8]) -> Option<Chain> {
    const INET: u8 = 1;
    const IPV4: u8 = 2;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let family = *body.first()?;
    let all: Vec<(u16, &[u8])> = attributes(body.get(4..)?).collect();
    let value = |wanted| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let text = |wanted| {
        let bytes = value(wanted)?;
        Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned())
    };
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let hook = attributes(value(4)?).find(|(kind, _)| *kind == 1).and_then(|(_, v)| number(v))?;
    let filters = text(7)? == "filter" && matches!(hook, INPUT | FORWARD) && matches!(family, INET | IPV4);
    let drops = value(5).and_then(number) == Some(DROP);
    let used = value(6).and_then(number).is_some_and(|rules| rules > 0);
    (filters && (drops || used)).then_some(Chain { family, table: text(1)?, name: text(3)?, drops })
}
