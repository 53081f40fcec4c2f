//! Whether a node has the labels a pod asks for ("Assigning Pods to Nodes"). The scheduler has looked at this before; a pod
//! may also be bound by hand, and labels change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use crate::observed::spec;

/// Whether the node fits the pod's node selector and required node affinity.
pub fn fits(pod: &core::Pod, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let spec = spec(pod);
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; a term that says nothing fits nothing.
    required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_fits(term, node_name, labels)))
}

fn term_fits(term: &core::NodeSelectorTerm, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let on_labels = term.match_expressions.iter().flatten().map(|r| requirement(r, labels.get(&r.key)));
    let name = node_name.to_owned();
    let on_fields = term
        .match_fields
        .iter()
        .flatten()
        .map(|r| requirement(r, Some(&name).filter(|_| r.key == "metadata.name")));
    let all: Vec<bool> = on_labels.chain(on_fields).collect();
    !all.is_empty() && all.into_iter().all(|fits| fits)
}

fn requirement(wanted: &core::NodeSelectorRequirement, found: Option<&String>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = found.is_some_and(|value| values.contains(value));
    let number = |text: &String| text.parse::<i64>().ok();
    let compared = || found.and_then(number).zip(values.first().and_then(number));
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared().is_some_and(|(has, bound)| has > bound),
        "Lt" => compared().is_some_and(|(has, bound)| has < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn selectors_and_terms() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("size".into(), "4".into())]);
        let term = |key: &str, operator: &str, values: Value| {
            let expression = json!({"key": key, "operator": operator, "values": values});
            let terms = json!([{"matchExpressions": [expression]}]);
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let field = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]);
        let table = [
            (json!({}), true),
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (term("zone", "In", json!(["a", "b"])), true),
            (term("zone", "NotIn", json!(["a"])), false),
            (term("other", "NotIn", json!(["a"])), true),
            (term("zone", "Exists", json!([])), true),
            (term("zone", "DoesNotExist", json!([])), false),
            (term("size", "Gt", json!(["3"])), true),
            (term("size", "Lt", json!(["4"])), false),
            (
                json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": field}}}}),
                true,
            ),
        ];
        for (mut spec, want) in table {
            spec["containers"] = json!([]);
            let pod = serde_json::from_value(json!({"spec": spec.clone()})).unwrap();
            assert_eq!(fits(&pod, "n", &labels), want, "{spec}");
        }
    }
}
