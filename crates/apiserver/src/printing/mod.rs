//! Server-side printing: `Table` and `PartialObjectMetadata`.

use api::Object;
use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// Which object goes into a table row (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// A `meta.k8s.io/v1` Table of objects (which carry apiVersion, kind and resourceVersion already).
/// `metadata` is the table's own ListMeta. Later events of a watch repeat no column definitions.
pub fn table(
    resource: &Resource,
    objects: &[Object],
    metadata: Map<String, Value>,
    include: IncludeObject,
    column_definitions: bool,
    now: jiff::Timestamp,
) -> Value {
    let _ = (resource, objects, include, column_definitions, now);
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
}

/// The `meta.k8s.io/v1` PartialObjectMetadata of an object.
pub fn partial_object_metadata(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get(&["metadata"]).cloned().unwrap_or_else(|| json!({}))})
}
