//! Which form of an answer the client wants: media type and transformation.

use std::sync::Arc;

use api::{ApiResponse, Object, Reason, ResponseBody, Status};
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use super::protobuf::Messages;
use super::{codec, protobuf};
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

/// Encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// Shape and encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) shape: Shape,
    pub(crate) media: Media,
    pub(crate) pretty: bool,
    /// Tables and partial objects are wanted as `meta.k8s.io/v1beta1`, which is the same but for its name.
    pub(crate) beta: bool,
}

/// What a kind can be shown as, beyond JSON and YAML.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forms {
    /// Custom resources have no protobuf form (but their metadata has).
    pub(crate) protobuf: bool,
    /// What is answered and never stored has no columns.
    pub(crate) table: bool,
}

impl Forms {
    pub(crate) const ALL: Forms = Forms { protobuf: true, table: true };
}

impl Form {
    pub(crate) const JSON: Form = Form { shape: Shape::Full, media: Media::Json, pretty: false, beta: false };

    /// Picks the form of an Accept header that the client likes best and the server can give. Tables have no protobuf form.
    ///
    /// # Errors
    /// `NotAcceptable` when there is none.
    pub(crate) fn negotiate(
        accept: &str,
        include_object: &str,
        pretty: bool,
        offer: Forms,
    ) -> Result<Self, Status> {
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
        let mut clauses: Vec<Clause<'_>> = accept.split(',').map(Clause::parse).collect();
        clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
        let found = clauses.iter().filter(|clause| clause.quality > 0.0).find_map(|clause| {
            let (media, (shape, beta)) = (clause.media?, clause.shape(include)?);
            let given = match shape {
                Shape::Full => media != Media::Protobuf || offer.protobuf,
                Shape::Partial => true,
                Shape::Table(_) => media != Media::Protobuf && offer.table,
            };
            given.then_some(Form { shape, media, pretty, beta })
        });
        found.ok_or_else(|| {
            let also = if offer.protobuf { ", application/vnd.kubernetes.protobuf" } else { "" };
            let text = format!(
                "only the following media types are accepted: application/json, application/yaml{also}"
            );
            Status::new(Reason::NotAcceptable, text)
        })
    }

    /// The media type of the answer.
    pub(crate) fn media_type(self) -> &'static str {
        match self.media {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The media type of a watch.
    pub(crate) fn watch_type(self) -> &'static str {
        match self.media {
            Media::Json | Media::Yaml => "application/json",
            Media::Protobuf => WATCH_PROTOBUF,
        }
    }

    /// A tree that names its kind, encoded for an answer or an event.
    pub(crate) fn encode(self, value: &Value) -> Result<Bytes, Status> {
        if self.beta && value["apiVersion"] == "meta.k8s.io/v1" {
            let mut value = value.clone();
            value["apiVersion"] = "meta.k8s.io/v1beta1".into();
            return Form { beta: false, ..self }.encode(&value);
        }
        match self.media {
            Media::Protobuf => protobuf::tree(value),
            Media::Yaml => codec::to_yaml(value),
            Media::Json if self.pretty => {
                let mut text = serde_json::to_vec_pretty(value).map_err(Status::internal)?;
                text.push(b'\n');
                Ok(text.into())
            }
            Media::Json => serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal),
        }
    }

    /// A response with a tree that names its kind.
    pub(crate) fn tree(self, code: u16, value: &Value) -> Result<ApiResponse, Status> {
        Ok(self.bytes(code, self.encode(value)?))
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
        self.shape == Shape::Full && self.media == Media::Json && !self.pretty
    }
}

/// Frames of 4 bytes length and a WatchEvent.
pub(crate) const WATCH_PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// One alternative of an Accept header.
struct Clause<'a> {
    media: Option<Media>,
    /// 0 to 1; 1 where nothing is said.
    quality: f64,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = match parts.next().unwrap_or_default() {
            "application/json" | "application/*" | "*/*" => Some(Media::Json),
            "application/yaml" => Some(Media::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Media::Protobuf),
            _ => None,
        };
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let quality = parameters.iter().find(|(name, _)| *name == "q").map(|(_, value)| *value);
        let quality = quality.map_or(1.0, |value| value.parse().unwrap_or(0.0));
        Self { media, quality, parameters }
    }

    fn parameter(&self, name: &str) -> &'a str {
        self.parameters.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).unwrap_or_default()
    }

    /// What the alternative wants done; `None` when that is unknown.
    fn shape(&self, include: IncludeObject) -> Option<(Shape, bool)> {
        let beta = self.parameter("v") == "v1beta1";
        let known = self.parameter("g") == "meta.k8s.io" && (beta || self.parameter("v") == "v1");
        match self.parameter("as") {
            "" => Some((Shape::Full, false)),
            "Table" if known => Some((Shape::Table(include), beta)),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Some((Shape::Partial, beta)),
            _ => None,
        }
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
    let value = match resource.strategy.conversion() {
        None => stored.value.clone(),
        Some(conversion) => conversion.converted(resource, &stored.value)?,
    };
    let mut object = stored::decode(&value, stored.revision)?;
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
    if form.shape == Shape::Full && form.media == Media::Protobuf {
        let message = protobuf::message(resource, stored)?;
        return Ok(form.bytes(code, protobuf::object(resource, &message, stored.revision)));
    }
    object(resource, form, code, &read(resource, stored)?)
}

