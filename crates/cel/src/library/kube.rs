//! Quantities, versions, named formats, and the authorizer.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use api::Quantity;

use super::{Check, Opaque, failed};
use crate::eval::Eval;
use crate::value::Val;

/// A semantic version without its build part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    /// What follows a hyphen, split at dots; none for a release.
    pre: Vec<String>,
}

impl Semver {
    fn parse(text: &str, lenient: bool) -> Option<Self> {
        let text = if lenient { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let word =
            |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if build.is_some_and(|build| !build.split('.').all(word)) {
            return None;
        }
        let mut parts: Vec<&str> = core.split('.').collect();
        if lenient {
            parts.resize(parts.len().max(3), "0");
        }
        let number = |part: &&str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let leading = part.len() > 1 && part.starts_with('0') && !lenient;
            if digits && !leading { part.parse::<u64>().ok() } else { None }
        };
        let numbers: Vec<u64> = parts.iter().map(number).collect::<Option<_>>()?;
        let pre: Vec<String> = pre.map_or_else(Vec::new, |pre| pre.split('.').map(str::to_owned).collect());
        let fine = |part: &String| {
            let numeric = part.bytes().all(|b| b.is_ascii_digit());
            word(part) && !(numeric && part.len() > 1 && part.starts_with('0'))
        };
        (pre.iter().all(fine)).then_some(Self { numbers: numbers.try_into().ok()?, pre })
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = self.numbers.cmp(&other.numbers);
        if numbers != Ordering::Equal {
            return numbers;
        }
        match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => {}
        }
        for (a, b) in self.pre.iter().zip(&other.pre) {
            let order = match (a.parse::<u64>(), b.parse::<u64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => a.cmp(b),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        self.pre.len().cmp(&other.pre.len())
    }
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        Ok(())
    }
}

fn opaque<'a>(value: Opaque) -> Eval<'a> {
    Ok(Val::Opaque(Arc::new(value)))
}

/// The functions of this theme.
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    if !member {
        return globals(name, args);
    }
    let Some(Val::Opaque(target)) = args.first() else { return None };
    match &**target {
        Opaque::Quantity(quantity) => quantities(name, quantity, args.get(1)),
        Opaque::Semver(version) => versions(name, version, args.get(1)),
        Opaque::Format(format) => match (name, args.get(1)) {
            ("validate", Some(Val::String(text))) => Some(Ok(validate(format, text))),
            _ => None,
        },
        _ => authorizer(name, target, &args[1..]),
    }
}

const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn named(name: &str) -> Option<&'static str> {
    FORMATS.into_iter().find(|format| *format == name)
}

fn globals<'a>(name: &str, args: &[Val<'a>]) -> Option<Eval<'a>> {
    Some(match (name, args) {
        ("quantity", [Val::String(text)]) => match Quantity::parse(text) {
            Ok(quantity) => opaque(Opaque::Quantity(quantity)),
            Err(error) => failed(error.to_string()),
        },
        ("isQuantity", [Val::String(text)]) => Ok(Val::Bool(Quantity::parse(text).is_ok())),
        ("semver", [Val::String(text), rest @ ..]) => match Semver::parse(text, lenient(rest)) {
            Some(version) => opaque(Opaque::Semver(version)),
            None => failed(format!("invalid semantic version: {text:?}")),
        },
        ("isSemver", [Val::String(text), rest @ ..]) => {
            Ok(Val::Bool(Semver::parse(text, lenient(rest)).is_some()))
        }
        ("format.named", [Val::String(name)]) => {
            Ok(named(name)
                .map_or(Val::NONE, |format| Val::some(Val::Opaque(Arc::new(Opaque::Format(format))))))
        }
        ("jsonpatch.escapeKey", [Val::String(key)]) => {
            Ok(Val::text(&key.replace('~', "~0").replace('/', "~1")))
        }
        (name, []) => {
            return named(name.strip_prefix("format.")?).map(|format| opaque(Opaque::Format(format)));
        }
        _ => return None,
    })
}

fn lenient(rest: &[Val<'_>]) -> bool {
    matches!(rest, [Val::Bool(true)])
}

fn compared<'a>(name: &str, order: Ordering) -> Option<Eval<'a>> {
    Some(Ok(match name {
        "isGreaterThan" => Val::Bool(order == Ordering::Greater),
        "isLessThan" => Val::Bool(order == Ordering::Less),
        "compareTo" => Val::Int(order as i64),
        _ => return None,
    }))
}

fn quantities<'a>(name: &str, quantity: &Quantity, arg: Option<&Val<'a>>) -> Option<Eval<'a>> {
    let other = match arg {
        Some(Val::Opaque(other)) => match **other {
            Opaque::Quantity(other) => Some(other),
            _ => None,
        },
        Some(Val::Int(n)) => Some(Quantity::whole(*n)),
        _ => None,
    };
    Some(match (name, other) {
        ("sign", None) => Ok(Val::Int((*quantity).cmp(&Quantity::whole(0)) as i64)),
        ("asApproximateFloat", None) => Ok(Val::Double(quantity.as_f64())),
        ("isInteger", None) => Ok(Val::Bool(quantity.is_whole())),
        ("asInteger", None) if quantity.is_whole() => Ok(Val::Int(quantity.value())),
        ("asInteger", None) => failed("cannot convert value to integer"),
        ("add", Some(other)) => opaque(Opaque::Quantity(*quantity + other)),
        ("sub", Some(other)) => opaque(Opaque::Quantity(*quantity - other)),
        (name, Some(other)) => return compared(name, (*quantity).cmp(&other)),
        _ => return None,
    })
}

