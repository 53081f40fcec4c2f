//! Rules for names and formats, with the texts of `k8s.io/apimachinery/pkg/util/validation`.
//!
//! Each function returns what is wrong with the text; nothing means the text is fine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
    '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
    or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && lower_alnum(b[0])
        && lower_alnum(b[b.len() - 1])
        && b.iter().all(|&c| lower_alnum(c) || c == b'-')
}

fn length_and(text: &str, max: usize, ok: bool, rule: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > max {
        out.push(too_long(max));
    }
    if !ok {
        out.push(rule.to_owned());
    }
    out
}

/// RFC 1123 label: namespaces, containers, volumes.
pub(crate) fn dns_label(text: &str) -> Vec<String> {
    length_and(text, 63, is_label(text), LABEL)
}

/// RFC 1123 subdomain: most object names.
pub(crate) fn dns_subdomain(text: &str) -> Vec<String> {
    length_and(text, 253, text.split('.').all(is_label), SUBDOMAIN)
}

/// RFC 1035 label: Service names.
pub(crate) fn dns_1035_label(text: &str) -> Vec<String> {
    let ok = is_label(text) && text.as_bytes()[0].is_ascii_lowercase();
    length_and(text, 63, ok, LABEL_1035)
}

/// `*.` and a subdomain.
pub(crate) fn wildcard_subdomain(text: &str) -> Vec<String> {
    let ok = text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label));
    length_and(text, 253, ok, WILDCARD)
}

/// A name that is one segment of a URL path: RBAC objects.
pub(crate) fn path_segment(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text == "." || text == ".." {
        out.push(format!("may not be '{text}'"));
    }
    for c in ['/', '%'] {
        if text.contains(c) {
            out.push(format!("may not contain '{c}'"));
        }
    }
    out
}

fn is_qualified_part(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

/// A label's value.
pub(crate) fn label_value(text: &str) -> Vec<String> {
    length_and(text, 63, text.is_empty() || is_qualified_part(text), LABEL_VALUE)
}

/// `name` or `prefix/name`: label keys, annotation keys, resource names, taint keys.
pub(crate) fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) if !name.contains('/') => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(dns_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        Some(_) => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !is_qualified_part(name) {
        out.push(format!("name part {QUALIFIED}"));
    }
    out
}

/// Key of a ConfigMap or Secret.
pub(crate) fn config_key(text: &str) -> Vec<String> {
    let ok = !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c));
    let mut out = length_and(text, 253, ok, CONFIG_KEY);
    if text == "." || text == ".." {
        out.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        out.push("must not start with '..'".to_owned());
    }
    out
}

/// Name of an environment variable (the relaxed rule of KEP-4369).
pub(crate) fn env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// Name of a container port (IANA service name).
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push(too_long(15));
    }
    if !text.bytes().all(|c| lower_alnum(c) || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A port number.
pub(crate) fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// An IPv4 or IPv6 address.
pub(crate) fn ip(text: &str) -> Vec<String> {
    if text.parse::<IpAddr>().is_ok() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
    }
}

/// Address and prefix length.
pub(crate) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    if length.len() > 3 || !length.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let address: IpAddr = address.parse().ok()?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    (length <= max).then_some((address, length))
}

/// Whether a list of addresses or networks has two of one family.
pub(crate) fn same_family_twice(list: &super::check::At<'_>) -> bool {
    let mut seen = std::collections::HashSet::new();
    list.items().any(|item| !seen.insert(item.str().contains(':')))
}

/// A network in CIDR notation.
pub(crate) fn cidr(text: &str) -> Vec<String> {
    if parse_cidr(text).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
    }
}

/// Whether a network holds an address of the same family.
pub(crate) fn cidr_contains(network: (IpAddr, u8), address: IpAddr) -> bool {
    match (network.0, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let mask = u32::MAX.checked_shl(u32::from(32 - network.1)).unwrap_or(0);
            Ipv4Addr::to_bits(n) & mask == a.to_bits() & mask
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let mask = u128::MAX.checked_shl(u32::from(128 - network.1)).unwrap_or(0);
            Ipv6Addr::to_bits(n) & mask == a.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        type Rule = fn(&str) -> Vec<String>;
        let cases: &[(&str, Rule, &[&str], &[&str])] = &[
            ("label", dns_label, &["a", "a-b", "1"], &["", "-a", "a-", "A", "a.b", &"x".repeat(64)]),
            ("subdomain", dns_subdomain, &["a.b", "a"], &["a..b", ".a", "a_b"]),
            ("1035", dns_1035_label, &["web"], &["1web", "a.b"]),
            (
                "qualified",
                qualified_name,
                &["app", "example.com/App_1"],
                &["", "a/b/c", "/a", "a/", "A.com/x"],
            ),
            ("value", label_value, &["", "v1.2"], &["-x", "a b"]),
            ("key", config_key, &["a.txt", ".dot"], &["a/b", "..", "..x", ""]),
            ("port", port_name, &["http", "a-1"], &["HTTP", "1", "a--b", "-a", "averyverylongname"]),
            ("ip", ip, &["10.0.0.1", "::1"], &["10.0.0", "010.0.0.1", "x"]),
            ("cidr", cidr, &["10.0.0.0/8"], &["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8"]),
            ("env", env_name, &["A", "a.b"], &["", "A=B"]),
        ];
        for (name, rule, good, bad) in cases {
            for text in *good {
                assert!(rule(text).is_empty(), "{name}: {text:?} is good");
            }
            for text in *bad {
                assert!(!rule(text).is_empty(), "{name}: {text:?} is bad");
            }
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        let network = parse_cidr("10.96.0.0/16").unwrap();
        assert!(cidr_contains(network, "10.96.3.4".parse().unwrap()));
        assert!(!cidr_contains(network, "10.97.0.1".parse().unwrap()));
        assert!(cidr_contains(parse_cidr("0.0.0.0/0").unwrap(), "1.2.3.4".parse().unwrap()));
    }
}
