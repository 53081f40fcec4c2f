//! Everything outside the resources: version, health, discovery, OpenAPI, keys of the token issuer.

use api::{ApiRequest, ApiResponse, Reason, ResponseBody, Status};
use serde_json::{Value, json};

use crate::pipeline::no_such_path;
use crate::resource::ResourceSet;
use crate::server::ApiServer;
use crate::{aggregation, discovery, metrics, openapi, usage};

pub(crate) const MAJOR: &str = "1";
pub(crate) const MINOR: &str = "37";
/// The version that clients see; the part after `+` is no part of comparisons.
pub const GIT_VERSION: &str = "v1.37.0+podium";

/// Answers a path.
pub(crate) async fn answer(
    server: &ApiServer,
    path: &str,
    request: &ApiRequest,
) -> Result<ApiResponse, Status> {
    let advertise = server.config.advertise.to_string();
    let trimmed = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    match trimmed {
        "/" => Ok(json(&paths(&groups(server, &server.resources()).await?))),
        "/version" => Ok(json(&version())),
        "/metrics" => Ok(text(metrics::text(server).await?, "text/plain; version=0.0.4; charset=utf-8")),
        _ if is_health(trimmed) => health(server, trimmed, request).await,
        "/openid/v1/jwks" => {
            let mut response = json(&server.registry.tokens.key_set());
            response.content_type = "application/jwk-set+json".into();
            Ok(response)
        }
        "/.well-known/openid-configuration" => Ok(json(&server.registry.tokens.discovery(&advertise))),
        _ => {
            let hash = request.options.extra("hash").unwrap_or_default();
            server.registry.resources.settle().await;
            let resources = server.resources();
            let groups = groups(server, &resources).await?;
            discovery::document(&groups, trimmed, &request.accept, &advertise)
                .or_else(|| openapi::document(&resources, &groups, trimmed, &request.accept, hash))
                .ok_or_else(no_such_path)
        }
    }
}

/// All groups that the API has at this moment, served here or elsewhere.
async fn groups(server: &ApiServer, resources: &ResourceSet) -> Result<Vec<discovery::Group>, Status> {
    let routes = aggregation::routes(server).await?;
    Ok(aggregation::listing(&server.aggregation, &routes, &usage::with_rows(resources)))
}

fn json(value: &Value) -> ApiResponse {
    ApiResponse::json(200, value.to_string())
}

fn version() -> Value {
    json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH)),
        "emulationMajor": MAJOR, "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR, "minCompatibilityMinor": MINOR,
    })
}

fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(groups: &[discovery::Group]) -> Value {
    let mut paths = vec!["/.well-known/openid-configuration".to_owned(), "/apis".to_owned()];
    for group in groups {
        let base = if group.name.is_empty() { "/api".to_owned() } else { format!("/apis/{}", group.name) };
        paths.extend(group.versions.iter().map(|version| format!("{base}/{}", version.name)));
        paths.push(base);
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

fn is_health(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| matches!(first, "healthz" | "livez" | "readyz"))
}

fn text(text: String, content_type: &str) -> ApiResponse {
    ApiResponse {
        code: 200,
        content_type: content_type.to_owned(),
        body: ResponseBody::Bytes(vec![text.into()]),
        warnings: Vec::new(),
    }
}

/// Healthy means: the server answers, and its store does. `?verbose` lists the checks, `?exclude=` leaves one out, and each
/// has a path of its own (`/livez/etcd`; the store has the name that tools exclude).
async fn health(server: &ApiServer, path: &str, request: &ApiRequest) -> Result<ApiResponse, Status> {
    let (name, only) =
        path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let store = server.registry.store.current_revision().await.err();
    let checks = [("ping", None), ("etcd", store)];
    if !only.is_empty() && checks.iter().all(|(check, _)| *check != only) {
        return Err(no_such_path());
    }
    let given = request.options.extra.iter();
    let excluded: Vec<&str> = given.filter(|(n, _)| n == "exclude").map(|(_, v)| v.as_str()).collect();
    let (mut lines, mut failed) = (String::new(), false);
    for (check, error) in checks.iter().filter(|(check, _)| only.is_empty() || *check == only) {
        match error {
            _ if excluded.contains(check) => lines.push_str(&format!("[+]{check} excluded: ok\n")),
            None => lines.push_str(&format!("[+]{check} ok\n")),
            Some(error) => {
                failed = true;
                lines.push_str(&format!("[-]{check} failed: {error}\n"));
            }
        }
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| checks.iter().all(|(check, _)| check != *name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        let list = unknown.join(",");
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {list}\n"));
    }
    if failed {
        return Err(Status::new(Reason::InternalError, format!("{lines}{name} check failed\n")));
    }
    let verbose = request.options.extra("verbose").is_some();
    let answer = if verbose { format!("{lines}{name} check passed\n") } else { "ok".to_owned() };
    Ok(text(answer, "text/plain; charset=utf-8"))
}
