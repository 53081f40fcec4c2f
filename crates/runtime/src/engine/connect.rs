//! Connections to servers inside a sandbox.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use tokio::net::{TcpSocket, TcpStream};

use super::Engine;
use crate::error::{During as _, RuntimeError};
use crate::wire::{Reply, Request};

impl Engine {
    /// Connects to a port on the loopback interface of a sandbox, IPv4 first. The sandbox's shim makes the socket: no
    /// thread of this process ever enters the sandbox's network.
    ///
    /// # Errors
    /// `NotFound` for an unknown sandbox, `Other` when nobody listens there.
    pub async fn connect(&self, sandbox_id: &str, port: u16) -> Result<TcpStream, RuntimeError> {
        let first = self.connect_to(sandbox_id, Ipv4Addr::LOCALHOST.into(), port).await;
        match first {
            Err(RuntimeError::Other(_)) => {
                // What the first address said is told: most servers that listen on neither are meant to be there.
                self.connect_to(sandbox_id, Ipv6Addr::LOCALHOST.into(), port).await.or(first)
            }
            other => other,
        }
    }

    async fn connect_to(
        &self,
        sandbox_id: &str,
        address: IpAddr,
        port: u16,
    ) -> Result<TcpStream, RuntimeError> {
        let request = Request::Socket { ipv6: address.is_ipv6() };
        let (_, reply, fds) = self.ask(sandbox_id, request).await?;
        let socket: OwnedFd = match (reply, fds.into_iter().next()) {
            (Reply::Socket, Some(fd)) => fd,
            _ => return Err(RuntimeError::Other("the shim answered nonsense".into())),
        };
        let socket = TcpSocket::from_std_stream(socket.into());
        let address = SocketAddr::new(address, port);
        let stream = socket.connect(address).await.during(|| format!("failed to connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
