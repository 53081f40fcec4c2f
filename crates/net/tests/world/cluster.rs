//! An API that holds Services and EndpointSlices in memory and tells watchers of changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::{ApiRequest, ApiResponse, EventKind, ResponseBody, Status, Target, Verb, WatchEvent};
use client::{Client, Transport};
use futures_util::future::BoxFuture;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    history: Vec<(u64, &'static str, WatchEvent)>,
    watchers: Vec<(String, mpsc::UnboundedSender<WatchEvent>)>,
}

#[derive(Clone, Default)]
pub(crate) struct Cluster(Arc<Mutex<State>>);

impl Cluster {
    pub(crate) fn client(&self) -> Client {
        Client::new(Arc::new(self.clone()), "test")
    }

    pub(crate) fn service(&self, name: &str, spec: Value) {
        self.put("services", json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}));
    }

    pub(crate) fn endpoints(&self, service: &str, ports: Value, endpoints: Value) {
        let labels = json!({"kubernetes.io/service-name": service});
        self.put(
            "endpointslices",
            json!({"metadata": {"name": service, "namespace": "ns", "labels": labels},
                   "addressType": "IPv4", "ports": ports, "endpoints": endpoints}),
        );
    }

    /// A running pod whose container has these ports.
    pub(crate) fn pod(&self, name: &str, ports: Value, address: std::net::IpAddr) {
        self.put(
            "pods",
            json!({"metadata": {"name": name, "namespace": "ns", "labels": {"pod": name}},
                   "spec": {"nodeName": "here", "containers": [{"ports": ports}]},
                   "status": {"phase": "Running", "podIP": address.to_string()}}),
        );
    }

    pub(crate) fn policy(&self, name: &str, spec: Value) {
        self.put("networkpolicies", json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}));
    }

    /// A namespace or a node.
    pub(crate) fn labelled(&self, resource: &'static str, name: &str, labels: Value) {
        let spec = json!({"podCIDR": "10.244.0.0/24"});
        self.put(resource, json!({"metadata": {"name": name, "labels": labels}, "spec": spec}));
    }

    fn put(&self, resource: &'static str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["uid"] = name.clone().into();
        let old = state.objects.insert((resource, name), object.clone());
        let kind = if old.is_some() { EventKind::Modified } else { EventKind::Added };
        state.tell(resource, kind, &object);
    }

    pub(crate) fn delete(&self, resource: &'static str, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let mut object = state.objects.remove(&(resource, name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        state.tell(resource, EventKind::Deleted, &object);
    }
}

impl State {
    fn tell(&mut self, resource: &'static str, kind: EventKind, object: &Value) {
        let event = WatchEvent { kind, object: object.to_string().into() };
        self.history.push((self.revision, resource, event.clone()));
        self.watchers.retain(|(what, watcher)| what != resource || watcher.send(event.clone()).is_ok());
    }
}

impl Transport for Cluster {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        let Target::Resource { gvr, .. } = request.target else { panic!("unexpected path") };
        let mut state = self.0.lock().unwrap();
        let answer = match request.verb {
            Verb::List => {
                let items: Vec<&Value> =
                    state.objects.iter().filter(|((r, _), _)| *r == gvr.resource).map(|(_, o)| o).collect();
                let list =
                    json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
                ApiResponse::json(200, list.to_string())
            }
            Verb::Watch => {
                let after: u64 = request.options.resource_version.unwrap().parse().unwrap();
                let (sender, receiver) = mpsc::unbounded_channel();
                let missed = state.history.iter().filter(|(r, what, _)| *r > after && *what == gvr.resource);
                missed.for_each(|(_, _, event)| sender.send(event.clone()).unwrap());
                state.watchers.push((gvr.resource, sender));
                let events = stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
                let body = ResponseBody::Watch(Box::pin(events));
                ApiResponse { body, ..ApiResponse::json(200, "") }
            }
            other => panic!("unexpected verb {other:?}"),
        };
        Box::pin(async move { Ok(answer) })
    }
}
