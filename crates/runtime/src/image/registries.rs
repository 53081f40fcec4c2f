//! Where images come from: which endpoints serve a registry's images, how they are trusted, who we are to them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;

/// A user name and password, or a token as the password of an empty user.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
}

/// Passwords stay out of logs.
impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What the machine's owner says of registries; by default nothing: each is asked itself, by HTTPS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// By registry, e.g. `docker.io`; `*` stands for those that aren't named.
    pub mirrors: BTreeMap<String, Mirror>,
    /// By host of an endpoint, e.g. `registry.example:5000`.
    pub configs: BTreeMap<String, HostConfig>,
}

/// Endpoints that are asked before the registry itself, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// `https://host[:port]` or, for plain HTTP, `http://host[:port]`.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    pub auth: Option<Credential>,
    pub tls: Option<TlsConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with authorities trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) plain_http: bool,
    pub(super) tls: TlsConfig,
    pub(super) auth: Option<Credential>,
    /// The registry the image is named by, not a mirror of it: only it gets to see the pod's credentials.
    pub(super) is_origin: bool,
}

impl Registries {
    /// Mirrors in their order, then the registry itself unless a mirror entry names it already.
    pub(super) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, RuntimeError> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut found = Vec::new();
        for url in mirror.iter().flat_map(|mirror| &mirror.endpoints) {
            let (scheme, host) = url.split_once("://").unwrap_or_default();
            let host = host.trim_end_matches('/');
            if !matches!(scheme, "http" | "https") || host.is_empty() || host.contains(['/', '@', '?', '#']) {
                return Err(RuntimeError::Invalid(format!(
                    "mirror {url:?} of {registry}: must be http://HOST[:PORT] or https://HOST[:PORT]"
                )));
            }
            found.push(self.endpoint(host, scheme == "http", host == registry));
        }
        if !found.iter().any(|endpoint| endpoint.is_origin) {
            found.push(self.endpoint(registry, false, true));
        }
        Ok(found)
    }

    fn endpoint(&self, host: &str, plain_http: bool, is_origin: bool) -> Endpoint {
        let config = self.configs.get(host).cloned().unwrap_or_default();
        let tls = config.tls.unwrap_or_default();
        Endpoint { host: host.to_owned(), plain_http, tls, auth: config.auth, is_origin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(json: serde_json::Value) -> Registries {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let all = registries(serde_json::json!({
            "mirrors": {
                "docker.io": {"endpoint": ["https://one", "http://two:5000/"]},
                "here:5000": {"endpoint": ["http://here:5000"]},
                "*": {"endpoint": ["https://any"]},
            },
            "configs": {"one": {"auth": {"username": "u", "password": "p"}, "tls": {"ca_file": "/ca"}}},
        }));
        let hosts = |registry: &str| {
            let list = all.endpoints(registry).unwrap();
            let words = list.iter().map(|e| {
                let scheme = if e.plain_http { "http" } else { "https" };
                format!("{scheme}://{}{}", e.host, if e.is_origin { " origin" } else { "" })
            });
            words.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(hosts("docker.io"), "https://one, http://two:5000, https://docker.io origin");
        assert_eq!(hosts("here:5000"), "http://here:5000 origin");
        assert_eq!(hosts("quay.io"), "https://any, https://quay.io origin");
        let one = &all.endpoints("docker.io").unwrap()[0];
        assert_eq!(one.auth.as_ref().map(|auth| auth.username.as_str()), Some("u"));
        assert_eq!(one.tls.ca_file.as_deref(), Some(std::path::Path::new("/ca")));
        assert!(!format!("{one:?}").contains("\"p\""));
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for bad in ["one", "ftp://one", "https://", "https://one/path", "https://u@one"] {
            let all = registries(serde_json::json!({"mirrors": {"a.b": {"endpoint": [bad]}}}));
            assert!(all.endpoints("a.b").is_err(), "{bad}");
        }
        let unknown = serde_json::json!({"mirror": {}});
        assert!(serde_json::from_value::<Registries>(unknown).is_err());
    }
}
