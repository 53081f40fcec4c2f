//! What a controller is: a pure decision over a view of caches.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{GroupVersionResource, LabelSelector, ObjectKey, PatchType, RequestOptions, Status, Verb};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::sync::watch;

use crate::client::Client;
use crate::informer::{Informer, Scope};
use crate::kind::{Cached, Kind};
use crate::recorder::EventType;

/// A controller: it watches kinds and decides, key by key, what to do. It has no effects of its own.
pub trait Controller: Send + Sync + 'static {
    /// Name in logs and in the source of its events.
    fn name(&self) -> &'static str;

    /// Caches it needs and how their changes map to keys.
    fn watches(&self) -> Vec<Watch>;

    /// Decides for one key. It gets no event: the same view gives the same plan, and a plan on a converged view is empty.
    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan;
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Perform the actions in order; plan again after `requeue_after` even if nothing changes.
    Do { actions: Vec<Action>, requeue_after: Option<Duration> },
    /// The caches do not suffice: read these live and plan again.
    Need(Vec<Read>),
}

impl Plan {
    /// Nothing to do.
    pub fn nothing() -> Plan {
        Plan::actions(Vec::new())
    }

    /// Actions, and nothing at a later time.
    pub fn actions(actions: Vec<Action>) -> Plan {
        Plan::Do { actions, requeue_after: None }
    }
}

/// One effect on the API. Values are whole objects as JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create {
        gvr: GroupVersionResource,
        namespace: String,
        object: Value,
    },
    Update {
        gvr: GroupVersionResource,
        key: ObjectKey,
        object: Value,
    },
    Apply {
        gvr: GroupVersionResource,
        key: ObjectKey,
        manager: String,
        object: Value,
    },
    Patch {
        gvr: GroupVersionResource,
        key: ObjectKey,
        subresource: Option<String>,
        kind: PatchType,
        patch: Value,
    },
    UpdateStatus {
        gvr: GroupVersionResource,
        key: ObjectKey,
        object: Value,
    },
    /// POST (`Verb::Create`) or PUT (`Verb::Update`) of a subresource.
    Call {
        verb: Verb,
        gvr: GroupVersionResource,
        key: ObjectKey,
        subresource: String,
        body: Value,
    },
    Delete {
        gvr: GroupVersionResource,
        key: ObjectKey,
        options: RequestOptions,
    },
    DeleteCollection {
        gvr: GroupVersionResource,
        namespace: String,
        options: RequestOptions,
    },
    Event {
        about: ObjectReference,
        event_type: EventType,
        reason: String,
        message: String,
    },
}

/// A live read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few live at a time")]
pub enum Read {
    Get {
        gvr: GroupVersionResource,
        key: ObjectKey,
    },
    List {
        gvr: GroupVersionResource,
        namespace: Option<String>,
        options: RequestOptions,
    },
    /// GET of a subresource: `scale`.
    Subresource {
        gvr: GroupVersionResource,
        key: ObjectKey,
        subresource: String,
    },
    /// GET of a path outside the resources: discovery.
    Path(String),
}

/// How the last actions of a key went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The action that failed, and why. Actions after it were not performed.
    pub failed: Option<(Action, Status)>,
    /// Actions performed before that.
    pub performed: usize,
}

type MapFn = Arc<dyn Fn(&View, &GroupVersionResource, &dyn Any) -> Vec<ObjectKey> + Send + Sync>;
type StartFn = Arc<dyn Fn(&InformerSet) -> Arc<dyn AnyInformer> + Send + Sync>;

/// One cache that a controller needs, and the keys that a changed object concerns.
#[derive(Clone)]
pub struct Watch {
    pub(crate) start: StartFn,
    pub(crate) map: MapFn,
    /// The controller begins without this cache if it takes too long to fill.
    pub(crate) optional: bool,
}

impl Watch {
    /// The changed object's own key.
    pub fn own<T: Kind>() -> Watch {
        Self::map::<T>(|_, object| vec![object.key.clone()])
    }

