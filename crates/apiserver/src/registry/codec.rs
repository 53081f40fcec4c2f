//! Between bytes and trees, for one request: what the `api` crate's codecs need to know of it.

use api::codec::{self, DecodeError, Mode};
use api::patch::Operation;
use api::{
    Body, ContentType, FieldError, FieldSelector, GroupVersionKind, LabelSelector, Object, PatchType, Reason,
    SchemaTable, Status, TypeId,
};
use bytes::Bytes;
use serde_json::Value;

use super::{Call, duplicates};
use crate::resource::Resource;

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// The selector of `labelSelector`.
pub(crate) fn label_selector(text: &str) -> Result<LabelSelector, Status> {
    LabelSelector::parse(text).map_err(Status::bad_request)
}

/// The selector of `fieldSelector`.
pub(crate) fn field_selector(text: &str) -> Result<FieldSelector, Status> {
    FieldSelector::parse(text).map_err(Status::bad_request)
}

/// YAML text of a tree.
pub(crate) fn to_yaml(value: &Value) -> Result<Bytes, Status> {
    serde_yaml_ng::to_string(value).map(Bytes::from).map_err(Status::internal)
}

/// The DeleteOptions in a body, as a bare tree.
pub(crate) fn delete_options(table: &SchemaTable, body: &Body) -> Result<Value, Status> {
    let unreadable = |error: String| Status::bad_request(format!("the request body cannot be read: {error}"));
    match body.content_type {
        ContentType::Json => serde_json::from_slice(&body.bytes).map_err(|e| unreadable(e.to_string())),
        ContentType::Yaml => serde_yaml_ng::from_slice(&body.bytes).map_err(|e| unreadable(e.to_string())),
        ContentType::Protobuf => {
            let ty = table.by_name(DELETE_OPTIONS).ok_or_else(unsupported)?;
            codec::protobuf::decode(table, ty, &body.bytes).map_err(unreadable)
        }
        ContentType::Patch(_) => Err(unsupported()),
    }
}

fn unsupported() -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: application/json, \
         application/yaml",
    )
}

fn mode(call: &Call<'_>) -> Result<Mode, Status> {
    Mode::parse(call.request.options.field_validation.as_deref()).map_err(Status::bad_request)
}

/// The object in a request's body.
pub(crate) fn decode(
    call: &Call<'_>,
    resource: &Resource,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    decode_as(call, resource, &resource.gvk(), resource.schema, warnings)
}

/// The object in a request's body, which must be of a kind.
pub(crate) fn decode_as(
    call: &Call<'_>,
    resource: &Resource,
    gvk: &GroupVersionKind,
    schema: TypeId,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let body = call.request.body.as_ref().ok_or_else(|| Status::bad_request("the request has no body"))?;
    let decoded = match body.content_type {
        ContentType::Patch(_) => return Err(unsupported()),
        ContentType::Protobuf if !super::protobuf::has_form(resource) => return Err(unsupported()),
        ContentType::Protobuf => {
            let tree =
                codec::protobuf::decode(&resource.table, schema, &body.bytes).map_err(Status::bad_request)?;
            codec::decode_value(&resource.table, schema, tree, mode(call)?)
        }
        ContentType::Json | ContentType::Yaml => {
            codec::decode(&resource.table, schema, body.content_type, &body.bytes, mode(call)?)
        }
    };
    let decoded = decoded.map_err(|error| error.status(gvk))?;
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    settle_kind(gvk, &mut object)?;
    Ok(object)
}

/// Fills in an absent apiVersion and kind, and refuses others than the URL's.
fn settle_kind(gvk: &GroupVersionKind, object: &mut Object) -> Result<(), Status> {
    let wanted = [("apiVersion", gvk.api_version()), ("kind", gvk.kind.clone())];
    for (name, want) in wanted {
        let is = object.str(&[name]).to_owned();
        if is.is_empty() {
            object.set(&[name], want);
        } else if is != want {
            let what = if name == "kind" { "kind" } else { "API version" };
            return Err(Status::bad_request(format!(
                "the {what} in the data ({is}) does not match the expected {what} ({want})"
            )));
        }
    }
    Ok(())
}

/// Fills in the schema's defaults and the kind's own.
pub(crate) fn default(resource: &Resource, object: &mut Object) {
    api::schema::apply_defaults(&resource.table, resource.schema, object);
    resource.strategy.default(object);
}

