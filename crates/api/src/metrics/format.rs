//! A strict reader of the text form, for tests: what it lets pass, every scraper reads.
//!
//! Stricter than the format itself where Kubernetes' own pages are: HELP and TYPE before every family, families whole and
//! once, no blank lines.

use std::collections::{BTreeMap, BTreeSet};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

struct Current {
    name: String,
    kind: String,
    samples: Vec<Sample>,
}

/// Reads a page.
///
/// # Errors
/// The first line that breaks a rule, and the rule.
pub fn parse(page: &str) -> Result<Vec<Sample>, String> {
    if !page.is_empty() && !page.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    let (mut all, mut names, mut series) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let (mut help, mut current): (Option<&str>, Option<Current>) = (None, None);
    for line in page.lines() {
        let wrong = |rule: &str| format!("{rule}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            finish(current.take(), &mut all)?;
            let (name, text) = rest.split_once(' ').ok_or_else(|| wrong("no help text"))?;
            if text.trim().is_empty() || !is_name(name, true) {
                return Err(wrong("malformed HELP"));
            }
            help = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            if help.take() != Some(name) {
                return Err(wrong("TYPE must follow its HELP"));
            }
            if !matches!(kind, "counter" | "gauge" | "histogram") {
                return Err(wrong("unknown type"));
            }
            if !names.insert(name.to_owned()) {
                return Err(wrong("the family is there twice"));
            }
            current = Some(Current { name: name.into(), kind: kind.into(), samples: Vec::new() });
        } else {
            let family = current.as_mut().ok_or_else(|| wrong("a sample before its TYPE"))?;
            let sample = sample(line).map_err(|rule| wrong(&rule))?;
            if !belongs(family, &sample) {
                return Err(wrong("a sample of another family"));
            }
            if !series.insert(format!("{}{:?}", sample.name, sample.labels)) {
                return Err(wrong("the series is there twice"));
            }
            if family.kind != "gauge" && (sample.value < 0.0 || sample.value.is_nan()) {
                return Err(wrong("counts are never negative"));
            }
            family.samples.push(sample);
        }
    }
    finish(current, &mut all)?;
    match help {
        Some(name) => Err(format!("HELP without TYPE: {name}")),
        None => Ok(all),
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(allowed)
}

fn belongs(family: &Current, sample: &Sample) -> bool {
    let Some(suffix) = sample.name.strip_prefix(&family.name) else { return false };
    match suffix {
        "" => family.kind != "histogram",
        "_bucket" => family.kind == "histogram" && sample.labels.contains_key("le"),
        "_sum" | "_count" => family.kind == "histogram",
        _ => false,
    }
}

/// `name{label="value",…} number [milliseconds]`
fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("malformed name".into());
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let rest = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let (value, moment) = rest.split_once(' ').map_or((rest, None), |(value, at)| (value, Some(at)));
    if moment.is_some_and(|at| at.parse::<i64>().is_err()) {
        return Err("malformed moment".into());
    }
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        digits if digits.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            digits.parse().map_err(|_| "malformed number")?
        }
        _ => return Err("malformed number".into()),
    };
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), String> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, false) {
            return Err(format!("malformed label {name:?}"));
        }
        let (mut value, mut end) = (String::new(), None);
        let mut chars = after.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = Some(at);
                    break;
                }
                '\\' => match chars.next() {
                    Some((_, c @ ('\\' | '"'))) => value.push(c),
                    Some((_, 'n')) => value.push('\n'),
                    _ => return Err("unknown escape".into()),
                },
                c => value.push(c),
            }
        }
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("label {name:?} twice"));
        }
        let after = &after[end.ok_or("an open quote")? + 1..];
        if let Some(rest) = after.strip_prefix('}') {
            return Ok((labels, rest));
        }
        rest = after.strip_prefix(',').ok_or("no comma between labels")?;
    }
}

/// A family has series, and each series of a histogram is whole.
fn finish(family: Option<Current>, all: &mut Vec<Sample>) -> Result<(), String> {
    let Some(Current { name, kind, samples }) = family else { return Ok(()) };
    if samples.is_empty() {
        return Err(format!("a family without series: {name}"));
    }
    if kind == "histogram" {
        let mut groups: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
        for sample in &samples {
            let mut labels = sample.labels.clone();
            labels.remove("le");
            groups.entry(format!("{labels:?}")).or_default().push(sample);
        }
        for group in groups.values() {
            whole(&name, group).map_err(|rule| format!("{rule}: {name}"))?;
        }
    }
    all.extend(samples);
    Ok(())
}

fn whole(name: &str, group: &[&Sample]) -> Result<(), String> {
    let one = |suffix: &str| {
        let mut found = group.iter().filter(|sample| sample.name == format!("{name}{suffix}"));
        found.next().map(|sample| sample.value).ok_or_else(|| format!("no {suffix}"))
    };
    one("_sum")?;
    let count = one("_count")?;
    let (mut bound, mut below) = (f64::NEG_INFINITY, 0.0);
    for sample in group.iter().filter(|sample| sample.name.ends_with("_bucket")) {
        let le = sample.labels.get("le").map(String::as_str).unwrap_or_default();
        let le = if le == "+Inf" { f64::INFINITY } else { le.parse().map_err(|_| "malformed bound")? };
        if le <= bound || sample.value < below {
            return Err("buckets must grow".into());
        }
        (bound, below) = (le, sample.value);
    }
    if bound != f64::INFINITY || below.to_bits() != count.to_bits() {
        return Err("the last bucket is +Inf and holds all".into());
    }
    Ok(())
}
