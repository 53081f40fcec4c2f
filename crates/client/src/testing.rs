//! A small API server in memory: enough verbs to run informers and controllers against in tests. Not a model of
//! validation, admission or authorization.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{
    ApiRequest, ApiResponse, Body, EventKind, GroupVersionResource, ObjectKey, ResponseBody, Status, Target,
    Verb, WatchEvent,
};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::client::{Client, Transport};

type Id = (GroupVersionResource, ObjectKey);
type Fault = Box<dyn FnMut(&ApiRequest) -> Option<Status> + Send>;

/// The server. Clones share its state.
#[derive(Clone)]
pub struct MiniServer {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    names: u64,
    objects: BTreeMap<Id, Value>,
    log: Vec<Logged>,
    compacted: u64,
    /// Watches older than this end at once.
    epoch: u64,
    fault: Option<Fault>,
    calls: Vec<String>,
    /// Resources whose deletion only marks: (resource, until finally removed by `remove`).
    graceful: Vec<String>,
    discovery: Vec<(GroupVersionResource, String, bool)>,
}

#[derive(Clone)]
struct Logged {
    revision: u64,
    gvr: GroupVersionResource,
    kind: EventKind,
    object: Value,
}

impl Default for MiniServer {
    fn default() -> Self {
        Self { state: Arc::default(), revision: watch::Sender::new(0) }
    }
}

impl MiniServer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn client(&self) -> Client {
        Client::new(Arc::new(self.clone()), "test")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every request is first shown to `fault`, which may refuse it.
    pub fn set_fault(&self, fault: impl FnMut(&ApiRequest) -> Option<Status> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// Deletion of these resources only marks objects; `remove` ends it.
    pub fn set_graceful(&self, resource: &str) {
        self.lock().graceful.push(resource.to_owned());
    }

    /// Serves a resource in discovery.
    pub fn serve(&self, gvr: GroupVersionResource, kind: &str, namespaced: bool) {
        self.lock().discovery.push((gvr, kind.to_owned(), namespaced));
    }

    /// Forgets history: watches from before get 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.revision;
        state.log.clear();
    }

    /// Ends all open watches, as a server that is being restarted does.
    pub fn end_watches(&self) {
        self.lock().epoch += 1;
        self.revision.send_modify(|_| {});
    }