    /// The key of the controlling owner, if it is of this kind.
    pub fn controller<T: Kind>(owner_kind: &'static str) -> Watch {
        Self::map::<T>(move |_, object| {
            let owner = object.controller().filter(|owner| owner.kind == owner_kind);
            owner
                .map(|owner| ObjectKey::new(object.key.namespace.clone(), owner.name.clone()))
                .into_iter()
                .collect()
        })
    }

    /// Keys by a function; it is asked for the old and the new object of each change.
    pub fn map<T: Kind>(map: impl Fn(&View, &Cached<T>) -> Vec<ObjectKey> + Send + Sync + 'static) -> Watch {
        Self::resource::<T>(T::gvr(), move |view, _, object| map(view, object))
    }

    /// Limits the cache to some objects.
    pub fn scoped<T: Kind>(
        scope: Scope,
        map: impl Fn(&View, &Cached<T>) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Watch {
        let all = Self::map(map);
        Watch { start: Arc::new(move |set| Arc::new(set.resource::<T>(T::gvr(), scope.clone()))), ..all }
    }

    /// A cache that changes no key by itself.
    pub fn cache_only<T: Kind>() -> Watch {
        Self::map::<T>(|_, _| Vec::new())
    }

    /// A resource known at run time only, decoded as `T`.
    pub fn resource<T: DeserializeOwned + Send + Sync + 'static>(
        gvr: GroupVersionResource,
        map: impl Fn(&View, &GroupVersionResource, &Cached<T>) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Watch {
        Watch {
            start: Arc::new(move |set| Arc::new(set.resource::<T>(gvr.clone(), Scope::default()))),
            map: Arc::new(move |view, gvr, object| {
                object.downcast_ref::<Cached<T>>().map(|object| map(view, gvr, object)).unwrap_or_default()
            }),
            optional: false,
        }
    }

    /// Does not hold the controller up for long: one kind that cannot be listed must not stop what concerns all kinds.
    /// Plans then see an empty cache, and its objects as changes once they come.
    #[must_use]
    pub fn if_it_comes(self) -> Watch {
        Watch { optional: true, ..self }
    }
}

type SetKey = (TypeId, GroupVersionResource, Scope);

/// Informers shared by the controllers of a process.
#[derive(Clone)]
pub struct InformerSet {
    client: Client,
    informers: Arc<Mutex<HashMap<SetKey, Arc<dyn Any + Send + Sync>>>>,
}

impl InformerSet {
    pub fn new(client: Client) -> Self {
        Self { client, informers: Arc::default() }
    }

    /// The shared informer of `T`'s own resource.
    pub fn of<T: Kind>(&self) -> Informer<T> {
        self.resource(T::gvr(), Scope::default())
    }

    /// The shared informer of a resource, started on first use.
    pub fn resource<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        gvr: GroupVersionResource,
        scope: Scope,
    ) -> Informer<T> {
        let mut informers = self.informers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = informers
            .entry((TypeId::of::<T>(), gvr.clone(), scope.clone()))
            .or_insert_with(|| Arc::new(Informer::<T>::start_resource(&self.client, gvr, scope)));
        entry.downcast_ref::<Informer<T>>().expect("the key holds the type").clone()
    }
}

/// An informer whose type is forgotten.
pub(crate) trait AnyInformer: Send + Sync {
    fn resource(&self) -> &GroupVersionResource;
    fn progressed(&self) -> watch::Receiver<u64>;
    /// Uid and revision of a cached object.
    fn identity(&self, key: &ObjectKey) -> Option<(String, u64)>;
    fn wait_synced(&self) -> BoxFuture<'_, ()>;
    /// Changes as pairs of old and new objects.
    fn changes(&self) -> AnyChanges;
    fn as_any(&self) -> &(dyn Any + Send + Sync);
    fn element(&self) -> TypeId;
}

pub(crate) type AnyObject = Arc<dyn Any + Send + Sync>;
/// Gives the next change, `None` once the informer has ended.
pub(crate) trait NextChange: Send {
    fn next(&mut self) -> BoxFuture<'_, Option<Vec<AnyObject>>>;
}
pub(crate) type AnyChanges = Box<dyn NextChange>;

struct Changes<T>(mpsc::UnboundedReceiver<crate::kind::Change<T>>);

