//! The built-in kinds as data: fields, list types, merge keys, defaults, field numbers and descriptions.
//!
//! ```text
//!   build script: package sources ─▶ table.bin ──include──▶ table()  ─▶ api::SchemaTable  ─▶ codecs, patches, OpenAPI
//! ```
//!
//! Invariants:
//! - The table is read once and never changes; its strings are borrowed from the program's data.
//! - List kinds are in it as types of their own.
//! - Descriptions come from the Kubernetes API definitions (Apache-2.0).

use std::sync::{Arc, OnceLock};

use api::{SchemaTable, TypeId};

mod load;
pub mod openapi;
#[cfg(test)]
mod tests;

/// The table of all built-in kinds.
pub fn table() -> Arc<SchemaTable> {
    static TABLE: OnceLock<Arc<SchemaTable>> = OnceLock::new();
    TABLE.get_or_init(|| Arc::new(load::load())).clone()
}

/// The type of the list kind of a kind: `PodList` for `Pod`.
pub fn list_type(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    table().kind(group, version, &format!("{kind}List"))
}

/// `io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta`
pub fn object_meta() -> TypeId {
    named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// `io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions`
pub fn delete_options() -> TypeId {
    named("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
}

fn named(name: &str) -> TypeId {
    table().by_name(name).expect("the built-in table has the meta types")
}
