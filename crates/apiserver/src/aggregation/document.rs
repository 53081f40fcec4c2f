//! What another server serves: its list of resources, as aggregated discovery shows it.

use serde_json::{Value, json};

/// What another server said of one group and version.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Document {
    /// Entries of `APIVersionDiscovery.resources`.
    pub(super) resources: Vec<Value>,
    /// Where its part of OpenAPI v3 is, with the digest that its server gives it; "" when it has none.
    pub(super) open_api: String,
}

/// The entries of an `APIResourceList` in the form of aggregated discovery (KEP-3352).
pub(super) fn resources(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let kind = |entry: &Value| {
        let or = |name: &str, own: &str| match entry[name].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => own.to_owned(),
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": entry["kind"]})
    };
    let entries = || list["resources"].as_array().into_iter().flatten();
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    let mut out: Vec<Value> = Vec::new();
    for entry in entries().filter(|entry| !name(entry).contains('/')) {
        let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut made = json!({
            "resource": name(entry), "responseKind": kind(entry), "scope": scope,
            "singularResource": entry["singularName"].as_str().unwrap_or_default(), "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                made[field] = entry[field].clone();
            }
        }
        let own = entries().filter_map(|other| {
            let whole = name(other);
            let (resource, subresource) = whole.split_once('/')?;
            let made =
                json!({"subresource": subresource, "responseKind": kind(other), "verbs": other["verbs"]});
            (resource == name(entry)).then_some(made)
        });
        let subresources: Vec<Value> = own.collect();
        if !subresources.is_empty() {
            made["subresources"] = subresources.into();
        }
        out.push(made);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_becomes_entries() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "g/v1", "resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"],
                "shortNames": ["th"]},
            {"name": "things/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": ["get", "update"]},
        ]});
        assert_eq!(
            resources(&list, "g", "v1"),
            [json!({
                "resource": "things", "responseKind": {"group": "g", "version": "v1", "kind": "Thing"},
                "scope": "Namespaced", "singularResource": "thing", "verbs": ["get"], "shortNames": ["th"],
                "subresources": [{"subresource": "scale", "verbs": ["get", "update"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}],
            })]
        );
        assert!(resources(&json!("nonsense"), "g", "v1").is_empty());
    }
}
