//! OpenAPI documents: `/openapi/v3` and one document per group and version, read off the table and the schema;
//! `/openapi/v2` is made of them.
//!
//! kubectl reads them to explain kinds and to learn that the server validates fields itself.

mod paths;
#[cfg(test)]
mod tests;
mod v2;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use api::{ApiResponse, SchemaTable, TypeId};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::discovery::{self, Content, Group};
use crate::resource::{Resource, ResourceSet, Subresource};

/// Digests of all documents, and the documents that were asked for: nothing is built before its first use. The key is
/// the group version; an entry counts for the rows it was made from.
static CACHE: LazyLock<Mutex<BTreeMap<String, Cached>>> = LazyLock::new(Mutex::default);

#[derive(Clone)]
struct Cached {
    rows: String,
    hash: String,
    /// `None` until somebody reads the document itself.
    bytes: Option<Bytes>,
}

/// The document at a path; `None` when there is none. `hash` is the query parameter of that name, "" when absent.
pub fn document(
    resources: &ResourceSet,
    groups: &[Group],
    path: &str,
    accept: &str,
    hash: &str,
) -> Option<ApiResponse> {
    // Version 3 is spoken in JSON only, whatever the client prefers; a wrong hash only means that the client's copy is old.
    tracing::trace!(path, accept, hash, "OpenAPI document");
    if path == "/openapi/v2" {
        return Some(v2::document(resources, accept));
    }
    let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    if rest.is_empty() {
        return Some(ApiResponse::json(200, index(resources, groups).to_string()));
    }
    let (group, version) = match rest.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return None,
    };
    let bytes = cached(resources, &group, &version, true)?.bytes?;
    Some(ApiResponse::json(200, bytes))
}

/// Where all documents are; those of other servers are passed on from there.
fn index(resources: &ResourceSet, groups: &[Group]) -> Value {
    let mut paths = Map::new();
    for (group, version) in resources.group_versions() {
        let Some(cached) = cached(resources, &group, &version, false) else { continue };
        let path =
            if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let url = format!("/openapi/v3/{path}?hash={}", cached.hash);
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    for group in groups {
        for version in &group.versions {
            if let Content::Remote { open_api, .. } = &version.content
                && !open_api.is_empty()
            {
                let path = format!("apis/{}/{}", group.name, version.name);
                paths.insert(path, json!({"serverRelativeURL": open_api}));
            }
        }
    }
    json!({"paths": paths})
}

fn cached(resources: &ResourceSet, group: &str, version: &str, with_bytes: bool) -> Option<Cached> {
    let rows: Vec<&Resource> = resources
        .iter()
        .map(AsRef::as_ref)
        .filter(|row| row.gvr.group == group && row.gvr.version == version)
        .collect();
    let first = rows.first()?;
    let key = first.api_version();
    let shape = shape(&rows);
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = cache.get(&key).filter(|c| c.rows == shape && (c.bytes.is_some() || !with_bytes)) {
        return Some(found.clone());
    }
    let text = build(&rows).to_string();
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hash = hash.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02X}"));
    let entry = Cached { rows: shape, hash, bytes: with_bytes.then(|| Bytes::from(text)) };
    cache.insert(key, entry.clone());
    Some(entry)
}

/// Tells the rows of a group apart from those that it had before.
fn shape(rows: &[&Resource]) -> String {
    rows.iter().fold(String::new(), |mut text, row| {
        let own = row.strategy.open_api();
        let written = write!(text, "{}:{:?}:{:p}{own:?};", row.gvr.resource, row.schema, row.table);
        written.expect("writing to a string cannot fail");
        text
    })
}

fn build(rows: &[&Resource]) -> Value {
    let mut paths = Map::new();
    for row in rows {
        paths.extend(paths::of(row));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components(rows)},
    })
}

/// The API version these documents describe.
const VERSION: &str = "v1.37.0";

/// Definitions of meta kinds that operations refer to.
const META: [&str; 3] = ["DeleteOptions", "Status", "WatchEvent"];

/// Name of the component of a meta kind.
fn meta_name(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

/// A `$ref` to a component.
fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The components of a group's kinds and of everything they refer to.
fn components(rows: &[&Resource]) -> Map<String, Value> {
    let mut components = Map::new();
    for rows in rows.chunk_by(|a, b| Arc::ptr_eq(&a.table, &b.table)) {
        components.extend(components_of_table(rows));
    }
    for row in rows {
        let own = row.strategy.open_api().and_then(|text| serde_json::from_str(text).ok());
        if let Some(own) = own {
            components.insert(row.table.get(row.schema).name.clone().into_owned(), own);
        }
    }
    components
}

/// The same for rows of one table.
fn components_of_table(rows: &[&Resource]) -> Map<String, Value> {
    let Some(table) = rows.first().map(|row| &row.table) else { return Map::new() };
    let mut roots: Vec<TypeId> = META.iter().filter_map(|kind| table.by_name(&meta_name(kind))).collect();
    for row in rows {
        roots.push(row.schema);
        roots.extend(table.kind(&row.gvr.group, &row.gvr.version, &row.list_kind));
        let bodies = row.subresources.iter().filter(|s| !matches!(s, Subresource::Connect { .. }));
        roots.extend(bodies.filter_map(|s| {
            let kind = discovery::kind_of(row, s);
            table.kind(&kind.group, &kind.version, &kind.kind)
        }));
    }
    let mut components: Map<String, Value> = schema::openapi::components(table, roots).into_iter().collect();
    for (name, kinds) in kinds_by_name(table) {
        if let Some(component) = components.get_mut(&name) {
            component["x-kubernetes-group-version-kind"] = kinds.into();
        }
    }
    components.entry(meta_name("Patch")).or_insert_with(
        || json!({"type": "object", "description": "A patch in one of the supported formats."}),
    );
    components
}

fn kinds_by_name(table: &SchemaTable) -> BTreeMap<String, Vec<Value>> {
    let mut kinds: Vec<_> = table.kinds().collect();
    kinds.sort_by_key(|(key, _)| *key);
    let mut out: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for ((group, version, kind), id) in kinds {
        let list = out.entry(table.get(id).name.clone().into_owned()).or_default();
        list.push(json!({"group": group, "version": version, "kind": kind}));
    }
    out
}
