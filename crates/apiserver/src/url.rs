//! The Kubernetes URL grammar: method, path and query become an [`ApiRequest`], in one parser.
//!
//! ```text
//!   /api/{version}/…  or  /apis/{group}/{version}/…  followed by
//!       {resource}[/{name}[/{subresource}]]
//!       namespaces/{namespace}/{resource}[/{name}[/{subresource}]]
//! ```
//! Every other path is a [`Target::Path`].

use api::{ApiRequest, GroupVersionResource, RequestOptions, Status, Target, Verb};
use serde_json::Value;

/// Subresources of namespaces; they look like a resource inside a namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Decodes the request line. The body is added by the caller (see [`merge_delete_options`]).
///
/// # Errors
/// `BadRequest` for a query that cannot be read, `MethodNotAllowed` for a method without meaning there.
pub fn decode(method: &str, path: &str, query: &str) -> Result<ApiRequest, Status> {
    let parameters = parse_query(query)?;
    let target = target(path)?;
    let watch = parameters.iter().any(|(n, v)| n == "watch" && matches!(v.as_str(), "1" | "true" | ""));
    let verb = verb(method, &target, watch)?;
    let options = options(parameters)?;
    Ok(ApiRequest { verb, target, options, body: None, accept: String::new(), user_agent: String::new() })
}

/// What a path is about.
fn target(path: &str) -> Result<Target, Status> {
    let parts: Vec<String> =
        path.split('/').filter(|p| !p.is_empty()).map(percent_decode).collect::<Result<_, _>>()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Target::Path(path.to_owned())),
    };
    let (namespace, rest) = match rest {
        ["namespaces", ns, sub] if NAMESPACE_SUBRESOURCES.contains(sub) => {
            return Ok(resource(group, version, "namespaces", None, Some(ns), Some((*sub).to_owned())));
        }
        ["namespaces", ns, inner @ ..] if !inner.is_empty() => (Some(*ns), inner),
        other => (None, other),
    };
    let name = rest.get(1).copied();
    let subresource = (rest.len() > 2).then(|| rest[2..].join("/"));
    Ok(resource(group, version, rest[0], namespace, name, subresource))
}

fn resource(
    group: &str,
    version: &str,
    resource: &str,
    namespace: Option<&str>,
    name: Option<&str>,
    subresource: Option<String>,
) -> Target {
    Target::Resource {
        gvr: GroupVersionResource::new(group, version, resource),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        subresource,
    }
}

fn verb(method: &str, target: &Target, watch: bool) -> Result<Verb, Status> {
    let name = match target {
        Target::Path(_) => {
            return match method {
                "GET" | "HEAD" => Ok(Verb::Get),
                _ => Err(method_not_allowed()),
            };
        }
        Target::Resource { name, .. } => name.is_some(),
    };
    Ok(match method {
        "GET" | "HEAD" if name => Verb::Get,
        "GET" | "HEAD" if watch => Verb::Watch,
        "GET" | "HEAD" => Verb::List,
        "POST" => Verb::Create,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" if name => Verb::Delete,
        "DELETE" => Verb::DeleteCollection,
        _ => return Err(method_not_allowed()),
    })
}

/// The answer to a method that the server does not serve there.
pub fn method_not_allowed() -> Status {
    Status::new(
        api::Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, Status> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((percent_decode(&name.replace('+', " "))?, percent_decode(&value.replace('+', " "))?))
        })
        .collect()
}

pub(crate) fn percent_decode(text: &str) -> Result<String, Status> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, escape.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'%', None) => return Err(Status::bad_request(format!("invalid URL escape in {text:?}"))),
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| Status::bad_request(format!("invalid UTF-8 in {text:?}")))
}

fn options(parameters: Vec<(String, String)>) -> Result<RequestOptions, Status> {
    let mut options = RequestOptions::default();
    for (name, value) in parameters {
        if value.is_empty() && name == "verbose" {
            options.extra.push((name, value));
            continue;
        }
        if value.is_empty() {
            continue;
        }
        match name.as_str() {
            "labelSelector" => options.label_selector = Some(value),
            "fieldSelector" => options.field_selector = Some(value),
            "limit" => options.limit = Some(number(&name, &value)?).filter(|limit| *limit > 0),
            "continue" => options.continue_token = Some(value),
            "resourceVersion" => options.resource_version = Some(value),
            "resourceVersionMatch" => options.resource_version_match = Some(value),
            "timeoutSeconds" => options.timeout_seconds = Some(number(&name, &value)?),
            "sendInitialEvents" => options.send_initial_events = Some(boolean(&name, &value)?),
            "allowWatchBookmarks" => options.allow_watch_bookmarks = boolean(&name, &value)?,
            "dryRun" => options.dry_run = dry_run(&value)?,
            "fieldManager" => options.field_manager = Some(value),
            "force" => options.force = boolean(&name, &value)?,
            "fieldValidation" => options.field_validation = Some(value),
            "propagationPolicy" => options.propagation_policy = Some(value),
            "gracePeriodSeconds" => options.grace_period_seconds = Some(number(&name, &value)?),
            "orphanDependents" => set_orphan(&mut options, boolean(&name, &value)?),
            "pretty" => options.pretty = boolean(&name, &value)?,
            "watch" => {}
            _ => options.extra.push((name, value)),
        }
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, Status> {
    value.parse().map_err(|_| Status::bad_request(format!("invalid value {value:?} for parameter {name}")))
}

fn boolean(name: &str, value: &str) -> Result<bool, Status> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(Status::bad_request(format!("invalid value {value:?} for parameter {name}"))),
    }
}

