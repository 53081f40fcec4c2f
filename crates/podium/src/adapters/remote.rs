//! Sessions with the servers of nodes on other machines.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::stream::{ByteStream, Connection, ExecOptions, ExecSession, LogOptions, NodeAnswer};
use api::{ObjectKey, Status};
use bytes::Bytes;
use client::Client;
use futures_util::{TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use node::server::wire::{self, Call, Frame, Verb};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bootstrap::renewal::LiveCertificate;

/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The way to all nodes that do not live in this process.
pub(crate) struct RemoteNodes {
    client: Client,
    connector: TlsConnector,
}

impl RemoteNodes {
    /// # Errors
    /// When the authority is malformed.
    pub(crate) fn new(client: Client, ca_pem: &str, certificate: Arc<LiveCertificate>) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.context("malformed authority certificate")?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(certificate);
        Ok(Self { client, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// A container's log.
    pub(crate) async fn logs(
        &self,
        node: &str,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> Result<ByteStream, Status> {
        let io = self.session(node, &Call::logs(namespace, pod, options)).await?;
        Ok(Box::pin(stream::unfold(Some(io), |io| async {
            let mut io = io?;
            match wire::read(&mut io).await {
                Ok(Some(Frame::Stdout(bytes))) => Some((Ok(bytes), Some(io))),
                Ok(Some(Frame::End(Ok(_)))) => None,
                Ok(Some(Frame::End(Err(status)))) => Some((Err(std::io::Error::other(status.message)), None)),
                Ok(_) => Some((Err(std::io::Error::other("the node ended the log early")), None)),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    /// Exec or attach.
    pub(crate) async fn streams(
        &self,
        verb: Verb,
        node: &str,
        namespace: &str,
        pod: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, Status> {
        let call = Call::streams(verb, namespace, pod, options.clone());
        Ok(wire::open(self.session(node, &call).await?, &options))
    }

    /// A connection to a port of a pod.
    pub(crate) async fn connect(
        &self,
        node: &str,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Connection, Status> {
        Ok(Box::new(self.session(node, &Call::forward(namespace, pod, port)).await?))
    }

    async fn session(
        &self,
        node: &str,
        call: &Call,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Status> {
        let opened = tokio::time::timeout(ANSWER, self.open(node, call)).await;
        opened.map_err(|_| Status::unavailable(format!("node {node:?} does not answer")))?
    }

    async fn open(
        &self,
        node: &str,
        call: &Call,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Status> {
        let body = serde_json::to_vec(call).map_err(Status::internal)?;
        let request = hyper::Request::post("/session")
            .header(HOST, node)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, wire::PROTOCOL)
            .body(Full::new(Bytes::from(body)))
            .map_err(Status::internal)?;
        let answer = self.ask(node, request).await?;
        if answer.status() != 101 {
            return Err(refusal(node, answer).await);
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|error| unreachable(node, &error))?;
        Ok(TokioIo::new(upgraded))
    }

    /// One of the node's own pages.
    pub(crate) async fn page(&self, node: &str, target: &str) -> Result<NodeAnswer, Status> {
        let request = hyper::Request::get(target).header(HOST, node).body(Full::default());
        let request = request.map_err(|_| Status::bad_request("malformed path"))?;
        let asked = tokio::time::timeout(ANSWER, self.ask(node, request)).await;
        let answer = asked.map_err(|_| Status::unavailable(format!("node {node:?} does not answer")))??;
        if !answer.status().is_success() {
            return Err(refusal(node, answer).await);
        }
        let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Ok(NodeAnswer {
            code: answer.status().as_u16(),
            content_type: content_type.unwrap_or_default().to_owned(),
            body: Box::pin(answer.into_body().into_data_stream().map_err(std::io::Error::other)),
        })
    }

    /// Sends one request on a connection of its own.
    async fn ask(
        &self,
        node: &str,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, Status> {
        let unreachable = |error: &dyn std::fmt::Display| unreachable(node, error);
        let object = self.client.get::<Node>(&ObjectKey::new("", node)).await?;
        let (host, port) = address(&object).ok_or_else(|| unreachable(&"it has published no address"))?;
        // A node proves its name, whatever its addresses are.
        let name = ServerName::try_from(node.to_owned()).map_err(|error| unreachable(&error))?;
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| unreachable(&error))?;
        tcp.set_nodelay(true).map_err(|error| unreachable(&error))?;
        let tls = self.connector.connect(name, tcp).await.map_err(|error| unreachable(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await;
        let (mut sender, connection) = handshake.map_err(|error| unreachable(&error))?;
        client::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a node ended");
            }
        });
        sender.send_request(request).await.map_err(|error| unreachable(&error))
    }
}

fn unreachable(node: &str, error: &dyn std::fmt::Display) -> Status {
    Status::unavailable(format!("node {node:?} is not reachable: {error}"))
}

/// The Status in an answer that is a refusal.
async fn refusal(node: &str, answer: hyper::Response<Incoming>) -> Status {
    let code = answer.status().as_u16();
    match answer.into_body().collect().await {
        Ok(body) => Status::from_value(&serde_json::from_slice(&body.to_bytes()).unwrap_or_default(), code),
        Err(error) => unreachable(node, &error),
    }
}

/// Where a node's server listens.
fn address(node: &Node) -> Option<(String, u16)> {
    let status = node.status.as_ref()?;
    let internal = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    Some((internal.address.clone(), u16::try_from(port).ok()?))
}
