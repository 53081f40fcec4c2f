//! WATCH: initial events, then changes as they come, as the request's selectors see them.
//!
//! What a watch guarantees: every change after its start exactly once and in order; an object that begins or ceases to
//! be selected shows as ADDED or DELETED; a bookmark's revision never runs ahead of what was sent. A start that is
//! too old, or a watcher that falls behind the ring, gets ERROR with a Status of code 410.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::{ApiResponse, EventKind, FieldError, ResponseBody, Status, WatchEvent};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use store::Entry;
use tokio::time::Instant;

use super::list::{parse_revision, prefix};
use super::negotiate::{self, Form, Media, Shape, Versioned};
use super::protobuf::{self, Messages};
use super::{Call, Registry, store_error, too_large};
use crate::callout::Network;
use crate::resource::Resource;
use crate::stored::{CachedObject, MetaReader, Selection};
use crate::watch_cache::{CacheEvent, Next, ResourceCache};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Watches without a timeout of their own end after this time, so that clients spread over servers.
const LONGEST: Duration = Duration::from_secs(3600);
/// Events taken from the ring at once.
const CHUNK: usize = 256;

/// Where a watch begins.
enum Start {
    /// The present objects as ADDED, then changes. `end` adds the bookmark that closes the initial events.
    Initial { end: bool },
    /// Changes after the present moment.
    Now,
    /// Changes after a revision.
    After(u64),
}

impl Registry {
    pub(crate) async fn watch(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let options = &call.request.options;
        let selection = self.selection(call)?;
        let start = start(call)?;
        let since = if let Start::After(revision) = start { Some(revision) } else { None };
        let cache = self.cache(call.resource, since).await?;
        let mut watcher = Watcher {
            changed: cache.subscribe(),
            view: View {
                resource: Arc::clone(call.resource),
                reader: MetaReader::new(call.resource),
                prefix: prefix(call.resource, call.namespace),
                selection,
                form: call.form,
                messages: Arc::clone(&self.messages),
                columns: true,
            },
            cache,
            network: self.network(),
            position: 0,
            ready: VecDeque::new(),
            bookmarks: options.allow_watch_bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            deadline: Instant::now()
                + options.timeout_seconds.map_or(LONGEST, Duration::from_secs).min(LONGEST),
            ended: false,
        };
        let current = self.store.current_revision().await.map_err(store_error)?;
        match start {
            Start::Initial { end } => self.initial_events(&mut watcher, end).await?,
            Start::Now => watcher.position = current,
            Start::After(revision) if revision > current => return Err(too_large(revision, current)),
            Start::After(revision) => watcher.position = revision,
        }
        let events = stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        });
        Ok(ApiResponse {
            code: 200,
            content_type: call.form.watch_type().to_owned(),
            body: ResponseBody::Watch(Box::pin(events)),
            warnings: Vec::new(),
        })
    }

    async fn initial_events(&self, watcher: &mut Watcher, end: bool) -> Result<(), Status> {
        let page = self.store.range(&watcher.view.prefix, None, None, None).await.map_err(store_error)?;
        self.make_readable(&watcher.view.resource, page.entries.iter().map(|entry| &entry.value)).await?;
        watcher.position = page.revision;
        for entry in &page.entries {
            if let Some(event) = watcher.view.initial(entry) {
                watcher.ready.push_back(event);
            }
        }
        if end {
            watcher.ready.push_back(watcher.view.bookmark(page.revision, true));
        }
        Ok(())
    }
}

