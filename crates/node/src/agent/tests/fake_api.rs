//! A small API server in memory: generic verbs on JSON trees, watches, graceful deletion of pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::{
    ApiRequest, ApiResponse, EventKind, ObjectKey, RequestOptions, ResponseBody, Status, Target, Verb,
    WatchEvent,
};
use bytes::Bytes;
use client::Transport;
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

type Watcher = (String, RequestOptions, Option<String>, mpsc::UnboundedSender<WatchEvent>);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(String, ObjectKey), Value>,
    watchers: Vec<Watcher>,
    calls: Vec<String>,
    conflicts: u32,
}

#[derive(Default)]
pub(crate) struct FakeApi {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

fn matches(options: &RequestOptions, namespace: &Option<String>, object: &Value) -> bool {
    let of = |path: &str| match path {
        "metadata.name" => object["metadata"]["name"].as_str().unwrap_or_default(),
        "spec.nodeName" => object["spec"]["nodeName"].as_str().unwrap_or_default(),
        other => panic!("field {other}"),
    };
    let here = namespace.as_deref().is_none_or(|ns| object["metadata"]["namespace"] == ns);
    here && options.field_selector.as_deref().is_none_or(|text| {
        let (path, value) = text.split_once('=').unwrap();
        of(path) == value
    })
}

fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(from)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (name, value) in from {
        match value {
            Value::Null => drop(into.remove(name)),
            Value::Object(_) => merge(into.entry(name.clone()).or_insert(json!({})), value),
            other => drop(into.insert(name.clone(), other.clone())),
        }
    }
}

impl State {
    fn put(&mut self, resource: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let key = key_of(&object);
        let slot = (resource.to_owned(), key);
        let kind = if self.objects.contains_key(&slot) { EventKind::Modified } else { EventKind::Added };
        self.objects.insert(slot, object.clone());
        self.tell(resource, kind, &object);
        object
    }

    fn remove(&mut self, resource: &str, key: &ObjectKey) {
        if let Some(mut object) = self.objects.remove(&(resource.to_owned(), key.clone())) {
            self.revision += 1;
            object["metadata"]["resourceVersion"] = self.revision.to_string().into();
            self.tell(resource, EventKind::Deleted, &object);
        }
    }

    fn tell(&mut self, resource: &str, kind: EventKind, object: &Value) {
        let bytes = Bytes::from(serde_json::to_vec(object).unwrap());
        self.watchers.retain(|(of, options, namespace, sender)| {
            of != resource
                || !matches(options, namespace, object)
                || sender.send(WatchEvent { kind, object: bytes.clone() }).is_ok()
        });
    }
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(text("namespace"), text("name"))
}

impl FakeApi {
    pub(crate) fn put(&self, resource: &str, object: Value) -> Value {
        let (object, revision) = {
            let mut state = self.state.lock().unwrap();
            (state.put(resource, object), state.revision)
        };
        self.changed.send_replace(revision);
        object
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state
            .lock()
            .unwrap()
            .objects
            .get(&(resource.to_owned(), ObjectKey::new(namespace, name)))
            .cloned()
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|((r, _), _)| r == resource).map(|(_, v)| v.clone()).collect()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    /// The next patches of a pod's status are refused.
    pub(crate) fn refuse_patches(&self, count: u32) {
        self.state.lock().unwrap().conflicts = count;
    }

    /// As a user does: with the pod's own grace period unless given.
    pub(crate) fn delete_pod(&self, namespace: &str, name: &str, grace: Option<i64>) {
        let key = ObjectKey::new(namespace, name);
        let options = RequestOptions { grace_period_seconds: grace, ..RequestOptions::default() };
        self.answer(Verb::Delete, "pods", &key, None, &options, None).unwrap();
        self.changed.send_replace(self.state.lock().unwrap().revision);
    }

