//! Discovery documents: `/api`, `/apis`, `/api/v1`, `/apis/{group}`, `/apis/{group}/{version}`, all read off the table.
//!
//! Two forms: one document per level, and the aggregated list of everything (KEP-3352) where the client asks for it.

#[cfg(test)]
mod tests;

use api::{ApiResponse, GroupVersionKind, Verb};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::resource::{Resource, ResourceSet, Subresource};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The document at a path, in the form that `accept` prefers (aggregated discovery v2 too); `None` when there is none.
pub fn document(resources: &ResourceSet, path: &str, accept: &str, advertise: &str) -> Option<ApiResponse> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let aggregated = matches!(parts.as_slice(), ["api" | "apis"]) && wants_aggregated(accept);
    if aggregated {
        let mut response = ApiResponse::json(200, aggregate(resources, parts[0] == "api").to_string());
        response.content_type = AGGREGATED.to_owned();
        return Some(response);
    }
    let value = match parts.as_slice() {
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": advertise}],
        }),
        ["apis"] => {
            let groups: Vec<Value> = groups(resources).iter().map(|g| group(resources, g)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resource_list(resources, "", version)?,
        ["apis", name] => {
            let mut document = group(resources, groups(resources).iter().find(|g| g == name)?);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        ["apis", group, version] if !group.is_empty() => resource_list(resources, group, version)?,
        _ => return None,
    };
    Some(ApiResponse::json(200, value.to_string()))
}

/// Whether a clause of the Accept header asks for the aggregated list before plain JSON.
fn wants_aggregated(accept: &str) -> bool {
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*")) {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        if ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
            .iter()
            .all(|p| parameters.contains(p))
        {
            return true;
        }
        if !parameters.iter().any(|p| p.starts_with("as=")) {
            return false;
        }
    }
    false
}

/// Named groups in table order.
fn groups(resources: &ResourceSet) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for (group, _) in resources.group_versions() {
        if !group.is_empty() && !list.contains(&group) {
            list.push(group);
        }
    }
    list
}

fn versions(resources: &ResourceSet, group: &str) -> Vec<String> {
    resources.group_versions().into_iter().filter(|(g, _)| g == group).map(|(_, version)| version).collect()
}

fn group(resources: &ResourceSet, name: &str) -> Value {
    let versions: Vec<Value> = versions(resources, name)
        .into_iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
}

fn rows<'a>(resources: &'a ResourceSet, group: &str, version: &str) -> Vec<&'a Resource> {
    resources.iter().map(AsRef::as_ref).filter(|r| r.gvr.group == group && r.gvr.version == version).collect()
}

fn words(verbs: &[Verb]) -> Vec<&'static str> {
    let mut words: Vec<&str> = verbs.iter().map(|v| v.as_str()).collect();
    words.sort_unstable();
    words
}

/// The kind that a subresource takes or gives.
pub(crate) fn kind_of(resource: &Resource, subresource: &Subresource) -> GroupVersionKind {
    match subresource {
        Subresource::Scale(_) => GroupVersionKind::new("autoscaling", "v1", "Scale"),
        Subresource::Create { kind, .. } => kind.clone(),
        Subresource::Connect { options_kind, .. } if !options_kind.is_empty() => {
            GroupVersionKind::new(&resource.gvr.group, &resource.gvr.version, options_kind)
        }
        Subresource::Status | Subresource::Part { .. } | Subresource::Connect { .. } => resource.gvk(),
    }
}

/// Changes when the form in which a kind is stored changes (`discovery.StorageVersionHash`).
fn storage_version_hash(resource: &Resource) -> String {
    let stored = resource.stored_as.as_ref().unwrap_or(&resource.gvr);
    let text = format!("{}/{}/{}", stored.group, stored.version, resource.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    BASE64_STANDARD.encode(&digest.as_ref()[..8])
}

fn resource_list(resources: &ResourceSet, group: &str, version: &str) -> Option<Value> {
    let rows = rows(resources, group, version);
    let group_version = rows.first()?.api_version();
    let mut list = Vec::new();
    for row in rows {
        list.push(entry(row));
        list.extend(row.subresources.iter().map(|s| subresource_entry(row, s)));
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list,
    }))
}

fn entry(row: &Resource) -> Value {
    let mut entry = json!({
        "name": row.gvr.resource, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
        "verbs": words(&row.verbs),
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    if row.allows(Verb::List) {
        entry["storageVersionHash"] = storage_version_hash(row).into();
    }
    entry
}

fn subresource_entry(row: &Resource, subresource: &Subresource) -> Value {
    let kind = kind_of(row, subresource);
    let mut entry = json!({
        "name": format!("{}/{}", row.gvr.resource, subresource.name()), "singularName": "",
        "namespaced": row.namespaced, "kind": kind.kind, "verbs": words(&subresource.verbs()),
    });
    if (kind.group.as_str(), kind.version.as_str()) != (row.gvr.group.as_str(), row.gvr.version.as_str()) {
        entry["group"] = kind.group.into();
        entry["version"] = kind.version.into();
    }
    entry
}

/// The aggregated list of the core group, or of all named groups.
fn aggregate(resources: &ResourceSet, core: bool) -> Value {
    let names = if core { vec![String::new()] } else { groups(resources) };
    let items: Vec<Value> = names
        .iter()
        .map(|name| {
            let versions: Vec<Value> =
                versions(resources, name).iter().map(|v| aggregated_version(resources, name, v)).collect();
            let metadata = if core { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_version(resources: &ResourceSet, group: &str, version: &str) -> Value {
    let list: Vec<Value> = rows(resources, group, version).into_iter().map(aggregated_entry).collect();
    json!({"version": version, "freshness": "Current", "resources": list})
}

fn response_kind(kind: &GroupVersionKind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn aggregated_entry(row: &Resource) -> Value {
    let mut entry = json!({
        "resource": row.gvr.resource, "responseKind": response_kind(&row.gvk()),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": words(&row.verbs),
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let list = row.subresources.iter().map(|s| {
            json!({"subresource": s.name(), "responseKind": response_kind(&kind_of(row, s)),
                "verbs": words(&s.verbs())})
        });
        entry["subresources"] = list.collect();
    }
    entry
}
