//! Requests and watch events as HTTP carries them.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::{ApiRequest, EventKind, RequestOptions, Target, Verb, WatchEvent};

/// What an HTTP request is made of, besides the headers that say who sends it.
pub struct HttpParts {
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// Media type of the body, if there is one.
    pub content_type: Option<&'static str>,
    pub body: Bytes,
}

impl ApiRequest {
    /// The request as HTTP. Options of a DELETE that the query cannot say are its body.
    pub fn to_http(&self) -> HttpParts {
        let method = match self.verb {
            Verb::Get | Verb::List | Verb::Watch => "GET",
            Verb::Create => "POST",
            Verb::Update => "PUT",
            Verb::Patch => "PATCH",
            Verb::Delete | Verb::DeleteCollection => "DELETE",
        };
        let mut target = match &self.target {
            Target::Resource { gvr, namespace, name, subresource } => {
                gvr.path(namespace.as_deref(), name.as_deref(), subresource.as_deref())
            }
            Target::Path(path) => path.clone(),
        };
        let query = encode(self.verb, &self.options);
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query);
        }
        let (content_type, body) = match &self.body {
            Some(body) => (Some(body.content_type.media_type()), body.bytes.clone()),
            None => match delete_options(self.verb, &self.options) {
                Some(options) => (Some("application/json"), options.to_string().into()),
                None => (None, Bytes::new()),
            },
        };
        HttpParts { method, target, content_type, body }
    }
}

impl WatchEvent {
    /// Reads `{"type":"ADDED","object":…}`; the object shares the line's bytes. `None` for anything else.
    pub fn from_line(line: &Bytes) -> Option<Self> {
        #[derive(Deserialize)]
        struct Frame<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let frame: Frame<'_> = serde_json::from_slice(line).ok()?;
        let kinds = [
            EventKind::Added,
            EventKind::Modified,
            EventKind::Deleted,
            EventKind::Bookmark,
            EventKind::Error,
        ];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == frame.kind)?;
        Some(WatchEvent { kind, object: line.slice_ref(frame.object.get().as_bytes()) })
    }
}

/// The query string, without `?`.
fn encode(verb: Verb, options: &RequestOptions) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: &str| {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        query.push_str(&escape(value));
    };
    if verb == Verb::Watch {
        add("watch", "true");
    }
    let texts = [
        ("labelSelector", &options.label_selector),
        ("fieldSelector", &options.field_selector),
        ("continue", &options.continue_token),
        ("resourceVersion", &options.resource_version),
        ("resourceVersionMatch", &options.resource_version_match),
        ("fieldManager", &options.field_manager),
        ("fieldValidation", &options.field_validation),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            add(name, value);
        }
    }
    for (name, value) in [("limit", options.limit), ("timeoutSeconds", options.timeout_seconds)] {
        if let Some(value) = value {
            add(name, &value.to_string());
        }
    }
    if let Some(initial) = options.send_initial_events {
        add("sendInitialEvents", if initial { "true" } else { "false" });
    }
    let flags = [("allowWatchBookmarks", options.allow_watch_bookmarks), ("force", options.force)];
    for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
        add(name, "true");
    }
    if options.dry_run {
        add("dryRun", "All");
    }
    for (name, value) in &options.extra {
        add(name, value);
    }
    query
}

/// The body of a DELETE, when an option can't be said in the query.
fn delete_options(verb: Verb, options: &RequestOptions) -> Option<Value> {
    if !matches!(verb, Verb::Delete | Verb::DeleteCollection) {
        return None;
    }
    let mut body = Map::new();
    if let Some(seconds) = options.grace_period_seconds {
        body.insert("gracePeriodSeconds".into(), json!(seconds));
    }
    if let Some(policy) = &options.propagation_policy {
        body.insert("propagationPolicy".into(), json!(policy));
    }
    let mut preconditions = Map::new();
    if let Some(uid) = &options.precondition_uid {
        preconditions.insert("uid".into(), json!(uid));
    }
    if let Some(revision) = &options.precondition_resource_version {
        preconditions.insert("resourceVersion".into(), json!(revision));
    }
    if !preconditions.is_empty() {
        body.insert("preconditions".into(), Value::Object(preconditions));
    }
    if body.is_empty() {
        return None;
    }
    body.insert("kind".into(), json!("DeleteOptions"));
    body.insert("apiVersion".into(), json!("v1"));
    Some(Value::Object(body))
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_shares_the_bytes_of_its_line() {
        let line = Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"Pod\"}}\n");
        let event = WatchEvent::from_line(&line).unwrap();
        assert_eq!((event.kind, &event.object[..]), (EventKind::Added, &b"{\"kind\":\"Pod\"}"[..]));
        assert!(line.as_ptr_range().contains(&event.object.as_ptr()));
    }

    #[test]
    fn a_deletion_has_a_query_and_a_body() {
        let gvr = crate::GroupVersionResource::new("apps", "v1", "deployments");
        let mut request = ApiRequest::resource(Verb::Delete, gvr, Some("ns"), Some("d"), None);
        request.options.dry_run = true;
        request.options.propagation_policy = Some("Orphan".into());
        let parts = request.to_http();
        let target = "/apis/apps/v1/namespaces/ns/deployments/d?dryRun=All";
        assert_eq!(
            (parts.method, parts.target.as_str(), parts.content_type),
            ("DELETE", target, Some("application/json"))
        );
        assert!(parts.body.ends_with(b"}"));
    }

    #[test]
    fn options_become_a_query_and_a_body() {
        let options = RequestOptions {
            label_selector: Some("a in (b,c)".into()),
            grace_period_seconds: Some(0),
            precondition_uid: Some("u".into()),
            dry_run: true,
            ..RequestOptions::default()
        };
        assert_eq!(encode(Verb::Delete, &options), "labelSelector=a%20in%20%28b%2Cc%29&dryRun=All");
        let body = delete_options(Verb::Delete, &options).unwrap();
        assert_eq!(body["gracePeriodSeconds"], 0);
        assert_eq!(body["preconditions"]["uid"], "u");
        assert_eq!(delete_options(Verb::Get, &options), None);
        assert_eq!(encode(Verb::Watch, &RequestOptions::default()), "watch=true");
    }
}
