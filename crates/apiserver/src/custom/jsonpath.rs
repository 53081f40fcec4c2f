//! The small part of Go's JSONPath that printer columns are written in: fields, indices, `[*]` and filters on equality.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`
    Equal(Vec<Step>, Value),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads `.status.conditions[?(@.type=="Ready")].status`; braces around it are allowed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        steps(text.strip_prefix('$').unwrap_or(text)).map(JsonPath)
    }

    /// All values that the path leads to.
    pub(crate) fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        follow(&self.0, value)
    }
}

fn steps(mut rest: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    while let Some(first) = rest.chars().next() {
        let inside;
        match first {
            '.' => {
                let name;
                (name, rest) = field(&rest[1..]);
                if name.is_empty() {
                    return Err("a field name is missing after '.'".to_owned());
                }
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            }
            '[' => {
                (inside, rest) = bracket(&rest[1..])?;
                steps.push(subscript(inside)?);
            }
            _ => return Err(format!("unexpected {rest:?}")),
        }
    }
    Ok(steps)
}

/// A field name up to the next `.` or `[`; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(characters.next().map(|(_, c)| c)),
            _ => name.push(character),
        }
    }
    (name, "")
}

/// What stands before the closing bracket, and what follows it.
fn bracket(text: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Ok((&text[..at], &text[at + 1..])),
            (None, ']') => depth -= 1,
            (None, _) => {}
        }
    }
    Err("a bracket is not closed".to_owned())
}

fn subscript(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Ok(Step::Field(name.to_owned()));
    }
    if let Ok(index) = text.parse() {
        return Ok(Step::Index(index));
    }
    let filter = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')'));
    let filter = filter.ok_or_else(|| format!("[{text}] is not supported"))?;
    let (left, right) = filter.split_once("==").ok_or_else(|| format!("no == in [{text}]"))?;
    let left = left.trim().strip_prefix('@').ok_or_else(|| format!("no @ in [{text}]"))?;
    let right = right.trim();
    let value = match quoted(right) {
        Some(word) => Value::String(word.to_owned()),
        None => serde_json::from_str(right).map_err(|_| format!("{right} is no value"))?,
    };
    Ok(Step::Equal(steps(left)?, value))
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q))
}

fn follow<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let Some((first, rest)) = steps.split_first() else { return vec![value] };
    let next: Vec<&Value> = match first {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let from_end = usize::try_from(index.unsigned_abs()).ok().and_then(|n| list.len().checked_sub(n));
            let at = if *index < 0 { from_end } else { usize::try_from(*index).ok() };
            at.and_then(|at| list.get(at)).into_iter().collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Equal(path, wanted) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter(|item| follow(path, item).contains(&wanted)).collect()
        }
    };
    next.into_iter().flat_map(|value| follow(rest, value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({"metadata": {"labels": {"app.kubernetes.io/name": "web"}},
            "spec": {"list": [{"name": "a"}, {"name": "b"}], "n": 3},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        let table = [
            (".spec.n", json!([3])),
            ("{.spec.n}", json!([3])),
            (".spec.missing.deeper", json!([])),
            (".spec.list[1].name", json!(["b"])),
            (".spec.list[-1].name", json!(["b"])),
            (".spec.list[*].name", json!(["a", "b"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='X')].status", json!(["False"])),
            (r".metadata.labels.app\.kubernetes\.io/name", json!(["web"])),
            (".metadata.labels['app.kubernetes.io/name']", json!(["web"])),
        ];
        for (path, want) in table {
            assert_eq!(json!(JsonPath::parse(path).unwrap().find(&object)), want, "{path}");
        }
        for wrong in ["spec", ".", ".a[", ".a[?(@.x)]", ".a[b]"] {
            assert!(JsonPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}
