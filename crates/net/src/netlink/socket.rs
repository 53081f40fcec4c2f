//! The socket: request with acknowledgement, dump, and batch.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::writer::{Writer, flags, messages};
use super::{Message, NetlinkError};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// An error reply repeats the refused message, whose nests may be 64 KiB each.
const RECEIVE_BYTES: usize = 256 * 1024;

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(crate) fn route() -> Result<Self, NetlinkError> {
        // NETLINK_ROUTE is protocol 0
        Self::open(None)
    }

    pub(crate) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { fd })
    }

    /// A socket that hears of changes of links, addresses and routes; not blocking.
    pub(crate) fn route_changes() -> Result<Self, NetlinkError> {
        const LINK: u32 = 1;
        const IPV4_ADDRESS: u32 = 1 << 4;
        const IPV4_ROUTE: u32 = 1 << 6;
        const IPV6_ADDRESS: u32 = 1 << 8;
        const IPV6_ROUTE: u32 = 1 << 10;
        let socket = Self::open(None)?;
        let all = LINK | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE;
        let groups = netlink::SocketAddrNetlink::new(0, all);
        rustix::net::bind(&socket.fd, &groups)?;
        rustix::io::ioctl_fionbio(&socket.fd, true)?;
        Ok(socket)
    }

    /// Reads what a listening socket has heard; returns whether anything was left out because there was too much.
    pub(crate) fn heard(&self, mut each: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        let mut lost = false;
        loop {
            match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => messages(&buffer[..n]).for_each(|(kind, _, body)| each(kind, body)),
                Err(Errno::AGAIN) => return Ok(lost),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => lost = true,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Asks for one thing; hands the (type, body) of the reply to `each`.
    pub(crate) fn get(
        &self,
        kind: u16,
        header: &[u8],
        body: impl FnOnce(&mut Message<'_>),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        // The acknowledgement comes after the reply and ends the reading.
        self.read(kind, flags::ACK, header, body, each)
    }

    /// Sends one message and returns the kernel's verdict.
    pub(crate) fn request(
        &self,
        kind: u16,
        flag_bits: u16,
        header: &[u8],
        body: impl FnOnce(&mut Message<'_>),
    ) -> Result<(), NetlinkError> {
        let mut w = Writer::default();
        w.message(kind, flag_bits | flags::ACK, header, body);
        self.send(&w)
    }

    /// Sends all messages at once and returns the first refusal. At least one must ask for an acknowledgement.
    pub(crate) fn send(&self, w: &Writer) -> Result<(), NetlinkError> {
        // One datagram is one transaction, so it must fit the send buffer whole.
        if w.bytes().len() > 100_000 {
            sockopt::set_socket_send_buffer_size_force(&self.fd, w.bytes().len() + 4096)?;
        }
        rustix::net::send(&self.fd, w.bytes(), SendFlags::empty())?;
        let mut answered = false;
        let mut refusal: Option<NetlinkError> = None;
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            let received = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                // So many refusals that the queue overflowed; the first ones have been read or will be.
                Err(Errno::NOBUFS) => continue,
                Err(e) => return Err(e.into()),
            };
            for (kind, sequence, body) in messages(&buffer[..received]) {
                if kind != ERROR {
                    continue;
                }
                answered = true;
                let code = i32::from_ne_bytes(
                    body.get(..4).and_then(|b| b.try_into().ok()).ok_or(NetlinkError::Malformed)?,
                );
                if code != 0 && refusal.is_none() {
                    let errno = Errno::from_raw_os_error(-code);
                    refusal = Some(NetlinkError::Refused { index: sequence as usize, errno });
                }
            }
        }
        match refusal {
            Some(e) => Err(e),
            None if answered => Ok(()),
            None => Err(NetlinkError::NoAnswer),
        }
    }

    /// Asks for a dump and hands each (type, body) to `each`.
    pub(crate) fn dump(
        &self,
        kind: u16,
        header: &[u8],
        body: impl FnOnce(&mut Message<'_>),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.read(kind, flags::DUMP, header, body, each)
    }

    fn read(
        &self,
        kind: u16,
        flag_bits: u16,
        header: &[u8],
        body: impl FnOnce(&mut Message<'_>),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let mut w = Writer::default();
        w.message(kind, flag_bits, header, body);
        rustix::net::send(&self.fd, w.bytes(), SendFlags::empty())?;
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            let (received, _) = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for (kind, sequence, body) in messages(&buffer[..received]) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = i32::from_ne_bytes(
                            body.get(..4).and_then(|b| b.try_into().ok()).ok_or(NetlinkError::Malformed)?,
                        );
                        if code == 0 {
                            return Ok(());
                        }
                        let errno = Errno::from_raw_os_error(-code);
                        return Err(NetlinkError::Refused { index: sequence as usize, errno });
                    }
                    _ => each(kind, body),
                }
            }
        }
    }
}