fn start(call: &Call<'_>) -> Result<Start, Status> {
    let options = &call.request.options;
    let version = options.resource_version.as_deref().unwrap_or_default();
    let matching = options.resource_version_match.as_deref().unwrap_or_default();
    let invalid = |field: &str, detail: &str| {
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::forbidden(field, detail)]))
    };
    let revision = if version.is_empty() { 0 } else { parse_revision(version)? };
    match options.send_initial_events {
        None if !matching.is_empty() => invalid(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        None if revision == 0 => Ok(Start::Initial { end: false }),
        None => Ok(Start::After(revision)),
        Some(_) if matching != "NotOlderThan" => invalid(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        Some(true) => Ok(Start::Initial { end: options.allow_watch_bookmarks }),
        Some(false) if revision == 0 => Ok(Start::Now),
        Some(false) => Ok(Start::After(revision)),
    }
}

/// What one watcher sees of the events.
struct View {
    resource: Arc<Resource>,
    reader: MetaReader,
    prefix: String,
    selection: Selection,
    form: Form,
    messages: Arc<Messages>,
    /// The next table carries column definitions.
    columns: bool,
}

impl View {
    fn selects(&self, object: &Option<Arc<CachedObject>>) -> bool {
        object.as_ref().is_some_and(|object| {
            self.selection.is_everything()
                || (self.resource.stored_as.is_none()
                    && self.selection.matches(&self.resource, &self.reader, &object.key, &object.meta))
                || (self.resource.stored_as.is_some()
                    && self.selects_value(&object.key, &object.value, object.revision))
        })
    }

    fn selects_value(&self, key: &str, value: &Bytes, revision: u64) -> bool {
        let stored = Versioned { value: value.clone(), revision };
        let value = if self.resource.stored_as.is_some() {
            negotiate::bytes(&self.resource, &stored).unwrap_or_default()
        } else {
            stored.value
        };
        self.selection.matches(&self.resource, &self.reader, key, &self.reader.read(&value))
    }

    fn initial(&mut self, entry: &Entry) -> Option<WatchEvent> {
        let selected = self.selection.is_everything()
            || self.selects_value(&entry.key, &entry.value, entry.mod_revision);
        let revision = entry.mod_revision;
        selected.then(|| self.event(EventKind::Added, &entry.value, revision, revision))
    }

    /// The event as this watcher sees it, if it does.
    fn change(&mut self, event: &CacheEvent) -> Option<WatchEvent> {
        if !event.key.starts_with(&self.prefix) {
            return None;
        }
        let kind = match (self.selects(&event.old), self.selects(&event.new)) {
            (false, false) => return None,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        // What DELETED shows is the object as it was, with the revision of its end.
        let object = if kind == EventKind::Deleted { &event.old } else { &event.new };
        if self.is_plain() {
            let object = if kind == EventKind::Deleted { event.encoded_old() } else { event.encoded() };
            return Some(WatchEvent { kind, object });
        }
        let object = object.as_ref()?;
        Some(self.event(kind, &object.value, object.revision, event.revision))
    }

    /// The bytes of events are shared as they are.
    fn is_plain(&self) -> bool {
        self.form.shape == Shape::Full
            && self.form.media != Media::Protobuf
            && self.resource.stored_as.is_none()
    }

    /// An object that was written at one revision, to be shown with another.
    fn event(&mut self, kind: EventKind, value: &Bytes, written: u64, revision: u64) -> WatchEvent {
        let stored = |revision| Versioned { value: value.clone(), revision };
        let object = if self.is_plain() {
            negotiate::bytes(&self.resource, &stored(revision))
        } else if self.form.shape == Shape::Full && self.form.media == Media::Protobuf {
            let message = self.messages.of(&self.resource, &stored(written));
            message.map(|message| protobuf::object(&self.resource, &message, revision))
        } else {
            negotiate::read(&self.resource, &stored(revision)).and_then(|object| {
                let columns = std::mem::replace(&mut self.columns, false);
                self.encode(&negotiate::shaped(&self.resource, self.form.shape, &object, columns))
            })
        };
        match object {
            Ok(object) => WatchEvent { kind, object },
            Err(status) => self.error(&status),
        }
    }

    /// A tree within an event: JSON on one line, or protobuf.
    fn encode(&self, value: &Value) -> Result<Bytes, Status> {
        let media = if self.form.media == Media::Protobuf { Media::Protobuf } else { Media::Json };
        Form { media, pretty: false, ..self.form }.encode(value)
    }

    fn error(&self, status: &Status) -> WatchEvent {
        let object = self.encode(&status.to_value());
        WatchEvent { kind: EventKind::Error, object: object.unwrap_or_default() }
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> WatchEvent {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": Value::Null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form.shape {
            Shape::Table(_) => json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": [],
                "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata}}]}),
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Full => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
        };
        match self.encode(&object) {
            Ok(object) => WatchEvent { kind: EventKind::Bookmark, object },
            Err(status) => self.error(&status),
        }
    }
}

struct Watcher {
    cache: Arc<ResourceCache>,
    changed: tokio::sync::watch::Receiver<()>,
    view: View,
    /// The way to a webhook that converts what is watched.
    network: Network,
    /// Everything up to here was looked at.
    position: u64,
    ready: VecDeque<WatchEvent>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.ended |= event.kind == EventKind::Error;
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            match self.cache.after(self.position, CHUNK) {
                Next::Events(events) => {
                    if let Err(status) = self.prepare(&events).await {
                        let failed = self.view.error(&status);
                        self.ready.push_back(failed);
                        continue;
                    }
                    for event in &events {
                        self.position = event.revision;
                        let seen = self.view.change(event);
                        self.ready.extend(seen);
                    }
                    self.ended |= self.ready.is_empty() && Instant::now() >= self.deadline;
                }
                Next::Idle(progress) => self.idle(progress).await,
                Next::TooOld(floor) => {
                    let message = format!("too old resource version: {} ({floor})", self.position);
                    let expired = self.view.error(&Status::expired(message));
                    self.ready.push_back(expired);
                }
                Next::Closed => return None,
            }
        }
    }

    /// Has events converted that are not in the watcher's version.
    async fn prepare(&self, events: &[Arc<CacheEvent>]) -> Result<(), Status> {
        let row = &self.view.resource;
        let Some(conversion) = row.strategy.conversion() else { return Ok(()) };
        let seen = events.iter().filter(|event| event.key.starts_with(&self.view.prefix));
        let objects = seen.flat_map(|event| [event.old.as_ref(), event.new.as_ref()]).flatten();
        let values: Vec<Bytes> = objects.map(|object| object.value.clone()).collect();
        conversion.prepare(&self.network, row, &values).await
    }

    /// Nothing to send: the bookmark that is due, the end, or waiting for a change.
    async fn idle(&mut self, progress: u64) {
        let now = Instant::now();
        self.ended = now >= self.deadline;
        if self.bookmarks && (self.ended || now >= self.next_bookmark) {
            self.position = self.position.max(progress);
            self.next_bookmark = now + BOOKMARK_EVERY;
            self.ready.push_back(self.view.bookmark(self.position, false));
        }
        if self.ended || !self.ready.is_empty() {
            return;
        }
        let wake = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
        tokio::select! {
            changed = self.changed.changed() => self.ended = changed.is_err(),
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}
