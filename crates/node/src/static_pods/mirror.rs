//! The mirror of a static pod in the API: what it looks like, and what must be done about it.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{MIRROR, mirrored};

/// What to do about the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It shows the pod.
    Keep,
    Create,
    /// Somebody deletes it, or it shows another pod: another one takes its place.
    Delete,
    /// An ordinary pod has the name.
    Blocked,
}

/// Decides by what the API has under the pod's name.
pub(crate) fn step(uid: &str, found: Option<&core::Pod>) -> Step {
    let Some(found) = found else { return Step::Create };
    match mirrored(found) {
        None => Step::Blocked,
        Some(shown) if shown == uid && found.metadata.deletion_timestamp.is_none() => Step::Keep,
        Some(_) => Step::Delete,
    }
}

/// The mirror of a static pod, controlled by its Node, as Kubernetes has it.
pub(crate) fn object(pod: &core::Pod, node: &core::Node) -> core::Pod {
    let mut mirror = core::Pod { status: None, ..pod.clone() };
    let uid = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.into(), uid);
    mirror.metadata.resource_version = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_mirror_follows_the_pod() {
        let mirror = |shown: &str, deleted: Value| -> core::Pod {
            let annotations = json!({MIRROR: shown});
            let meta = json!({"annotations": annotations, "deletionTimestamp": deleted});
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        let ordinary = core::Pod::default();
        assert_eq!(step("u", None), Step::Create);
        assert_eq!(step("u", Some(&ordinary)), Step::Blocked);
        assert_eq!(step("u", Some(&mirror("u", Value::Null))), Step::Keep);
        assert_eq!(step("u", Some(&mirror("u", json!("2026-01-01T00:00:00Z")))), Step::Delete);
        assert_eq!(step("u", Some(&mirror("former", Value::Null))), Step::Delete);
    }
}
