//! Kubernetes' protobuf form of objects, both ways, by the field numbers of a schema table.
//!
//! ```text
//!   "k8s\0"  Unknown { typeMeta = 1 { apiVersion = 1, kind = 2 }, raw = 2 }       raw: the object's message
//!   watch:   4 bytes length (big end first)  WatchEvent { type = 1, object = 2 { raw = 1: "k8s\0" Unknown } }
//! ```
//! A message may hold its fields in any order, and a nested message in parts that its reader merges. So what Go inlines is
//! written field by field, and a revision is put into encoded metadata by appending a second part ([`revision`]).

mod decode;
mod encode;
mod wire;

use bytes::{BufMut, Bytes, BytesMut};
pub use decode::decode;
pub use encode::{encode_json, encode_value};

use crate::EventKind;

const MAGIC: &[u8] = b"k8s\0";
/// `metadata` of every kind and list.
const METADATA: u32 = 1;
/// `items` of every list.
const ITEMS: u32 = 2;
/// `resourceVersion` of ObjectMeta.
const RESOURCE_VERSION: u32 = 6;

/// A kind's message in its envelope, from its parts.
pub fn envelope(api_version: &str, kind: &str, parts: &[&[u8]]) -> Bytes {
    let raw: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(raw + api_version.len() + kind.len() + 32);
    out.extend_from_slice(MAGIC);
    let meta = wire::open(&mut out, 1);
    wire::bytes(&mut out, 1, api_version.as_bytes());
    wire::bytes(&mut out, 2, kind.as_bytes());
    wire::close(&mut out, meta);
    wire::header(&mut out, 2, raw);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    wire::bytes(&mut out, 3, b"");
    wire::bytes(&mut out, 4, b"");
    out.into()
}

/// What is appended to an object's message to give it a resourceVersion; nothing for 0 (never stored).
pub fn revision(revision: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    if revision > 0 {
        let metadata = wire::open(&mut out, METADATA);
        wire::bytes(&mut out, RESOURCE_VERSION, revision.to_string().as_bytes());
        wire::close(&mut out, metadata);
    }
    out
}

/// Begins a list's message with its ListMeta.
pub fn list_head(out: &mut Vec<u8>, metadata: &[u8]) {
    wire::bytes(out, METADATA, metadata);
}

/// Appends an object's message, in two parts, to a list's message.
pub fn list_item(out: &mut Vec<u8>, message: &[u8], revision: &[u8]) {
    wire::header(out, ITEMS, message.len() + revision.len());
    out.extend_from_slice(message);
    out.extend_from_slice(revision);
}

/// One frame of a watch; `object` is enveloped.
pub fn watch_frame(kind: EventKind, object: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(32);
    wire::bytes(&mut event, 1, kind.as_str().as_bytes());
    let mut raw = Vec::with_capacity(8);
    wire::header(&mut raw, 1, object.len());
    wire::header(&mut event, 2, raw.len() + object.len());
    let length = event.len() + raw.len() + object.len();
    let mut out = BytesMut::with_capacity(4 + length);
    out.put_u32(u32::try_from(length).expect("objects are smaller than 4 GiB"));
    out.extend_from_slice(&event);
    out.extend_from_slice(&raw);
    out.extend_from_slice(object);
    out.freeze()
}

#[cfg(test)]
mod tests;