fn versions<'a>(name: &str, version: &Semver, arg: Option<&Val<'a>>) -> Option<Eval<'a>> {
    let part = |index: usize| Some(Ok(Val::Int(i64::try_from(version.numbers[index]).unwrap_or(i64::MAX))));
    match (name, arg) {
        ("major", None) => part(0),
        ("minor", None) => part(1),
        ("patch", None) => part(2),
        (name, Some(Val::Opaque(other))) => match &**other {
            Opaque::Semver(other) => compared(name, version.cmp(other)),
            _ => None,
        },
        _ => None,
    }
}

fn is_name(text: &str, dots: bool, letter_first: bool, most: usize) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let first =
            bytes.first().is_some_and(|b| if letter_first { b.is_ascii_lowercase() } else { edge(*b) });
        first && bytes.last().is_some_and(|b| edge(*b)) && bytes.iter().all(|b| edge(*b) || *b == b'-')
    };
    text.len() <= most && if dots { text.split('.').all(part) } else { part(text) }
}

fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// None when the text has the format, else what is wrong.
fn validate<'a>(format: &str, text: &str) -> Val<'a> {
    let prefix = text.strip_suffix('-').unwrap_or(text);
    let fine = match format {
        "dns1123Label" => is_name(text, false, false, 63),
        "dns1123Subdomain" => is_name(text, true, false, 253),
        "dns1035Label" => is_name(text, false, true, 63),
        "dns1123LabelPrefix" => is_name(prefix, false, false, 63),
        "dns1123SubdomainPrefix" => is_name(prefix, true, false, 253),
        "dns1035LabelPrefix" => is_name(prefix, false, true, 63),
        "labelValue" => text.is_empty() || is_word(text),
        "qualifiedName" => match text.split_once('/') {
            Some((domain, name)) => is_name(domain, true, false, 253) && is_word(name),
            None => is_word(text),
        },
        "uri" => text.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()),
        "uuid" => {
            let hex = text.bytes().filter(u8::is_ascii_hexdigit).count();
            hex == 32 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        }
        "byte" => {
            use base64::Engine as _;
            base64::prelude::BASE64_STANDARD.decode(text).is_ok()
        }
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        _ => text.parse::<jiff::Timestamp>().is_ok(),
    };
    if fine {
        return Val::NONE;
    }
    Val::some(Val::list(vec![Val::text(&format!("must be a valid {format}"))]))
}

fn authorizer<'a>(name: &str, target: &Opaque, args: &[Val<'a>]) -> Option<Eval<'a>> {
    let texts: Vec<&str> = args.iter().map(Val::as_str).collect::<Option<_>>()?;
    Some(match (target, name, texts.as_slice()) {
        (Opaque::Authorizer(user, _), "path", [path]) => {
            opaque(Opaque::Path { user: user.clone(), path: (*path).to_owned() })
        }
        (Opaque::Authorizer(user, _), "group", [group]) => {
            opaque(Opaque::Group { user: user.clone(), group: (*group).to_owned() })
        }
        (Opaque::Authorizer(_, about), "serviceAccount", [namespace, name]) => {
            opaque(Opaque::Authorizer(format!("system:serviceaccount:{namespace}:{name}"), about.clone()))
        }
        (Opaque::Group { user, group }, "resource", [resource]) => opaque(Opaque::Resource(Check {
            user: user.clone(),
            group: group.clone(),
            resource: (*resource).to_owned(),
            ..Check::default()
        })),
        (Opaque::Resource(check), "subresource", [value]) => {
            opaque(Opaque::Resource(Check { subresource: (*value).to_owned(), ..check.clone() }))
        }
        (Opaque::Resource(check), "namespace", [value]) => {
            opaque(Opaque::Resource(Check { namespace: (*value).to_owned(), ..check.clone() }))
        }
        (Opaque::Resource(check), "name", [value]) => {
            opaque(Opaque::Resource(Check { name: (*value).to_owned(), ..check.clone() }))
        }
        // Rules do not look at selectors, so that a check with one is a check without.
        (Opaque::Resource(check), "fieldSelector" | "labelSelector", [_]) => {
            opaque(Opaque::Resource(check.clone()))
        }
        (Opaque::Resource(check), "check", [verb]) => {
            opaque(Opaque::Question(Check { verb: (*verb).to_owned(), ..check.clone() }))
        }
        (Opaque::Path { user, path }, "check", [verb]) => opaque(Opaque::Question(Check {
            user: user.clone(),
            verb: (*verb).to_owned(),
            path: path.clone(),
            ..Check::default()
        })),
        (Opaque::Decision(decision), "allowed", []) => Ok(Val::Bool(decision.allowed)),
        (Opaque::Decision(decision), "reason", []) => Ok(Val::text(&decision.reason)),
        (Opaque::Decision(decision), "errored", []) => Ok(Val::Bool(!decision.error.is_empty())),
        (Opaque::Decision(decision), "error", []) => Ok(Val::text(&decision.error)),
        _ => return None,
    })
}
