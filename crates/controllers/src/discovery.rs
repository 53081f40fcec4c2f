//! Which resources the API serves.

use api::{GroupVersionResource, Status};
use client::Client;
use serde::Deserialize;

/// One resource in the preferred version of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub gvr: GroupVersionResource,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Versions of the group, any of which an owner reference may name.
    pub versions: Vec<String>,
}

impl ApiResource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Whether an owner reference with this `apiVersion` and `kind` means this resource.
    pub fn is(&self, api_version: &str, kind: &str) -> bool {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kind == kind && self.gvr.group == group && self.versions.iter().any(|v| v == version)
    }
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    versions: Vec<GroupVersion>,
    preferred_version: Option<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default)]
    resources: Vec<ResourceEntry>,
}

#[derive(Deserialize)]
struct ResourceEntry {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// What could be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    pub resources: Vec<ApiResource>,
    /// Groups that another server serves which does not answer, each with the reason: nothing is known of what is in them.
    pub unknown: Vec<String>,
}

/// Reads `/api/v1` and every group.
///
/// # Errors
/// When the own server does not answer: the core group or the list of groups cannot be read.
pub async fn read(client: &Client) -> Result<Discovered, Status> {
    let resources = resources_of(client, "/api/v1", "", "v1", vec!["v1".into()]).await?;
    let mut found = Discovered { resources, unknown: Vec::new() };
    let groups: GroupList = decode(client.get_path("/apis").await?)?;
    for group in groups.groups {
        let versions: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
        let preferred = group.preferred_version.map(|v| v.version).or_else(|| versions.first().cloned());
        let Some(version) = preferred else { continue };
        let path = format!("/apis/{}/{version}", group.name);
        match resources_of(client, &path, &group.name, &version, versions).await {
            Ok(resources) => found.resources.extend(resources),
            Err(status) => found.unknown.push(format!("{}/{version}: {}", group.name, status.message)),
        }
    }
    Ok(found)
}

async fn resources_of(
    client: &Client,
    path: &str,
    group: &str,
    version: &str,
    versions: Vec<String>,
) -> Result<Vec<ApiResource>, Status> {
    let list: ResourceList = decode(client.get_path(path).await?)?;
    let entries = list.resources.into_iter().filter(|entry| !entry.name.contains('/'));
    let resources = entries.map(|entry| ApiResource {
        gvr: GroupVersionResource::new(group, version, &entry.name),
        kind: entry.kind,
        namespaced: entry.namespaced,
        verbs: entry.verbs,
        versions: versions.clone(),
    });
    Ok(resources.collect())
}

fn decode<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Status> {
    serde_json::from_value(value).map_err(|error| Status::internal(format!("cannot read discovery: {error}")))
}