/// One object as it is stored, in a form that requests share; `None` when they don't.
pub(crate) fn shared(
    resource: &Resource,
    form: Form,
    cache: &Messages,
    stored: &Versioned,
) -> Result<Option<ApiResponse>, Status> {
    if form.shape != Shape::Full || form.media != Media::Protobuf {
        return Ok(None);
    }
    let message = cache.of(resource, stored)?;
    Ok(Some(form.bytes(200, protobuf::object(resource, &message, stored.revision))))
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
            let now = crate::ambient::now();
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

/// A list in the form the client wants. The plain form concatenates stored bytes and parses nothing. `cache` is given where
/// the items are as they are stored.
pub(crate) fn list(
    resource: &Arc<Resource>,
    form: Form,
    cache: Option<&Messages>,
    items: &[Versioned],
    meta: &ListMeta,
) -> Result<ApiResponse, Status> {
    let metadata = meta.tree();
    if form.is_plain() {
        return plain_list(resource, items, &metadata);
    }
    if form.shape == Shape::Full && form.media == Media::Protobuf {
        return Ok(form.bytes(200, protobuf::list(resource, cache, items, &metadata)?));
    }
    let objects: Vec<Object> = items.iter().map(|item| read(resource, item)).collect::<Result<_, _>>()?;
    let value = match form.shape {
        Shape::Table(include) => {
            printing::table(resource, &objects, metadata, include, true, crate::ambient::now())
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
        let pb = "application/vnd.kubernetes.protobuf";
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let both = format!("{pb},application/json");
        let less = format!("{pb};q=0.5,application/yaml;q=0.4,application/json;q=0.9");
        let none = format!("{pb};q=0, */*");
        let binary_table = format!("{pb};as=Table;v=v1;g=meta.k8s.io");
        let partial = format!("{pb};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        let tabular = Shape::Table(IncludeObject::Metadata);
        // accept, what a built-in kind gives, what a custom kind gives
        let cases = [
            ("", Ok((Shape::Full, Media::Json)), Ok((Shape::Full, Media::Json))),
            ("application/json, */*", Ok((Shape::Full, Media::Json)), Ok((Shape::Full, Media::Json))),
            (&both, Ok((Shape::Full, Media::Protobuf)), Ok((Shape::Full, Media::Json))),
            (&less, Ok((Shape::Full, Media::Json)), Ok((Shape::Full, Media::Json))),
            (&none, Ok((Shape::Full, Media::Json)), Ok((Shape::Full, Media::Json))),
            ("application/yaml", Ok((Shape::Full, Media::Yaml)), Ok((Shape::Full, Media::Yaml))),
            (table, Ok((tabular, Media::Json)), Ok((tabular, Media::Json))),
            (
                "application/json;as=Table;v=v1beta2;g=meta.k8s.io,application/json",
                Ok((Shape::Full, Media::Json)),
                Ok((Shape::Full, Media::Json)),
            ),
            (
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                Ok((Shape::Partial, Media::Json)),
                Ok((Shape::Partial, Media::Json)),
            ),
            (&partial, Ok((Shape::Partial, Media::Protobuf)), Ok((Shape::Partial, Media::Protobuf))),
            (pb, Ok((Shape::Full, Media::Protobuf)), Err(406)),
            (&binary_table, Err(406), Err(406)),
            ("application/json;as=Nonsense;v=v1;g=meta.k8s.io", Err(406), Err(406)),
        ];
        for (accept, built_in, custom) in cases {
            let got = |protobuf| {
                let form = Form::negotiate(accept, "", false, Forms { protobuf, table: true });
                form.map(|f| (f.shape, f.media)).map_err(|s| s.code)
            };
            assert_eq!((got(true), got(false)), (built_in, custom), "{accept}");
        }
        assert_eq!(Form::negotiate("*/*", "Nonsense", false, Forms::ALL).map_err(|s| s.code), Err(400));
        let answered = Forms { table: false, ..Forms::ALL };
        assert_eq!(Form::negotiate(table, "", false, answered).map(|f| f.shape), Ok(Shape::Full));
        let only = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(Form::negotiate(only, "", false, answered).map_err(|s| s.code), Err(406));
    }

    #[test]
    fn older_tables_have_the_older_name() {
        let accept = "application/json;as=Table;v=v1beta1;g=meta.k8s.io";
        let form = Form::negotiate(accept, "", false, Forms::ALL).unwrap();
        let tree = serde_json::json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"});
        let got: Value = serde_json::from_slice(&form.encode(&tree).unwrap()).unwrap();
        assert_eq!(got["apiVersion"], "meta.k8s.io/v1beta1");
    }
}
