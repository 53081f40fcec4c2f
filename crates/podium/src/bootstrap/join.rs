//! How a machine joins: it knows the server by the hash in its token, asks for a client certificate with the token, and
//! from then on is `system:node:NAME`. Certificates are asked for again before they end.
//!
//! ```text
//!   token ID.SECRET.CA ─▶ authority(): TLS, nothing sent ─▶ certificate whose SHA-256 is CA ─▶ trusted from now on
//!         bearer ID.SECRET ─▶ CertificateSigningRequest ─▶ client certificate (kept in the data directory)
//!         client certificate ─▶ CertificateSigningRequest ─▶ serving certificate, later client certificates
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use api::{ApiRequest, ApiResponse, EventKind, RequestOptions, Status};
use client::{Client, HttpTransport, Identity, Transport};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::KeyPair;
use ring::digest;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;

use super::pki::{Credential, lifetime, node_request, read, write_secret};
use super::signer::{CLIENT_SIGNER, SERVING_SIGNER, requests};

/// How long the signer may take.
const SIGNING: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

/// A token as `podium token create` prints it.
pub(crate) struct JoinToken {
    /// `ID.SECRET`
    bearer: String,
    /// SHA-256 of the authority's certificate, 64 hexadecimal digits
    authority: String,
}

impl JoinToken {
    /// # Errors
    /// When the text is no such token.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, authority] = parts[..] else {
            bail!("a token has three parts, ID.SECRET.CA: copy it as `podium token create` prints it")
        };
        let hexadecimal = authority.len() == 64 && authority.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(hexadecimal, "the last part of the token must be 64 hexadecimal digits");
        Ok(Self { bearer: format!("{id}.{secret}"), authority: authority.to_lowercase() })
    }
}

/// SHA-256 of a certificate (the first one of a PEM text), in hexadecimal.
///
/// # Errors
/// When the text holds no certificate.
pub(crate) fn authority_hash(ca_pem: &str) -> Result<String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("malformed authority certificate")?;
    Ok(hash(&der))
}

fn hash(der: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, der);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files of a joined machine.
pub(crate) struct Credentials {
    dir: PathBuf,
}

impl Credentials {
    /// # Errors
    /// When the folder can't be made.
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The authority and a client certificate that is still good, if the machine has joined before.
    pub(crate) fn joined(&self) -> Option<(String, Credential)> {
        let ca_pem = read(&self.path("ca.crt")).ok()?;
        let client = self.load(Purpose::Client.name())?;
        Some((ca_pem, client))
    }

    /// The serving certificate, if it is still good.
    pub(crate) fn serving(&self) -> Option<Credential> {
        self.load(Purpose::Serving.name())
    }

    fn load(&self, name: &str) -> Option<Credential> {
        let cert_pem = read(&self.path(&format!("{name}.crt"))).ok()?;
        let key_pem = read(&self.path(&format!("{name}.key"))).ok()?;
        let (_, end) = lifetime(&cert_pem).ok()?;
        (end > jiff::Timestamp::now().as_second()).then_some(Credential { cert_pem, key_pem })
    }

    /// Key and certificate go into one file each; the certificate, which is looked for, comes last.
    pub(crate) fn keep(&self, name: &str, credential: &Credential) -> Result<()> {
        write_secret(&self.path(&format!("{name}.key")), &credential.key_pem)?;
        write_secret(&self.path(&format!("{name}.crt")), &credential.cert_pem)
    }

    /// Joins with a token: returns the authority and the client certificate, which are kept.
    ///
    /// # Errors
    /// When the server is not the one that the token was made for, or refuses.
    pub(crate) async fn join(
        &self,
        server: &str,
        node: &str,
        token: &JoinToken,
    ) -> Result<(String, Credential)> {
        let ca_pem = find_authority(server, &token.authority).await?;
        let transport = HttpTransport::new(server, &ca_pem, Identity::Token(token.bearer.clone()))?;
        let client = Client::new(Arc::new(transport), "podium-agent");
        let credential = request(&client, node, Purpose::Client).await?;
        write_secret(&self.path("ca.crt"), &ca_pem)?;
        self.keep(Purpose::Client.name(), &credential)?;
        Ok((ca_pem, credential))
    }
}

