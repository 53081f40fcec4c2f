//! A node and its pods as threads, each in a network namespace of its own. Nothing reaches the machine's own
//! network; when the threads end, the kernel removes everything.
#![allow(unsafe_code, dead_code)]

pub(crate) mod cluster;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::UnshareFlags;

/// False (with a message) when the test cannot run here.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert_ne!(std::env::var("PODIUM_TEST_REQUIRE").as_deref(), Ok("root"), "root is required");
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs `test` on a thread in a fresh network namespace where only a downed `lo` exists.
pub(crate) fn in_new_node<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        new_network();
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn new_network() {
    // SAFETY: only this thread's network and mount namespaces change; no descriptors are unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that lives in its own network namespace and does what it is asked to.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: PathBuf,
    jobs: mpsc::Sender<Job>,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            new_network();
            ready.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        let thread = started.recv().unwrap();
        let netns = PathBuf::from(format!("/proc/{}/task/{thread}/ns/net", std::process::id()));
        Self { id: id.to_owned(), netns, jobs }
    }

    /// Runs `work` inside and returns its result.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        self.jobs.send(Box::new(move || answer.send(work()).unwrap())).unwrap();
        answered.recv().expect("the work inside the pod does not panic")
    }

    /// Serves "<id> <client address>" on a TCP and a UDP port until the process ends.
    pub(crate) fn serve(&self, port: u16) {
        let id = self.id.clone();
        self.run(move || serve_here(&id, port));
    }
}

/// Like [`Pod::serve`], in the namespace of the caller. Clients of IPv4 come in IPv6's guise.
pub(crate) fn serve_here(id: &str, port: u16) {
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let (name, again) = (id.to_owned(), id.to_owned());
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            if write!(stream, "{name} {}", peer.ip().to_canonical()).is_err() {
                eprintln!("a client left early");
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            udp.send_to(format!("{again} {}", peer.ip().to_canonical()).as_bytes(), peer).unwrap();
        }
    });
}

/// What a server said: its name and the client address it saw.
pub(crate) type Answer = Result<(String, IpAddr), std::io::ErrorKind>;

/// One TCP exchange from the namespace of the caller.
pub(crate) fn ask(to: impl Into<SocketAddr>) -> Answer {
    let wait = Duration::from_secs(2);
    let mut text = String::new();
    let mut stream = TcpStream::connect_timeout(&to.into(), wait).map_err(|e| e.kind())?;
    stream.set_read_timeout(Some(wait)).unwrap();
    stream.read_to_string(&mut text).map_err(|e| e.kind())?;
    Ok(parse(&text))
}

/// One UDP exchange from a given local port (0: any).
pub(crate) fn ask_udp(to: impl Into<SocketAddr>, from_port: u16) -> Answer {
    let to = to.into();
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, from_port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.connect(to).map_err(|e| e.kind())?;
    socket.send(b"?").map_err(|e| e.kind())?;
    let mut buffer = [0; 64];
    let n = socket.recv(&mut buffer).map_err(|e| e.kind())?;
    Ok(parse(std::str::from_utf8(&buffer[..n]).unwrap()))
}

fn parse(text: &str) -> (String, IpAddr) {
    let (name, client) = text.split_once(' ').unwrap();
    (name.to_owned(), client.parse().unwrap())
}

pub(crate) fn at(address: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(address.into(), port))
}
