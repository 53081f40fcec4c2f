//! Service account tokens of projected volumes, bound to the pod (KEP-1205) and renewed at 80 % of their life.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey};
use client::Client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use crate::observed::{after, elapsed, spec};

/// Default life of a token.
const LIFE_SECONDS: i64 = 3600;

#[derive(Clone, Debug)]
struct Token {
    text: String,
    /// Before that it is not valid: the clock was set back.
    since: Timestamp,
    renew_at: Timestamp,
}

/// A pod's tokens, by volume and place in its sources.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    tokens: BTreeMap<(String, usize), Token>,
}

impl Tokens {
    /// The token of one projection.
    pub fn get(&self, volume: &str, index: usize) -> Option<&str> {
        self.tokens.get(&(volume.to_owned(), index)).map(|t| t.text.as_str())
    }

    /// When the next token wants renewing; at once when there is one that is not valid yet.
    pub fn renew_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.tokens.values().map(|t| if t.since > now { now } else { t.renew_at }).min()
    }

    /// Requests every token that is missing or due.
    ///
    /// # Errors
    /// The API's answer, unless an older token is still there (it is kept and asked for again soon).
    pub async fn refresh(&mut self, client: &Client, pod: &core::Pod, now: Timestamp) -> Result<(), String> {
        for volume in spec(pod).volumes.iter().flatten() {
            let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            for (index, source) in sources.enumerate() {
                let Some(wanted) = &source.service_account_token else { continue };
                let slot = (volume.name.clone(), index);
                if self.tokens.get(&slot).is_some_and(|t| t.since <= now && now < t.renew_at) {
                    continue;
                }
                match request(client, pod, wanted, now).await {
                    Ok(token) => drop(self.tokens.insert(slot, token)),
                    Err(status) => match self.tokens.get_mut(&slot) {
                        Some(old) => old.renew_at = after(now, Duration::from_secs(30)),
                        None => return Err(format!("failed to fetch token: {status}")),
                    },
                }
            }
        }
        Ok(())
    }
}

async fn request(
    client: &Client,
    pod: &core::Pod,
    wanted: &core::ServiceAccountTokenProjection,
    now: Timestamp,
) -> Result<Token, api::Status> {
    let account = spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let key = ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), account);
    let audiences: Vec<&str> = wanted.audience.as_deref().filter(|a| !a.is_empty()).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": wanted.expiration_seconds.unwrap_or(LIFE_SECONDS),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        },
    });
    let gvr = GroupVersionResource::new("", "v1", "serviceaccounts");
    let answer = client.create_subresource(&gvr, &key, "token", &body).await?;
    let text = answer.str(&["status", "token"]).to_owned();
    let expires = answer.get(&["status", "expirationTimestamp"]).and_then(Value::as_str);
    let expires: Option<Timestamp> = expires.and_then(|t| t.parse().ok());
    let life = expires.map_or(Duration::from_secs(LIFE_SECONDS.unsigned_abs()), |at| elapsed(now, at));
    Ok(Token { text, since: now, renew_at: after(now, life.mul_f64(0.8)) })
}
