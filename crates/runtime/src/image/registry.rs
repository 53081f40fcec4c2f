//! Asking a registry (OCI distribution specification 1.1; its token service as Docker's registry defines it).
//!
//! ```text
//! GET ──▶ 401 with a challenge ──▶ basic credentials, or a token from the realm that it names ──▶ GET again
//!     ──▶ redirect ──▶ GET there, without credentials where it is another host
//! ```
//!
//! Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector, proxy::Tunnel};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;

use super::manifest::MAX_DOCUMENT_BYTES;
use super::registries::{Credential, Endpoint};
use crate::error::{During as _, RuntimeError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence before and within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
const AGENT: &str = concat!("podium/", env!("CARGO_PKG_VERSION"));

/// One repository on one endpoint, asked as one user.
pub(super) struct Registry {
    client: Client<HttpsConnector<Connector>, Empty<Bytes>>,
    /// `https://HOST/v2/REPOSITORY`
    base: String,
    repository: String,
    credential: Option<Credential>,
    /// What the registry was last content with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// The content of a blob, from its beginning or, if it is a part, from where it was asked for.
pub(super) struct Blob {
    pub(super) is_part: bool,
    body: Incoming,
}

impl Blob {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, RuntimeError>> {
        loop {
            let frame = match tokio::time::timeout(READ_TIMEOUT, self.body.frame()).await {
                Ok(frame) => frame?,
                Err(_) => return Some(Err(silence())),
            };
            match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    // trailers say nothing here
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(RuntimeError::Other(whole_story(&error)))),
            }
        }
    }
}

impl Registry {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the authorities that the endpoint is to be trusted by can't be read.
    pub(super) fn new(
        endpoint: &Endpoint,
        repository: &str,
        credential: Option<Credential>,
    ) -> Result<Self, RuntimeError> {
        let tls = trust(endpoint)?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = Connector { http, proxies: Arc::new(Matcher::from_env()) };
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
        let client = Client::builder(TokioExecutor::new())
            .build(https.https_or_http().enable_http1().wrap_connector(connector));
        let scheme = if endpoint.plain_http { "http" } else { "https" };
        // the one registry whose name is not its address
        let host = if endpoint.host == "docker.io" { "registry-1.docker.io" } else { &endpoint.host };
        Ok(Self {
            client,
            base: format!("{scheme}://{host}/v2/{repository}"),
            repository: repository.to_owned(),
            credential,
            authorization: Mutex::default(),
        })
    }

