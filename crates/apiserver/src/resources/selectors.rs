//! Rules of label selectors as they occur in specs.

use std::collections::BTreeMap;

use api::FieldError;
use serde_json::Value;

use super::check::{At, Errors};
use super::names;

/// Checks a `LabelSelector` (`matchLabels`, `matchExpressions`).
pub(crate) fn validate(at: &At<'_>, e: &mut Errors) {
    at.field("matchLabels").labels(e);
    for item in at.field("matchExpressions").items() {
        let values = item.field("values");
        match item.field("operator").str() {
            "In" | "NotIn" => {
                values.required_because(e, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    values.forbidden(e, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
            }
            _ => item.field("operator").invalid(e, "not a valid selector operator"),
        }
        for detail in names::qualified_name(item.field("key").str()) {
            item.field("key").invalid(e, &detail);
        }
        for value in values.items() {
            for detail in names::label_value(value.str()) {
                value.invalid(e, &detail);
            }
        }
    }
}

/// Whether the selector has no requirement.
pub(crate) fn is_empty(selector: &Value) -> bool {
    let at = At::new(selector, "");
    at.field("matchLabels").is_empty() && at.field("matchExpressions").is_empty()
}

/// Whether a `LabelSelector` selects these labels.
pub(crate) fn matches(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let at = At::new(selector, "");
    at.field("matchLabels").entries().all(|(key, value)| label(key) == Some(value.str()))
        && at.field("matchExpressions").items().all(|item| {
            let key = item.field("key").str();
            let listed = || label(key).is_some_and(|v| item.field("values").items().any(|x| x.str() == v));
            match item.field("operator").str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => label(key).is_some(),
                "DoesNotExist" => label(key).is_none(),
                _ => false,
            }
        })
}

/// Selector and template of a workload: required, not empty, and the template's labels must match.
pub(crate) fn validate_with_template(spec: &At<'_>, e: &mut Errors, what: &str) {
    let selector = spec.field("selector");
    if !selector.is_set() {
        e.push(FieldError::required(&selector.path, ""));
        return;
    }
    validate(&selector, e);
    if is_empty(selector.value) {
        selector.invalid(e, &format!("empty selector is invalid for {what}"));
        return;
    }
    let labels = spec.field("template").field("metadata").field("labels");
    if !matches(selector.value, labels.value) {
        let text: BTreeMap<_, _> = labels.entries().map(|(k, v)| (k, v.str())).collect();
        let path = format!("{}.template.metadata.labels", spec.path);
        let value = serde_json::to_value(text).unwrap_or_default();
        e.push(FieldError::invalid(path, value, "`selector` does not match template `labels`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selection() {
        let labels = json!({"app": "web", "tier": "front"});
        let cases = [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "x"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}), true),
        ];
        for (selector, want) in cases {
            assert_eq!(matches(&selector, &labels), want, "{selector}");
        }
    }
}