impl<T: Send + Sync + 'static> NextChange for Changes<T> {
    fn next(&mut self) -> BoxFuture<'_, Option<Vec<AnyObject>>> {
        async move {
            let change = self.0.recv().await?;
            let both = [change.old, change.new].into_iter().flatten();
            Some(both.map(|object| object as AnyObject).collect())
        }
        .boxed()
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> AnyInformer for Informer<T> {
    fn resource(&self) -> &GroupVersionResource {
        self.gvr()
    }

    fn progressed(&self) -> watch::Receiver<u64> {
        self.progress()
    }

    fn identity(&self, key: &ObjectKey) -> Option<(String, u64)> {
        self.get(key).map(|object| (object.uid.clone(), object.revision))
    }

    fn wait_synced(&self) -> BoxFuture<'_, ()> {
        self.synced().boxed()
    }

    fn changes(&self) -> AnyChanges {
        Box::new(Changes(self.subscribe()))
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn element(&self) -> TypeId {
        TypeId::of::<T>()
    }
}

/// What a plan may look at: the caches of the watched kinds, the outcome of the key's last actions, live reads.
#[derive(Clone, Default)]
pub struct View {
    caches: Vec<Arc<dyn AnyInformer>>,
    fixed: Vec<(TypeId, GroupVersionResource, Arc<dyn Any + Send + Sync>)>,
    last: Option<Outcome>,
    reads: Vec<(Read, Result<Value, Status>)>,
}

impl View {
    pub(crate) fn new(caches: Vec<Arc<dyn AnyInformer>>) -> Self {
        Self { caches, ..Self::default() }
    }

    pub(crate) fn caches(&self) -> &[Arc<dyn AnyInformer>] {
        &self.caches
    }

    pub(crate) fn with(mut self, last: Option<Outcome>, reads: Vec<(Read, Result<Value, Status>)>) -> Self {
        self.last = last;
        self.reads = reads;
        self
    }

    /// A view of given objects instead of caches: for tests and simulations of plans. Objects are JSON.
    ///
    /// # Panics
    /// When an object is no `T`.
    #[must_use]
    pub fn with_objects<T: Kind>(self, objects: &[Value]) -> Self {
        self.with_resource::<T>(T::gvr(), objects)
    }