    /// The bytes of a manifest, by tag or digest.
    ///
    /// # Errors
    /// `NotFound` when the registry says so.
    pub(super) async fn manifest(&self, version: &str, types: &str) -> Result<Bytes, RuntimeError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, header(types)?);
        let response = self.get(&format!("{}/manifests/{version}", self.base), &headers).await?;
        document(response.into_body()).await
    }

    /// A blob, from a byte on if the registry can.
    ///
    /// # Errors
    /// `NotFound` when the registry says so.
    pub(super) async fn blob(&self, digest: &str, from: u64) -> Result<Blob, RuntimeError> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, header(&format!("bytes={from}-"))?);
        }
        let response = self.get(&format!("{}/blobs/{digest}", self.base), &headers).await?;
        let is_part = from > 0 && response.status() == StatusCode::PARTIAL_CONTENT;
        Ok(Blob { is_part, body: response.into_body() })
    }

    /// A successful answer, after whatever authentication and redirects it takes.
    async fn get(&self, url: &str, headers: &HeaderMap) -> Result<Response<Incoming>, RuntimeError> {
        let mut authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = self.ask(url, headers, authorization.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            authorization = Some(self.authenticate(response.headers()).await?);
            response = self.ask(url, headers, authorization.as_ref()).await?;
            self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&authorization);
        }
        let mut at = parse(url)?;
        for _ in 0..MAX_REDIRECTS {
            if !response.status().is_redirection() {
                return judge(response).await;
            }
            let to = target(&at, response.headers())?;
            if to.authority() != at.authority() {
                authorization = None;
            }
            response = self.ask(&to.to_string(), headers, authorization.as_ref()).await?;
            at = to;
        }
        Err(RuntimeError::Other(format!("{url}: more than {MAX_REDIRECTS} redirects")))
    }

    async fn ask(
        &self,
        url: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RuntimeError> {
        let mut request = Request::get(parse(url)?).header(USER_AGENT, AGENT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::new()).during(|| format!("cannot ask for {url}"))?;
        match tokio::time::timeout(READ_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| RuntimeError::Other(whole_story(&error))),
            Err(_) => Err(silence()),
        }
    }

    /// What to say to a registry that wants to know who asks.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<HeaderValue, RuntimeError> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = challenges.filter_map(Challenge::parse).collect();
        if let Some(Credential { username, password }) = &self.credential {
            if username.is_empty() {
                return header(&format!("Bearer {password}"));
            }
            if challenges.iter().any(|challenge| challenge.scheme == "basic") {
                return basic(username, password);
            }
        }
        let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") else {
            return Err(RuntimeError::Other(
                "unauthorized: the registry wants a user name and password".into(),
            ));
        };
        let url = bearer.token_url(&self.repository)?;
        if self.base.starts_with("https:") && !url.starts_with("https:") {
            return Err(RuntimeError::Other(format!(
                "the registry sends for a token to {url}, which is not secured"
            )));
        }
        let credential = match &self.credential {
            Some(Credential { username, password }) => Some(basic(username, password)?),
            None => None,
        };
        let response = self.ask(&url, &HeaderMap::new(), credential.as_ref()).await?;
        let answer = document(judge(response).await?.into_body()).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).during(|| "broken token".into())?;
        match answer["token"].as_str().or_else(|| answer["access_token"].as_str()) {
            Some(token) => header(&format!("Bearer {token}")),
            None => Err(RuntimeError::Other(format!("{url} gives no token"))),
        }
    }
}

/// Passes a success on and makes an error of everything else.
async fn judge(response: Response<Incoming>) -> Result<Response<Incoming>, RuntimeError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = document(response.into_body()).await.unwrap_or_default();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let error = &body["errors"][0];
    let (code, message) = (error["code"].as_str(), error["message"].as_str());
    let unknown = matches!(code, Some("MANIFEST_UNKNOWN" | "NAME_UNKNOWN" | "BLOB_UNKNOWN"));
    if status == StatusCode::NOT_FOUND || unknown {
        return Err(RuntimeError::NotFound("not found".into()));
    }
    let said = code.into_iter().chain(message).collect::<Vec<_>>().join(": ");
    let said = if said.is_empty() { said } else { format!(" ({said})") };
    Err(RuntimeError::Other(format!("the registry answers {status}{said}")))
}

/// Whom to believe to be the endpoint.
fn trust(endpoint: &Endpoint) -> Result<rustls::ClientConfig, RuntimeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .during(|| "cannot set TLS up".into())?;
    if endpoint.tls.insecure_skip_verify {
        let verifier = Arc::new(super::anybody::Anybody(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors.iter().filter(|_| system.certs.is_empty()) {
        tracing::debug!(%error, "the machine's authorities cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = &endpoint.tls.ca_file {
        let cannot = || format!("cannot read {}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).during(cannot)? {
            roots.add(certificate.during(cannot)?).during(cannot)?;
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// TCP, through a proxy where the environment names one.
#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut http = self.http.clone();
        let Some(proxy) = self.proxies.intercept(&to) else {
            let connecting = http.call(to);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), http);
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move { Ok(connecting.await?) })
    }
}

/// One challenge of a `WWW-Authenticate` header (RFC 9110, section 11.6.1).
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, left) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
            parameters.push((name, value.trim().to_owned()));
            rest = left;
        }
        let scheme = scheme.to_ascii_lowercase();
        (!scheme.is_empty()).then_some(Self { scheme, parameters })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Where a token that lets pull is had.
    fn token_url(&self, repository: &str) -> Result<String, RuntimeError> {
        let realm = self.get("realm").unwrap_or_default();
        if !realm.starts_with("https://") && !realm.starts_with("http://") {
            return Err(RuntimeError::Other(format!("the registry sends for a token to {realm:?}")));
        }
        let pull = format!("repository:{repository}:pull");
        let query = [("service", self.get("service")), ("scope", self.get("scope").or(Some(&pull)))];
        let query = query.iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped((*value)?))));
        let separator = if realm.contains('?') { '&' } else { '?' };
        Ok(format!("{realm}{separator}{}", query.collect::<Vec<_>>().join("&")))
    }
}

