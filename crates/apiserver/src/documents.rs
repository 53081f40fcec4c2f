//! Everything outside the resources: version, health, discovery, OpenAPI, keys of the token issuer.

use api::{ApiRequest, ApiResponse, Reason, ResponseBody, Status};
use serde_json::{Value, json};

use crate::pipeline::no_such_path;
use crate::server::ApiServer;
use crate::{discovery, openapi};

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
        "/" => Ok(json(&paths(server))),
        "/version" => Ok(json(&version())),
        "/healthz" | "/livez" | "/readyz" => health(server, trimmed, request).await,
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
            discovery::document(&resources, trimmed, &request.accept, &advertise)
                .or_else(|| openapi::document(&resources, trimmed, &request.accept, hash))
                .ok_or_else(no_such_path)
        }
    }
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

fn paths(server: &ApiServer) -> Value {
    let mut paths =
        vec!["/.well-known/openid-configuration".to_owned(), "/api".to_owned(), "/apis".to_owned()];
    for (group, version) in server.resources().group_versions() {
        if group.is_empty() {
            paths.push(format!("/api/{version}"));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    for path in ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
    {
        paths.push(path.to_owned());
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

/// Healthy means: the store answers.
async fn health(server: &ApiServer, path: &str, request: &ApiRequest) -> Result<ApiResponse, Status> {
    let store = server.registry.store.current_revision().await;
    let checks = [("ping", None), ("store", store.err().map(|error| error.to_string()))];
    let failed = checks.iter().any(|(_, error)| error.is_some());
    let verbose = request.options.extra("verbose").is_some();
    let name = path.trim_start_matches('/');
    let mut text = String::new();
    if verbose || failed {
        for (check, error) in &checks {
            match error {
                None => text.push_str(&format!("[+]{check} ok\n")),
                Some(error) => text.push_str(&format!("[-]{check} failed: {error}\n")),
            }
        }
        text.push_str(&format!("{name} check {}\n", if failed { "failed" } else { "passed" }));
    } else {
        text.push_str("ok");
    }
    if failed {
        return Err(Status::new(Reason::InternalError, text));
    }
    Ok(ApiResponse {
        code: 200,
        content_type: "text/plain; charset=utf-8".into(),
        body: ResponseBody::Bytes(vec![text.into()]),
        warnings: Vec::new(),
    })
}
