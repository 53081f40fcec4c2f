//! Client certificates: the common name is the user, organisations are the groups (Kubernetes, "Authenticating").
//! The TLS layer has verified the chain and the usage before.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::AUTHENTICATED;
use crate::resource::UserInfo;

/// The user of a verified certificate (DER), or `None` when it names nobody.
pub(crate) fn user(certificate: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.to_owned());
    Some(UserInfo { name: name.to_owned(), groups, ..UserInfo::default() })
        .filter(|user| !user.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_becomes_user_and_groups() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&key).unwrap();
        let user = user(certificate.der()).unwrap();
        assert_eq!(user.name, "alice");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        assert_eq!(super::user(b"nonsense"), None);
    }
}
