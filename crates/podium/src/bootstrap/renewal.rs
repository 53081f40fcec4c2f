//! Certificates stay young while the process runs: each is made again after four fifths of its life and exchanged under
//! whoever uses it. Connections that are open stay open.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::pki::{Credential, Leaf, Pki, young_for};

/// After a certificate could not be renewed; it is still good for a fifth of its life.
const RETRY: Duration = Duration::from_secs(60);
/// Timers of days are cut into pieces: a machine that slept, or a clock that was set, is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A way to a younger certificate.
pub(crate) trait Renew: Send + Sync {
    /// For the log.
    fn name(&self) -> &str;

    /// Makes a certificate, puts it in use and returns it as PEM.
    fn renew(&self) -> impl Future<Output = Result<String>> + Send;
}

/// Renews a certificate again and again until `stop` turns true.
pub(crate) async fn keep_young(
    certificate: impl Renew,
    mut cert_pem: String,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let pause = match young_for(&cert_pem) {
            Some(seconds) => Duration::from_secs(seconds).min(LONGEST_WAIT),
            None => match certificate.renew().await {
                Ok(fresh) => {
                    tracing::info!(name = certificate.name(), "certificate renewed");
                    cert_pem = fresh;
                    if young_for(&cert_pem).is_some() {
                        continue;
                    }
                    // The clocks of signer and owner differ: asking again at once would change nothing.
                    RETRY
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(name = certificate.name(), error, "certificate not renewed");
                    RETRY
                }
            },
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// A certificate that this process signs for itself.
pub(crate) struct OwnLeaf<F> {
    pub(crate) pki: Arc<Pki>,
    pub(crate) leaf: Leaf,
    /// Puts a certificate in use.
    pub(crate) install: F,
}

impl<F: Fn(&Credential) -> Result<()> + Send + Sync> Renew for OwnLeaf<F> {
    fn name(&self) -> &str {
        self.leaf.file
    }

    async fn renew(&self) -> Result<String> {
        let fresh = self.pki.issue(&self.leaf)?;
        (self.install)(&fresh)?;
        Ok(fresh.cert_pem)
    }
}

/// What a server or a client shows in handshakes; it can be exchanged at any time.
#[derive(Debug)]
pub(crate) struct LiveCertificate(RwLock<Arc<CertifiedKey>>);

impl LiveCertificate {
    /// `issuer` (PEM) is shown behind the certificate.
    ///
    /// # Errors
    /// When a PEM text is malformed or the key is another certificate's.
    pub(crate) fn new(credential: &Credential, issuer: Option<&str>) -> Result<Self> {
        Ok(Self(RwLock::new(certified(credential, issuer)?)))
    }

    /// From the next handshake on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn exchange(&self, credential: &Credential, issuer: Option<&str>) -> Result<()> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(credential, issuer)?;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certified(credential: &Credential, issuer: Option<&str>) -> Result<Arc<CertifiedKey>> {
    let texts = [Some(credential.cert_pem.as_str()), issuer];
    let chain = texts.into_iter().flatten().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()));
    let chain: Vec<_> = chain.collect::<Result<_, _>>().context("malformed certificate")?;
    let key = PrivateKeyDer::from_pem_slice(credential.key_pem.as_bytes()).context("malformed key")?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Makes certificates of the future.
    struct Ahead(Arc<AtomicU32>);

    impl Renew for Ahead {
        fn name(&self) -> &str {
            "ahead"
        }

        async fn renew(&self) -> Result<String> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let mut params = rcgen::CertificateParams::default();
            let hour = Duration::from_secs(3600);
            params.not_before = (std::time::SystemTime::now() + hour).into();
            params.not_after = (std::time::SystemTime::now() + hour * 2).into();
            Ok(params.self_signed(&rcgen::KeyPair::generate()?)?.pem())
        }
    }

    #[tokio::test]
    async fn a_signer_whose_clock_is_ahead_is_not_asked_without_a_pause() {
        let asked = Arc::new(AtomicU32::new(0));
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(keep_young(Ahead(Arc::clone(&asked)), String::new(), stopping));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        stop.send_replace(true);
        task.await.unwrap();
    }
}
