//! `podium token`: bootstrap tokens with which machines join the cluster.
//!
//! What is printed is `ID.SECRET.CA`: the bootstrap token and the SHA-256 of the cluster's authority (its certificate in
//! DER, in hexadecimal). By the third part the joining machine knows the server before it sends the second one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use api::{GroupVersionResource, ObjectKey, RequestOptions};
use clap::Subcommand;
use client::{Client, HttpTransport};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;

use crate::bootstrap::{join, kubeconfig};
use crate::cli::outln;
use crate::config::Paths;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print the command that joins a machine with it
    Create {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
        /// How long the token is good for, as 30m, 24h or 0 for ever
        #[arg(long, value_name = "TIME", default_value = "24h")]
        ttl: String,
    },
    /// List the tokens, without their secrets
    List {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
    },
    /// Delete a token by its ID: nobody can join with it any more
    Delete {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
        /// The part before the first dot (a whole token does too)
        #[arg(value_name = "ID")]
        token: String,
    },
}

/// # Errors
/// When the API server can't be reached with the administrator's kubeconfig or refuses.
pub(crate) fn run(command: &TokenCommand) -> Result<()> {
    let pool =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start threads")?;
    pool.block_on(async {
        match command {
            TokenCommand::Create { data_dir, ttl } => create(data_dir, ttl).await,
            TokenCommand::List { data_dir } => list(data_dir).await,
            TokenCommand::Delete { data_dir, token } => delete(data_dir, token).await,
        }
    })
}

async fn create(data_dir: &Path, ttl: &str) -> Result<()> {
    let (client, ca_pem) = admin(data_dir)?;
    let (id, secret) = (random(6)?, random(16)?);
    let mut data = json!({
        "token-id": id, "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "description": "made by podium token create",
    });
    if let Some(end) = expiration(ttl, jiff::Timestamp::now())? {
        data["expiration"] = format!("{end:.0}").into();
    }
    let secret_object: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("{NAME_PREFIX}{id}"), "namespace": NAMESPACE}, "type": TYPE, "stringData": data,
    }))?;
    let made = client.create(Some(NAMESPACE), &secret_object).await;
    made.map_err(|status| anyhow!("cannot make the token: {status}"))?;
    let url = server_url(&client).await?;
    outln(&format!("podium agent --server {url} --token {id}.{secret}.{}", join::authority_hash(&ca_pem)?));
    Ok(())
}

async fn list(data_dir: &Path) -> Result<()> {
    let (client, _) = admin(data_dir)?;
    let options =
        RequestOptions { field_selector: Some(format!("type={TYPE}")), ..RequestOptions::default() };
    let secrets = client.list::<Secret>(Some(NAMESPACE), options).await;
    let secrets = secrets.map_err(|status| anyhow!("cannot list the tokens: {status}"))?;
    outln(&format!("{:<8} {:<22} DESCRIPTION", "ID", "EXPIRES"));
    for secret in secrets.items {
        let data = secret.data.unwrap_or_default();
        let text = |name: &str| {
            data.get(name).map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default()
        };
        let expires = Some(text("expiration")).filter(|e| !e.is_empty()).unwrap_or_else(|| "never".into());
        outln(format!("{:<8} {expires:<22} {}", text("token-id"), text("description")).trim_end());
    }
    Ok(())
}

async fn delete(data_dir: &Path, token: &str) -> Result<()> {
    let (client, _) = admin(data_dir)?;
    let id = token.split('.').next().unwrap_or_default();
    let secrets = GroupVersionResource::new("", "v1", "secrets");
    let key = ObjectKey::new(NAMESPACE, format!("{NAME_PREFIX}{id}"));
    let gone = client.delete(&secrets, &key, RequestOptions::default()).await;
    gone.map_err(|status| anyhow!("cannot delete the token {id:?}: {status}"))?;
    outln(&format!("deleted {id}"));
    Ok(())
}

/// A client with the administrator's kubeconfig, and the cluster's authority.
fn admin(data_dir: &Path) -> Result<(Client, String)> {
    let access = kubeconfig::read(&Paths::existing(data_dir)?.admin_kubeconfig())?;
    let transport = HttpTransport::new(&access.server, &access.ca_pem, access.identity)?;
    Ok((Client::new(Arc::new(transport), "podium-token"), access.ca_pem))
}

/// Where other machines reach the API server: the endpoint of Service `default/kubernetes`.
async fn server_url(client: &Client) -> Result<String> {
    let key = ObjectKey::new("default", "kubernetes");
    let slice = client.get::<EndpointSlice>(&key).await;
    let slice = slice.map_err(|status| anyhow!("cannot read the API server's address: {status}"))?;
    let address = slice.endpoints.iter().flatten().next().and_then(|e| e.addresses.first());
    let port = slice.ports.iter().flatten().find_map(|p| p.port);
    let (address, port) = address.zip(port).context("the API server has published no address")?;
    Ok(format!("https://{address}:{port}"))
}

/// Lower-case letters and digits.
fn random(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("no random numbers"))?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

/// `None` is for ever.
fn expiration(ttl: &str, now: jiff::Timestamp) -> Result<Option<jiff::Timestamp>> {
    if ttl == "0" {
        return Ok(None);
    }
    let wrong = || format!("{ttl:?} is no time: give minutes or hours, as 30m or 24h");
    let (digits, seconds) = match ttl.strip_suffix(['s', 'm', 'h']) {
        Some(digits) if ttl.ends_with('h') => (digits, 3600),
        Some(digits) if ttl.ends_with('m') => (digits, 60),
        Some(digits) => (digits, 1),
        None => (ttl, 0),
    };
    let number: i64 = digits.parse().with_context(wrong)?;
    ensure!(number > 0 && seconds > 0, wrong());
    let length = jiff::SignedDuration::from_secs(number.saturating_mul(seconds));
    Ok(Some(now.checked_add(length).with_context(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(expiration("0", now).unwrap(), None);
        assert_eq!(expiration("24h", now).unwrap().unwrap().to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(expiration("30m", now).unwrap().unwrap().to_string(), "2026-01-01T00:30:00Z");
        for wrong in ["", "24", "-1h", "0h", "h", "1d", "99999999999999h"] {
            assert!(expiration(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_have_the_form_that_the_server_expects() {
        let text = random(1000).unwrap();
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert_ne!(random(16).unwrap(), random(16).unwrap());
    }
}
