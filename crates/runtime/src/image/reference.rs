//! Names of images, brought into one form: `registry/path:tag` or `registry/path@digest`.

use crate::error::RuntimeError;

/// The one spelling under which the store keeps a name.
pub(crate) fn normalise(text: &str) -> Result<String, RuntimeError> {
    let invalid = || RuntimeError::Invalid(format!("{text:?} is no image reference"));
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let is_registry = first.contains(['.', ':']) || first == "localhost";
    let (registry, path) =
        if is_registry { (first, rest.to_owned()) } else { ("docker.io", name.to_owned()) };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path.to_owned(), Some(tag.to_owned())),
        _ => (path, None),
    };
    let path = if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
    let part_ok = |part: &str| {
        let inner = part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        inner && edge(part.chars().next()) && edge(part.chars().last())
    };
    let registry_ok = registry.starts_with(|c: char| c.is_ascii_alphanumeric())
        && registry.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
    if !registry_ok || !path.split('/').all(part_ok) {
        return Err(invalid());
    }
    if let Some(digest) = digest {
        if !is_digest(digest) {
            return Err(invalid());
        }
        return Ok(format!("{registry}/{path}@{digest}"));
    }
    let tag = tag.unwrap_or_else(|| "latest".into());
    let tag_ok =
        tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && (1..=128).contains(&tag.len());
    if !tag_ok || tag.starts_with(['.', '-']) {
        return Err(invalid());
    }
    Ok(format!("{registry}/{path}:{tag}"))
}

/// A normalised name without its tag or digest.
pub(crate) fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.2", "docker.io/library/nginx:1.2".into()),
            ("me/app", "docker.io/me/app:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("host:5000/a/b:t", "host:5000/a/b:t".into()),
            ("host:5000/a", "host:5000/a:latest".into()),
            ("podium.local/toolbox", "podium.local/toolbox:latest".into()),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ];
        for (text, want) in cases {
            assert_eq!(normalise(text).as_deref(), Ok(want.as_str()), "{text}");
        }
        for name in ["host:5000/a/b:t", &format!("host:5000/a/b@{digest}"), "host:5000/a/b"] {
            assert_eq!(repository(name), "host:5000/a/b");
        }
        for bad in ["", "UPPER", "a//b", "a:", "a:.x", "../x", "x@sha256:12", "a/../b", "a b"] {
            assert!(normalise(bad).is_err(), "{bad}");
        }
    }
}
