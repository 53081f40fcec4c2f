//! Which of a pod's pull secrets are for an image ("Pull an Image from a Private Registry", "Interpretation of
//! config.json").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::ports::Credential;

/// An entry of `auths`.
#[derive(Clone, Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    /// Base64 of `username:password`; wins.
    auth: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// The credentials for an image, the most specific entry first; of equals in the order of the secrets.
pub fn credentials_for(image: &str, secrets: &[&core::Secret]) -> Vec<Credential> {
    let (host, path) = place_of(image);
    let mut found: Vec<(usize, Credential)> = Vec::new();
    for (key, entry) in secrets.iter().flat_map(|secret| entries(secret)) {
        if let (true, Some(credential)) = (matches(&key, &host, &path), credential(&entry)) {
            found.push((key.len(), credential));
        }
    }
    // a stable sort: equals keep their order
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credential)| credential).collect()
}

fn entries(secret: &core::Secret) -> BTreeMap<String, Entry> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson")
            .and_then(|json| serde_json::from_slice::<DockerConfig>(json).ok())
            .map(|config| config.auths)
            .unwrap_or_default(),
        Some("kubernetes.io/dockercfg") => {
            data(".dockercfg").and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default()
        }
        _ => BTreeMap::new(),
    }
}

fn credential(entry: &Entry) -> Option<Credential> {
    if entry.auth.is_empty() {
        let known = !entry.username.is_empty();
        return known
            .then(|| Credential { username: entry.username.clone(), password: entry.password.clone() });
    }
    let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// Registry and path of an image as its author wrote it.
fn place_of(image: &str) -> (String, String) {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let is_registry = first.contains(['.', ':']) || first == "localhost";
    let (host, path) = if is_registry { (first, rest) } else { ("docker.io", name) };
    let path = path.split_once(':').map_or(path, |(path, _)| path);
    (canonical(host).to_owned(), path.to_owned())
}

/// Docker's registry has several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Whether an entry is for a place: `*` stands for a part of a host name's label, the path is a prefix by segments.
fn matches(key: &str, host: &str, path: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let key_path = key_path.trim_end_matches('/');
    // old clients wrote the address of the API
    let key_path = if matches!(key_path, "v1" | "v2") { "" } else { key_path };
    let labels: Vec<&str> = canonical(key_host).split('.').collect();
    let wanted: Vec<&str> = host.split('.').collect();
    let path_matches = key_path.is_empty()
        || path.strip_prefix(key_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    labels.len() == wanted.len()
        && labels.iter().zip(&wanted).all(|(pattern, label)| glob(pattern, label))
        && path_matches
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(kind: &str, key: &str, json: &serde_json::Value) -> core::Secret {
        let data = [(key.to_owned(), k8s_openapi::ByteString(json.to_string().into_bytes()))];
        core::Secret { type_: Some(kind.into()), data: Some(data.into()), ..core::Secret::default() }
    }

    fn names(image: &str, secrets: &[&core::Secret]) -> Vec<String> {
        credentials_for(image, secrets)
            .into_iter()
            .map(|c| format!("{}:{}", c.username, c.password))
            .collect()
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let json = serde_json::json!({"auths": {
            "reg.example:5000": {"username": "host", "password": "1"},
            "reg.example:5000/team": {"auth": STANDARD.encode("team:2:3")},
            "https://index.docker.io/v1/": {"username": "hub", "password": "4"},
            "*.cloud.example": {"username": "any", "password": "5"},
            "broken.example": {"auth": "%"},
        }});
        let one = secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &json);
        let old = serde_json::json!({"reg.example:5000": {"username": "old", "password": "6"}});
        let two = secret("kubernetes.io/dockercfg", ".dockercfg", &old);
        let other = secret("Opaque", ".dockerconfigjson", &json);
        let all = [&one, &two, &other];
        let table: [(&str, &[&str]); 9] = [
            ("reg.example:5000/team/app:1", &["team:2:3", "host:1", "old:6"]),
            ("reg.example:5000/teams/app", &["host:1", "old:6"]),
            ("nginx", &["hub:4"]),
            ("docker.io/me/app@sha256:1", &["hub:4"]),
            ("eu.cloud.example/app", &["any:5"]),
            ("a.eu.cloud.example/app", &[]),
            ("cloud.example/app", &[]),
            ("broken.example/app", &[]),
            ("reg.example/team/app", &[]),
        ];
        for (image, wanted) in table {
            assert_eq!(names(image, &all), wanted, "{image}");
        }
    }
}