fn dry_run(value: &str) -> Result<bool, Status> {
    if value == "All" {
        return Ok(true);
    }
    let error = api::FieldError::not_supported("dryRun", vec![value.to_owned()], &["All"]);
    Err(Status::bad_request(format!("invalid options: {error}")))
}

fn set_orphan(options: &mut RequestOptions, orphan: bool) {
    options.propagation_policy = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
}

/// Merges the DeleteOptions of a DELETE's body into the options; the body wins.
///
/// # Errors
/// `BadRequest` when the body is no DeleteOptions.
pub fn merge_delete_options(options: &mut RequestOptions, body: &Value) -> Result<(), Status> {
    let kind = body["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(Status::bad_request(format!("the object provided is a {kind}, must be DeleteOptions")));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(seconds) = body["gracePeriodSeconds"].as_i64() {
        options.grace_period_seconds = Some(seconds);
    }
    if let Some(orphan) = body["orphanDependents"].as_bool() {
        set_orphan(options, orphan);
    }
    if let Some(policy) = text(&body["propagationPolicy"]) {
        options.propagation_policy = Some(policy);
    }
    if let Some(uid) = text(&body["preconditions"]["uid"]) {
        options.precondition_uid = Some(uid);
    }
    if let Some(version) = text(&body["preconditions"]["resourceVersion"]) {
        options.precondition_resource_version = Some(version);
    }
    for value in body["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default() {
        options.dry_run = dry_run(value.as_str().unwrap_or_default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(method: &str, url: &str) -> String {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        match decode(method, path, query) {
            Err(status) => format!("{} {}", status.code, status.message),
            Ok(ApiRequest { verb, target: Target::Path(path), .. }) => {
                format!("{} path {path}", verb.as_str())
            }
            Ok(ApiRequest {
                verb, target: Target::Resource { gvr, namespace, name, subresource }, ..
            }) => format!(
                "{} {gvr} ns={} name={} sub={}",
                verb.as_str(),
                namespace.unwrap_or_default(),
                name.unwrap_or_default(),
                subresource.unwrap_or_default()
            ),
        }
    }

    #[test]
    fn paths_become_requests() {
        let table = [
            ("GET", "/api", "get path /api"),
            ("GET", "/api/v1", "get path /api/v1"),
            ("GET", "/apis/apps/v1", "get path /apis/apps/v1"),
            ("GET", "/readyz?verbose", "get path /readyz"),
            ("POST", "/version", "405 the server does not allow this method on the requested resource"),
            ("GET", "/api/v1/pods", "list v1/pods ns= name= sub="),
            ("GET", "/api/v1/pods?watch=true", "watch v1/pods ns= name= sub="),
            ("GET", "/api/v1/namespaces", "list v1/namespaces ns= name= sub="),
            ("GET", "/api/v1/namespaces/a", "get v1/namespaces ns= name=a sub="),
            ("PUT", "/api/v1/namespaces/a/finalize", "update v1/namespaces ns= name=a sub=finalize"),
            ("PATCH", "/api/v1/namespaces/a/status", "patch v1/namespaces ns= name=a sub=status"),
            ("POST", "/api/v1/namespaces/a/pods", "create v1/pods ns=a name= sub="),
            ("GET", "/api/v1/namespaces/a/pods/b", "get v1/pods ns=a name=b sub="),
            ("POST", "/api/v1/namespaces/a/pods/b/exec?command=ls", "create v1/pods ns=a name=b sub=exec"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get v1/pods ns=a name=b sub=log"),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection apps/v1/deployments ns=a name= sub=",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/d",
                "delete apps/v1/deployments ns=a name=d sub=",
            ),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get rbac.authorization.k8s.io/v1/clusterroles ns= name=system:node sub=",
            ),
            ("TRACE", "/api/v1/pods", "405 the server does not allow this method on the requested resource"),
            ("GET", "/api/v1/pods?limit=x", "400 invalid value \"x\" for parameter limit"),
            ("GET", "/api/v1/pods/%zz", "400 invalid URL escape in \"%zz\""),
        ];
        for (method, url, want) in table {
            assert_eq!(show(method, url), want, "{method} {url}");
        }
    }

    #[test]
    fn queries_become_options() {
        let query = "labelSelector=app%3Dweb%2Ctier+in+(a)&limit=5&continue=abc&dryRun=All&force=true&pretty=1&command=ls&command=-l&container=";
        let options = decode("GET", "/api/v1/pods", query).expect("valid").options;
        assert_eq!(options.label_selector.as_deref(), Some("app=web,tier in (a)"));
        assert_eq!((options.limit, options.continue_token.as_deref()), (Some(5), Some("abc")));
        assert!(options.dry_run && options.force && options.pretty);
        assert_eq!(options.extra, [("command".into(), "ls".into()), ("command".into(), "-l".into())]);
        assert!(decode("GET", "/api/v1/pods", "dryRun=Some").is_err());
    }

    #[test]
    fn the_body_of_a_delete_wins() {
        let mut options = decode("DELETE", "/api/v1/pods/x", "gracePeriodSeconds=9").expect("valid").options;
        let body = serde_json::json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "orphanDependents": true});
        merge_delete_options(&mut options, &body).expect("valid");
        assert_eq!(options.grace_period_seconds, Some(0));
        assert_eq!(options.precondition_uid.as_deref(), Some("u"));
        assert_eq!(options.propagation_policy.as_deref(), Some("Orphan"));
        assert!(merge_delete_options(&mut options, &serde_json::json!({"kind": "Pod"})).is_err());
    }
}
