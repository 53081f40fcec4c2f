//! Which ReplicaSet belongs to which template, revision numbers and annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Cached;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that are its own and not copied to its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
];

pub(crate) type Set = Arc<Cached<ReplicaSet>>;

/// Splits sets into the one that has the Deployment's template (the oldest, if several do) and the others, oldest first.
pub(crate) fn split(spec: &DeploymentSpec, owned: &[Set]) -> (Option<Set>, Vec<Set>) {
    let mut sets = owned.to_vec();
    sets.sort_by(|a, b| created(a).cmp(&created(b)).then_with(|| a.key.cmp(&b.key)));
    let position = sets.iter().position(|set| has_template(set, &spec.template));
    let new = position.map(|position| sets.remove(position));
    (new, sets)
}

fn created(set: &Set) -> Option<jiff::Timestamp> {
    set.object.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Whether a set was made from this template: equal except for the hash label.
pub(crate) fn has_template(set: &Cached<ReplicaSet>, template: &PodTemplateSpec) -> bool {
    let Some(own) = set.object.spec.template.clone() else { return false };
    without_hash(own) == without_hash(template.clone())
}

fn without_hash(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.remove(HASH_LABEL);
    meta.creation_timestamp = None;
    template
}

/// Short stable hash of a template, in an alphabet that spells no words.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = serde_json::to_vec(template).expect("a template can be encoded");
    if let Some(collisions) = collisions {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    let fnv =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    fnv.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

pub(crate) fn annotation<'a>(set: &'a Cached<ReplicaSet>, name: &str) -> Option<&'a str> {
    set.object.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn number(set: &Cached<ReplicaSet>, name: &str) -> Option<i32> {
    annotation(set, name)?.parse().ok()
}

/// Revision of a set, 0 when it has none.
pub(crate) fn revision(set: &Cached<ReplicaSet>) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Revision that the new set must have at least.
pub(crate) fn next_revision(old: &[Set]) -> i64 {
    old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
}

/// Annotations that the new set shall have besides its own; the sizes are not among them.
pub(crate) fn wanted_annotations(
    deployment: &Cached<Deployment>,
    new: Option<&Set>,
    revision_wanted: i64,
) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::new();
    for (name, value) in deployment.object.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&name.as_str()) {
            wanted.insert(name.clone(), value.clone());
        }
    }
    let current = new.map_or(0, |set| revision(set));
    if current >= revision_wanted {
        return wanted;
    }
    wanted.insert(REVISION.into(), revision_wanted.to_string());
    if let Some(new) = new.filter(|_| current > 0) {
        let history = annotation(new, REVISION_HISTORY).filter(|history| !history.is_empty());
        let history = history.map_or_else(|| current.to_string(), |history| format!("{history},{current}"));
        wanted.insert(REVISION_HISTORY.into(), history);
    }
    wanted
}
