//! Answers in Kubernetes' protobuf form.
//!
//! Only built-in kinds have it. An object's message is made without its resourceVersion, so that it depends on what is stored
//! alone, and is kept for a while: watchers, lists and reads of the same state share it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use api::codec::protobuf;
use api::{Status, TypeId};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::negotiate::{self, Versioned};
use crate::resource::Resource;

/// Messages kept in each of the two halves of the cache.
const HALF_BYTES: usize = 16 << 20;

/// Whether a kind has a protobuf form: the table knows its fields' numbers.
pub(crate) fn has_form(resource: &Resource) -> bool {
    resource.table.get(resource.schema).field("metadata").is_some_and(|field| field.number > 0)
}

/// A tree that names its kind, enveloped.
pub(crate) fn tree(value: &Value) -> Result<Bytes, Status> {
    let text = |name: &str| value[name].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let table = schema::table();
    // the older version of partial objects differs in its name alone
    let version = if group == "meta.k8s.io" { "v1" } else { version };
    let ty = table.kind(group, version, kind);
    let ty = ty.ok_or_else(|| Status::internal(format!("{api_version} {kind} has no protobuf form")))?;
    let mut message = Vec::with_capacity(1024);
    protobuf::encode_value(&table, ty, value, &mut message).map_err(Status::internal)?;
    Ok(protobuf::envelope(api_version, kind, &[&message]))
}

/// The message of a stored object as this row shows it, without a resourceVersion.
pub(crate) fn message(resource: &Resource, stored: &Versioned) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(stored.value.len());
    let bare = Versioned { value: stored.value.clone(), revision: 0 };
    let json = negotiate::bytes(resource, &bare)?;
    protobuf::encode_json(&resource.table, resource.schema, &json, &mut out).map_err(Status::internal)?;
    Ok(out.into())
}

/// A stored object, enveloped, with a revision (0: none).
pub(crate) fn object(resource: &Resource, message: &[u8], revision: u64) -> Bytes {
    let revision = protobuf::revision(revision);
    protobuf::envelope(&resource.api_version(), &resource.kind, &[message, &revision])
}

/// A list of objects, enveloped.
pub(crate) fn list(
    resource: &Resource,
    cache: Option<&Messages>,
    items: &[Versioned],
    metadata: &Map<String, Value>,
) -> Result<Bytes, Status> {
    let ty = resource.table.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let ty = ty.ok_or_else(|| Status::internal("the table has no ListMeta"))?;
    let mut meta = Vec::new();
    let tree = Value::Object(metadata.clone());
    protobuf::encode_value(&resource.table, ty, &tree, &mut meta).map_err(Status::internal)?;
    let size: usize = items.iter().map(|item| item.value.len()).sum();
    let mut out = Vec::with_capacity(size);
    protobuf::list_head(&mut out, &meta);
    for item in items {
        let message = match cache {
            Some(cache) => cache.of(resource, item)?,
            None => message(resource, item)?,
        };
        protobuf::list_item(&mut out, &message, &protobuf::revision(item.revision));
    }
    Ok(protobuf::envelope(&resource.api_version(), &resource.list_kind, &[&out]))
}

/// Messages of recent use, by the revision that wrote the object (every write has one of its own) and the kind it is shown
/// as. Two halves: what is asked for stays in the young one; when that is full it becomes the old one.
#[derive(Default)]
pub(crate) struct Messages(Mutex<Halves>);

#[derive(Default)]
struct Halves {
    young: HashMap<(u64, TypeId), Bytes>,
    old: HashMap<(u64, TypeId), Bytes>,
    young_bytes: usize,
}

impl Halves {
    fn find(&mut self, key: (u64, TypeId)) -> Option<Bytes> {
        if let Some(found) = self.young.get(&key) {
            return Some(found.clone());
        }
        let found = self.old.remove(&key)?;
        self.keep(key, found.clone());
        Some(found)
    }

    fn keep(&mut self, key: (u64, TypeId), message: Bytes) {
        self.young_bytes += message.len();
        self.young.insert(key, message);
        if self.young_bytes > HALF_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

impl Messages {
    /// The message of an object that is in the store, or was: never of one that a dry run made.
    pub(crate) fn of(&self, resource: &Resource, stored: &Versioned) -> Result<Bytes, Status> {
        let key = (stored.revision, resource.schema);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().find(key) {
            return Ok(found);
        }
        let made = message(resource, stored)?;
        lock().keep(key, made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut halves = Halves::default();
        let big = Bytes::from(vec![0; HALF_BYTES / 2]);
        halves.keep((0, TypeId(0)), Bytes::from_static(b"x"));
        for revision in 1..10 {
            halves.keep((revision, TypeId(0)), big.clone());
            assert_eq!(halves.find((0, TypeId(0))).as_deref(), Some(&b"x"[..]), "{revision}");
        }
        assert!(halves.find((1, TypeId(0))).is_none());
        assert!(halves.young.len() + halves.old.len() < 8);
    }
}
