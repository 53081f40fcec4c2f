//! The kubeconfig file of the cluster's administrator.

use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::Identity;
use serde::Deserialize as _;
use serde_json::Value;

use super::pki::{Credential, write_secret};

/// Writes a kubeconfig (mode 0600) with everything embedded.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn write(path: &Path, server: &str, ca_pem: &str, admin: &Credential) -> Result<()> {
    write_secret(path, &render(server, ca_pem, admin))
}

/// What a kubeconfig of ours says.
pub(crate) struct Access {
    pub(crate) server: String,
    pub(crate) ca_pem: String,
    pub(crate) identity: Identity,
}

/// Reads a kubeconfig that [`write`] wrote.
///
/// # Errors
/// When the file can't be read (is the cluster up, and are you its owner?) or lacks something.
pub(crate) fn read(path: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let root = Value::deserialize(serde_yaml_ng::Deserializer::from_str(&text))
        .with_context(|| format!("{} is no YAML", path.display()))?;
    let embedded =
        |value: &Value| -> Option<String> { String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok() };
    let (cluster, user) = (&root["clusters"][0]["cluster"], &root["users"][0]["user"]);
    let found = || {
        Some(Access {
            server: cluster["server"].as_str()?.to_owned(),
            ca_pem: embedded(&cluster["certificate-authority-data"])?,
            identity: Identity::ClientCert {
                cert_pem: embedded(&user["client-certificate-data"])?,
                key_pem: embedded(&user["client-key-data"])?,
            },
        })
    };
    found().with_context(|| format!("{} lacks the server, its authority or the user", path.display()))
}

fn render(server: &str, ca_pem: &str, admin: &Credential) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: podium
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: admin
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: podium
  context:
    cluster: podium
    user: admin
current-context: podium
",
        STANDARD.encode(ca_pem),
        STANDARD.encode(&admin.cert_pem),
        STANDARD.encode(&admin.key_pem),
    )
}
