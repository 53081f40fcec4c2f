//! The kubeconfig file of the cluster's administrator.

use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::pki::{Credential, write_secret};

/// Writes a kubeconfig (mode 0600) with everything embedded.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn write(path: &Path, server: &str, ca_pem: &str, admin: &Credential) -> Result<()> {
    write_secret(path, &render(server, ca_pem, admin))
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
