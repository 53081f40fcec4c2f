//! Whether other API servers are there: the condition `Available` of their APIServices.
//!
//! ```text
//!   APIService, Service, EndpointSlices ─▶ obstacle ─▶ none: ask for /apis/{group}/{version} ─▶ status
//! ```
//!
//! One task an APIService. It looks again when one of these objects changes, after some time while all is well, and with
//! growing pauses while it is not. What the other server answers is what discovery shows of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::{ApiRequest, GroupVersionResource, Object, ObjectKey, Status, Verb};
use bytes::Bytes;
use http::header::ACCEPT;
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::document::{self, Document};
use super::routes::Remote;
use super::{ApiService, api_services, forward, routes, user};
use crate::printing::cells;
use crate::resource::Reader;
use crate::resources::{AVAILABLE, conditions};
use crate::server::ApiServer;
use crate::watch_cache::ResourceCache;

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a server is asked that answered.
const AGAIN: Duration = Duration::from_secs(30);
/// How soon a server is asked again that did not; twice as long each time, up to `AGAIN`.
const SOON: Duration = Duration::from_millis(500);
/// Changes of one moment are looked at together.
const SETTLE: Duration = Duration::from_millis(50);

/// Reason and message of the condition.
type Finding = (&'static str, String);

/// Looks after every APIService of another server; returns when this server is gone.
pub(super) async fn run(server: Weak<ApiServer>) {
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        let Some(strong) = server.upgrade() else { break };
        let mut changes = changes(&strong, &[api_services()]).await;
        match routes(&strong).await {
            Ok(routes) => {
                let is_remote = |name: &str| routes.iter().any(|s| s.name == name && s.remote.is_some());
                tasks.retain(|name, task| {
                    let kept = is_remote(name);
                    if !kept {
                        task.abort();
                        strong.aggregation.documents().remove(name);
                    }
                    kept
                });
                for service in routes.iter().filter(|service| service.remote.is_some()) {
                    let name = service.name.clone();
                    let look_after = || tokio::spawn(look_after(Weak::clone(&server), name.clone()));
                    tasks.entry(name.clone()).or_insert_with(look_after);
                }
            }
            Err(status) => tracing::warn!(%status, "the APIServices cannot be read"),
        }
        drop(strong);
        changes.next().await;
    }
    tasks.into_values().for_each(|task| task.abort());
}

/// What tells that objects have changed.
struct Changes(Vec<watch::Receiver<()>>);

impl Changes {
    /// Returns at the next change. A closed channel counts as one: there is something new to subscribe to.
    async fn next(&mut self) {
        if self.0.is_empty() {
            return tokio::time::sleep(AGAIN).await;
        }
        let changed = self.0.iter_mut().map(|receiver| Box::pin(receiver.changed()));
        drop(futures_util::future::select_all(changed).await);
        tokio::time::sleep(SETTLE).await;
    }
}

async fn caches(server: &ApiServer, of: &[GroupVersionResource]) -> Result<Vec<Arc<ResourceCache>>, Status> {
    let mut caches = Vec::new();
    for gvr in of {
        if let Some(row) = server.registry.resources.get(gvr) {
            caches.push(server.registry.cache(&row, None).await?);
        }
    }
    Ok(caches)
}

async fn changes(server: &ApiServer, of: &[GroupVersionResource]) -> Changes {
    match caches(server, of).await {
        Ok(caches) => Changes(caches.iter().map(|cache| cache.subscribe()).collect()),
        Err(status) => {
            tracing::warn!(%status, "changes of APIServices are not seen");
            Changes(Vec::new())
        }
    }
}

fn services() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "services")
}

fn endpoint_slices() -> GroupVersionResource {
    GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices")
}

/// When an APIService is looked at again.
#[derive(Default)]
struct Pace {
    failures: u32,
}

impl Pace {
    fn next(&mut self, well: bool) -> Duration {
        if well {
            self.failures = 0;
            return AGAIN;
        }
        let pause = SOON.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        pause.min(AGAIN)
    }
}

/// Everything that an answer depends on, as far as this cluster knows: the place, and the revisions of the objects.
type Facts = Vec<String>;

