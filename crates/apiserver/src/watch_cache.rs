//! Watch caches: per resource the current objects and a ring of recent events, shared by all watchers.
//!
//! ```text
//!   store.watch("/registry/") ──▶ one pump ──▶ ResourceCache (by key prefix) ──▶ ring ──▶ watchers read by position
//! ```
//!
//! Invariants:
//! - One pump feeds all caches; a resource without a cache costs one failed lookup per event, an idle one nothing.
//! - An event is encoded at most once, whoever watches.
//! - A watcher holds no queue of its own: a slow one falls behind the ring and is told to list again (410).
//! - A bookmark's revision is at most the pump's progress, and is sent only when every earlier event was.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use api::Status;
use bytes::Bytes;
use futures_util::StreamExt;
use store::{Event, Store, WatchError, WatchItem};
use tokio::sync::{OnceCell, watch};

use crate::resource::Resource;
use crate::stored::{self, CachedObject, MetaReader};

/// A ring keeps at most this many events and bytes; what is older gives 410.
const RING_EVENTS: usize = 8192;
const RING_BYTES: usize = 32 << 20;
/// How long a decision waits for caches that lag.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long the pump waits before it starts again after the store refused it.
const RESTART_DELAY: Duration = Duration::from_millis(200);

/// One change of one object.
pub(crate) struct CacheEvent {
    pub(crate) revision: u64,
    pub(crate) key: Arc<str>,
    pub(crate) old: Option<Arc<CachedObject>>,
    pub(crate) new: Option<Arc<CachedObject>>,
    encoded: OnceLock<Bytes>,
    encoded_old: OnceLock<Bytes>,
}

impl CacheEvent {
    /// The new object with its revision.
    pub(crate) fn encoded(&self) -> Bytes {
        let value = self.new.as_ref().map(|o| &o.value);
        value.map_or_else(Bytes::new, |v| {
            self.encoded.get_or_init(|| stored::splice(v, self.revision)).clone()
        })
    }

    /// The object as it was before, with the revision of this event: what DELETED shows.
    pub(crate) fn encoded_old(&self) -> Bytes {
        let value = self.old.as_ref().map(|o| &o.value);
        value.map_or_else(Bytes::new, |v| {
            self.encoded_old.get_or_init(|| stored::splice(v, self.revision)).clone()
        })
    }

    fn size(&self) -> usize {
        self.old.as_ref().map_or(0, |o| o.value.len()) + 200
    }
}

#[derive(Default)]
struct State {
    /// Events that came while the first range was read.
    pending: Option<Vec<Arc<Event>>>,
    objects: BTreeMap<Arc<str>, Arc<CachedObject>>,
    ring: VecDeque<Arc<CacheEvent>>,
    ring_bytes: usize,
    /// Events up to here are not in the ring.
    floor: u64,
    /// Revision of the newest event or of the first range.
    revision: u64,
    /// The pump lost its place: watchers end, a new cache takes over.
    closed: bool,
}

/// The cache of one stored resource.
pub(crate) struct ResourceCache {
    pub(crate) resource: Arc<Resource>,
    pub(crate) reader: MetaReader,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    loaded: OnceCell<()>,
    progress: watch::Receiver<u64>,
}

/// What a watcher finds after its position.
pub(crate) enum Next {
    Events(Vec<Arc<CacheEvent>>),
    /// Nothing new; everything up to this revision was delivered.
    Idle(u64),
    /// The position is older than the ring: `floor` is the oldest usable one.
    TooOld(u64),
    Closed,
}

