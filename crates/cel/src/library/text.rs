//! Functions of strings, with positions in characters, and regular expressions.

use std::sync::Arc;

use regex::Regex;

use super::{failed, time};
use crate::Error;
use crate::eval::Eval;
use crate::value::Val;

/// The functions of this theme.
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    use Val::{Bool, Int, String};
    let text = |text: &str| Ok(Val::text(text));
    Some(match (name, args) {
        ("matches", [String(s), String(pattern)]) => regex(pattern).map(|r| Bool(r.is_match(s))),
        ("strings.quote", [String(s)]) => text(&format!("{s:?}")),
        _ if !member => return None,
        ("contains", [String(s), String(t)]) => Ok(Bool(s.contains(&**t))),
        ("startsWith", [String(s), String(t)]) => Ok(Bool(s.starts_with(&**t))),
        ("endsWith", [String(s), String(t)]) => Ok(Bool(s.ends_with(&**t))),
        ("find", [String(s), String(pattern)]) => {
            regex(pattern).map(|r| Val::text(r.find(s).map_or("", |found| found.as_str())))
        }
        ("findAll", [String(s), String(pattern), rest @ ..]) => {
            let most = match rest {
                [Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            regex(pattern).map(|r| {
                Val::list(r.find_iter(s).take(most).map(|found| Val::text(found.as_str())).collect())
            })
        }
        ("charAt", [String(s), Int(at)]) => {
            let at = usize::try_from(*at).ok();
            match at.filter(|at| *at <= s.chars().count()) {
                Some(at) => text(&s.chars().skip(at).take(1).collect::<std::string::String>()),
                None => failed("index out of range"),
            }
        }
        ("indexOf", [String(s), String(t), rest @ ..]) => {
            let from = if let [Int(from)] = rest { *from } else { 0 };
            index_of(s, t, from)
        }
        ("lastIndexOf", [String(s), String(t), rest @ ..]) => {
            let until = if let [Int(until)] = rest { Some(*until) } else { None };
            last_index_of(s, t, until)
        }
        ("lowerAscii", [String(s)]) => text(&s.to_ascii_lowercase()),
        ("upperAscii", [String(s)]) => text(&s.to_ascii_uppercase()),
        ("trim", [String(s)]) => text(s.trim()),
        ("replace", [String(s), String(a), String(b)]) => text(&s.replace(&**a, b)),
        ("replace", [String(s), String(a), String(b), Int(n)]) => match usize::try_from(*n) {
            Ok(n) => text(&s.replacen(&**a, b, n)),
            Err(_) => text(&s.replace(&**a, b)),
        },
        ("split", [String(s), String(by), rest @ ..]) => {
            let most = if let [Int(n)] = rest { *n } else { -1 };
            Ok(Val::list(split(s, by, most).iter().map(|part| Val::text(part)).collect()))
        }
        ("substring", [String(s), Int(from), rest @ ..]) => {
            let until = if let [Int(until)] = rest { Some(*until) } else { None };
            substring(s, *from, until)
        }
        ("format", [String(s), args]) => match args.items() {
            Some(args) => format(s, &args),
            None => failed("no such overload"),
        },
        ("join", [list, rest @ ..]) => {
            let by = if let [String(by)] = rest { &**by } else { "" };
            let parts: Option<Vec<_>> =
                list.items().and_then(|items| items.iter().map(|v| v.as_str().map(str::to_owned)).collect());
            parts.map_or_else(|| failed("no such overload"), |parts| text(&parts.join(by)))
        }
        _ => return None,
    })
}

/// A compiled pattern; a pattern that is too large is refused.
pub(crate) fn regex(pattern: &str) -> Result<Regex, Error> {
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|error| Error::Failed(format!("error parsing regexp: {error}")))
}

fn place<'a>(n: usize) -> Eval<'a> {
    Ok(Val::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

fn index_of<'a>(s: &str, t: &str, from: i64) -> Eval<'a> {
    let (s, t): (Vec<char>, Vec<char>) = (s.chars().collect(), t.chars().collect());
    let Some(from) = usize::try_from(from).ok().filter(|from| *from <= s.len()) else {
        return failed(format!("index out of range: {from}"));
    };
    if t.is_empty() {
        return place(from);
    }
    let found = s[from..].windows(t.len()).position(|window| window == t);
    found.map_or(Ok(Val::Int(-1)), |at| place(from + at))
}

fn last_index_of<'a>(s: &str, t: &str, until: Option<i64>) -> Eval<'a> {
    let (s, t): (Vec<char>, Vec<char>) = (s.chars().collect(), t.chars().collect());
    let until = match until {
        None => s.len(),
        Some(until) => match usize::try_from(until).ok().filter(|until| *until <= s.len()) {
            Some(until) => until,
            None => return failed(format!("index out of range: {until}")),
        },
    };
    if t.is_empty() {
        return place(until);
    }
    let found = s.windows(t.len()).enumerate().rfind(|(at, w)| *at <= until && *w == t);
    found.map_or(Ok(Val::Int(-1)), |(at, _)| place(at))
}

/// Go's `strings.SplitN`.
fn split<'t>(s: &'t str, by: &str, most: i64) -> Vec<&'t str> {
    let characters = || s.char_indices().map(|(at, c)| &s[at..at + c.len_utf8()]);
    match (usize::try_from(most), by.is_empty()) {
        (Ok(0), _) => Vec::new(),
        (Err(_), true) => characters().collect(),
        (Err(_), false) => s.split(by).collect(),
        (Ok(n), true) => {
            let mut parts: Vec<&str> = characters().take(n - 1).collect();
            let used: usize = parts.iter().map(|part| part.len()).sum();
            parts.extend(Some(&s[used..]).filter(|rest| !rest.is_empty()));
            parts
        }
        (Ok(n), false) => s.splitn(n, by).collect(),
    }
}

