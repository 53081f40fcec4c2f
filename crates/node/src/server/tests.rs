use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::wire::Frame;
use super::*;

const CALLER: &str = "api-server";

/// A log of two pieces, and a command that says its arguments.
struct Fake;

impl Streams for Fake {
    fn logs<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: LogOptions,
    ) -> BoxFuture<'a, Result<ByteStream, Status>> {
        let text = format!("{ns}/{pod}/{} tail {:?}\n", o.container, o.tail_lines);
        let pieces = vec![Ok(Bytes::from(text)), Ok(Bytes::from_static(b"end\n"))];
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter(pieces)) as ByteStream) })
    }

    fn exec<'a>(
        &'a self,
        _: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        Box::pin(async move {
            if pod == "absent" {
                return Err(Status::not_found("", "pods", pod));
            }
            let (output_sender, output) = mpsc::channel(1);
            let (exit_sender, exit) = oneshot::channel();
            let (resize, _) = mpsc::channel(1);
            client::spawn(async move {
                let text = Bytes::from(o.command.join(" "));
                output_sender.send(api::stream::ExecOutput::Stderr(text)).await.unwrap();
                exit_sender.send(Ok(7)).unwrap();
            });
            Ok(ExecSession { stdin: None, output, resize, exit })
        })
    }

    fn attach<'a>(
        &'a self,
        ns: &'a str,
        pod: &'a str,
        o: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, Status>> {
        self.exec(ns, pod, o)
    }

    /// Port 7 echoes; nobody listens on any other.
    fn port_forward<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, Status>> {
        Box::pin(async move {
            if port != 7 {
                return Err(Status::internal("connection refused"));
            }
            let (near, far) = tokio::io::duplex(64);
            client::spawn(async move {
                let (mut from, mut to) = tokio::io::split(far);
                tokio::io::copy(&mut from, &mut to).await.unwrap();
                to.write_all(b" bye").await.unwrap();
            });
            Ok(Box::new(near) as Connection)
        })
    }

    fn page<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Result<NodeAnswer, Status>> {
        Box::pin(async move {
            match target {
                "/healthz" => Ok(NodeAnswer::new(200, "text/plain", "ok")),
                other => Err(Status::not_found("", "node pages", other)),
            }
        })
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

type Leaf = (Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Server {
    address: std::net::SocketAddr,
    authority: Authority,
    _stop: watch::Sender<bool>,
    _tls: watch::Sender<Arc<rustls::ServerConfig>>,
}

async fn start() -> Server {
    let authority = Authority::new();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(authority.roots(), provider()).build().unwrap();
    let (chain, key) = authority.leaf("node");
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let (_tls, newest) = watch::channel(Arc::new(config));
    let (_stop, stopping) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    client::spawn(async move { serve(Arc::new(Fake), listener, newest, CALLER, stopping).await });
    Server { address, authority, _stop, _tls }
}

impl Server {
    /// Sends a request with a client certificate, or none.
    async fn ask(
        &self,
        leaf: Option<Leaf>,
        method: Method,
        path: &str,
        call: Option<&Call>,
    ) -> io::Result<Response<Incoming>> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.authority.roots());
        let config = match leaf {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(self.address).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect("node".try_into().unwrap(), tcp).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
        client::spawn(async move { drop(connection.with_upgrades().await) });
        let body = call.map(|call| serde_json::to_vec(call).unwrap()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(path).header("host", "node");
        if call.is_some() {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, wire::PROTOCOL);
        }
        sender
            .send_request(request.body(Full::new(Bytes::from(body))).unwrap())
            .await
            .map_err(io::Error::other)
    }
}

#[tokio::test]
async fn only_the_api_server_is_served() {
    let server = start().await;
    let health = |leaf| server.ask(leaf, Method::GET, "/healthz", None);
    assert_eq!(health(Some(server.authority.leaf(CALLER))).await.unwrap().status(), 200);
    assert_eq!(health(Some(server.authority.leaf("system:node:b"))).await.unwrap().status(), 403);
    assert!(health(None).await.is_err(), "no certificate");
    assert!(health(Some(Authority::new().leaf(CALLER))).await.is_err(), "another authority");
}

#[tokio::test]
async fn sessions_carry_logs_and_commands_and_errors_come_before_them() {
    let server = start().await;
    let session = async |call: Call| {
        server.ask(Some(server.authority.leaf(CALLER)), Method::POST, "/session", Some(&call)).await.unwrap()
    };
    let options = LogOptions { container: "c".into(), tail_lines: Some(5), ..LogOptions::default() };
    let answer = session(Call::logs("ns", "pod", options)).await;
    assert_eq!(answer.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut text = Vec::new();
    while let Some(Frame::Stdout(bytes)) = wire::read(&mut io).await.unwrap() {
        text.extend_from_slice(&bytes);
    }
    assert_eq!(text, b"ns/pod/c tail Some(5)\nend\n");

    let options = ExecOptions { command: vec!["say".into(), "hi".into()], ..ExecOptions::default() };
    let absent = session(Call::streams(Verb::Exec, "ns", "absent", options.clone())).await;
    assert_eq!(absent.status(), 404);
    let answer = session(Call::streams(Verb::Exec, "ns", "pod", options.clone())).await;
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut opened = wire::open(io, &options);
    let text = api::stream::ExecOutput::Stderr(Bytes::from_static(b"say hi"));
    assert_eq!(opened.output.recv().await, Some(text));
    assert_eq!(opened.exit.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_port_is_a_connection_whose_halves_end_one_by_one() {
    use tokio::io::AsyncReadExt as _;
    let server = start().await;
    let ask = async |port| {
        let call = Call::forward("ns", "pod", port);
        server.ask(Some(server.authority.leaf(CALLER)), Method::POST, "/session", Some(&call)).await.unwrap()
    };
    let refused = ask(8).await;
    assert_eq!(refused.status(), 500);
    let why = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&why).contains("connection refused"));
    let mut io = TokioIo::new(hyper::upgrade::on(ask(7).await).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    io.shutdown().await.unwrap();
    let mut text = String::new();
    io.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello bye", "what came after the end of this half");
}
