//! TLS to webhooks and other API servers: whom to trust, and who asks.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::proxy::tls::trusting_anybody;
use crate::server::FrontProxy;

/// Where systems keep the authorities that everybody trusts.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The authorities of a `caBundle`: PEM certificates in base64.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn trust_roots(bundle: &str) -> Result<RootCertStore, String> {
    let pem = BASE64_STANDARD.decode(bundle).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("unable to load root certificates: no valid certificate found".to_owned());
    }
    Ok(roots)
}

/// The authorities of this machine; none where it has none.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let pem = SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    roots
}

/// Whom to believe.
pub(crate) enum Trust<'a> {
    /// Those that a `caBundle` vouches for; an empty one means the machine's authorities.
    Bundle(&'a str),
    /// Whoever answers.
    Anybody,
}

/// How to shake hands, with a certificate of one's own where it matters who asks.
///
/// # Errors
/// What is wrong with the bundle or with the own certificate.
pub(crate) fn client(trust: &Trust<'_>, own: Option<&FrontProxy>) -> Result<Arc<ClientConfig>, String> {
    let builder = match trust {
        Trust::Anybody => trusting_anybody().map_err(|error| error.to_string())?,
        Trust::Bundle(bundle) => {
            let roots = if bundle.is_empty() { system_roots() } else { trust_roots(bundle)? };
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
        }
    };
    let Some(own) = own else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(own.cert_pem.as_bytes()).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).map_err(|error| error.to_string())?;
    builder.with_client_auth_cert(chain, key).map(Arc::new).map_err(|error| error.to_string())
}

/// A failed handshake in the words that users of Kubernetes search for.
pub(crate) fn reason(error: &std::io::Error) -> String {
    use rustls::{CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(Error::InvalidCertificate(certificate)) = inner else { return error.to_string() };
    let why = match certificate {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is not valid for the name of the webhook".to_owned()
        }
        other => format!("{other:?}"),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}
