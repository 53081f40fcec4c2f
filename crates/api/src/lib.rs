//! The vocabulary of Podium: names, the object tree, selectors, patches, codecs, requests and errors.
//!
//! ```text
//!   bytes  ──decode──▶  Object (tree)  ──patch / apply──▶  Object  ──encode──▶  bytes
//!                          ▲
//!                       Schema (data: fields, list types, merge keys, defaults)
//! ```
//!
//! Invariants:
//! - Nothing here does I/O, reads a clock or knows a particular kind.
//! - Every other crate may use this one; it uses none of them.
//! - Errors that can reach a user are a Kubernetes [`Status`].

pub mod codec;
pub mod meta;
pub mod metrics;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod request;
pub mod schema;
pub mod selector;
pub mod status;
pub mod stream;
pub mod time;
mod wire;

pub use meta::{GroupVersionKind, GroupVersionResource, ObjectKey};
pub use object::Object;
pub use quantity::Quantity;
pub use request::{
    ApiRequest, ApiResponse, Body, ContentType, EventKind, PatchType, RequestOptions, ResponseBody, Target,
    Verb, WatchEvent, WatchStream,
};
pub use schema::{Embedded, Field, FieldType, ListType, SchemaTable, TypeDef, TypeId};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, FieldError, FieldErrorKind, Reason, Status};
pub use wire::HttpParts;
