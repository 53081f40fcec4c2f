//! Bootstrap tokens: `ID.SECRET`, kept as Secrets in `kube-system`, with which a machine asks for its certificate
//! (Kubernetes, "Authenticating with Bootstrap Tokens").

use api::{GroupVersionResource, Object, ObjectKey, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{AUTHENTICATED, unauthorized};
use crate::resource::{Reader, UserInfo};

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// ID and secret of a text in the form of a bootstrap token: `[a-z0-9]{6}.[a-z0-9]{16}`.
pub(crate) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// The user of a token.
///
/// # Errors
/// `Unauthorized` for every token that does not hold, whatever the reason (which is logged).
pub(crate) async fn authenticate(
    id: &str,
    secret: &str,
    reader: &dyn Reader,
    now: jiff::Timestamp,
) -> Result<UserInfo, Status> {
    let secrets = GroupVersionResource::new("", "v1", "secrets");
    let key = ObjectKey::new("kube-system", format!("bootstrap-token-{id}"));
    let found = reader.get(&secrets, &key).await?;
    let user = found.ok_or("no such token").and_then(|object| recognise(&object, id, secret, now));
    user.map_err(|why| {
        tracing::debug!(id, why, "bootstrap token refused");
        unauthorized()
    })
}

fn recognise(
    object: &Object,
    id: &str,
    secret: &str,
    now: jiff::Timestamp,
) -> Result<UserInfo, &'static str> {
    let data = |name: &str| -> String {
        let bytes = STANDARD.decode(object.str(&["data", name])).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    if object.str(&["type"]) != SECRET_TYPE || object.is_deleting() {
        return Err("no such token");
    }
    // All bytes are compared: the time taken tells nothing of a prefix.
    let kept = data("token-secret");
    let differs = kept.bytes().zip(secret.bytes()).fold(0, |found, (a, b)| found | (a ^ b));
    if kept.len() != secret.len() || differs != 0 || data("token-id") != id {
        return Err("wrong secret");
    }
    let expiration = data("expiration");
    let expired = || expiration.parse::<jiff::Timestamp>().map_or(true, |end| end <= now);
    if !expiration.is_empty() && expired() {
        return Err("expired");
    }
    if data("usage-bootstrap-authentication") != "true" {
        return Err("not for authentication");
    }
    let extra = data("auth-extra-groups");
    let extra = extra.split(',').map(str::trim).filter(|group| !group.is_empty());
    let mut groups = vec![GROUP.to_owned()];
    for group in extra {
        if !group.starts_with("system:bootstrappers:") {
            return Err("a group that does not begin with system:bootstrappers:");
        }
        groups.push(group.to_owned());
    }
    groups.push(AUTHENTICATED.to_owned());
    Ok(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_form_of_a_token() {
        assert_eq!(parts("abc123.0123456789abcdef"), Some(("abc123", "0123456789abcdef")));
        for text in ["", "abc123", "abc123.short", "ABC123.0123456789abcdef", "a.b.c", "eyJhbGci.eyJ.sig"] {
            assert_eq!(parts(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_holds_until_it_expires_and_for_authentication_only() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |change: &[(&str, &str)]| {
            let mut data = serde_json::Map::new();
            let plain = [
                ("token-id", "abc123"),
                ("token-secret", "0123456789abcdef"),
                ("expiration", "2026-01-01T01:00:00Z"),
                ("usage-bootstrap-authentication", "true"),
            ];
            for (name, value) in plain.iter().chain(change) {
                data.insert((*name).to_owned(), STANDARD.encode(value).into());
            }
            Object::from_value(json!({"type": SECRET_TYPE, "data": data})).unwrap()
        };
        let ask = |change: &[(&str, &str)], given: &str| recognise(&secret(change), "abc123", given, now);
        let user = ask(&[("auth-extra-groups", "system:bootstrappers:x")], "0123456789abcdef").unwrap();
        assert_eq!(user.name, "system:bootstrap:abc123");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:x", AUTHENTICATED]);
        for (change, given) in [
            (&[][..], "0123456789abcdeX"),
            (&[], ""),
            (&[("expiration", "2025-12-31T23:59:59Z")], "0123456789abcdef"),
            (&[("expiration", "soon")], "0123456789abcdef"),
            (&[("usage-bootstrap-authentication", "false")], "0123456789abcdef"),
            (&[("auth-extra-groups", "system:masters")], "0123456789abcdef"),
            (&[("token-id", "other1")], "0123456789abcdef"),
        ] {
            assert!(ask(change, given).is_err(), "{change:?} {given}");
        }
    }
}
