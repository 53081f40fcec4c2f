//! Events about objects. Recording never blocks: a full queue drops the event and counts it.

mod correlate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions, Status};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::clock::spawn;
use crate::recorder::correlate::{Correlator, Identity, Memory};

const QUEUE: usize = 1000;

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records core/v1 Events. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

struct Note {
    about: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
}

impl EventRecorder {
    /// `component` and `node` become the event's source; `node` may be "".
    pub fn new(client: Client, component: &str, node: &str) -> EventRecorder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            component: component.to_owned(),
            node: node.to_owned(),
            correlator: Correlator::default(),
            known: Memory::default(),
        };
        spawn(writer.run(receiver));
        Self { sender, dropped: Arc::default() }
    }

    /// Records an event, later.
    pub fn event(&self, about: &ObjectReference, event_type: EventType, reason: &str, message: &str) {
        let note = Note { about: about.clone(), event_type, reason: reason.into(), message: message.into() };
        if self.sender.try_send(note).is_err() {
            let count = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::debug!(count, reason, "event dropped");
        }
    }

    /// Events lost because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Writer {
    client: Client,
    component: String,
    node: String,
    correlator: Correlator,
    /// Names and counts of what was written.
    known: Memory<Identity, (ObjectKey, u64)>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if let Err(status) = self.write(&note).await {
                tracing::debug!(%status, reason = note.reason, "event not recorded");
            }
        }
    }

    async fn write(&mut self, note: &Note) -> Result<(), Status> {
        let clock = self.client.clock();
        let Some((identity, message)) = self.correlator.judge(note, clock.monotonic()) else {
            tracing::debug!(reason = note.reason, "an event too many about one object");
            return Ok(());
        };
        let now = clock.now();
        let gvr = GroupVersionResource::new("", "v1", "events");
        if let Some((key, count)) = self.known.get(&identity) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": seconds(now), "message": message});
            let options = RequestOptions::default();
            match self.client.patch(&gvr, key, None, PatchType::Merge, &patch, options).await {
                Ok(_) => return Ok(()),
                Err(status) if status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        let (key, event) = self.new_event(note, &message, now);
        let mut request = api::ApiRequest::resource(api::Verb::Create, gvr, Some(&key.namespace), None, None);
        request = request.with_json(crate::client::encode(&event)?);
        self.client.bytes(request).await?;
        self.known.put(identity, (key, 1));
        Ok(())
    }

    fn new_event(&self, note: &Note, message: &str, now: jiff::Timestamp) -> (ObjectKey, Value) {
        let namespace =
            note.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let about = note.about.name.clone().unwrap_or_default();
        let unique = now.as_nanosecond() ^ i128::from(self.client.clock().random() & 0xffff);
        let key = ObjectKey::new(namespace, format!("{about}.{unique:x}"));
        let mut source = json!({"component": self.component});
        if !self.node.is_empty() {
            source["host"] = self.node.as_str().into();
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "involvedObject": note.about,
            "type": note.event_type.as_str(), "reason": note.reason, "message": message,
            "source": source, "reportingComponent": self.component, "reportingInstance": self.node,
            "count": 1, "firstTimestamp": seconds(now), "lastTimestamp": seconds(now),
        });
        (key, event)
    }
}

/// `metav1.Time` has whole seconds.
fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
