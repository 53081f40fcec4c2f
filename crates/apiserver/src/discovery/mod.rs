//! Discovery documents: `/api`, `/apis`, `/api/v1`, `/apis/{group}`, `/apis/{group}/{version}`, all read off the table and
//! what other servers say of themselves.
//!
//! Two forms: one document per level, and the aggregated list of everything (KEP-3352) where the client asks for it.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{ApiResponse, GroupVersionKind, Verb};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::resource::{Resource, Subresource};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A group of the API, "" for the core group.
pub struct Group {
    pub name: String,
    /// Best one first.
    pub versions: Vec<Version>,
}

/// A version of a group.
pub struct Version {
    pub name: String,
    pub content: Content,
}

/// What a version has in it.
pub enum Content {
    /// Rows of the table.
    Rows(Vec<Arc<Resource>>),
    /// What another server serves, as aggregated discovery shows it.
    Remote {
        resources: Vec<Value>,
        /// Where its part of OpenAPI v3 is, "" when there is none.
        open_api: String,
        /// The server does not answer; this is what it said before.
        stale: bool,
    },
}

impl Version {
    /// The rows of the table; none of a version that another server serves.
    fn rows(&self) -> &[Arc<Resource>] {
        match &self.content {
            Content::Rows(rows) => rows,
            Content::Remote { .. } => &[],
        }
    }
}

/// The document at a path, in the form that `accept` prefers (aggregated discovery v2 too); `None` when there is none.
pub fn document(groups: &[Group], path: &str, accept: &str, advertise: &str) -> Option<ApiResponse> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let aggregated = matches!(parts.as_slice(), ["api" | "apis"]) && wants_aggregated(accept);
    if aggregated {
        let mut response = ApiResponse::json(200, aggregate(groups, parts[0] == "api").to_string());
        response.content_type = AGGREGATED.to_owned();
        return Some(response);
    }
    let named = |name: &str| groups.iter().find(|group| group.name == name);
    let value = match parts.as_slice() {
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": advertise}],
        }),
        ["apis"] => {
            let groups: Vec<Value> =
                groups.iter().filter(|group| !group.name.is_empty()).map(summary).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resource_list(named("")?, version)?,
        ["apis", name] if !name.is_empty() => {
            let mut document = summary(named(name)?);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        ["apis", group, version] if !group.is_empty() => resource_list(named(group)?, version)?,
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

fn summary(group: &Group) -> Value {
    let name = &group.name;
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{}", v.name), "version": v.name}))
        .collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
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

fn resource_list(group: &Group, version: &str) -> Option<Value> {
    let rows = group.versions.iter().find(|v| v.name == version)?.rows();
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
fn aggregate(groups: &[Group], core: bool) -> Value {
    let wanted = groups.iter().filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = wanted
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(aggregated_version).collect();
            let metadata = if core { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_version(version: &Version) -> Value {
    let (resources, stale) = match &version.content {
        Content::Rows(rows) => (rows.iter().map(|row| aggregated_entry(row)).collect(), false),
        Content::Remote { resources, stale, .. } => (resources.clone(), *stale),
    };
    let freshness = if stale { "Stale" } else { "Current" };
    json!({"version": version.name, "freshness": freshness, "resources": resources})
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
