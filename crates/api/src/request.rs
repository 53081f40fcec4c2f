//! Requests and responses as data: what crosses a `client::Transport`, in process or over HTTP.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

use crate::{GroupVersionResource, Status};

/// What a request does, in RBAC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The word in RBAC rules and discovery.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A resource of the API: `/api/v1/namespaces/{namespace}/pods/{name}/{subresource}`.
    Resource {
        gvr: GroupVersionResource,
        namespace: Option<String>,
        name: Option<String>,
        subresource: Option<String>,
    },
    /// Anything else, read with GET: `/apis`, `/version`, `/openapi/v3`, `/readyz`.
    Path(String),
}

/// Format of a patch body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902
    Json,
    /// RFC 7386
    Merge,
    /// Strategic merge patch
    Strategic,
    /// Server-side apply (YAML, of which JSON is a subset)
    Apply,
}

/// Encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Yaml,
    Protobuf,
    Patch(PatchType),
}

impl ContentType {
    /// The media type on the wire.
    pub fn media_type(self) -> &'static str {
        match self {
            ContentType::Json => "application/json",
            ContentType::Yaml => "application/yaml",
            ContentType::Protobuf => "application/vnd.kubernetes.protobuf",
            ContentType::Patch(PatchType::Json) => "application/json-patch+json",
            ContentType::Patch(PatchType::Merge) => "application/merge-patch+json",
            ContentType::Patch(PatchType::Strategic) => "application/strategic-merge-patch+json",
            ContentType::Patch(PatchType::Apply) => "application/apply-patch+yaml",
        }
    }

    /// Reads a Content-Type header; parameters such as `charset` are ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let media = header.split(';').next().unwrap_or_default().trim();
        Some(match media {
            "application/json" | "" => ContentType::Json,
            "application/yaml" => ContentType::Yaml,
            "application/vnd.kubernetes.protobuf" => ContentType::Protobuf,
            "application/json-patch+json" => ContentType::Patch(PatchType::Json),
            "application/merge-patch+json" => ContentType::Patch(PatchType::Merge),
            "application/strategic-merge-patch+json" => ContentType::Patch(PatchType::Strategic),
            "application/apply-patch+yaml" => ContentType::Patch(PatchType::Apply),
            _ => return None,
        })
    }
}

/// A request body.
#[derive(Clone, Debug)]
pub struct Body {
    pub content_type: ContentType,
    pub bytes: Bytes,
}

/// Query parameters and the fields of DeleteOptions (a DELETE's body and query are merged into this).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub limit: Option<u64>,
    pub continue_token: Option<String>,
    pub resource_version: Option<String>,
    /// `Exact` or `NotOlderThan`
    pub resource_version_match: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
    pub allow_watch_bookmarks: bool,
    /// Only `All` is valid in `dryRun`.
    pub dry_run: bool,
    pub field_manager: Option<String>,
    pub force: bool,
    /// `Strict`, `Warn` or `Ignore`
    pub field_validation: Option<String>,
    /// `Orphan`, `Background` or `Foreground`
    pub propagation_policy: Option<String>,
    pub grace_period_seconds: Option<i64>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub pretty: bool,
    /// Parameters of connect subresources (`log`, `exec`, …) and anything not listed above, decoded, in order.
    pub extra: Vec<(String, String)>,
}

impl RequestOptions {
    /// First value of an unlisted parameter.
    pub fn extra(&self, name: &str) -> Option<&str> {
        self.extra.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// One request. Identity is not in it: the transport adds it.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    pub verb: Verb,
    pub target: Target,
    pub options: RequestOptions,
    pub body: Option<Body>,
    /// Accept header as sent; "" means JSON.
    pub accept: String,
    pub user_agent: String,
}

impl ApiRequest {
    /// A request for a resource, without body and options.
    pub fn resource(
        verb: Verb,
        gvr: GroupVersionResource,
        namespace: Option<&str>,
        name: Option<&str>,
        subresource: Option<&str>,
    ) -> Self {
        let owned = |s: Option<&str>| s.filter(|s| !s.is_empty()).map(str::to_owned);
        Self {
            verb,
            target: Target::Resource {
                gvr,
                namespace: owned(namespace),
                name: owned(name),
                subresource: owned(subresource),
            },
            options: RequestOptions::default(),
            body: None,
            accept: String::new(),
            user_agent: String::new(),
        }
    }