/// Applies a patch that is no apply.
pub(crate) fn patch(
    call: &Call<'_>,
    resource: &Resource,
    kind: PatchType,
    bytes: &[u8],
    old: &Object,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let mut new = patch_as(call, resource, resource.schema, kind, bytes, old, warnings)?;
    settle_kind(&resource.gvk(), &mut new)?;
    Ok(new)
}

/// The same for a view of the object of another type (Scale).
pub(crate) fn patch_as(
    call: &Call<'_>,
    resource: &Resource,
    schema: TypeId,
    kind: PatchType,
    bytes: &[u8],
    old: &Object,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let patched = api::patch::patch(kind, &resource.table, schema, old, bytes)?;
    let decoded = codec::decode_value(&resource.table, schema, patched.into_value(), mode(call)?);
    let decoded = decoded.map_err(|error| match error {
        DecodeError::Strict(_) | DecodeError::Type(_) => invalid_patch(bytes, &error),
        DecodeError::Syntax(_) => Status::bad_request(error.to_string()),
    })?;
    warnings.extend(decoded.warnings);
    Ok(decoded.object)
}

/// Kubernetes names no object here: the field is the patch itself.
fn invalid_patch(bytes: &[u8], error: &DecodeError) -> Status {
    let patch = String::from_utf8_lossy(bytes).into_owned();
    Status::invalid("", "", "", &[FieldError::invalid("patch", patch, &error.to_string())])
}

/// Applies a server-side apply configuration to the present object, or makes a new one of it.
pub(crate) fn apply(
    call: &Call<'_>,
    live: Option<&Object>,
    bytes: &[u8],
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let resource = call.resource;
    let gvk = resource.gvk();
    let decoded = codec::decode_yaml(&resource.table, resource.schema, bytes, Mode::Warn);
    let decoded = decoded.map_err(|error| error.status(&gvk))?;
    let mut config = decoded.object;
    check_findings(call, &config, bytes, decoded.warnings, warnings)?;
    settle_kind(&gvk, &mut config)?;
    if call.subresource.is_none() && resource.has_status() {
        config.0.remove("status");
    }
    let wanted = config.resource_version();
    if live.is_some_and(|live| !wanted.is_empty() && wanted != live.resource_version()) {
        return Err(call.conflict(call.name, super::update::MODIFIED));
    }
    let subresource = call.subresource.unwrap_or_default();
    let force = call.request.options.force;
    let (table, ty, manager) = (&resource.table, resource.schema, call.manager());
    Ok(api::patch::apply(table, ty, live, &config, &manager, subresource, force, call.now)?)
}

/// What the reader of an apply configuration found. A manager can't own a field that is in no schema, so such a field is an
/// error in every mode; duplicates are one in strict mode.
fn check_findings(
    call: &Call<'_>,
    config: &Object,
    text: &[u8],
    found: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let path = |text: &String| {
        let quoted: String = serde_json::from_str(text.strip_prefix("unknown field ")?).ok()?;
        Some(format!(".{quoted}: field not declared in schema"))
    };
    let unknown: Vec<String> = found.iter().filter_map(path).collect();
    if !unknown.is_empty() {
        let list = match unknown.as_slice() {
            [one] => one.clone(),
            all => format!("errors:\n  {}", all.join("\n  ")),
        };
        let text = format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {list}",
            call.namespace,
            config.name(),
            call.resource.api_version(),
            call.resource.kind
        );
        return Err(Status::new(Reason::Unknown, text));
    }
    match mode(call)? {
        Mode::Strict if !found.is_empty() => {
            let lines = duplicates::repeated_keys(&String::from_utf8_lossy(text));
            let list = if lines.is_empty() { found.join(", ") } else { lines.join("\n  ") };
            Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {list}"
            )))
        }
        Mode::Strict | Mode::Ignore => Ok(()),
        Mode::Warn => {
            warnings.extend(found);
            Ok(())
        }
    }
}

/// Records the caller as manager of what it changed.
pub(crate) fn track(call: &Call<'_>, old: Option<&Object>, new: &mut Object) {
    let resource = call.resource;
    let subresource = call.subresource.unwrap_or_default();
    let operation = Operation::Update;
    api::patch::track_update(
        &resource.table,
        resource.schema,
        old,
        new,
        &call.manager(),
        subresource,
        operation,
        call.now,
    );
}