/// Connects without sending anything and returns the certificate of the chain that has the hash, as PEM. That the
/// server holds a certificate of this authority is checked by whoever uses it.
async fn find_authority(server: &str, wanted: &str) -> Result<String> {
    let authority = server.strip_prefix("https://").context("the server must be https://HOST:PORT")?;
    let authority = authority.trim_end_matches('/');
    let host = authority.rsplit_once(':').context("the server must be https://HOST:PORT")?.0;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).context("malformed host")?;
    let config = client::tls::any_server()?;
    let connect = async {
        let tcp = TcpStream::connect(authority).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    };
    let stream = tokio::time::timeout(CONNECT, connect).await.context("the server does not answer")?;
    let stream = stream.with_context(|| format!("cannot connect to {server}"))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let found = chain.iter().find(|certificate| hash(certificate) == wanted);
    let found = found
        .with_context(|| format!("{server} does not belong to the cluster that the token was made for"))?;
    Ok(to_pem(found))
}

fn to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    /// Names the files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Purpose::Client => "client",
            Purpose::Serving => "serving",
        }
    }
}

/// Asks for a certificate with a new key and waits until it is issued.
///
/// # Errors
/// When the request is refused, or nobody approves it in time.
pub(crate) async fn request(client: &Client, node: &str, purpose: Purpose) -> Result<Credential> {
    let key = KeyPair::generate()?;
    let (signer, usage, names) = match purpose {
        Purpose::Client => (CLIENT_SIGNER, "client auth", &[][..]),
        Purpose::Serving => (SERVING_SIGNER, "server auth", &[node][..]),
    };
    let mut object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "node-csr-"},
        "spec": {"signerName": signer, "request": "", "usages": ["digital signature", usage]},
    }))?;
    object.spec.request = k8s_openapi::ByteString(node_request(node, &key, names)?.into_bytes());
    let made = client.create(None, &object).await.map_err(|s| anyhow!("no certificate: {s}"))?;
    let name = made.metadata.name.unwrap_or_default();
    let issued = tokio::time::timeout(SIGNING, wait_for(client, &name)).await;
    let cert_pem = issued.with_context(|| {
        format!("nobody has approved the certificate request {name} within {} s", SIGNING.as_secs())
    })??;
    Ok(Credential { cert_pem, key_pem: key.serialize_pem() })
}

async fn wait_for(client: &Client, name: &str) -> Result<String> {
    loop {
        let options = RequestOptions {
            field_selector: Some(format!("metadata.name={name}")),
            ..RequestOptions::default()
        };
        let events = client.watch(&requests(), None, options).await;
        let mut events =
            events.map_err(|status| anyhow!("cannot watch the certificate request: {status}"))?;
        while let Some(event) = events.next().await {
            if !matches!(event.kind, EventKind::Added | EventKind::Modified) {
                continue;
            }
            let object: CertificateSigningRequest = serde_json::from_slice(&event.object)?;
            let status = object.status.unwrap_or_default();
            if let Some(certificate) = status.certificate {
                return Ok(String::from_utf8(certificate.0)?);
            }
            for condition in status.conditions.unwrap_or_default() {
                if matches!(condition.type_.as_str(), "Denied" | "Failed") {
                    bail!("the certificate was refused: {}", condition.message.unwrap_or_default());
                }
            }
        }
    }
}

/// A transport whose client certificate can be exchanged while requests are under way.
pub(crate) struct NodeTransport {
    server: String,
    ca_pem: String,
    acting_as: Option<&'static str>,
    current: RwLock<Arc<HttpTransport>>,
}

impl NodeTransport {
    /// # Errors
    /// When the URL or the certificates are malformed.
    pub(crate) fn new(
        server: &str,
        ca_pem: &str,
        credential: &Credential,
        acting_as: Option<&'static str>,
    ) -> Result<Self> {
        let current = RwLock::new(Arc::new(connect(server, ca_pem, credential, acting_as)?));
        Ok(Self { server: server.to_owned(), ca_pem: ca_pem.to_owned(), acting_as, current })
    }

