//! Typed views of objects.

use std::collections::BTreeMap;

use api::{GroupVersionResource, ObjectKey, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// A typed view of one resource: a `k8s-openapi` struct or a slim projection that holds only what its user reads.
pub trait Kind: DeserializeOwned + Send + Sync + 'static {
    /// The resource it is read from.
    fn gvr() -> GroupVersionResource;
    /// `apiVersion` and `kind` of its objects.
    fn api_version_kind() -> (String, &'static str);
}

impl<T: k8s_openapi::Resource + DeserializeOwned + Send + Sync + 'static> Kind for T {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new(T::GROUP, T::VERSION, T::URL_PATH_SEGMENT)
    }

    fn api_version_kind() -> (String, &'static str) {
        (T::API_VERSION.to_owned(), T::KIND)
    }
}

/// Objects of a list, in key order, and the revision they were read at.
#[derive(Clone, Debug)]
pub struct List<T> {
    pub items: Vec<T>,
    pub resource_version: String,
    /// "" on the last page.
    pub continue_token: String,
}

/// An object in an informer's cache, decoded once.
#[derive(Debug)]
pub struct Cached<T> {
    pub key: ObjectKey,
    pub uid: String,
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    pub labels: BTreeMap<String, String>,
    pub owners: Vec<OwnerReference>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    pub object: T,
}

impl<T> Cached<T> {
    /// The owner that controls this object.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owners.iter().find(|owner| owner.controller == Some(true))
    }
}

/// One change of a cache: `old` is `None` for an addition, `new` is `None` for a removal.
#[derive(Debug)]
pub struct Change<T> {
    pub key: ObjectKey,
    pub old: Option<std::sync::Arc<Cached<T>>>,
    pub new: Option<std::sync::Arc<Cached<T>>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// Metadata alone: enough for garbage collection and namespace deletion.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Metadata {
    #[serde(default)]
    pub metadata: MetadataFields,
}

/// The fields of `metadata` that generic controllers read.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct MetadataFields {
    pub finalizers: Vec<String>,
    pub deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawObject {
    #[serde(default)]
    metadata: RawMeta,
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: String,
}

/// Revision of an encoded object (bookmarks carry nothing else).
pub(crate) fn revision_of(bytes: &[u8]) -> Option<u64> {
    serde_json::from_slice::<RawObject>(bytes).ok()?.metadata.resource_version.parse().ok()
}

/// Decodes an object for the cache.
pub(crate) fn decode_cached<T: DeserializeOwned>(bytes: &[u8]) -> Result<Cached<T>, Status> {
    let meta = serde_json::from_slice::<RawObject>(bytes).map_err(decode_error)?.metadata;
    let object = serde_json::from_slice::<T>(bytes).map_err(decode_error)?;
    Ok(Cached {
        key: ObjectKey::new(meta.namespace, meta.name),
        uid: meta.uid,
        revision: meta.resource_version.parse().unwrap_or(0),
        labels: meta.labels.unwrap_or_default(),
        owners: meta.owner_references.unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        object,
    })
}

/// Decodes a list; `item` decodes one object. The first object that cannot be decoded fails the whole.
pub(crate) fn decode_list<T>(
    bytes: &[u8],
    item: impl Fn(&[u8]) -> Result<T, Status>,
) -> Result<List<T>, Status> {
    let raw: RawList<'_> = serde_json::from_slice(bytes).map_err(decode_error)?;
    let items = raw.items.unwrap_or_default();
    Ok(List {
        items: items.into_iter().map(|value| item(value.get().as_bytes())).collect::<Result<_, _>>()?,
        resource_version: raw.metadata.resource_version,
        continue_token: raw.metadata.continue_token,
    })
}

/// Decodes a list for the cache. An object that cannot be decoded is left out: it must not hide the others.
pub(crate) fn decode_cached_list<T: DeserializeOwned>(bytes: &[u8]) -> Result<List<Cached<T>>, Status> {
    let list = decode_list(bytes, |item| {
        Ok(decode_cached::<T>(item).inspect_err(|status| tracing::error!(%status, "skipping an object")).ok())
    })?;
    Ok(List {
        items: list.items.into_iter().flatten().collect(),
        resource_version: list.resource_version,
        continue_token: list.continue_token,
    })
}

pub(crate) fn decode_error(error: serde_json::Error) -> Status {
    Status::internal(format!("cannot decode the answer: {error}"))
}
