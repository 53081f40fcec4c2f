//! The rules of `metadata`, the same for every kind.

use api::{FieldError, Object, ObjectKey, Status};
use serde_json::Value;

use crate::resource::Resource;
use crate::resources::check::At;
use crate::resources::names;

/// No vowels and nothing that looks like another character, as in Kubernetes' generated names.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// A generated name is cut so that it stays a DNS label.
const GENERATED_PREFIX_MAX: usize = 63 - SUFFIX_LENGTH;

/// What only the server sets.
const SYSTEM_FIELDS: [&str; 5] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    crate::ambient::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

/// A random (version 4) UUID.
pub(crate) fn uuid() -> String {
    let mut bytes: [u8; 16] = random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A random suffix of generated names.
pub(crate) fn suffix() -> String {
    let bytes: [u8; SUFFIX_LENGTH] = random();
    bytes.iter().map(|b| char::from(SUFFIX_ALPHABET[usize::from(*b) % SUFFIX_ALPHABET.len()])).collect()
}

/// A name from `generateName`.
pub(crate) fn generated_name(base: &str) -> String {
    let end =
        (0..=base.len().min(GENERATED_PREFIX_MAX)).rev().find(|i| base.is_char_boundary(*i)).unwrap_or(0);
    format!("{}{}", &base[..end], suffix())
}

/// A time in `metadata`: whole seconds, UTC.
pub(crate) fn timestamp(time: jiff::Timestamp) -> String {
    let whole = jiff::Timestamp::from_second(time.as_second()).unwrap_or(time);
    whole.to_string()
}

/// Puts the URL's namespace into the object, or refuses another one.
pub(crate) fn settle_namespace(
    resource: &Resource,
    object: &mut Object,
    namespace: &str,
) -> Result<(), Status> {
    let own = object.namespace();
    if !resource.namespaced {
        if !own.is_empty() {
            object.remove(&["metadata", "namespace"]);
        }
        return Ok(());
    }
    if own.is_empty() {
        object.set(&["metadata", "namespace"], namespace);
    } else if own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Gives a new object its identity. Whatever the client wrote there is dropped.
pub(crate) fn begin(resource: &Resource, object: &mut Object, now: jiff::Timestamp) {
    for name in SYSTEM_FIELDS.into_iter().chain(["resourceVersion", "selfLink"]) {
        object.remove(&["metadata", name]);
    }
    if object.name().is_empty() && !object.str(&["metadata", "generateName"]).is_empty() {
        let name = generated_name(object.str(&["metadata", "generateName"]));
        object.set(&["metadata", "name"], name);
    }
    object.set(&["metadata", "uid"], uuid());
    object.set(&["metadata", "creationTimestamp"], timestamp(now));
    if has_generation(resource) {
        object.set(&["metadata", "generation"], 1);
    }
}

/// Kinds with a spec count its changes.
pub(crate) fn has_generation(resource: &Resource) -> bool {
    resource.strategy.counts_every_change() || resource.table.get(resource.schema).field("spec").is_some()
}

/// Takes over from the old object what no update changes.
pub(crate) fn carry_over(new: &mut Object, old: &Object) {
    for name in SYSTEM_FIELDS {
        match old.get(&["metadata", name]) {
            Some(value) => new.set(&["metadata", name], value.clone()),
            None => drop(new.remove(&["metadata", name])),
        }
    }
    new.remove(&["metadata", "selfLink"]);
    new.remove(&["metadata", "resourceVersion"]);
}

/// Keeps on a subresource path only what belongs to it, and off the main path the status.
pub(crate) fn isolate(resource: &Resource, subresource: Option<&str>, new: &mut Object, old: &Object) {
    match subresource {
        None if resource.has_status() => replace(new, old, "status"),
        Some("status") => {
            let status = new.0.remove("status");
            let metadata = new.get(&["metadata"]).cloned();
            *new = old.clone();
            new.0.remove("status");
            if let Some(status) = status {
                new.0.insert("status".to_owned(), status);
            }
            // A status update may also change labels, annotations, finalizers and the field managers.
            for name in ["labels", "annotations", "managedFields", "finalizers", "ownerReferences"] {
                match metadata.as_ref().and_then(|m| m.get(name)) {
                    Some(value) => new.set(&["metadata", name], value.clone()),
                    None => drop(new.remove(&["metadata", name])),
                }
            }
        }
        _ => {}
    }
}

fn replace(new: &mut Object, old: &Object, field: &str) {
    match old.0.get(field) {
        Some(value) => drop(new.0.insert(field.to_owned(), value.clone())),
        None => drop(new.0.remove(field)),
    }
}

/// Counts a change of anything but metadata and status.
pub(crate) fn bump_generation(resource: &Resource, new: &mut Object, old: &Object) {
    if !has_generation(resource) {
        return;
    }
    let desired = |object: &Object| -> Vec<(String, Value)> {
        let outside = |name: &str| matches!(name, "metadata" | "status");
        object.0.iter().filter(|(n, _)| !outside(n)).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let generation = old.i64(&["metadata", "generation"]).unwrap_or(0);
    let changed = desired(new) != desired(old);
    new.set(&["metadata", "generation"], generation + i64::from(changed));
}

/// Findings on the metadata of a new or changed object.
pub(crate) fn validate(resource: &Resource, object: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = At::top(object, "metadata");
    if object.name().is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    }
    if resource.namespaced {
        if object.namespace().is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            metadata.field("namespace").text(&mut errors, names::dns_label);
        }
    }
    metadata.field("labels").labels(&mut errors);
    metadata.field("annotations").annotations(&mut errors);
    for finalizer in metadata.field("finalizers").items() {
        finalizer.text(&mut errors, names::qualified_name);
    }
    validate_owners(&metadata, &mut errors);
    errors
}

fn validate_owners(metadata: &At<'_>, errors: &mut Vec<FieldError>) {
    let owners = metadata.field("ownerReferences");
    let mut controllers = Vec::new();
    for owner in owners.items() {
        for name in ["apiVersion", "kind", "name", "uid"] {
            if owner.field(name).str().is_empty() {
                let detail =
                    if name == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.push(FieldError::invalid(format!("{}.{name}", owner.path), "", detail));
            }
        }
        if owner.field("controller").is_true() {
            controllers.push(format!("{}/{}", owner.field("kind").str(), owner.field("name").str()));
        }
    }
    if controllers.len() > 1 {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {}",
            controllers.join(" and ")
        );
        errors.push(FieldError::invalid(owners.path.clone(), owners.value.clone(), &detail));
    }
}

