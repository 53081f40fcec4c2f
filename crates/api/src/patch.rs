//! The four patch formats on object trees.
//!
//! ```text
//!   JSON patch (RFC 6902) ─┐
//!   merge patch (RFC 7386) ┼─▶ new tree ─▶ prune, validate, store      (caller)
//!   strategic merge patch ─┘
//!   server-side apply: patch::apply, which also keeps metadata.managedFields
//! ```

pub mod apply;
pub mod fieldset;
pub mod strategic;
pub mod track;
mod typed;

use serde_json::Value;

use crate::{FieldError, Object, PatchType, Reason, SchemaTable, Status, TypeId};

pub use apply::{ApplyError, apply};
pub use fieldset::FieldSet;
pub use track::{Operation, track_update};

/// Most bytes of JSON that the `copy` operations of one JSON patch may add; without a limit each could double the object.
pub const MAX_JSON_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Most operations in one JSON patch.
pub const MAX_JSON_OPERATIONS: usize = 10_000;

/// Applies a JSON, merge or strategic patch body to an object.
///
/// # Errors
/// BadRequest for a body that is no patch, Invalid where it does not fit the object, RequestEntityTooLarge for too many
/// operations, UnsupportedMediaType for an apply patch, which needs [`apply`].
pub fn patch(
    kind: PatchType,
    table: &SchemaTable,
    ty: TypeId,
    object: &Object,
    body: &[u8],
) -> Result<Object, Status> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    match kind {
        PatchType::Json => json(object, &body),
        PatchType::Merge => merge(object, &body),
        PatchType::Strategic => strategic::merge(table, ty, object, &body),
        PatchType::Apply => {
            Err(Status::new(Reason::UnsupportedMediaType, "an apply patch is not applied like other patches"))
        }
    }
}

/// RFC 6902.
///
/// # Errors
/// See [`patch`].
pub fn json(object: &Object, body: &Value) -> Result<Object, Status> {
    let count = body.as_array().map_or(0, Vec::len);
    if count > MAX_JSON_OPERATIONS {
        let text =
            format!("The allowed maximum operations in a JSON patch is {MAX_JSON_OPERATIONS}, got {count}");
        return Err(Status::new(Reason::RequestEntityTooLarge, text));
    }
    let operations: json_patch::Patch = serde_json::from_value(body.clone())
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let mut value = Value::Object(object.0.clone());
    let mut copied = 0;
    for operation in &operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation
            && let Some(source) = value.pointer(copy.from.as_str())
        {
            copied += source.to_string().len();
            if copied > MAX_JSON_COPIED_BYTES {
                let text = format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                     exceeding the limit {MAX_JSON_COPIED_BYTES}"
                );
                return Err(Status::new(Reason::RequestEntityTooLarge, text));
            }
        }
        json_patch::patch(&mut value, std::slice::from_ref(operation))
            .map_err(|e| Status::new(Reason::Invalid, e.to_string()))?;
    }
    whole(value)
}

/// RFC 7386.
///
/// # Errors
/// BadRequest when the patch is no object.
pub fn merge(object: &Object, body: &Value) -> Result<Object, Status> {
    if !body.is_object() {
        return Err(Status::bad_request("error decoding patch: a merge patch must be an object"));
    }
    let mut value = Value::Object(object.0.clone());
    json_patch::merge(&mut value, body);
    whole(value)
}

fn whole(value: Value) -> Result<Object, Status> {
    Object::from_value(value).ok_or_else(|| {
        let error = FieldError::invalid("", "patch", "the patched document is no object");
        Status::new(Reason::Invalid, error.to_string())
    })
}

#[cfg(test)]
mod tests;