    /// Requests so far, as `verb resource`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    pub fn objects(&self, resource: &str) -> Vec<Value> {
        let state = self.lock();
        state
            .objects
            .iter()
            .filter(|((gvr, _), _)| gvr.resource == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Writes an object past all rules, e.g. as a node would write a pod's status.
    pub fn put(&self, gvr: &GroupVersionResource, mut object: Value) -> u64 {
        let mut state = self.lock();
        let key = key_of(&object);
        let known = state.objects.get(&(gvr.clone(), key.clone())).map(|old| old["metadata"]["uid"].clone());
        let kind = if known.is_some() { EventKind::Modified } else { EventKind::Added };
        object["metadata"]["uid"] = known.unwrap_or_else(|| format!("uid-{}", state.revision + 1).into());
        let revision = state.store(gvr, key, kind, object);
        drop(state);
        self.revision.send_replace(revision);
        revision
    }

    /// Removes an object past all rules.
    pub fn remove(&self, gvr: &GroupVersionResource, key: &ObjectKey) {
        let mut state = self.lock();
        let Some(object) = state.objects.get(&(gvr.clone(), key.clone())).cloned() else { return };
        let revision = state.store(gvr, key.clone(), EventKind::Deleted, object);
        drop(state);
        self.revision.send_replace(revision);
    }

    fn handle(&self, request: &ApiRequest) -> Result<ApiResponse, Status> {
        let mut state = self.lock();
        if let Some(mut fault) = state.fault.take() {
            let refused = fault(request);
            state.fault = Some(fault);
            if let Some(status) = refused {
                return Err(status);
            }
        }
        let (gvr, namespace, name, subresource) = match &request.target {
            Target::Path(path) => return state.discover(path),
            Target::Resource { gvr, namespace, name, subresource } => (gvr, namespace, name, subresource),
        };
        let namespace = namespace.clone().unwrap_or_default();
        state.calls.push(format!("{} {}", request.verb.as_str(), gvr.resource));
        let key = ObjectKey::new(&*namespace, name.clone().unwrap_or_default());
        let before = state.revision;
        let answer = match request.verb {
            Verb::Watch => {
                let stream = self.stream(&state, request, gvr.clone(), namespace)?;
                return Ok(ApiResponse { body: ResponseBody::Watch(stream), ..ApiResponse::json(200, "") });
            }
            Verb::Get => state.get(gvr, &key).cloned(),
            Verb::List => Ok(state.list(request, gvr, &namespace)),
            Verb::Create => state.create(gvr, &namespace, body(request)?),
            Verb::Update => state.update(gvr, &key, subresource.as_deref(), body(request)?),
            Verb::Patch => state.patch(gvr, &key, subresource.as_deref(), &body(request)?),
            Verb::Delete => state.delete(gvr, &key, request),
            Verb::DeleteCollection => state.delete_collection(gvr, &namespace, request),
        };
        let after = state.revision;
        drop(state);
        if after != before {
            self.revision.send_replace(after);
        }
        answer.map(|object| ApiResponse::json(200, object.to_string()))
    }

    fn stream(
        &self,
        state: &State,
        request: &ApiRequest,
        gvr: GroupVersionResource,
        namespace: String,
    ) -> Result<api::WatchStream, Status> {
        let from: u64 = request.options.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        if from < state.compacted {
            return Err(Status::expired("too old resource version"));
        }
        let (server, epoch, selector) = (self.clone(), state.epoch, request.options.field_selector.clone());
        let changed = self.revision.subscribe();
        let stream = stream::unfold((from, changed), move |(mut from, mut changed)| {
            let (server, gvr, namespace, selector) =
                (server.clone(), gvr.clone(), namespace.clone(), selector.clone());
            async move {
                loop {
                    changed.mark_unchanged();
                    {
                        let state = server.lock();
                        if state.epoch != epoch {
                            return None;
                        }
                        if from < state.compacted && state.revision > from {
                            let status = Status::expired("too old resource version").to_value();
                            let event =
                                WatchEvent { kind: EventKind::Error, object: status.to_string().into() };
                            return Some((event, (u64::MAX, changed)));
                        }
                        let next = state.log.iter().find(|logged| {
                            logged.revision > from
                                && logged.gvr == gvr
                                && in_scope(&logged.object, &namespace, &selector)
                        });
                        if let Some(logged) = next {
                            from = logged.revision;
                            let object = logged.object.to_string().into();
                            return Some((WatchEvent { kind: logged.kind, object }, (from, changed)));
                        }
                    }
                    if changed.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        Ok(Box::pin(stream))
    }
}

impl Transport for MiniServer {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        async move {
            tokio::task::yield_now().await;
            self.handle(&request)
        }
        .boxed()
    }
}

impl State {
    /// Every write ends here.
    fn store(
        &mut self,
        gvr: &GroupVersionResource,
        key: ObjectKey,
        kind: EventKind,
        mut object: Value,
    ) -> u64 {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let id = (gvr.clone(), key);
        if kind == EventKind::Deleted {
            self.objects.remove(&id);
        } else {
            self.objects.insert(id, object.clone());
        }
        self.log.push(Logged { revision: self.revision, gvr: gvr.clone(), kind, object });
        self.revision
    }

    fn get(&self, gvr: &GroupVersionResource, key: &ObjectKey) -> Result<&Value, Status> {
        let missing = || Status::not_found(&gvr.group, &gvr.resource, &key.name);
        self.objects.get(&(gvr.clone(), key.clone())).ok_or_else(missing)
    }

    fn list(&self, request: &ApiRequest, gvr: &GroupVersionResource, namespace: &str) -> Value {
        let selector = &request.options.field_selector;
        let all =
            self.objects.iter().filter(|((g, _), object)| g == gvr && in_scope(object, namespace, selector));
        let items: Vec<&Value> = all.map(|(_, object)| object).collect();
        json!({"metadata": {"resourceVersion": self.revision.to_string()}, "items": items})
    }

    fn create(
        &mut self,
        gvr: &GroupVersionResource,
        namespace: &str,
        mut object: Value,
    ) -> Result<Value, Status> {
        if object["metadata"]["name"].is_null() {
            self.names += 1;
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
            object["metadata"]["name"] = format!("{prefix}{:05}", self.names).into();
        }
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        let key = key_of(&object);
        if self.objects.contains_key(&(gvr.clone(), key.clone())) {
            return Err(Status::already_exists(&gvr.group, &gvr.resource, &key.name));
        }
        object["metadata"]["uid"] = format!("uid-{}", self.revision + 1).into();
        object["metadata"]["generation"] = 1.into();
        object["metadata"]["creationTimestamp"] =
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        if gvr.resource == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
        }
        self.store(gvr, key.clone(), EventKind::Added, object);
        self.get(gvr, &key).cloned()
    }

    fn update(
        &mut self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        subresource: Option<&str>,
        new: Value,
    ) -> Result<Value, Status> {
        let old = self.get(gvr, key)?.clone();
        for field in ["uid", "resourceVersion"] {
            let wanted = &new["metadata"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                return Err(Status::conflict(
                    &gvr.group,
                    &gvr.resource,
                    &key.name,
                    "the object has been modified",
                ));
            }
        }
        let mut object = match subresource {
            Some("status") => {
                let mut object = old.clone();
                object["status"] = new["status"].clone();
                object
            }
            _ => {
                let mut object = new;
                if let Some(status) = old.get("status") {
                    object["status"] = status.clone();
                }
                object
            }
        };
        object["metadata"]["uid"] = old["metadata"]["uid"].clone();
        object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if object["spec"] != old["spec"] {
            object["metadata"]["generation"] =
                (old["metadata"]["generation"].as_i64().unwrap_or(1) + 1).into();
        }
        if object == old {
            return Ok(old);
        }
        let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
        let finished = empty(&object["metadata"]["finalizers"]) && empty(&object["spec"]["finalizers"]);
        let kind = if !object["metadata"]["deletionTimestamp"].is_null() && finished && !self.is_graceful(gvr)
        {
            EventKind::Deleted
        } else {
            EventKind::Modified
        };
        self.store(gvr, key.clone(), kind, object.clone());
        Ok(self.log.last().map(|logged| logged.object.clone()).unwrap_or(object))
    }

    fn patch(
        &mut self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        subresource: Option<&str>,
        patch: &Value,
    ) -> Result<Value, Status> {
        let mut object = self.get(gvr, key)?.clone();
        merge(&mut object, patch);
        self.update(gvr, key, subresource, object)
    }

    fn delete(
        &mut self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        request: &ApiRequest,
    ) -> Result<Value, Status> {
        let mut object = self.get(gvr, key)?.clone();
        let uid = request.options.precondition_uid.as_deref();
        let revision = request.options.precondition_resource_version.as_deref();
        let differs = |wanted: Option<&str>, field: &str| {
            wanted.is_some_and(|wanted| object["metadata"][field] != wanted)
        };
        if differs(uid, "uid") || differs(revision, "resourceVersion") {
            return Err(Status::conflict(
                &gvr.group,
                &gvr.resource,
                &key.name,
                "the precondition does not hold",
            ));
        }
        let finalizer = match request.options.propagation_policy.as_deref() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            list.retain(|known| known != finalizer);
            list.push(finalizer.into());
            object["metadata"]["finalizers"] = list.into();
        }
        let holds = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        let stays = holds(&object["metadata"]["finalizers"])
            || holds(&object["spec"]["finalizers"])
            || self.is_graceful(gvr);
        if !stays {
            self.store(gvr, key.clone(), EventKind::Deleted, object);
            return Ok(json!({"kind": "Status", "status": "Success"}));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.store(gvr, key.clone(), EventKind::Modified, object);
        self.get(gvr, key).cloned()
    }

    fn delete_collection(
        &mut self,
        gvr: &GroupVersionResource,
        namespace: &str,
        request: &ApiRequest,
    ) -> Result<Value, Status> {
        let keys: Vec<ObjectKey> = self
            .objects
            .keys()
            .filter(|(g, key)| g == gvr && key.namespace == namespace)
            .map(|(_, key)| key.clone())
            .collect();
        for key in keys {
            self.delete(gvr, &key, request)?;
        }
        Ok(json!({"kind": "Status", "status": "Success"}))
    }

    fn is_graceful(&self, gvr: &GroupVersionResource) -> bool {
        self.graceful.contains(&gvr.resource)
    }

    fn discover(&self, path: &str) -> Result<ApiResponse, Status> {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let resource = |(gvr, kind, namespaced): &(GroupVersionResource, String, bool)| json!({"name": gvr.resource, "kind": kind, "namespaced": namespaced, "verbs": verbs});
        let value = if path == "/apis" {
            let mut groups: Vec<(&str, &str)> =
                self.discovery.iter().map(|d| (&*d.0.group, &*d.0.version)).collect();
            groups.retain(|(group, _)| !group.is_empty());
            groups.sort_unstable();
            groups.dedup();
            let groups = groups.into_iter().map(|(group, version)| {
                json!({"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}})
            });
            json!({"groups": groups.collect::<Vec<_>>()})
        } else {
            let under = self
                .discovery
                .iter()
                .filter(|(gvr, _, _)| gvr.path(None, None, None).starts_with(&format!("{path}/")));
            json!({"resources": under.map(resource).collect::<Vec<_>>()})
        };
        Ok(ApiResponse::json(200, value.to_string()))
    }
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(text("namespace"), text("name"))
}

/// Namespace and, of field selectors, only `metadata.name=`.
fn in_scope(object: &Value, namespace: &str, selector: &Option<String>) -> bool {
    let name = selector.as_deref().and_then(|selector| selector.strip_prefix("metadata.name="));
    (namespace.is_empty() || object["metadata"]["namespace"] == namespace)
        && name.is_none_or(|name| object["metadata"]["name"] == name)
}

fn body(request: &ApiRequest) -> Result<Value, Status> {
    let bytes = request.body.as_ref().map(|Body { bytes, .. }| bytes.clone()).unwrap_or_default();
    serde_json::from_slice(&bytes).map_err(Status::internal)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Some(map) = target.as_object_mut() {
                map.remove(name);
            }
        } else {
            merge(&mut target[name], value);
        }
    }
}
