//! Where YAML text in block style repeats a key: the reader tells the field, people look for the line.

use std::collections::BTreeSet;

/// A mapping that is open at a line: its indentation and the keys so far.
struct Open<'a> {
    indent: usize,
    keys: BTreeSet<&'a str>,
}

/// `line 9: key "foo" already set in map`, for each repeated key.
pub(super) fn repeated_keys(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<Open<'_>> = Vec::new();
    // Lines deeper than this are the text of a block scalar.
    let mut scalar: Option<usize> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let mut rest = line.trim_start_matches(' ');
        let mut indent = line.len() - rest.len();
        if rest.trim().is_empty() || rest.starts_with('#') || scalar.is_some_and(|limit| indent > limit) {
            continue;
        }
        scalar = None;
        // An item of a list begins a mapping of its own.
        while let Some(item) = rest.strip_prefix("- ") {
            open.retain(|mapping| mapping.indent <= indent);
            let item = item.trim_start_matches(' ');
            indent += rest.len() - item.len();
            rest = item;
        }
        open.retain(|mapping| mapping.indent <= indent);
        let Some((key, value)) = key_and_value(rest) else { continue };
        if open.last().is_none_or(|mapping| mapping.indent < indent) {
            open.push(Open { indent, keys: BTreeSet::new() });
        }
        if let Some(mapping) = open.last_mut()
            && !mapping.keys.insert(key)
        {
            found.push(format!("line {number}: key {key:?} already set in map"));
        }
        if value.starts_with(['|', '>']) {
            scalar = Some(indent);
        }
    }
    found
}

fn key_and_value(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['{', '[']) {
        return None;
    }
    let at = text.match_indices(':').map(|(at, _)| at).find(|at| {
        let after = text[at + 1..].chars().next();
        after.is_none_or(char::is_whitespace)
    })?;
    Some((text[..at].trim().trim_matches(['"', '\'']), text[at + 1..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_repeated_keys() {
        let text = "\na: 1\nb:\n  c: x:y\n  # c: comment\n  'c': 2\n  d:\n  - name: n\n    c: 1\n  - name: n\n    name: m\n\
            \x20 e: |\n    c: 1\n    c: 2\n  f: {c: 1, c: 2}\na: 2\n";
        let want = [
            "line 6: key \"c\" already set in map",
            "line 11: key \"name\" already set in map",
            "line 16: key \"a\" already set in map",
        ];
        assert_eq!(repeated_keys(text), want);
        assert!(repeated_keys("{\"a\": 1, \"a\": 2}").is_empty());
    }
}
