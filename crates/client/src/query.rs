//! Request options as a query string and as DeleteOptions.

use api::{RequestOptions, Verb};
use serde_json::{Map, Value, json};

/// The query string, without `?`.
pub(crate) fn encode(verb: Verb, options: &RequestOptions) -> String {
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
pub(crate) fn delete_options(verb: Verb, options: &RequestOptions) -> Option<Value> {
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
