//! Which form of an answer the client wants: media type and transformation.

use std::sync::Arc;

use api::{ApiResponse, Object, Reason, ResponseBody, Status};
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use super::codec;
use crate::printing::{self, IncludeObject};
use crate::resource::Resource;
use crate::stored;

/// What is done to objects before they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Full,
    Table(IncludeObject),
    Partial,
}

/// Shape and encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) shape: Shape,
    pub(crate) yaml: bool,
    pub(crate) pretty: bool,
}

impl Form {
    pub(crate) const JSON: Form = Form { shape: Shape::Full, yaml: false, pretty: false };

    /// Picks the first form of an Accept header that the server can give.
    ///
    /// # Errors
    /// `NotAcceptable` when there is none.
    pub(crate) fn negotiate(accept: &str, include_object: &str, pretty: bool) -> Result<Self, Status> {
        if accept.trim().is_empty() {
            return Ok(Form { pretty, ..Form::JSON });
        }
        let include = IncludeObject::parse(include_object).ok_or_else(|| {
            let detail = api::FieldError::invalid(
                "includeObject",
                include_object,
                "must be 'Metadata', 'Object', 'None', or empty",
            );
            Status::bad_request(detail.to_string())
        })?;
        for clause in accept.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let yaml = match parts.next().unwrap_or_default() {
                "application/json" | "application/*" | "*/*" => false,
                "application/yaml" => true,
                _ => continue,
            };
            let parameter = |name: &str| {
                let pairs = clause.split(';').skip(1).filter_map(|p| p.trim().split_once('='));
                pairs.filter(|(n, _)| *n == name).map(|(_, v)| v).next().unwrap_or_default()
            };
            let known = parameter("g") == "meta.k8s.io" && parameter("v") == "v1";
            let shape = match parameter("as") {
                "" => Shape::Full,
                "Table" if known => Shape::Table(include),
                "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Shape::Partial,
                _ => continue,
            };
            return Ok(Form { shape, yaml, pretty });
        }
        Err(Status::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/yaml",
        ))
    }

    /// The media type of the answer.
    pub(crate) fn media_type(self) -> &'static str {
        if self.yaml { "application/yaml" } else { "application/json" }
    }

    /// A response with a JSON tree.
    pub(crate) fn tree(self, code: u16, value: &Value) -> Result<ApiResponse, Status> {
        let bytes = if self.yaml {
            codec::to_yaml(value)?
        } else if self.pretty {
            let mut text = serde_json::to_vec_pretty(value).map_err(Status::internal)?;
            text.push(b'\n');
            text.into()
        } else {
            serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal)?
        };
        Ok(self.bytes(code, bytes))
    }

    fn bytes(self, code: u16, bytes: Bytes) -> ApiResponse {
        ApiResponse {
            code,
            content_type: self.media_type().to_owned(),
            body: ResponseBody::Bytes(vec![bytes]),
            warnings: Vec::new(),
        }
    }

    fn is_plain(self) -> bool {
        self.shape == Shape::Full && !self.yaml && !self.pretty
    }
}

/// A stored value with its revision.
#[derive(Clone)]
pub(crate) struct Versioned {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
}

/// Turns stored bytes into an object of a row, which may be another version than the stored one.
pub(crate) fn read(resource: &Resource, stored: &Versioned) -> Result<Object, Status> {
    let mut object = stored::decode(&stored.value, stored.revision)?;
    if resource.stored_as.is_some() {
        resource.strategy.from_stored(&mut object);
        object.set(&["apiVersion"], resource.api_version());
        object.set(&["kind"], resource.kind.clone());
    }
    Ok(object)
}

/// The bytes of an object as this row shows it; parses only when versions differ.
pub(crate) fn bytes(resource: &Resource, stored: &Versioned) -> Result<Bytes, Status> {
    if resource.stored_as.is_none() {
        return Ok(stored::splice(&stored.value, stored.revision));
    }
    let object = read(resource, stored)?;
    serde_json::to_vec(&object.0).map(Bytes::from).map_err(Status::internal)
}

