//! Server-side printing: `Table` and `PartialObjectMetadata`.
//!
//! A row's cells come from the columns in the table of kinds; this module only arranges them. Value functions
//! that several kinds share are in [`cells`], those of pods in [`pod`], ages in [`duration`].

pub(crate) mod cells;
pub mod duration;
pub(crate) mod pod;

#[cfg(test)]
mod tests;

use api::Object;
use serde_json::{Map, Value, json};

use crate::resource::{Column, Resource};

/// Which object goes into a table row (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; absent means `Metadata`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => return None,
        })
    }
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
    let definitions: Vec<Value> =
        if column_definitions { resource.columns.iter().map(definition).collect() } else { Vec::new() };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = resource.columns.iter().map(|c| (c.value)(object, now)).collect();
            let mut row = Map::new();
            row.insert("cells".into(), cells.into());
            match include {
                IncludeObject::None => None,
                IncludeObject::Metadata => Some(partial_object_metadata(object)),
                IncludeObject::Object => Some(Value::Object(object.0.clone())),
            }
            .and_then(|object| row.insert("object".into(), object));
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name, "type": column.type_, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

/// The `meta.k8s.io/v1` PartialObjectMetadata of an object.
pub fn partial_object_metadata(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get(&["metadata"]).cloned().unwrap_or_else(|| json!({})),
    })
}

/// A `meta.k8s.io/v1` PartialObjectMetadataList; `metadata` is the ListMeta.
pub fn partial_object_metadata_list(objects: &[Object], metadata: Map<String, Value>) -> Value {
    let items: Vec<Value> = objects.iter().map(partial_object_metadata).collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
    })
}
