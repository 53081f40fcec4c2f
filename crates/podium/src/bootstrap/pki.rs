//! The cluster's certificate authority, the API server's certificate, client certificates, the service-account key; and a
//! second authority, whose only client is the API server when it passes requests on to other API servers.
//!
//! Keys are made once, at random, and never anew silently: a missing key beside its certificate is an error.
//! Leaf certificates are made again, at a start and while the process runs ([`super::renewal`]), after four fifths of their
//! life, when they are to name other addresses, and when the clock says that they aren't valid yet.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use apiserver::FrontProxy;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Days that a leaf certificate is valid.
const LEAF_DAYS: i64 = 365;
/// Days that the authority is valid.
const CA_DAYS: i64 = 3650;

/// Days before its making from which the authority, and a leaf, is valid: a clock that was ahead and is set right, or another
/// machine's that is behind, does not make it a certificate of the future.
const CA_BACK_DAYS: i64 = 365;
const LEAF_BACK_DAYS: i64 = 30;

/// A machine's clock may be this much behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// A certificate and its private key.
#[derive(Clone)]
pub(crate) struct Credential {
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
}

/// Key material of the cluster, opened or made.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    ca_key_pem: String,
    front_proxy_ca: Credential,
    /// PKCS#8 PEM of the ECDSA P-256 key that signs service-account tokens
    pub(crate) service_account_key_pem: String,
    dir: PathBuf,
}

impl Pki {
    /// Opens the key directory, or makes everything in it on the first start.
    ///
    /// # Errors
    /// When a file can't be read or written, or when half of a pair is missing.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let ca = open_authority(dir, "ca", "podium-ca")?;
        let front_proxy_ca = open_authority(dir, "front-proxy-ca", "front-proxy-ca")?;
        let token_key = dir.join("service-account.key");
        if !token_key.exists() {
            write_secret(&token_key, &KeyPair::generate()?.serialize_pem())?;
        }
        Ok(Self {
            ca_pem: ca.cert_pem,
            ca_key_pem: ca.key_pem,
            front_proxy_ca,
            service_account_key_pem: read(&token_key)?,
            dir: dir.to_owned(),
        })
    }

    /// A certificate; the one on disk if it is young and says the same.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub(crate) fn issue(&self, leaf: &Leaf) -> Result<Credential> {
        let path = |extension: &str| self.dir.join(format!("{}.{extension}", leaf.file));
        let (cert, key, contents) = (path("crt"), path("key"), path("for"));
        let wanted = leaf.contents();
        let same = fs::read_to_string(&contents).is_ok_and(|text| text == wanted);
        if same && cert.exists() && key.exists() && young_for(&read(&cert)?).is_some() {
            return Ok(Credential { cert_pem: read(&cert)?, key_pem: read(&key)? });
        }
        let mut params = leaf.params()?;
        validity(&mut params, LEAF_BACK_DAYS, LEAF_DAYS);
        let key_pair = KeyPair::generate()?;
        let (ca_pem, ca_key_pem) = match leaf.signer {
            Signer::Cluster => (&self.ca_pem, &self.ca_key_pem),
            Signer::FrontProxy => (&self.front_proxy_ca.cert_pem, &self.front_proxy_ca.key_pem),
        };
        let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key_pem)?)
            .context("the authority's certificate and key can't be used")?;
        let made = params.signed_by(&key_pair, &issuer)?;
        let credential = Credential { cert_pem: made.pem(), key_pem: key_pair.serialize_pem() };
        write_secret(&key, &credential.key_pem)?;
        write_secret(&cert, &credential.cert_pem)?;
        write_secret(&contents, &wanted)?;
        Ok(credential)
    }

    /// What the API server shows to other API servers that it passes requests on to, with the authority that vouches for it.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub(crate) fn front_proxy(&self) -> Result<FrontProxy> {
        let client = Leaf::client("front-proxy-client", FrontProxy::NAME, &[]);
        let Credential { cert_pem, key_pem } = self.issue(&Leaf { signer: Signer::FrontProxy, ..client })?;
        Ok(FrontProxy { ca_pem: self.front_proxy_ca.cert_pem.clone(), cert_pem, key_pem })
    }

    /// What signs other machines' requests.
    pub(crate) fn authority(&self) -> Authority {
        Authority { ca_pem: self.ca_pem.clone(), ca_key_pem: self.ca_key_pem.clone() }
    }
}

/// What a certificate of the control plane is for.
#[derive(Clone)]
pub(crate) struct Leaf {
    /// Names the files.
    pub(crate) file: &'static str,
    kind: LeafKind,
    signer: Signer,
}

#[derive(Clone, Copy)]
enum Signer {
    Cluster,
    FrontProxy,
}