/// One object in the form the client wants.
pub(crate) fn one(
    resource: &Resource,
    form: Form,
    code: u16,
    stored: &Versioned,
) -> Result<ApiResponse, Status> {
    if form.is_plain() {
        return Ok(form.bytes(code, bytes(resource, stored)?));
    }
    object(resource, form, code, &read(resource, stored)?)
}

/// One object tree in the form the client wants.
pub(crate) fn object(
    resource: &Resource,
    form: Form,
    code: u16,
    object: &Object,
) -> Result<ApiResponse, Status> {
    form.tree(code, &shaped(resource, form.shape, object, true))
}

/// A single object as full object, table of one row, or metadata.
pub(crate) fn shaped(resource: &Resource, shape: Shape, object: &Object, columns: bool) -> Value {
    match shape {
        Shape::Full => Value::Object(object.0.clone()),
        Shape::Partial => printing::partial_object_metadata(object),
        Shape::Table(include) => {
            let mut metadata = Map::new();
            metadata.insert("resourceVersion".into(), object.resource_version().into());
            let now = jiff::Timestamp::now();
            printing::table(resource, std::slice::from_ref(object), metadata, include, columns, now)
        }
    }
}

/// ListMeta of a list.
pub(crate) struct ListMeta {
    pub(crate) revision: u64,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: Option<u64>,
}

impl ListMeta {
    fn tree(&self) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        metadata
    }
}

/// A list in the form the client wants. The plain form concatenates stored bytes and parses nothing.
pub(crate) fn list(
    resource: &Arc<Resource>,
    form: Form,
    items: &[Versioned],
    meta: &ListMeta,
) -> Result<ApiResponse, Status> {
    let metadata = meta.tree();
    if form.is_plain() {
        return plain_list(resource, items, &metadata);
    }
    let objects: Vec<Object> = items.iter().map(|item| read(resource, item)).collect::<Result<_, _>>()?;
    let value = match form.shape {
        Shape::Table(include) => {
            printing::table(resource, &objects, metadata, include, true, jiff::Timestamp::now())
        }
        Shape::Partial => {
            let items: Vec<Value> = objects.iter().map(printing::partial_object_metadata).collect();
            serde_json::json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items})
        }
        Shape::Full => {
            let items: Vec<Value> = objects.into_iter().map(Object::into_value).collect();
            serde_json::json!({"kind": resource.list_kind, "apiVersion": resource.api_version(),
                "metadata": metadata, "items": items})
        }
    };
    form.tree(200, &value)
}

fn plain_list(
    resource: &Resource,
    items: &[Versioned],
    metadata: &Map<String, Value>,
) -> Result<ApiResponse, Status> {
    let size: usize = items.iter().map(|item| item.value.len() + 48).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = serde_json::json!({"kind": resource.list_kind, "apiVersion": resource.api_version()});
    let head = head.to_string();
    out.put_slice(head.trim_end_matches('}').as_bytes());
    out.put_slice(b",\"metadata\":");
    out.put_slice(Value::Object(metadata.clone()).to_string().as_bytes());
    out.put_slice(b",\"items\":[");
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        if resource.stored_as.is_none() {
            stored::splice_into(&mut out, &item.value, item.revision);
        } else {
            out.put_slice(&bytes(resource, item)?);
        }
    }
    out.put_slice(b"]}");
    Ok(ApiResponse::json(200, out.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers_are_negotiated() {
        let table = [
            ("", Ok((Shape::Full, false))),
            ("application/json, */*", Ok((Shape::Full, false))),
            ("application/vnd.kubernetes.protobuf,application/json", Ok((Shape::Full, false))),
            ("application/yaml", Ok((Shape::Full, true))),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Ok((Shape::Table(IncludeObject::Metadata), false)),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Ok((Shape::Full, false))),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Ok((Shape::Partial, false))),
            ("application/vnd.kubernetes.protobuf", Err(406)),
            ("application/json;as=Nonsense;v=v1;g=meta.k8s.io", Err(406)),
        ];
        for (accept, want) in table {
            let got = Form::negotiate(accept, "", false).map(|f| (f.shape, f.yaml)).map_err(|s| s.code);
            assert_eq!(got, want, "{accept}");
        }
        assert_eq!(Form::negotiate("*/*", "Nonsense", false).map_err(|s| s.code), Err(400));
    }
}