/// Keeps the condition of one APIService until this server is gone.
async fn look_after(server: Weak<ApiServer>, name: String) {
    let (mut pace, mut last, mut due) = (Pace::default(), Facts::default(), Instant::now());
    loop {
        let Some(strong) = server.upgrade() else { return };
        let mut changes = changes(&strong, &[api_services(), services(), endpoint_slices()]).await;
        match look(&strong, &name, &mut last, due).await {
            Ok(Some(well)) => due = Instant::now() + pace.next(well),
            Ok(None) => {}
            Err(status) => {
                tracing::warn!(%status, apiservice = name, "its condition cannot be written");
                due = Instant::now() + pace.next(false);
            }
        }
        drop(strong);
        if tokio::time::timeout_at(due, changes.next()).await.is_err() {
            tracing::trace!(apiservice = name, "time to ask again");
        }
    }
}

/// Looks at one APIService if something has changed or its time has come; whether its server is there.
async fn look(
    server: &Arc<ApiServer>,
    name: &str,
    last: &mut Facts,
    due: Instant,
) -> Result<Option<bool>, Status> {
    let routes = routes(server).await?;
    let Some(service) = routes.iter().find(|service| service.name == name) else { return Ok(None) };
    let Some(remote) = &service.remote else { return Ok(None) };
    let key = ObjectKey::new(&*remote.namespace, &*remote.service);
    let object = Reader::get(&server.registry, &services(), &key).await?;
    let mut slices = Reader::list(&server.registry, &endpoint_slices(), Some(&remote.namespace)).await?;
    slices.retain(|s| s.str(&["metadata", "labels", "kubernetes.io/service-name"]) == remote.service);
    let facts = facts(remote, object.as_ref(), &slices);
    if facts == *last && Instant::now() < due {
        return Ok(None);
    }
    *last = facts;
    let finding = match obstacle(remote, object.as_ref(), &slices) {
        Some(finding) => Err(finding),
        None => ask(server, service).await.map_err(|why| ("FailedDiscoveryCheck", why)),
    };
    let well = finding.is_ok();
    if let Ok(document) = &finding {
        server.aggregation.documents().insert(name.to_owned(), Arc::clone(document));
    }
    write(server, name, finding.map(drop)).await?;
    Ok(Some(well))
}

fn facts(remote: &Remote, service: Option<&Object>, slices: &[Object]) -> Facts {
    let version = |o: &Object| format!("{}@{}", o.uid(), o.str(&["metadata", "resourceVersion"]));
    let own = format!("{}:{} {}", remote.server_name(), remote.port, remote.trust);
    let objects = service.into_iter().chain(slices).map(version);
    std::iter::once(own).chain(objects).collect()
}