    /// The same for a resource known at run time.
    ///
    /// # Panics
    /// When an object is no `T`.
    #[must_use]
    pub fn with_resource<T: DeserializeOwned + Send + Sync + 'static>(
        mut self,
        gvr: GroupVersionResource,
        objects: &[Value],
    ) -> Self {
        let decode = |value: &Value| {
            let bytes = serde_json::to_vec(value).expect("a JSON value can be encoded");
            Arc::new(crate::kind::decode_cached::<T>(&bytes).expect("the object is of the kind"))
        };
        let list: Vec<Arc<Cached<T>>> = objects.iter().map(decode).collect();
        self.fixed.push((TypeId::of::<T>(), gvr, Arc::new(list)));
        self
    }

    /// Sets the outcome of the last actions: for tests of plans.
    #[must_use]
    pub fn with_last(mut self, outcome: Outcome) -> Self {
        self.last = Some(outcome);
        self
    }

    /// Adds the result of a live read: for tests of plans.
    #[must_use]
    pub fn with_read(mut self, read: Read, result: Result<Value, Status>) -> Self {
        self.reads.push((read, result));
        self
    }

    /// One object.
    pub fn get<T: Kind>(&self, key: &ObjectKey) -> Option<Arc<Cached<T>>> {
        self.get_in::<T>(&T::gvr(), key)
    }

    /// One object of a resource known at run time.
    pub fn get_in<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
    ) -> Option<Arc<Cached<T>>> {
        match self.informer::<T>(gvr) {
            Some(informer) => informer.get(key),
            None => self.fixed::<T>(gvr).iter().find(|object| object.key == *key).cloned(),
        }
    }

    /// All objects, in key order.
    pub fn list<T: Kind>(&self) -> Vec<Arc<Cached<T>>> {
        match self.informer::<T>(&T::gvr()) {
            Some(informer) => informer.list(),
            None => self.fixed::<T>(&T::gvr()).to_vec(),
        }
    }

    /// Objects of one namespace.
    pub fn in_namespace<T: Kind>(&self, namespace: &str) -> Vec<Arc<Cached<T>>> {
        match self.informer::<T>(&T::gvr()) {
            Some(informer) => informer.in_namespace(namespace),
            None => self.filtered(&T::gvr(), |object: &Cached<T>| object.key.namespace == namespace),
        }
    }

    /// Objects of one namespace, of a resource known at run time.
    pub fn in_namespace_of<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        gvr: &GroupVersionResource,
        namespace: &str,
    ) -> Vec<Arc<Cached<T>>> {
        match self.informer::<T>(gvr) {
            Some(informer) => informer.in_namespace(namespace),
            None => self.filtered(gvr, |object: &Cached<T>| object.key.namespace == namespace),
        }
    }

    /// Objects that name `uid` among their owners.
    pub fn owned_by<T: Kind>(&self, uid: &str) -> Vec<Arc<Cached<T>>> {
        self.owned_in::<T>(&T::gvr(), uid)
    }

    /// Objects of a resource known at run time that name `uid` among their owners.
    pub fn owned_in<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        gvr: &GroupVersionResource,
        uid: &str,
    ) -> Vec<Arc<Cached<T>>> {
        match self.informer::<T>(gvr) {
            Some(informer) => informer.owned_by(uid),
            None => {
                self.filtered(gvr, |object: &Cached<T>| object.owners.iter().any(|owner| owner.uid == uid))
            }
        }
    }

    /// Objects of one namespace whose labels match.
    pub fn select<T: Kind>(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Cached<T>>> {
        let mut found = self.in_namespace::<T>(namespace);
        found.retain(|object| selector.matches(&object.labels));
        found
    }

    /// Resources cached as `T`.
    pub fn resources<T: 'static>(&self) -> Vec<GroupVersionResource> {
        let element = TypeId::of::<T>();
        let cached = self.caches.iter().filter(|c| c.element() == element).map(|c| c.resource().clone());
        cached.chain(self.fixed.iter().filter(|f| f.0 == element).map(|f| f.1.clone())).collect()
    }

    /// How the key's last actions went; `None` before the first.
    pub fn last(&self) -> Option<&Outcome> {
        self.last.as_ref()
    }

    /// The refusal of the last creation, if the last actions ended with one.
    pub fn refused_creation(&self) -> Option<&Status> {
        match &self.last()?.failed {
            Some((Action::Create { .. }, status)) => Some(status),
            _ => None,
        }
    }

    /// Result of a live read that the plan asked for.
    pub fn read(&self, read: &Read) -> Option<&Result<Value, Status>> {
        self.reads.iter().find(|(asked, _)| asked == read).map(|(_, result)| result)
    }

    fn informer<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        gvr: &GroupVersionResource,
    ) -> Option<&Informer<T>> {
        self.caches
            .iter()
            .filter(|c| c.resource() == gvr)
            .find_map(|c| c.as_any().downcast_ref::<Informer<T>>())
    }

    fn fixed<T: 'static + Send + Sync>(&self, gvr: &GroupVersionResource) -> &[Arc<Cached<T>>] {
        let mut matching =
            self.fixed.iter().filter(|(element, g, _)| *element == TypeId::of::<T>() && g == gvr);
        let list = matching.next().and_then(|(_, _, list)| list.downcast_ref::<Vec<Arc<Cached<T>>>>());
        list.map(Vec::as_slice).unwrap_or_default()
    }

    fn filtered<T: 'static + Send + Sync>(
        &self,
        gvr: &GroupVersionResource,
        keep: impl Fn(&Cached<T>) -> bool,
    ) -> Vec<Arc<Cached<T>>> {
        self.fixed::<T>(gvr).iter().filter(|object| keep(object)).cloned().collect()
    }
}

impl Action {
    /// One word for logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::Create { .. } => "create",
            Action::Update { .. } => "update",
            Action::Apply { .. } => "apply",
            Action::Patch { .. } => "patch",
            Action::UpdateStatus { .. } => "update status",
            Action::Call { .. } => "call",
            Action::Delete { .. } => "delete",
            Action::DeleteCollection { .. } => "delete collection",
            Action::Event { .. } => "event",
        }
    }
}
