//! All groups as discovery lists them: those of the table and those of other servers, by their priorities.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::Document;
use super::{Aggregation, Routes};
use crate::custom::version_order;
use crate::discovery::{Content, Group, Version};
use crate::resource::ResourceSet;
use crate::resources::{CUSTOM_PRIORITY, Priority, priority};

/// A version on its way into the list.
struct Entry {
    priority: Priority,
    group: String,
    version: Version,
}

/// The groups of a table and of all routes.
pub(crate) fn listing(aggregation: &Aggregation, routes: &Routes, rows: &ResourceSet) -> Vec<Group> {
    let mut entries: Vec<Entry> = Vec::new();
    for (group, version) in rows.group_versions() {
        let service = routes.get(&group, &version);
        if service.is_some_and(|service| service.remote.is_some()) {
            continue;
        }
        let usual = || priority(&group, &version).unwrap_or(CUSTOM_PRIORITY);
        let of_version = rows.iter().filter(|row| row.gvr.group == group && row.gvr.version == version);
        let content = Content::Rows(of_version.cloned().collect());
        let priority = service.map_or_else(usual, |service| service.priority);
        entries.push(Entry { priority, group, version: Version { name: version, content } });
    }
    for service in routes.iter().filter(|service| service.remote.is_some()) {
        let document = aggregation.document(&service.name);
        let content = remote(document, service.available);
        let version = Version { name: service.version.clone(), content };
        entries.push(Entry { priority: service.priority, group: service.group.clone(), version });
    }
    sorted(entries)
}

fn remote(document: Option<Arc<Document>>, available: bool) -> Content {
    let (resources, open_api) =
        document.map(|d| (d.resources.clone(), d.open_api.clone())).unwrap_or_default();
    Content::Remote { resources, open_api, stale: !available }
}

/// The group with the greatest minimum first, in it the version with the greatest priority; then as Kubernetes sorts names.
fn sorted(entries: Vec<Entry>) -> Vec<Group> {
    let mut groups: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        groups.entry(entry.group.clone()).or_default().push(entry);
    }
    let mut list: Vec<(Reverse<i64>, Group)> = Vec::new();
    for (name, mut entries) in groups {
        entries.sort_by_cached_key(|e| (Reverse(e.priority.1), version_order(&e.version.name)));
        let highest = entries.iter().map(|entry| entry.priority.0).max().unwrap_or_default();
        let versions = entries.into_iter().map(|entry| entry.version).collect();
        list.push((Reverse(highest), Group { name, versions }));
    }
    list.sort_by(|(a, first), (b, second)| a.cmp(b).then_with(|| first.name.cmp(&second.name)));
    list.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_decide_and_then_names() {
        let entry = |group: &str, version: &str, priority| {
            let version = Version { name: version.to_owned(), content: remote(None, true) };
            Entry { priority, group: group.to_owned(), version }
        };
        let groups = sorted(vec![
            entry("b", "v1", (1000, 100)),
            entry("a", "v1beta1", (1000, 100)),
            entry("a", "v1", (1000, 100)),
            entry("a", "v0", (1000, 200)),
            entry("z", "v1", (10, 1)),
            entry("z", "v2", (2000, 1)),
        ]);
        let shown: Vec<String> = groups
            .iter()
            .map(|g| {
                let versions: Vec<&str> = g.versions.iter().map(|v| v.name.as_str()).collect();
                format!("{} {}", g.name, versions.join(" "))
            })
            .collect();
        assert_eq!(shown, ["z v2 v1", "a v0 v1 v1beta1", "b v1"]);
    }
}