/// What keeps anybody from asking the server at all.
fn obstacle(remote: &Remote, service: Option<&Object>, slices: &[Object]) -> Option<Finding> {
    let Remote { namespace, service: name, port, .. } = remote;
    let Some(object) = service else {
        return Some(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    let ports = cells::list(object, &["spec", "ports"]);
    let Some(found) = ports.iter().find(|one| one["port"] == u64::from(*port)) else {
        let text = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(("ServicePortError", text));
    };
    if slices.is_empty() {
        let text = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(("EndpointsNotFound", text));
    }
    let port_name = found["name"].as_str().unwrap_or_default();
    let has_port = |slice: &&Object| {
        let ports = cells::list(slice, &["ports"]);
        ports.iter().any(|port| port["name"].as_str().unwrap_or_default() == port_name)
    };
    let ready = |slice: &Object| {
        let endpoints = cells::list(slice, &["endpoints"]);
        endpoints.iter().any(|endpoint| endpoint["conditions"]["ready"] != Value::Bool(false))
    };
    if slices.iter().filter(has_port).any(ready) {
        return None;
    }
    let text = format!(
        "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
    );
    Some(("MissingEndpoints", text))
}

/// Asks a server what it serves.
async fn ask(server: &ApiServer, service: &ApiService) -> Result<Arc<Document>, String> {
    let path = format!("/apis/{}/{}", service.group, service.version);
    let (code, body) = get(server, service, &path).await?;
    if !(200..300).contains(&code) {
        return Err(format!(
            "failing or missing response from {}: bad status from the server: {code}",
            url(service, &path)
        ));
    }
    let list: Value = serde_json::from_slice(&body).unwrap_or_default();
    let resources = document::resources(&list, &service.group, &service.version);
    let index = get(server, service, "/openapi/v3").await.ok().filter(|(code, _)| *code == 200);
    let index: Value = index.and_then(|(_, body)| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let open_api = &index["paths"][path.trim_start_matches('/')]["serverRelativeURL"];
    Ok(Arc::new(Document { resources, open_api: open_api.as_str().unwrap_or_default().to_owned() }))
}

fn url(service: &ApiService, path: &str) -> String {
    let remote = service.remote.as_ref();
    remote
        .map_or_else(String::new, |remote| format!("https://{}:{}{path}", remote.server_name(), remote.port))
}

async fn get(server: &ApiServer, service: &ApiService, path: &str) -> Result<(u16, Bytes), String> {
    let failed = |why: &str| format!("failing or missing response from {}: {why}", url(service, path));
    let request = http::Request::get(path).header(ACCEPT, "application/json").body(Full::<Bytes>::default());
    let request = request.map_err(|error| failed(&error.to_string()))?;
    let answer = async {
        let response =
            service.send(server, &user(), request).await.map_err(|status| failed(&status.message))?;
        let code = response.status().as_u16();
        let body = forward::whole(response.into_body()).await.map_err(|why| failed(&why))?;
        Ok((code, body))
    };
    tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err(failed("context deadline exceeded")))
}

/// Writes the condition unless it says so already.
async fn write(server: &ApiServer, name: &str, finding: Result<(), Finding>) -> Result<(), Status> {
    let (status, (reason, message)) = match finding {
        Ok(()) => ("True", ("Passed", "all checks passed".to_owned())),
        Err(finding) => ("False", finding),
    };
    let key = ObjectKey::new("", name);
    loop {
        let Some(mut object) = Reader::get(&server.registry, &api_services(), &key).await? else {
            return Ok(());
        };
        let before = object.clone();
        conditions::set(&mut object, AVAILABLE, status, reason, &message, crate::ambient::now());
        if object == before || object.get(&["spec", "service"]).is_none() {
            return Ok(());
        }
        let request = ApiRequest::resource(Verb::Update, api_services(), None, Some(name), Some("status"));
        let request = request.with_json(object.into_value().to_string());
        match server.registry.handle_unreviewed(&user(), &request).await {
            Err(status) if status.is_conflict() => {}
            Err(status) if status.is_not_found() => return Ok(()),
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn obstacles_are_named() {
        let object = |value: Value| Object::from_value(value).unwrap();
        let (trust, tls) = (String::new(), Err(String::new()));
        let remote = Remote { namespace: "n".into(), service: "s".into(), port: 443, trust, tls };
        let service = object(json!({"spec": {"ports": [{"port": 80}, {"name": "api", "port": 443}]}}));
        let other = object(json!({"spec": {"ports": [{"port": 80}]}}));
        let slice = |port: &str, ready: bool| {
            object(json!({"ports": [{"name": port, "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]}))
        };
        let said = |service: Option<&Object>, slices: &[Object]| {
            obstacle(&remote, service, slices)
                .map(|(reason, message)| format!("{reason}: {message}"))
                .unwrap_or_default()
        };
        assert_eq!(said(None, &[]), "ServiceNotFound: service/s in \"n\" is not present");
        assert_eq!(
            said(Some(&other), &[]),
            "ServicePortError: service/s in \"n\" is not listening on port 443"
        );
        assert_eq!(
            said(Some(&service), &[]),
            "EndpointsNotFound: cannot find endpointslices for service/s in \"n\""
        );
        let missing = "MissingEndpoints: endpointslices for service/s in \"n\" have no addresses with port name \"api\"";
        assert_eq!(said(Some(&service), &[slice("api", false)]), missing);
        assert_eq!(said(Some(&service), &[slice("web", true)]), missing);
        assert_eq!(said(Some(&service), &[slice("web", true), slice("api", true)]), "");
    }

    #[test]
    fn pauses_grow_to_a_limit_and_end_with_success() {
        let mut pace = Pace::default();
        let mut next = |well| pace.next(well).as_millis();
        assert_eq!([next(false), next(false), next(false)], [500, 1000, 2000]);
        assert_eq!((0..5).map(|_| next(false)).last(), Some(30_000));
        assert_eq!([next(true), next(false)], [30_000, 500]);
    }
}