    /// Waits until `done` holds, looking after every change. Fails after 10 s.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&FakeApi) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while !done(self) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.is_err() {
            panic!("{what}: {:#?}", self.list("pods"));
        }
    }

    fn answer(
        &self,
        verb: Verb,
        resource: &str,
        key: &ObjectKey,
        subresource: Option<&str>,
        options: &RequestOptions,
        body: Option<Value>,
    ) -> Result<Value, Status> {
        let mut state = self.state.lock().unwrap();
        let slot = (resource.to_owned(), key.clone());
        let found = state.objects.get(&slot).cloned();
        let missing = || Status::not_found("", resource, &key.name);
        match (verb, subresource) {
            (Verb::Create, Some("token")) => {
                let asked = body.as_ref().and_then(|body| body["spec"]["expirationSeconds"].as_i64());
                let at = Timestamp::now() + SignedDuration::from_secs(asked.unwrap_or(3600));
                Ok(json!({"status": {"token": "the-token", "expirationTimestamp": at.to_string()}}))
            }
            (Verb::Create, None) => {
                let mut object = body.unwrap();
                if !key.namespace.is_empty() {
                    object["metadata"]["namespace"] = key.namespace.clone().into();
                }
                let slot = (resource.to_owned(), key_of(&object));
                if state.objects.contains_key(&slot) {
                    return Err(Status::already_exists("", resource, &slot.1.name));
                }
                object["metadata"]["uid"] = format!("uid-{}", state.revision + 1).into();
                Ok(state.put(resource, object))
            }
            (Verb::Get, _) => found.ok_or_else(missing),
            (Verb::Patch, _) => {
                let mut object = found.ok_or_else(missing)?;
                let patch = body.unwrap();
                let wanted = patch["metadata"]["resourceVersion"].as_str();
                let stale = wanted.is_some_and(|v| object["metadata"]["resourceVersion"] != v);
                if stale || (resource == "pods" && state.conflicts > 0) {
                    state.conflicts = state.conflicts.saturating_sub(1);
                    return Err(Status::conflict("", resource, &key.name, "the object has been modified"));
                }
                merge(&mut object, &patch);
                Ok(state.put(resource, object))
            }
            (Verb::Delete, _) => {
                let mut object = found.ok_or_else(missing)?;
                let spec = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
                let grace = options.grace_period_seconds.unwrap_or(spec);
                if options.precondition_uid.as_deref().is_some_and(|uid| object["metadata"]["uid"] != uid) {
                    return Err(Status::conflict("", resource, &key.name, "uid"));
                }
                if resource == "pods" && grace > 0 {
                    let at = Timestamp::now() + SignedDuration::from_secs(grace);
                    let at = Timestamp::from_second(at.as_second()).unwrap();
                    object["metadata"]["deletionTimestamp"] = at.to_string().into();
                    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
                    return Ok(state.put(resource, object));
                }
                state.remove(resource, key);
                Ok(json!({}))
            }
            other => panic!("{other:?} {resource}"),
        }
    }

    fn watch_or_list(
        &self,
        verb: Verb,
        resource: &str,
        namespace: Option<String>,
        options: RequestOptions,
    ) -> ApiResponse {
        let mut state = self.state.lock().unwrap();
        if verb == Verb::List {
            let all = state.objects.iter().filter(|((r, _), _)| r == resource).map(|(_, object)| object);
            let items: Vec<&Value> = all.filter(|o| matches(&options, &namespace, o)).collect();
            let list = json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
            return ApiResponse::json(200, list.to_string());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let from: u64 = options.resource_version.as_deref().unwrap_or("0").parse().unwrap();
        // What was written between list and watch.
        for ((of, _), object) in &state.objects {
            let revision: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            if of == resource && revision > from && matches(&options, &namespace, object) {
                let object = Bytes::from(object.to_string());
                sender.send(WatchEvent { kind: EventKind::Added, object }).unwrap();
            }
        }
        state.watchers.push((resource.to_owned(), options, namespace, sender));
        let stream =
            futures_util::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|e| (e, r)) });
        let mut response = ApiResponse::json(200, "");
        response.body = ResponseBody::Watch(Box::pin(stream));
        response
    }
}

/// Arc, so that the test keeps a hand on it.
pub(crate) struct Door(pub(crate) Arc<FakeApi>);

impl Transport for Door {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        Box::pin(async move {
            let Target::Resource { gvr, namespace, name, subresource } = request.target else {
                panic!("path")
            };
            let resource = gvr.resource;
            let sub = subresource.as_deref();
            if resource != "leases" && resource != "events" {
                let words = [request.verb.as_str(), &resource, sub.unwrap_or_default()];
                self.0.state.lock().unwrap().calls.push(words.join(" ").trim_end().to_owned());
            }
            if matches!(request.verb, Verb::List | Verb::Watch) {
                return Ok(self.0.watch_or_list(request.verb, &resource, namespace, request.options));
            }
            let key = ObjectKey::new(namespace.unwrap_or_default(), name.unwrap_or_default());
            let body = request.body.map(|b| serde_json::from_slice(&b.bytes).unwrap());
            let answer = self.0.answer(request.verb, &resource, &key, sub, &request.options, body);
            let revision = self.0.state.lock().unwrap().revision;
            self.0.changed.send_replace(revision);
            answer.map(|value| ApiResponse::json(200, value.to_string()))
        })
    }
}