impl ResourceCache {
    fn new(resource: Arc<Resource>, progress: watch::Receiver<u64>) -> Self {
        let reader = MetaReader::new(&resource);
        let state = Mutex::new(State { pending: Some(Vec::new()), ..State::default() });
        Self { resource, reader, state, changed: watch::Sender::new(()), loaded: OnceCell::new(), progress }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the objects once, as of `since` where history reaches back so far, so that a watch can begin
    /// there; events that came since then, and meanwhile, follow.
    async fn load(&self, store: &dyn Store, since: Option<u64>) -> Result<(), Status> {
        let prefix = self.resource.store_prefix();
        let now = store.current_revision().await.map_err(Status::internal)?;
        let past = match since.filter(|since| *since < now) {
            Some(since) => past(store, &prefix, since, now).await,
            None => None,
        };
        let (page, earlier) = match past {
            Some(found) => found,
            None => (store.range(&prefix, None, None, None).await.map_err(Status::internal)?, Vec::new()),
        };
        let objects = page.entries.into_iter().map(|entry| {
            let meta = self.reader.read(&entry.value);
            let object =
                CachedObject { key: entry.key, value: entry.value, revision: entry.mod_revision, meta };
            (Arc::clone(&object.key), Arc::new(object))
        });
        let objects: BTreeMap<_, _> = objects.collect();
        let mut state = self.state();
        state.objects = objects;
        state.floor = page.revision;
        state.revision = page.revision;
        for event in earlier.into_iter().chain(state.pending.take().unwrap_or_default()) {
            self.apply(&mut state, &event);
        }
        Ok(())
    }

    fn deliver(&self, event: &Arc<Event>) {
        let mut state = self.state();
        match &mut state.pending {
            Some(pending) => pending.push(Arc::clone(event)),
            None => self.apply(&mut state, event),
        }
        drop(state);
        self.changed.send_replace(());
    }

    fn apply(&self, state: &mut State, event: &Event) {
        if event.revision <= state.revision {
            return;
        }
        state.revision = event.revision;
        let new = event.value.as_ref().map(|value| {
            let meta = self.reader.read(value);
            let key = Arc::clone(&event.key);
            Arc::new(CachedObject { key, value: value.clone(), revision: event.revision, meta })
        });
        let old = match &new {
            Some(object) => state.objects.insert(Arc::clone(&event.key), Arc::clone(object)),
            None => state.objects.remove(&event.key),
        };
        if old.is_none() && new.is_none() {
            return;
        }
        let entry = CacheEvent {
            revision: event.revision,
            key: Arc::clone(&event.key),
            old,
            new,
            encoded: OnceLock::new(),
            encoded_old: OnceLock::new(),
        };
        state.ring_bytes += entry.size();
        state.ring.push_back(Arc::new(entry));
        while state.ring.len() > RING_EVENTS || (state.ring_bytes > RING_BYTES && state.ring.len() > 1) {
            let Some(oldest) = state.ring.pop_front() else { break };
            state.ring_bytes -= oldest.size();
            state.floor = oldest.revision;
        }
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.send_replace(());
    }

    /// Waits for the next change after the present moment (mark first, then look, then wait).
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Events after a position, at most `limit` of them.
    pub(crate) fn after(&self, position: u64, limit: usize) -> Next {
        let progress = *self.progress.borrow();
        let state = self.state();
        if state.closed {
            return Next::Closed;
        }
        if position < state.floor {
            return Next::TooOld(state.floor);
        }
        let start = state.ring.partition_point(|event| event.revision <= position);
        let events: Vec<_> = state.ring.iter().skip(start).take(limit).cloned().collect();
        if events.is_empty() {
            Next::Idle(progress.max(state.revision).max(position))
        } else {
            Next::Events(events)
        }
    }

    /// The cached object of a key, when it is the one of that revision.
    pub(crate) fn at_revision(&self, key: &str, revision: u64) -> Option<Arc<CachedObject>> {
        self.state().objects.get(key).filter(|object| object.revision == revision).cloned()
    }

    /// All objects and the revision of the newest change.
    pub(crate) fn snapshot(&self) -> (Vec<Arc<CachedObject>>, u64) {
        let state = self.state();
        (state.objects.values().cloned().collect(), state.revision)
    }

    /// Revision of the newest change.
    pub(crate) fn revision(&self) -> u64 {
        self.state().revision
    }
}

/// All caches and the pump that feeds them.
pub(crate) struct WatchCaches {
    store: Arc<dyn Store>,
    by_prefix: Mutex<HashMap<String, Arc<ResourceCache>>>,
    progress: watch::Sender<u64>,
}

impl WatchCaches {
    /// Starts the pump. It ends when the store closes.
    pub(crate) async fn start(store: Arc<dyn Store>) -> Result<Arc<Self>, Status> {
        let from = store.current_revision().await.map_err(Status::internal)?;
        let caches = Arc::new(Self {
            store: Arc::clone(&store),
            by_prefix: Mutex::new(HashMap::new()),
            progress: watch::Sender::new(from),
        });
        let stream = store.watch("/registry/", from).map_err(Status::internal)?;
        let weak = Arc::downgrade(&caches);
        tokio::spawn(async move {
            let mut stream = stream;
            loop {
                let item = stream.next().await;
                let Some(caches) = weak.upgrade() else { return };
                match item {
                    Some(Ok(WatchItem::Event(event))) => caches.deliver(&event),
                    Some(Ok(WatchItem::Progress(revision))) => drop(caches.progress.send_replace(revision)),
                    None | Some(Err(WatchError::Closed)) => {
                        caches.drop_all();
                        return;
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "watch caches start anew");
                        match caches.restart().await {
                            Some(again) => stream = again,
                            None => return,
                        }
                    }
                }
            }
        });
        Ok(caches)
    }

