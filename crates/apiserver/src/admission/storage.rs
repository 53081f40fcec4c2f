//! Volumes and claims: both are held while they are in use (StorageObjectInUseProtection); a claim that names no class
//! gets the default one (DefaultStorageClass).

use api::{GroupVersionResource, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{AdmissionContext, Plugin};
use crate::resource::Reader;

/// Kinds and what holds them until a controller has seen that nobody uses them.
const HELD: [(&str, &str); 2] = [
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("persistentvolumes", "kubernetes.io/pv-protection"),
];
/// Classes say by either that they are the default.
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// How claims named their class once.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) struct Storage;

impl Plugin for Storage {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            for (_, finalizer) in HELD.iter().filter(|(resource, _)| cx.creates("", resource)) {
                hold(object, finalizer);
            }
            if cx.creates("", "persistentvolumeclaims") && !names_class(object) {
                let gvr = GroupVersionResource::new("storage.k8s.io", "v1", "storageclasses");
                let classes = Reader::list(cx.registry, &gvr, None).await?;
                if let Some(class) = default_class(&classes) {
                    object.set(&["spec", "storageClassName"], class.name());
                }
            }
            Ok(())
        })
    }
}

fn hold(object: &mut Object, finalizer: &str) {
    let finalizers = object.get(&["metadata", "finalizers"]).and_then(Value::as_array);
    let mut finalizers = finalizers.cloned().unwrap_or_default();
    if !finalizers.iter().any(|held| held == finalizer) {
        finalizers.push(finalizer.into());
        object.set(&["metadata", "finalizers"], finalizers);
    }
}

/// "" is a name too: none at all.
fn names_class(claim: &Object) -> bool {
    claim.get(&["spec", "storageClassName"]).is_some_and(Value::is_string)
        || claim.get(&["metadata", "annotations", OLD_CLASS]).is_some_and(Value::is_string)
}

/// The newest class that is marked; of two of one age the one whose name comes first.
fn default_class(classes: &[Object]) -> Option<&Object> {
    let marked = classes.iter().filter(|class| {
        DEFAULT.iter().any(|annotation| class.str(&["metadata", "annotations", annotation]) == "true")
    });
    marked.min_by(|a, b| {
        let made = |class: &Object| class.str(&["metadata", "creationTimestamp"]).to_owned();
        made(b).cmp(&made(a)).then_with(|| a.name().cmp(b.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_class_is_taken() {
        let class = |name: &str, default: &str, made: &str| {
            let metadata =
                json!({"name": name, "creationTimestamp": made, "annotations": {DEFAULT[0]: default}});
            Object::from_value(json!({"metadata": metadata})).unwrap()
        };
        let classes = [
            class("old", "true", "2026-01-01T00:00:00Z"),
            class("b", "true", "2026-01-02T00:00:00Z"),
            class("a", "true", "2026-01-02T00:00:00Z"),
            class("no", "false", "2026-01-03T00:00:00Z"),
        ];
        assert_eq!(default_class(&classes).unwrap().name(), "a");
        assert!(default_class(&classes[3..]).is_none());
    }

    #[test]
    fn objects_are_held_once() {
        let mut claim = Object::default();
        hold(&mut claim, "f");
        hold(&mut claim, "f");
        assert_eq!(claim.get(&["metadata", "finalizers"]), Some(&json!(["f"])));
        assert!(!names_class(&claim));
        claim.set(&["spec", "storageClassName"], "");
        assert!(names_class(&claim));
    }
}
