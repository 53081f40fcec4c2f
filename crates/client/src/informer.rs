//! A cache of one resource, kept current by list and watch.
//!
//! ```text
//!   list ──▶ store + changes ──▶ watch from the list's revision ──▶ each event: store, then subscribers
//!    ▲                                     │ stream ends: watch again from the last revision seen
//!    └──────── 410 or back-off ────────────┘
//! ```
//!
//! Invariants: an event is in the cache before a subscriber hears of it; `progress` never passes an event that is
//! not in the cache; a relist reports exactly the differences.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use api::{ApiRequest, EventKind, GroupVersionResource, ObjectKey, RequestOptions, Status, Verb, WatchEvent};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::clock::{AbortOnDrop, Backoff, spawn};
use crate::kind::{Cached, Change, Kind, decode_cached, decode_cached_list, revision_of};

const PAGE: u64 = 500;
const WATCH_SECONDS: u64 = 300;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Which objects of a resource are cached; everything by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
}

impl Scope {
    fn options(&self) -> RequestOptions {
        RequestOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            ..RequestOptions::default()
        }
    }
}

/// Handle of a cache. Clones share it; the watch ends with the last handle.
pub struct Informer<T> {
    shared: Arc<Shared<T>>,
    _task: Arc<AbortOnDrop>,
}

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _task: self._task.clone() }
    }
}

struct Shared<T> {
    feed: Feed,
    state: RwLock<State<T>>,
}

/// What a cache is filled from, and how far it is.
struct Feed {
    gvr: GroupVersionResource,
    scope: Scope,
    synced: watch::Sender<bool>,
    progress: watch::Sender<u64>,
}

/// A cache as its feeding sees it, which is compiled once for all types.
trait Sink: Send + Sync {
    fn feed(&self) -> &Feed;
    /// Takes a page of a list, the first or a further one; its revision and how to go on.
    fn take_page(&self, bytes: &[u8], first: bool) -> Result<(u64, String), Status>;
    /// The list is complete: it replaces what was cached.
    fn end_list(&self);
    /// Puts one event into the cache and returns its revision.
    fn apply_event(&self, event: &WatchEvent) -> Option<u64>;
}

struct State<T> {
    /// The pages of a list so far.
    listed: Vec<Cached<T>>,
    objects: BTreeMap<ObjectKey, Arc<Cached<T>>>,
    owned: HashMap<String, BTreeSet<ObjectKey>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<T>>>,
}

