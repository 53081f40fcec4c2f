//! Bound service-account tokens (KEP-1205): issuing them for TokenRequest and recognising them.

use std::collections::BTreeMap;

use api::{GroupVersionResource, Object, ObjectKey, Status};
use serde_json::{Value, json};

use super::jose::{JoseError, SigningKey};
use super::{AUTHENTICATED, unauthorized};
use crate::resource::{Reader, UserInfo};

/// A token stays valid this long after the deletion of what it is bound to was asked for.
const DELETION_LEEWAY_SECONDS: i64 = 60;
/// Clocks may differ by this much.
const CLOCK_LEEWAY_SECONDS: i64 = 10;

/// What a token is bound to besides its service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundTo {
    /// `Pod`, `Secret` or `Node`
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What a new token says.
pub(crate) struct TokenSpec<'a> {
    pub(crate) account: &'a Object,
    pub(crate) audiences: Vec<String>,
    pub(crate) seconds: i64,
    pub(crate) bound: Vec<BoundTo>,
    pub(crate) id: String,
    pub(crate) now: jiff::Timestamp,
}

/// Issues and recognises service-account tokens.
pub(crate) struct ServiceAccountTokens {
    key: SigningKey,
    pub(crate) issuer: String,
}

impl ServiceAccountTokens {
    pub(crate) fn new(key_pem: &str, issuer: &str) -> Result<Self, JoseError> {
        Ok(Self { key: SigningKey::from_pem(key_pem)?, issuer: issuer.to_owned() })
    }

    /// Audiences of the API server itself: what a token without a wish for an audience is for.
    pub(crate) fn api_audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    /// Signs a token.
    pub(crate) fn issue(&self, spec: &TokenSpec<'_>) -> Result<String, Status> {
        let now = spec.now.as_second();
        let (namespace, name) = (spec.account.namespace(), spec.account.name());
        let mut private = json!({
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": spec.account.uid()},
        });
        for bound in &spec.bound {
            private[bound.kind.to_lowercase()] = json!({"name": bound.name, "uid": bound.uid});
        }
        let claims = json!({
            "iss": self.issuer, "aud": spec.audiences, "jti": spec.id,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "iat": now, "nbf": now, "exp": now + spec.seconds,
            "kubernetes.io": private,
        });
        self.key.sign(&claims).map_err(Status::internal)
    }

    /// The user of a token and the audiences it shares with `audiences`.
    ///
    /// # Errors
    /// `Unauthorized` for every token that does not hold, whatever the reason (which is logged).
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        reader: &dyn Reader,
        now: jiff::Timestamp,
    ) -> Result<(UserInfo, Vec<String>), Status> {
        let refuse = |why: &str| {
            tracing::debug!(why, "token refused");
            unauthorized()
        };
        let claims = self.key.verify(token).map_err(|e| refuse(&e.to_string()))?;
        let shared = self.check_claims(&claims, audiences, now).map_err(refuse)?;
        let private = &claims["kubernetes.io"];
        let namespace = private["namespace"].as_str().unwrap_or_default();
        let account = &private["serviceaccount"];
        for kind in ["serviceaccount", "pod", "secret", "node"] {
            let bound = &private[kind];
            if bound.is_object() && !alive(reader, kind, namespace, bound, now).await? {
                return Err(refuse("what the token is bound to is gone"));
            }
        }
        let name = account["name"].as_str().unwrap_or_default();
        if claims["sub"] != format!("system:serviceaccount:{namespace}:{name}") {
            return Err(refuse("subject and service account differ"));
        }
        Ok((user(namespace, name, &claims), shared))
    }

    fn check_claims(
        &self,
        claims: &Value,
        audiences: &[String],
        now: jiff::Timestamp,
    ) -> Result<Vec<String>, &'static str> {
        let now = now.as_second();
        if claims["iss"] != self.issuer {
            return Err("another issuer");
        }
        if claims["exp"].as_i64().is_none_or(|exp| exp + CLOCK_LEEWAY_SECONDS < now) {
            return Err("expired");
        }
        if claims["nbf"].as_i64().is_none_or(|nbf| nbf - CLOCK_LEEWAY_SECONDS > now) {
            return Err("not valid yet");
        }
        let of = claims["aud"].as_array().map(Vec::as_slice).unwrap_or_default();
        let shared: Vec<String> =
            audiences.iter().filter(|a| of.iter().any(|v| v.as_str() == Some(a))).cloned().collect();
        if shared.is_empty() { Err("another audience") } else { Ok(shared) }
    }

    /// `/openid/v1/jwks`
    pub(crate) fn key_set(&self) -> Value {
        self.key.key_set()
    }

    /// `/.well-known/openid-configuration`
    pub(crate) fn discovery(&self, advertise: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{advertise}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

async fn alive(
    reader: &dyn Reader,
    kind: &str,
    namespace: &str,
    bound: &Value,
    now: jiff::Timestamp,
) -> Result<bool, Status> {
    let gvr = GroupVersionResource::new("", "v1", &format!("{kind}s"));
    let namespace = if kind == "node" { "" } else { namespace };
    let key = ObjectKey::new(namespace, bound["name"].as_str().unwrap_or_default());
    let Some(object) = reader.get(&gvr, &key).await? else { return Ok(false) };
    let deleted = object.str(&["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>().ok();
    let gone = deleted.is_some_and(|at| at.as_second() + DELETION_LEEWAY_SECONDS < now.as_second());
    Ok(!gone && object.uid() == bound["uid"].as_str().unwrap_or_default())
}

fn user(namespace: &str, name: &str, claims: &Value) -> UserInfo {
    let private = &claims["kubernetes.io"];
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    add("credential-id", claims["jti"].as_str().map(|id| format!("JTI={id}")).as_deref());
    for kind in ["pod", "node"] {
        add(&format!("{kind}-name"), private[kind]["name"].as_str());
        add(&format!("{kind}-uid"), private[kind]["uid"].as_str());
    }
    UserInfo {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: private["serviceaccount"]["uid"].as_str().unwrap_or_default().to_owned(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            AUTHENTICATED.to_owned(),
        ],
        extra,
    }
}