    /// A new watch from now on; caches of the old one are dropped.
    async fn restart(&self) -> Option<store::WatchStream> {
        loop {
            match self
                .store
                .current_revision()
                .await
                .and_then(|from| Ok((from, self.store.watch("/registry/", from)?)))
            {
                Ok((from, stream)) => {
                    self.drop_all();
                    self.progress.send_replace(from);
                    return Some(stream);
                }
                Err(store::StoreError::Closed) => return None,
                Err(error) => {
                    tracing::error!(%error, "cannot watch the store");
                    tokio::time::sleep(RESTART_DELAY).await;
                }
            }
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<ResourceCache>>> {
        self.by_prefix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the cache of a prefix; its watchers end and have to come again.
    pub(crate) fn forget(&self, prefix: &str) {
        if let Some(cache) = self.map().remove(prefix) {
            cache.close();
        }
    }

    fn drop_all(&self) {
        for (_, cache) in self.map().drain() {
            cache.close();
        }
    }

    fn deliver(&self, event: &Arc<Event>) {
        let end = event.key.match_indices('/').nth(3).map_or(event.key.len(), |(at, _)| at + 1);
        let cache = self.map().get(&event.key[..end]).cloned();
        if let Some(cache) = cache {
            cache.deliver(event);
        }
        self.progress.send_replace(event.revision);
    }

    /// The loaded cache of the row that stores a resource's objects. When it has to be loaded, its ring begins at
    /// `since` if the store's history allows it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn of(
        &self,
        stored: &Arc<Resource>,
        since: Option<u64>,
    ) -> Result<Arc<ResourceCache>, Status> {
        let cache = {
            let mut map = self.map();
            let new = || Arc::new(ResourceCache::new(Arc::clone(stored), self.progress.subscribe()));
            Arc::clone(map.entry(stored.store_prefix()).or_insert_with(new))
        };
        cache.loaded.get_or_try_init(|| cache.load(&*self.store, since)).await?;
        Ok(cache)
    }

    /// Waits until the caches show what the store shows now, or for as long as it is worth.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn catch_up(&self) -> Result<(), Status> {
        let now = self.store.current_revision().await.map_err(Status::internal)?;
        let mut progress = self.progress.subscribe();
        if *progress.borrow() >= now {
            return Ok(());
        }
        self.store.progress().await.map_err(Status::internal)?;
        if tokio::time::timeout(CATCH_UP, progress.wait_for(|revision| *revision >= now)).await.is_err() {
            tracing::warn!(revision = now, "watch caches lag behind the store");
        }
        Ok(())
    }

    /// The cache of a resource if there is one already.
    pub(crate) fn existing(&self, stored: &Resource) -> Option<Arc<ResourceCache>> {
        self.map().get(&stored.store_prefix()).filter(|cache| cache.loaded.initialized()).cloned()
    }
}

/// The state at `since` and the events up to `now`, or `None` when history no longer holds them.
async fn past(
    store: &dyn Store,
    prefix: &str,
    since: u64,
    now: u64,
) -> Option<(store::Page, Vec<Arc<Event>>)> {
    let page = store.range(prefix, None, None, Some(since)).await.ok()?;
    let mut stream = store.watch(prefix, since).ok()?;
    let mut events = Vec::new();
    loop {
        match stream.next().await {
            Some(Ok(WatchItem::Event(event))) => {
                let last = event.revision >= now;
                events.push(event);
                if last {
                    return Some((page, events));
                }
            }
            Some(Ok(WatchItem::Progress(revision))) if revision >= now => return Some((page, events)),
            Some(Ok(WatchItem::Progress(_))) => {}
            Some(Err(_)) | None => return None,
        }
    }
}