    /// GET of a path outside the resources.
    pub fn path(path: &str) -> Self {
        Self {
            verb: Verb::Get,
            target: Target::Path(path.to_owned()),
            options: RequestOptions::default(),
            body: None,
            accept: String::new(),
            user_agent: String::new(),
        }
    }

    /// Adds a JSON body.
    #[must_use]
    pub fn with_json(mut self, bytes: impl Into<Bytes>) -> Self {
        self.body = Some(Body { content_type: ContentType::Json, bytes: bytes.into() });
        self
    }
}

/// Kind of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    /// The object is a `Status`; the stream ends after it.
    Error,
}

impl EventKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
            EventKind::Bookmark => "BOOKMARK",
            EventKind::Error => "ERROR",
        }
    }
}

/// One event of a watch. `object` is the encoded object (resourceVersion included), shared by all watchers.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    pub kind: EventKind,
    pub object: Bytes,
}

/// Events of one watch, in order. It ends when the server closes the watch; the caller then resumes.
pub type WatchStream = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;

/// Body of a response.
pub enum ResponseBody {
    /// A whole body in one or more shared pieces (a list is many pieces).
    Bytes(Vec<Bytes>),
    Watch(WatchStream),
    /// Raw bytes as they come: logs.
    Stream(crate::stream::ByteStream),
}

/// A successful response; failures are a [`Status`].
pub struct ApiResponse {
    /// HTTP status code: 200, 201, 202.
    pub code: u16,
    /// Media type of the body.
    pub content_type: String,
    pub body: ResponseBody,
    /// Texts of `Warning: 299` headers.
    pub warnings: Vec<String>,
}

impl ApiResponse {
    /// A JSON response.
    pub fn json(code: u16, bytes: impl Into<Bytes>) -> Self {
        Self {
            code,
            content_type: ContentType::Json.media_type().into(),
            body: ResponseBody::Bytes(vec![bytes.into()]),
            warnings: Vec::new(),
        }
    }

    /// The body in one piece.
    ///
    /// # Errors
    /// When the body is a stream.
    pub fn into_bytes(self) -> Result<Bytes, Status> {
        match self.body {
            ResponseBody::Bytes(mut parts) if parts.len() == 1 => Ok(parts.remove(0)),
            ResponseBody::Bytes(parts) => Ok(parts.concat().into()),
            ResponseBody::Watch(_) | ResponseBody::Stream(_) => {
                Err(Status::internal("a stream came where one body was expected"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_read_back() {
        let kinds = [
            ContentType::Json,
            ContentType::Yaml,
            ContentType::Protobuf,
            ContentType::Patch(PatchType::Json),
            ContentType::Patch(PatchType::Merge),
            ContentType::Patch(PatchType::Strategic),
            ContentType::Patch(PatchType::Apply),
        ];
        for kind in kinds {
            assert_eq!(ContentType::parse(&format!("{}; charset=utf-8", kind.media_type())), Some(kind));
        }
        assert_eq!(ContentType::parse(""), Some(ContentType::Json));
        assert_eq!(ContentType::parse("text/html"), None);
    }

    #[test]
    fn bodies_in_pieces_are_joined() {
        let body = ResponseBody::Bytes(vec![Bytes::from("a"), Bytes::from("b")]);
        let response = ApiResponse { body, ..ApiResponse::json(200, Bytes::new()) };
        assert_eq!(response.into_bytes().unwrap(), "ab");
    }
}
