//! Certificates are exchanged while the control plane runs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::{GroupVersionResource, RequestOptions};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use serde_json::json;

use crate::server::{Access, Server, eventually};

/// Puts a certificate into the key directory that is due to be renewed in a few seconds.
fn age(data: &Path, file: &str, subject: [&str; 2], usage: ExtendedKeyUsagePurpose) -> String {
    let pki = data.join("pki");
    let read = |file: &str| std::fs::read_to_string(pki.join(file)).unwrap();
    let key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, subject[0]);
    params.distinguished_name.push(DnType::CommonName, subject[1]);
    params.extended_key_usages = vec![usage];
    // four fifths of 200 seconds end in 8
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(152)).into();
    params.not_after = (now + Duration::from_secs(48)).into();
    let made = params.signed_by(&key, &issuer).unwrap().pem();
    std::fs::write(pki.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    std::fs::write(pki.join(format!("{file}.crt")), &made).unwrap();
    made
}

/// The certificate that new connections are shown.
async fn shown(access: &Access) -> Vec<u8> {
    let address = access.url.strip_prefix("https://").unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client::tls::any_server().unwrap()));
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_under_open_connections() {
    let dir = tempfile::tempdir().unwrap();
    Server::start(dir.path()).stop();
    age(dir.path(), "apiserver", ["", "kube-apiserver"], ExtendedKeyUsagePurpose::ServerAuth);
    let admin =
        age(dir.path(), "admin", ["system:masters", "kubernetes-admin"], ExtendedKeyUsagePurpose::ClientAuth);

    let server = Server::start(dir.path());
    let old = server.access();
    assert_eq!(old.cert_pem, admin, "the old certificate was still good enough for a start");
    let old_shown = shown(&old).await;
    let early = old.admin();
    let maps = GroupVersionResource::new("", "v1", "configmaps");
    let mut watch = early.watch(&maps, Some("default"), RequestOptions::default()).await.unwrap();

    eventually("the server shows another certificate", async || shown(&old).await != old_shown).await;
    eventually("the administrator has another one", async || server.access() != old).await;

    let late = server.access().admin();
    late.create(Some("default"), &config_map("late")).await.unwrap();
    early.create(Some("default"), &config_map("early")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = watch.next().await.expect("the old connection lives on");
        let map: ConfigMap = serde_json::from_slice(&event.object).unwrap();
        seen.extend(map.metadata.name.filter(|name| matches!(name.as_str(), "late" | "early")));
    }
    drop((watch, early, late));
    server.stop();
}
