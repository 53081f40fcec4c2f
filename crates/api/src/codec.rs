//! Codecs: encoded bytes to trees under a schema, and the metadata of encoded bytes without a tree.

pub mod decode;
pub mod meta;
pub mod protobuf;
mod prune;

pub use decode::{DecodeError, Decoded, Mode, decode_json, decode_value, decode_yaml};
pub use meta::{Meta, Owner, splice};
pub use prune::prune;

use bytes::Bytes;

use crate::{ContentType, Object, SchemaTable, TypeId};

/// JSON bodies.
pub mod json {
    pub use super::decode::decode_json as decode;
    pub use super::encode;
}

/// YAML bodies.
pub mod yaml {
    pub use super::decode::decode_yaml as decode;
}

/// Decodes a body by its content type (JSON, or YAML for YAML and apply patches).
///
/// # Errors
/// Syntax and type errors; unknown and duplicate fields in strict mode; a content type that holds no object.
pub fn decode(
    table: &SchemaTable,
    ty: TypeId,
    content_type: ContentType,
    bytes: &[u8],
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    match content_type {
        ContentType::Json => decode_json(table, ty, bytes, mode),
        ContentType::Yaml | ContentType::Patch(crate::PatchType::Apply) => {
            decode_yaml(table, ty, bytes, mode)
        }
        ContentType::Protobuf | ContentType::Patch(_) => {
            Err(DecodeError::Syntax(format!("no object can be read from {}", content_type.media_type())))
        }
    }
}

/// Encodes a tree as compact JSON.
pub fn encode(object: &Object) -> Bytes {
    serde_json::to_vec(&object.0).expect("a tree with string keys always encodes").into()
}

#[cfg(test)]
mod tests;