    /// New requests use the new certificate; watches go on over the old connection until they end.
    ///
    /// # Errors
    /// When the certificate is malformed.
    pub(crate) fn exchange(&self, credential: &Credential) -> Result<()> {
        let fresh = Arc::new(connect(&self.server, &self.ca_pem, credential, self.acting_as)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

fn connect(
    server: &str,
    ca_pem: &str,
    credential: &Credential,
    acting_as: Option<&str>,
) -> Result<HttpTransport> {
    let Credential { cert_pem, key_pem } = credential.clone();
    let own = HttpTransport::new(server, ca_pem, Identity::ClientCert { cert_pem, key_pem })?;
    Ok(match acting_as {
        None => own,
        Some(user) => own.acting_as(user),
    })
}

impl Transport for NodeTransport {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async move { current.call(request).await })
    }

    fn host(&self) -> &str {
        self.server.trim_start_matches("https://").trim_end_matches('/')
    }
}

/// The node whose client certificate it is.
///
/// # Errors
/// When it is no node's.
pub(crate) fn node_of(cert_pem: &str) -> Result<String> {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).context("not a PEM certificate")?;
    let certificate = block.parse_x509().context("not an X.509 certificate")?;
    let name = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let node = name.and_then(|name| name.strip_prefix("system:node:"));
    Ok(node.context("the kept certificate is no node's")?.to_owned())
}

/// The folder of a joined machine's certificates.
pub(crate) fn dir(data: &Path) -> PathBuf {
    data.join("node-pki")
}

#[cfg(test)]
mod tests {
    use super::super::pki::{Leaf, Pki, renewal_time};
    use super::*;

    #[test]
    fn tokens_have_three_parts() {
        let hash = "0a".repeat(32);
        let token = JoinToken::parse(&format!("abc123.0123456789abcdef.{}\n", hash.to_uppercase())).unwrap();
        assert_eq!((token.bearer.as_str(), token.authority.as_str()), ("abc123.0123456789abcdef", &hash[..]));
        for wrong in ["", "abc123.0123456789abcdef", "a.b.c", "a.b.c.d"] {
            assert!(JoinToken::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_survives_pem() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Pki::open(dir.path()).unwrap().ca_pem;
        let der = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
        assert_eq!(CertificateDer::from_pem_slice(to_pem(&der).as_bytes()).unwrap(), der);
        assert_eq!(authority_hash(&ca).unwrap(), hash(&der));
    }

    #[test]
    fn renewal_comes_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let admin = Pki::open(dir.path()).unwrap().issue(&Leaf::client("x", "x", &[])).unwrap();
        let (begin, end) = lifetime(&admin.cert_pem).unwrap();
        let renewal = renewal_time(&admin.cert_pem).unwrap();
        assert!(begin < renewal && renewal < end && end - renewal > 60 * 86_400);
    }

    /// A TLS server with a chain; answers nothing.
    async fn serve(chain: Vec<CertificateDer<'static>>, key_pem: String) -> String {
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((socket, _)) = listener.accept().await {
                drop(acceptor.accept(socket).await);
            }
        });
        format!("https://{address}")
    }

    #[tokio::test]
    async fn the_server_is_known_by_its_authority_before_anything_is_sent() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (pki, other) = (Pki::open(dir.path()).unwrap(), Pki::open(other.path()).unwrap());
        let leaf =
            pki.issue(&Leaf::server(vec!["localhost".into()], vec!["127.0.0.1".parse().unwrap()])).unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let url = serve(vec![der(&leaf.cert_pem), der(&pki.ca_pem)], leaf.key_pem.clone()).await;
        let found = find_authority(&url, &authority_hash(&pki.ca_pem).unwrap()).await.unwrap();
        assert_eq!(der(&found), der(&pki.ca_pem));
        let error = find_authority(&url, &authority_hash(&other.ca_pem).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("does not belong to the cluster"), "{error}");
    }
}
