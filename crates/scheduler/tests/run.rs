//! The whole scheduler against an API server of a few lines: objects in memory, list, watch, bind, patch.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{ApiRequest, ApiResponse, EventKind, Reason, ResponseBody, Status, Target, Verb, WatchEvent};
use bytes::Bytes;
use client::{Client, Clock, SystemClock, Transport};
use common::{merge, node_json, pod_json};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

type Watchers = Vec<(String, mpsc::UnboundedSender<WatchEvent>)>;

#[derive(Default)]
struct State {
    revision: u64,
    /// By (resource, namespace/name).
    objects: BTreeMap<(String, String), Value>,
    watchers: Watchers,
    /// Bindings refused from now on.
    refuse: usize,
    /// Bindings that are stored although the answer gets lost.
    lose_answers: usize,
    requests: Vec<String>,
}

/// The server; `changed` counts changes.
struct Server {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Server {
    fn start(clock: Arc<dyn Clock>) -> (Arc<Server>, watch::Sender<bool>) {
        let server = Arc::new(Server { state: Mutex::default(), changed: watch::Sender::new(0) });
        let (stop, stopped) = watch::channel(false);
        let client = Client::with_clock(Arc::new(Door(Arc::clone(&server))), "test", clock);
        tokio::spawn(scheduler::run(client, stopped));
        (server, stop)
    }

