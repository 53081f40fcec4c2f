//! TLS to webhooks: whom to trust.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

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
