//! Label and field selectors.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

mod parse;
#[cfg(test)]
mod tests;

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
    /// Gt and Lt compare integers; used by node selectors.
    GreaterThan(String, i64),
    LessThan(String, i64),
}

/// A conjunction of requirements; the empty selector matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Whether a set of labels fulfils all requirements.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// The same for labels kept in another form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
            Requirement::GreaterThan(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *bound)
            }
            Requirement::LessThan(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *bound)
            }
        })
    }
}

/// A conjunction of `path=value` and `path!=value` terms.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldSelector {
    /// (field path, wanted value, equal?)
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Whether an object fulfils all terms; `field` gives a field's value, "" when unset.
    pub fn matches_with<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|(path, value, equal)| (field(path) == value) == *equal)
    }
}

/// Why a selector could not be read; texts follow Kubernetes' `labels` and `fields` packages.
type ParseResult<T> = Result<T, String>;

impl LabelSelector {
    /// A selector that matches no object.
    pub fn nothing() -> Self {
        Self { requirements: vec![Requirement::In(String::new(), Vec::new())] }
    }

    /// Whether the selector has no requirement and so matches everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// A selector that wants exactly these labels.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let one = |(key, value): (&str, &str)| Requirement::In(key.to_owned(), vec![value.to_owned()]);
        Self { requirements: labels.into_iter().map(one).collect() }
    }

    /// Reads the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// A text for a BadRequest, as Kubernetes words it.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::labels(text)
    }

    /// Reads a `metav1.LabelSelector` (`matchLabels`, `matchExpressions`) or, where a value has neither, nothing else.
    /// `null` selects nothing, `{}` everything.
    ///
    /// # Errors
    /// What is wrong with an expression.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        if let Some(labels) = value.get("matchLabels").and_then(Value::as_object) {
            for (key, label) in labels {
                let label = label.as_str().unwrap_or_default();
                parse::check_key(key)?;
                parse::check_value(key, label)?;
                requirements.push(Requirement::In(key.clone(), vec![label.to_owned()]));
            }
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(Requirement::from_expression(expression)?);
        }
        Ok(Self { requirements })
    }
}

impl Requirement {
    /// Reads one entry of `matchExpressions`, of a label selector or of a node selector (`Gt`, `Lt`).
    ///
    /// # Errors
    /// An unknown operator, or values that do not suit it.
    pub fn from_expression(expression: &Value) -> Result<Self, String> {
        let key = expression.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
        parse::check_key(&key)?;
        let operator = expression.get("operator").and_then(Value::as_str).unwrap_or_default();
        let values: Vec<String> = expression
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|v| v.as_str().unwrap_or_default().to_owned())
            .collect();
        Requirement::build(key, operator, values)
    }

    fn build(key: String, operator: &str, values: Vec<String>) -> ParseResult<Self> {
        let bound = |values: &[String]| {
            match values {
            [one] => one.parse::<i64>().map_err(|_| {
                format!("values[0][{key}]: Invalid value: {one:?}: for 'Gt', 'Lt' operators, the value must be an integer")
            }),
            _ => Err("values: Invalid value: []: for 'Gt', 'Lt' operators, exactly one value is required".to_owned()),
        }
        };
        Ok(match operator {
            "In" | "NotIn" if values.is_empty() => {
                return Err(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                        .into(),
                );
            }
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                return Err(
                    "values: Invalid value: values set must be empty for exists and does not exist".into()
                );
            }
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            "Gt" => {
                let limit = bound(&values)?;
                Requirement::GreaterThan(key, limit)
            }
            "Lt" => {
                let limit = bound(&values)?;
                Requirement::LessThan(key, limit)
            }
            other => return Err(format!("{other:?} is not a valid label selector operator")),
        })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(",")),
            Requirement::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(",")),
            Requirement::Exists(key) => f.write_str(key),
            Requirement::DoesNotExist(key) => write!(f, "!{key}"),
            Requirement::GreaterThan(key, bound) => write!(f, "{key}>{bound}"),
            Requirement::LessThan(key, bound) => write!(f, "{key}<{bound}"),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&list.join(","))
    }
}

impl FieldSelector {
    /// Reads `metadata.name=x,status.phase!=Running`; `\,`, `\=` and `\\` are escapes in values.
    ///
    /// # Errors
    /// A text for a BadRequest, as Kubernetes words it.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::fields(text)
    }

    /// The value that a path must have, if the selector has an equality for it.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|(p, _, equal)| *equal && p == path).map(|(_, value, _)| value.as_str())
    }

    /// The paths that the selector reads.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(path, _, _)| path.as_str())
    }
}