    fn put(&self, resource: &str, object: Value) {
        let mut state = self.state.lock().unwrap();
        state.put(resource, object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    fn delete(&self, resource: &str, key: &str) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let mut object = state.objects.remove(&(resource.to_owned(), key.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        state.tell(resource, EventKind::Deleted, &object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until `find` finds something.
    async fn until<T>(&self, find: impl Fn(&State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(found) = find(&self.state.lock().unwrap()) {
                return found;
            }
            changed.changed().await.unwrap();
        }
    }

    async fn node_of(&self, pod: &str) -> String {
        self.until(|state| state.pod(pod)["spec"]["nodeName"].as_str().map(str::to_owned)).await
    }

    async fn message_of(&self, pod: &str, part: &str) {
        self.until(|state| {
            let condition = &state.pod(pod)["status"]["conditions"][0];
            let found = condition["message"].as_str().is_some_and(|message| message.contains(part));
            found.then(|| {
                assert_eq!(
                    (&condition["status"], &condition["type"]),
                    (&json!("False"), &json!("PodScheduled"))
                )
            })
        })
        .await;
    }

    async fn event(&self, reason: &str, message: &str) {
        self.until(|state| {
            let mut events = state.objects.iter().filter(|((resource, _), _)| resource == "events");
            events.find(|(_, event)| event["reason"] == reason && event["message"] == message).map(|_| ())
        })
        .await;
    }
}

fn key_of(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

impl State {
    fn pod(&self, name: &str) -> &Value {
        &self.objects[&("pods".to_owned(), format!("default/{name}"))]
    }

    fn put(&mut self, resource: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let key = (resource.to_owned(), key_of(&object));
        let kind = if self.objects.contains_key(&key) { EventKind::Modified } else { EventKind::Added };
        self.objects.insert(key, object.clone());
        self.tell(resource, kind, &object);
        object
    }

    fn tell(&mut self, resource: &str, kind: EventKind, object: &Value) {
        let event = WatchEvent { kind, object: object.to_string().into() };
        self.watchers.retain(|(watched, sender)| watched != resource || sender.send(event.clone()).is_ok());
    }

    fn serve(&mut self, request: ApiRequest) -> Result<ApiResponse, Status> {
        let Target::Resource { gvr, namespace, name, subresource } = request.target else {
            return Err(Status::bad_request("no resource"));
        };
        let resource = gvr.resource;
        let key =
            (resource.clone(), format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()));
        let body = || serde_json::from_slice::<Value>(&request.body.as_ref().unwrap().bytes).unwrap();
        self.requests.push(format!(
            "{} {resource} {}",
            request.verb.as_str(),
            subresource.as_deref().unwrap_or("-")
        ));
        let json = |value: Value| Ok(ApiResponse::json(200, Bytes::from(value.to_string())));
        match (request.verb, subresource.as_deref()) {
            (Verb::List, _) => {
                let items: Vec<_> =
                    self.objects.iter().filter(|((r, _), _)| *r == resource).map(|(_, o)| o).collect();
                json(json!({ "metadata": { "resourceVersion": self.revision.to_string() }, "items": items }))
            }
            (Verb::Watch, _) => {
                // The lock spans list and change, but not list and watch: replay is not needed because every test
                // object is put after the informers' watches are open.
                let (sender, receiver) = mpsc::unbounded_channel();
                self.watchers.push((resource, sender));
                let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
                    Some((receiver.recv().await?, receiver))
                });
                let body = ResponseBody::Watch(Box::pin(stream));
                Ok(ApiResponse { code: 200, content_type: String::new(), body, warnings: Vec::new() })
            }
            (Verb::Create, Some("binding")) => self.bind(&key, &body()).and_then(json),
            (Verb::Create, None) => json(self.put(&resource, body())),
            (Verb::Get, _) => match self.objects.get(&key) {
                Some(object) => json(object.clone()),
                None => Err(Status::not_found("", &resource, &key.1)),
            },
            (Verb::Patch, _) => {
                let Some(mut object) = self.objects.get(&key).cloned() else {
                    return Err(Status::not_found("", &resource, &key.1));
                };
                let patch = body();
                let version = &patch["metadata"]["resourceVersion"];
                if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                    return Err(Status::conflict("", &resource, &key.1, "version"));
                }
                merge(&mut object, patch);
                json(self.put(&resource, object))
            }
            _ => Err(Status::bad_request("not here")),
        }
    }

    fn bind(&mut self, key: &(String, String), binding: &Value) -> Result<Value, Status> {
        if self.refuse > 0 {
            self.refuse -= 1;
            return Err(Status::new(Reason::ServiceUnavailable, "not now"));
        }
        let Some(mut pod) = self.objects.get(key).cloned() else {
            return Err(Status::not_found("", "pods", &key.1));
        };
        assert_eq!(pod["metadata"]["uid"], binding["metadata"]["uid"]);
        if !pod["spec"]["nodeName"].is_null() {
            return Err(Status::conflict("", "pods", &key.1, "it is bound already"));
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        pod["status"]["conditions"] = json!([{ "type": "PodScheduled", "status": "True" }]);
        self.put("pods", pod);
        if self.lose_answers > 0 {
            self.lose_answers -= 1;
            return Err(Status::new(Reason::Timeout, "the answer got lost"));
        }
        Ok(json!({ "kind": "Status", "status": "Success" }))
    }
}

struct Door(Arc<Server>);

impl Transport for Door {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        async move {
            let response = self.0.state.lock().unwrap().serve(request);
            self.0.changed.send_modify(|count| *count += 1);
            response
        }
        .boxed()
    }
}

/// A clock on which every delay is over at once.
#[derive(Default)]
struct Hasty {
    millis: Arc<AtomicU64>,
    drawn: AtomicU64,
}

impl Clock for Hasty {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        let time = Arc::clone(&self.millis);
        async move {
            tokio::task::yield_now().await;
            time.fetch_add(u64::try_from(delay.as_millis()).unwrap() + 1, Ordering::Relaxed);
        }
        .boxed()
    }

    fn random(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed)
    }
}

async fn started() -> (Arc<Server>, watch::Sender<bool>) {
    started_with(Arc::new(SystemClock::default())).await
}

async fn started_with(clock: Arc<dyn Clock>) -> (Arc<Server>, watch::Sender<bool>) {
    let (server, stop) = Server::start(clock);
    let watched =
        |state: &State, resource: &str| state.watchers.iter().any(|(watched, _)| watched == resource);
    server
        .until(|state| {
            ["pods", "nodes", "namespaces", "services"]
                .iter()
                .all(|resource| watched(state, resource))
                .then_some(())
        })
        .await;
    (server, stop)
}

fn asking(name: &str, cpu: &str) -> Value {
    let container = json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } });
    pod_json(name, json!({ "spec": { "containers": [container] } }))
}