impl<T: Kind> Informer<T> {
    /// Starts the cache of `T`'s own resource.
    pub fn start(client: &Client, scope: Scope) -> Informer<T> {
        Self::start_resource(client, T::gvr(), scope)
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Informer<T> {
    /// Starts the cache of a resource known only at run time, each object decoded as `T`.
    pub fn start_resource(client: &Client, gvr: GroupVersionResource, scope: Scope) -> Informer<T> {
        let state = State {
            listed: Vec::new(),
            objects: BTreeMap::new(),
            owned: HashMap::new(),
            subscribers: Vec::new(),
        };
        let feed = Feed { gvr, scope, synced: watch::Sender::new(false), progress: watch::Sender::new(0) };
        let shared = Arc::new(Shared { feed, state: RwLock::new(state) });
        let task = spawn(keep_current(client.clone(), shared.clone()));
        Informer { shared, _task: Arc::new(AbortOnDrop(task.abort_handle())) }
    }

    /// The resource.
    pub fn gvr(&self) -> &GroupVersionResource {
        &self.shared.feed.gvr
    }

    /// Completes once the first list is in the cache.
    pub async fn synced(&self) {
        let mut synced = self.shared.feed.synced.subscribe();
        if synced.wait_for(|done| *done).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the first list is in the cache.
    pub fn is_synced(&self) -> bool {
        *self.shared.feed.synced.borrow()
    }

    /// Everything up to this revision is in the cache.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.shared.feed.progress.subscribe()
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Cached<T>>> {
        self.shared.read().objects.get(key).cloned()
    }

    /// All objects in key order.
    pub fn list(&self) -> Vec<Arc<Cached<T>>> {
        self.shared.read().objects.values().cloned().collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Cached<T>>> {
        let state = self.shared.read();
        let from = ObjectKey::new(namespace, "");
        let range = state.objects.range(from..).take_while(|(key, _)| key.namespace == namespace);
        range.map(|(_, object)| object.clone()).collect()
    }

    /// Objects that name `uid` among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<Cached<T>>> {
        let state = self.shared.read();
        let keys = state.owned.get(uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Current objects first (as additions), then every change. Never loses one.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<T>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.shared.write();
        for (key, object) in &state.objects {
            let change = Change { key: key.clone(), old: None, new: Some(object.clone()) };
            if sender.send(change).is_err() {
                break;
            }
        }
        state.subscribers.push(sender);
        receiver
    }
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: DeserializeOwned + Send + Sync> Sink for Shared<T> {
    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn take_page(&self, bytes: &[u8], first: bool) -> Result<(u64, String), Status> {
        let page = decode_cached_list::<T>(bytes)?;
        let mut state = self.write();
        if first {
            state.listed.clear();
        }
        state.listed.extend(page.items);
        Ok((page.resource_version.parse().unwrap_or(0), page.continue_token))
    }

    fn end_list(&self) {
        let mut state = self.write();
        let items = std::mem::take(&mut state.listed);
        state.replace(items);
    }

    fn apply_event(&self, event: &WatchEvent) -> Option<u64> {
        if event.kind == EventKind::Bookmark {
            return revision_of(&event.object);
        }
        match decode_cached::<T>(&event.object) {
            Ok(object) => {
                let (key, revision) = (object.key.clone(), object.revision);
                let new = (event.kind != EventKind::Deleted).then(|| Arc::new(object));
                self.write().apply(key, new);
                Some(revision)
            }
            Err(status) => {
                tracing::error!(gvr = %self.feed.gvr, %status, "skipping an object that cannot be decoded");
                revision_of(&event.object)
            }
        }
    }
}

impl<T> State<T> {
    /// Stores (or removes) one object and tells the subscribers.
    fn apply(&mut self, key: ObjectKey, new: Option<Arc<Cached<T>>>) {
        let old = match &new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        if old.is_none() && new.is_none() {
            return;
        }
        for owner in old.iter().flat_map(|o| &o.owners) {
            if let Some(keys) = self.owned.get_mut(&owner.uid) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.owned.remove(&owner.uid);
                }
            }
        }
        for owner in new.iter().flat_map(|o| &o.owners) {
            self.owned.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        let change = Change { key, old, new };
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }

    fn replace(&mut self, items: Vec<Cached<T>>) {
        let listed: BTreeSet<ObjectKey> = items.iter().map(|item| item.key.clone()).collect();
        let gone: Vec<ObjectKey> = self.objects.keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            self.apply(key, None);
        }
        for item in items {
            let same =
                self.objects.get(&item.key).is_some_and(|o| o.uid == item.uid && o.revision == item.revision);
            if !same {
                self.apply(item.key.clone(), Some(Arc::new(item)));
            }
        }
    }
}

enum WatchEnd {
    /// Watch again from the last revision.
    Resume { saw_events: bool },
    /// The history is gone: list again.
    Relist,
}

async fn keep_current(client: Client, sink: Arc<dyn Sink>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        match list_all(&client, sink.as_ref()).await {
            Ok(revision) => {
                backoff.reset();
                watch_until_gone(&client, sink.as_ref(), revision, &mut backoff).await;
            }
            Err(status) => tracing::warn!(gvr = %sink.feed().gvr, %status, "list failed"),
        }
        client.clock().sleep(backoff.next(client.clock().as_ref())).await;
    }
}

async fn list_all(client: &Client, sink: &dyn Sink) -> Result<u64, Status> {
    let Feed { gvr, scope, synced, progress } = sink.feed();
    let mut options = RequestOptions { limit: Some(PAGE), ..scope.options() };
    let revision = loop {
        let mut request =
            ApiRequest::resource(Verb::List, gvr.clone(), scope.namespace.as_deref(), None, None);
        request.options = options.clone();
        let page = client.bytes(request).await?;
        let (revision, next) = sink.take_page(&page, options.continue_token.is_none())?;
        if next.is_empty() {
            break revision;
        }
        options.continue_token = Some(next);
    };
    sink.end_list();
    progress.send_replace(revision);
    synced.send_replace(true);
    Ok(revision)
}

/// Watches from `revision` on, reconnecting, until the server has forgotten where we were.
async fn watch_until_gone(client: &Client, sink: &dyn Sink, mut revision: u64, backoff: &mut Backoff) {
    loop {
        match watch_once(client, sink, &mut revision).await {
            Ok(WatchEnd::Relist) => return,
            Ok(WatchEnd::Resume { saw_events: true }) => backoff.reset(),
            Ok(WatchEnd::Resume { saw_events: false }) => {}
            Err(status) if status.is_expired() => return,
            Err(status) => tracing::warn!(gvr = %sink.feed().gvr, %status, "watch failed"),
        }
        client.clock().sleep(backoff.next(client.clock().as_ref())).await;
    }
}

async fn watch_once(client: &Client, sink: &dyn Sink, revision: &mut u64) -> Result<WatchEnd, Status> {
    let Feed { gvr, scope, progress, .. } = sink.feed();
    let options = RequestOptions {
        resource_version: Some(revision.to_string()),
        allow_watch_bookmarks: true,
        timeout_seconds: Some(WATCH_SECONDS + client.clock().random() % WATCH_SECONDS),
        ..scope.options()
    };
    let mut stream = client.watch(gvr, scope.namespace.as_deref(), options).await?;
    let mut saw_events = false;
    while let Some(event) = stream.next().await {
        saw_events = true;
        if event.kind == EventKind::Error {
            let value = serde_json::from_slice(&event.object).unwrap_or_default();
            let status = Status::from_value(&value, 500);
            return if status.is_expired() || status.code == 410 {
                Ok(WatchEnd::Relist)
            } else {
                Err(status)
            };
        }
        if let Some(seen) = sink.apply_event(&event) {
            *revision = seen;
            progress.send_replace(seen);
        }
    }
    Ok(WatchEnd::Resume { saw_events })
}