fn substring<'a>(s: &str, from: i64, until: Option<i64>) -> Eval<'a> {
    let characters: Vec<char> = s.chars().collect();
    let bound = |n: i64| usize::try_from(n).ok().filter(|n| *n <= characters.len());
    let until = until.map_or(Some(characters.len()), bound);
    match (bound(from), until) {
        (Some(from), Some(until)) if from <= until => {
            Ok(Val::text(&characters[from..until].iter().collect::<String>()))
        }
        (Some(_), Some(_)) => failed("invalid substring range"),
        _ => failed(format!("index out of range: {from}")),
    }
}

/// `%s %d %f %e %b %o %x %X %%`
fn format<'a>(pattern: &str, args: &[Val<'a>]) -> Eval<'a> {
    let mut out = String::new();
    let (mut args, mut rest) = (args.iter(), pattern.chars());
    while let Some(next) = rest.next() {
        if next != '%' {
            out.push(next);
            continue;
        }
        let mut precision = None;
        let mut verb = rest.next();
        if verb == Some('.') {
            let digits: String = rest.clone().take_while(char::is_ascii_digit).collect();
            rest.by_ref().take(digits.len()).for_each(drop);
            precision = digits.parse::<usize>().ok();
            verb = rest.next();
        }
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let Some(arg) = args.next() else { return failed("index out of range") };
        let shown = verb.and_then(|verb| formatted(verb, precision, arg));
        match shown {
            Some(shown) => out.push_str(&shown),
            None => return failed("could not parse formatting clause"),
        }
    }
    Ok(Val::text(&out))
}

#[allow(clippy::cast_precision_loss)] // that is what %f does
fn formatted(verb: char, precision: Option<usize>, arg: &Val<'_>) -> Option<String> {
    let number = match arg {
        Val::Int(n) => Some(i128::from(*n)),
        Val::Uint(n) => Some(i128::from(*n)),
        Val::Bool(b) => Some(i128::from(*b)),
        _ => None,
    };
    let signed =
        |show: fn(i128) -> String| number.map(|n| if n < 0 { format!("-{}", show(-n)) } else { show(n) });
    let double = match arg {
        Val::Double(n) => Some(*n),
        _ => number.map(|n| n as f64),
    };
    match verb {
        's' => Some(shown(arg)),
        'd' => match arg {
            Val::Int(_) | Val::Uint(_) => number.map(|n| n.to_string()),
            Val::Double(n) if !n.is_finite() => Some(n.to_string()),
            _ => None,
        },
        'f' => double.map(|n| format!("{n:.*}", precision.unwrap_or(6))),
        'e' => double.map(|n| {
            let text = format!("{n:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }),
        'b' => signed(|n| format!("{n:b}")),
        'o' => signed(|n| format!("{n:o}")),
        'x' | 'X' => {
            let hex = match arg {
                Val::String(text) => Some(text.bytes().map(|b| format!("{b:02x}")).collect()),
                Val::Bytes(bytes) => Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
                _ => signed(|n| format!("{n:x}")),
            };
            hex.map(|hex: String| if verb == 'X' { hex.to_uppercase() } else { hex })
        }
        _ => None,
    }
}

/// A value as `%s` shows it.
fn shown(value: &Val<'_>) -> String {
    match value {
        Val::String(text) => text.to_string(),
        Val::Null => "null".to_owned(),
        Val::Double(n) => n.to_string(),
        Val::Type(name) => name.to_string(),
        Val::Duration(duration) => time::text(*duration),
        Val::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => {
            if let Some(items) = other.items() {
                return format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", "));
            }
            if let Some(entries) = other.entries() {
                let entries = entries.iter().map(|(key, value)| format!("{key}: {}", shown(value)));
                return format!("{{{}}}", entries.collect::<Vec<_>>().join(", "));
            }
            let json =
                other.to_json().map(|json| json.as_str().map_or_else(|| json.to_string(), str::to_owned));
            json.unwrap_or_else(|| Arc::<str>::from(other.type_name()).to_string())
        }
    }
}