#[tokio::test]
async fn pods_are_bound_and_events_tell_so() {
    let (server, _stop) = started().await;
    server.put("nodes", node_json("a", json!({})));
    server.put("pods", pod_json("p", json!({})));
    assert_eq!(server.node_of("p").await, "a");
    server.event("Scheduled", "Successfully assigned default/p to a").await;
}

#[tokio::test]
async fn a_pending_pod_says_why_and_is_retried_when_something_helps() {
    let (server, _stop) = started().await;
    server.put("pods", asking("p", "5"));
    server.message_of("p", "no nodes available to schedule pods").await;
    server.put("nodes", node_json("a", json!({})));
    // The node is too small to help: nothing is tried until one comes that fits.
    server.put("pods", asking("q", "5"));
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    server.message_of("q", message).await;
    server.event("FailedScheduling", message).await;
    server.put(
        "nodes",
        node_json(
            "b",
            json!({ "status": { "allocatable": { "cpu": "12", "memory": "8Gi", "pods": "10" } } }),
        ),
    );
    assert_eq!(server.node_of("p").await, "b");
    assert_eq!(server.node_of("q").await, "b");
    let condition = server.state.lock().unwrap().pod("q")["status"]["conditions"][0]["status"].clone();
    assert_eq!(condition, "True", "a late report does not overwrite the binding's");
}

#[tokio::test]
async fn a_deleted_pod_makes_room() {
    let (server, _stop) = started().await;
    server.put("nodes", node_json("a", json!({})));
    server.put("pods", asking("first", "3"));
    server.node_of("first").await;
    server.put("pods", asking("second", "3"));
    server.message_of("second", "Insufficient cpu").await;
    server.delete("pods", "default/first");
    assert_eq!(server.node_of("second").await, "a");
}

#[tokio::test]
async fn a_refused_binding_gives_back_what_it_reserved() {
    let (server, _stop) = started_with(Arc::new(Hasty::default())).await;
    server.state.lock().unwrap().refuse = 1;
    server.put("nodes", node_json("a", json!({})));
    server.put("pods", asking("p", "3"));
    server.event("FailedScheduling", "binding rejected: not now").await;
    assert_eq!(server.node_of("p").await, "a");
    server.event("Scheduled", "Successfully assigned default/p to a").await;
}

#[tokio::test]
async fn a_lost_answer_is_resolved_by_reading() {
    let (server, _stop) = started().await;
    server.state.lock().unwrap().lose_answers = 1;
    server.put("nodes", node_json("a", json!({})));
    server.put("pods", asking("p", "3"));
    assert_eq!(server.node_of("p").await, "a");
    server.event("Scheduled", "Successfully assigned default/p to a").await;
    let state = server.state.lock().unwrap();
    let binds = state.requests.iter().filter(|request| request.ends_with("binding")).count();
    assert_eq!(binds, 1);
}

#[tokio::test]
async fn many_pods_fill_the_cluster_exactly() {
    let (server, _stop) = started().await;
    for i in 0..5 {
        server.put("nodes", node_json(&format!("n{i}"), json!({})));
    }
    // Four cpus a node: twenty pods fit, five wait.
    for i in 0..25 {
        server.put("pods", asking(&format!("p{i}"), "1"));
    }
    let bound = |state: &State| {
        let pods = state.objects.iter().filter(|((resource, _), _)| resource == "pods");
        let mut per_node = BTreeMap::new();
        for node in pods.filter_map(|(_, pod)| pod["spec"]["nodeName"].as_str()) {
            *per_node.entry(node.to_owned()).or_insert(0) += 1;
        }
        per_node
    };
    let per_node = server
        .until(|state| {
            let waiting = state.objects.values().filter(|o| {
                o["status"]["conditions"][0]["message"] == "0/5 nodes are available: 5 Insufficient cpu."
            });
            (waiting.count() == 5).then(|| bound(state)).filter(|nodes| nodes.values().sum::<i32>() == 20)
        })
        .await;
    assert!(per_node.values().all(|count| *count == 4), "{per_node:?}");
}