/// In a query (RFC 3986, section 2.1).
fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Where a redirect leads. A secured connection is not given up for one.
fn target(at: &Uri, headers: &HeaderMap) -> Result<Uri, RuntimeError> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| RuntimeError::Other(format!("{at}: a redirect to nowhere")))?;
    let whole = match location.strip_prefix('/') {
        None => location.to_owned(),
        Some(_) => {
            let authority = at.authority().map(ToString::to_string).unwrap_or_default();
            format!("{}://{authority}{location}", at.scheme_str().unwrap_or("https"))
        }
    };
    let to = parse(&whole)?;
    if at.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err(RuntimeError::Other(format!("{at}: a redirect to {to}, which is not secured")));
    }
    Ok(to)
}

fn parse(url: &str) -> Result<Uri, RuntimeError> {
    url.parse().during(|| format!("malformed address {url:?}"))
}

fn header(text: &str) -> Result<HeaderValue, RuntimeError> {
    HeaderValue::from_str(text)
        .map_err(|_| RuntimeError::Invalid("a credential cannot be sent in a header".into()))
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, RuntimeError> {
    header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

async fn document(body: Incoming) -> Result<Bytes, RuntimeError> {
    let limit = usize::try_from(MAX_DOCUMENT_BYTES).unwrap_or(usize::MAX);
    match tokio::time::timeout(READ_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => match error.downcast_ref::<http_body_util::LengthLimitError>() {
            Some(_) => {
                Err(RuntimeError::Invalid(format!("a document of more than {limit} bytes is too big")))
            }
            None => Err(RuntimeError::Other(whole_story(error.as_ref()))),
        },
        Err(_) => Err(silence()),
    }
}

fn silence() -> RuntimeError {
    RuntimeError::Other(format!("the registry was silent for {} s", READ_TIMEOUT.as_secs()))
}

/// An error with its causes: the outermost text of a transport error says only that one happened.
fn whole_story(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_say_where_tokens_are_had() {
        let cases = [
            (
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull""#,
                "https://auth.example/token?service=reg.example&scope=repository:a/b:pull",
            ),
            (r#"bearer realm="http://x/t?a=1""#, "http://x/t?a=1&scope=repository:me/app:pull"),
            (
                r#"Bearer realm="https://x/t", service="a b&c""#,
                "https://x/t?service=a%20b%26c&scope=repository:me/app:pull",
            ),
            ("Bearer realm=https://x/t,service=s", "https://x/t?service=s&scope=repository:me/app:pull"),
        ];
        for (text, url) in cases {
            assert_eq!(Challenge::parse(text).unwrap().token_url("me/app").unwrap(), url, "{text}");
        }
        assert_eq!(Challenge::parse("Basic").unwrap().scheme, "basic");
        assert!(Challenge::parse("").is_none());
        assert!(Challenge::parse(r#"Bearer realm="file:///etc""#).unwrap().token_url("a").is_err());
    }

    #[test]
    fn redirects_keep_to_secured_connections() {
        let to = |at: &str, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())]);
            target(&at.parse().unwrap(), &headers).map(|uri| uri.to_string()).ok()
        };
        let cases = [
            ("https://a/v2/x", "https://b/y?z=1", Some("https://b/y?z=1")),
            ("https://a/v2/x", "/y", Some("https://a/y")),
            ("http://a:5000/v2/x", "/y", Some("http://a:5000/y")),
            ("http://a/v2/x", "http://b/", Some("http://b/")),
            ("https://a/v2/x", "http://a/y", None),
        ];
        for (at, location, want) in cases {
            assert_eq!(to(at, location).as_deref(), want, "{at} {location}");
        }
    }
}