#[derive(Clone)]
enum LeafKind {
    Server { names: Vec<String>, addresses: Vec<IpAddr> },
    Client { user: &'static str, groups: &'static [&'static str] },
}

impl Leaf {
    /// The API server's, for these names and addresses.
    pub(crate) fn server(names: Vec<String>, addresses: Vec<IpAddr>) -> Self {
        Self { file: "apiserver", kind: LeafKind::Server { names, addresses }, signer: Signer::Cluster }
    }

    /// A client's: `user` is the common name, `groups` are the organisations (Kubernetes: "X.509 client certificates").
    pub(crate) fn client(file: &'static str, user: &'static str, groups: &'static [&'static str]) -> Self {
        Self { file, kind: LeafKind::Client { user, groups }, signer: Signer::Cluster }
    }

    /// Kept beside the certificate, which is made again when it changes.
    fn contents(&self) -> String {
        match &self.kind {
            LeafKind::Server { names, addresses } => format!("{names:?} {addresses:?}"),
            LeafKind::Client { user, groups } => format!("{user} {groups:?}"),
        }
    }

    fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match &self.kind {
            LeafKind::Server { names, addresses } => {
                params.subject_alt_names = CertificateParams::new(names.clone())?.subject_alt_names;
                params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
                params.distinguished_name = subject("kube-apiserver", &[]);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            LeafKind::Client { user, groups } => {
                params.distinguished_name = subject(user, groups);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        Ok(params)
    }
}

/// The key that signs certificates, without the rest of the key directory.
pub(crate) struct Authority {
    ca_pem: String,
    ca_key_pem: String,
}

impl Authority {
    /// Signs a request that was found good: its subject, names and key, and nothing else of it. Returns PEM.
    ///
    /// # Errors
    /// When the authority's key can't be used.
    pub(crate) fn sign_request(
        &self,
        request: CertificateSigningRequestParams,
        usage: ExtendedKeyUsagePurpose,
        seconds: i64,
    ) -> Result<String> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = request.params.distinguished_name;
        params.subject_alt_names = request.params.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let now = SystemTime::now();
        let end = now.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        params.not_before = now.checked_sub(CLOCK_SKEW).unwrap_or(now).into();
        params.not_after = end.context("the end of the certificate is beyond all time")?.into();
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, KeyPair::from_pem(&self.ca_key_pem)?)
            .context("the authority's certificate and key can't be used")?;
        let made = params.signed_by(&request.public_key, &issuer)?;
        Ok(made.pem())
    }
}

/// A PKCS#10 request (PEM) of a node; `names` are those of its server, none for a client certificate.
///
/// # Errors
/// When a name is no DNS name.
pub(crate) fn node_request(node: &str, key: &KeyPair, names: &[&str]) -> Result<String> {
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = subject(&format!("system:node:{node}"), &["system:nodes"]);
    Ok(params.serialize_request(key)?.pem()?)
}

/// An authority of the key directory; made when it has neither certificate nor key.
fn open_authority(dir: &Path, file: &str, name: &str) -> Result<Credential> {
    let (cert, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    match (cert.exists(), key.exists()) {
        (false, false) => {
            let (cert_pem, key_pem) = new_authority(name)?;
            write_secret(&key, &key_pem)?;
            write_secret(&cert, &cert_pem)?;
        }
        (true, true) => {}
        (true, false) => bail!("{} is missing: restore it from a backup", key.display()),
        (false, true) => bail!("{} is missing: restore it from a backup", cert.display()),
    }
    let cert_pem = read(&cert)?;
    let (begin, end) = lifetime(&cert_pem)?;
    let now = jiff::Timestamp::now().as_second();
    ensure!(
        now <= end,
        "{} has expired, or the machine's clock is wrong: nothing can be signed or trusted any more",
        cert.display()
    );
    ensure!(
        begin <= now,
        "{} is not valid yet, the machine's clock is behind: set it and start again",
        cert.display()
    );
    Ok(Credential { cert_pem, key_pem: read(&key)? })
}

fn new_authority(name: &str) -> Result<(String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = subject(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_BACK_DAYS, CA_DAYS);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

pub(super) fn subject(common_name: &str, organisations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organisation in organisations {
        name.push(DnType::OrganizationName, *organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid for so many days, and so many that have passed.
fn validity(params: &mut CertificateParams, back: i64, days: i64) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |offset: i64| {
        let date = today.saturating_add(jiff::Span::new().days(offset));
        let part = |value: i8| u8::try_from(value).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    params.not_before = date(-back);
    params.not_after = date(days);
}

/// For how many seconds a certificate need not be made again. `None`: now, because it is due, or because it is not valid yet.
pub(crate) fn young_for(cert_pem: &str) -> Option<u64> {
    let now = jiff::Timestamp::now().as_second();
    let (begin, _) = lifetime(cert_pem).ok()?;
    let left = renewal_time(cert_pem).ok()? - now;
    u64::try_from(left).ok().filter(|left| *left > 0 && begin <= now)
}

/// When a certificate is to be asked for again, in seconds since the epoch: after four fifths of its life.
///
/// # Errors
/// When it can't be read.
pub(crate) fn renewal_time(cert_pem: &str) -> Result<i64> {
    let (begin, end) = lifetime(cert_pem)?;
    Ok(begin + (end - begin) / 5 * 4)
}

/// Begin and end of a certificate in seconds since the epoch.
///
/// # Errors
/// When it can't be read.
pub(crate) fn lifetime(cert_pem: &str) -> Result<(i64, i64)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).context("not a PEM certificate")?;
    let cert = pem.parse_x509().context("not an X.509 certificate")?;
    let validity = cert.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it can't be written.
pub(crate) fn write_secret(path: &Path, contents: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_open_keeps_the_keys_and_fresh_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path()).unwrap();
        let admin = first.issue(&Leaf::client("admin", "admin", &["system:masters"])).unwrap();
        let again = Pki::open(dir.path()).unwrap();
        assert_eq!(first.ca_pem, again.ca_pem);
        assert_eq!(first.service_account_key_pem, again.service_account_key_pem);
        assert_eq!(
            admin.cert_pem,
            again.issue(&Leaf::client("admin", "admin", &["system:masters"])).unwrap().cert_pem
        );
        let other = again.issue(&Leaf::client("admin", "admin", &["other"])).unwrap();
        assert_ne!(admin.cert_pem, other.cert_pem, "another subject needs another certificate");
    }

    #[test]
    fn the_front_proxy_has_an_authority_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let one = pki.front_proxy().unwrap();
        assert_ne!(one.ca_pem, pki.ca_pem, "who may be a client is no proxy");
        let (_, pem) = x509_parser::pem::parse_x509_pem(one.cert_pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.subject().to_string(), "CN=front-proxy-client");
        assert_eq!(cert.issuer().to_string(), "CN=front-proxy-ca");
        let again = Pki::open(dir.path()).unwrap().front_proxy().unwrap();
        assert_eq!((one.ca_pem, one.cert_pem), (again.ca_pem, again.cert_pem));
    }

    #[test]
    fn a_lost_key_is_an_error_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ca.key is missing"), "{error}");
        assert!(!dir.path().join("ca.key").exists());
    }

    #[test]
    fn secrets_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        for file in fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
        }
    }

    #[test]
    fn an_expired_and_a_nearly_expired_leaf_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let leaf = Leaf::client("admin", "admin", &[]);
        let day = Duration::from_secs(86_400);
        // since when, and until when it is valid
        for (since, end) in [(-20, -10), (-100, 0), (-100, 20), (1, 300)] {
            pki.issue(&leaf).unwrap();
            let mut params = leaf.params().unwrap();
            let now = SystemTime::now();
            let at = |days: i32| {
                if days < 0 { now - day * days.unsigned_abs() } else { now + day * days.unsigned_abs() }
            };
            (params.not_before, params.not_after) = (at(since).into(), at(end).into());
            let key = KeyPair::generate().unwrap();
            let authority = KeyPair::from_pem(&pki.ca_key_pem).unwrap();
            let issuer = Issuer::from_ca_cert_pem(&pki.ca_pem, authority).unwrap();
            let old = params.signed_by(&key, &issuer).unwrap().pem();
            write_secret(&dir.path().join("admin.crt"), &old).unwrap();
            let made = pki.issue(&leaf).unwrap();
            assert_ne!(made.cert_pem, old, "{end} days left");
            assert!(young_for(&made.cert_pem).is_some());
        }
    }

    #[test]
    fn an_authority_of_another_time_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        validity(&mut params, 20, -10);
        let old = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        write_secret(&dir.path().join("ca.crt"), &old).unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("has expired"), "{error}");
        params.not_before = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(7200)).into();
        let early = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        write_secret(&dir.path().join("ca.crt"), &early).unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("is not valid yet"), "{error}");
    }

    #[test]
    fn the_server_certificate_is_made_again_for_other_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let server =
            |address: &str| Leaf::server(vec!["kubernetes".to_owned()], vec![address.parse().unwrap()]);
        let one = pki.issue(&server("127.0.0.1")).unwrap();
        let same = pki.issue(&server("127.0.0.1")).unwrap();
        let two = pki.issue(&server("127.0.0.2")).unwrap();
        assert_eq!(one.cert_pem, same.cert_pem);
        assert_ne!(one.cert_pem, two.cert_pem);
        let days = (lifetime(&two.cert_pem).unwrap().1 - jiff::Timestamp::now().as_second()) / 86_400;
        assert!((363..=365).contains(&days));
    }
}