/// Findings on a change of metadata.
pub(crate) fn validate_update(new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let deleting = old.is_deleting();
    let list = |object: &Object| -> Vec<String> {
        let list = object.get(&["metadata", "finalizers"]).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let before = list(old);
    let added: Vec<String> = list(new).into_iter().filter(|f| !before.contains(f)).collect();
    if deleting && !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
        );
        errors.push(FieldError::forbidden("metadata.finalizers", &detail));
    }
    for name in ["name", "namespace"] {
        let path = ["metadata", name];
        if new.str(&path) != old.str(&path) {
            errors.push(FieldError::invalid(
                format!("metadata.{name}"),
                new.str(&path),
                "field is immutable",
            ));
        }
    }
    errors
}

/// Finalizers that hold an object back; those of a Namespace's content sit in its spec.
pub(crate) fn is_held(object: &Object) -> bool {
    let some =
        |path: &[&str]| object.get(path).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let namespace = object.str(&["kind"]) == "Namespace" && object.str(&["apiVersion"]) == "v1";
    some(&["metadata", "finalizers"]) || (namespace && some(&["spec", "finalizers"]))
}

/// The key of an object of a row.
pub(crate) fn key(resource: &Resource, object: &Object) -> ObjectKey {
    ObjectKey::new(if resource.namespaced { object.namespace() } else { "" }, object.name())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_are_labels() {
        let name = generated_name(&"a".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(names::dns_label(&name).is_empty());
        assert_ne!(generated_name("x-"), generated_name("x-"));
    }

    #[test]
    fn uuids_are_version_4() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&id.as_bytes()[19]));
    }

    #[test]
    fn times_have_whole_seconds() {
        let time: jiff::Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        assert_eq!(timestamp(time), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn finalizers_cannot_be_added_while_deleting() {
        let object = |value| Object::from_value(value).unwrap();
        let old = object(json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["x/y"]}}));
        let new = object(
            json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["x/y", "x/z"]}}),
        );
        assert_eq!(validate_update(&new, &old).len(), 1);
        assert_eq!(validate_update(&old, &new).len(), 0);
    }
}
