//! The row of a kind: what the generic registry, discovery, OpenAPI, printing and RBAC read.
//!
//! A built-in kind is a [`Resource`] plus an optional [`Strategy`]; nothing else in the server names a kind.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::{
    FieldError, GroupVersionKind, GroupVersionResource, Object, ObjectKey, RequestOptions, SchemaTable,
};
use api::{Status, TypeId, Verb};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;

/// The verbs of an ordinary resource.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// One kind as served in one group and version.
pub struct Resource {
    pub gvr: GroupVersionResource,
    pub kind: String,
    pub list_kind: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// The kind's type in `table`.
    pub schema: TypeId,
    pub table: Arc<SchemaTable>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`: `spec.nodeName`, or `source=a.b|c` where the selector
    /// has a name of its own for the first of several fields that is set.
    pub selectable_fields: Vec<String>,
    pub columns: Vec<Column>,
    pub subresources: Vec<Subresource>,
    /// Empty `list` means a virtual kind that is only created (`TokenReview`, access reviews).
    pub verbs: Vec<Verb>,
    /// When writes are acknowledged.
    pub durability: Durability,
    pub strategy: Arc<dyn Strategy>,
    /// Another row that holds the stored objects; `Strategy::to_stored` and `from_stored` convert.
    pub stored_as: Option<GroupVersionResource>,
}

impl Resource {
    /// `apiVersion` of the objects.
    pub fn api_version(&self) -> String {
        self.gvr.api_version()
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(&self.gvr.group, &self.gvr.version, &self.kind)
    }

    /// Names of the selectable fields and where their values are.
    pub fn field_paths(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.selectable_fields.iter().map(|field| match field.split_once('=') {
            Some((name, paths)) => (name, paths.split('|').collect()),
            None => (field.as_str(), vec![field.as_str()]),
        })
    }

    /// Whether the row serves a verb.
    pub fn allows(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of a name (`status`, `scale`, `log`, …).
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name() == name)
    }

    /// Whether the kind has a `status` subresource, and so keeps status and spec apart.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Store key prefix of all objects of the row that holds them: `/registry/apps/deployments/`.
    pub fn store_prefix(&self) -> String {
        let gvr = self.stored_as.as_ref().unwrap_or(&self.gvr);
        let group = if gvr.group.is_empty() { "core" } else { &gvr.group };
        format!("/registry/{group}/{}/", gvr.resource)
    }

    /// Store key of one object.
    pub fn store_key(&self, key: &ObjectKey) -> String {
        if self.namespaced {
            format!("{}{}/{}", self.store_prefix(), key.namespace, key.name)
        } else {
            format!("{}{}", self.store_prefix(), key.name)
        }
    }
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on disk.
    #[default]
    OnDisk,
    /// Before: losing the newest ones in a crash harms nobody (Events).
    Relaxed,
    /// Relaxed in one namespace alone, for a heartbeat; other objects of the kind may be locks.
    RelaxedIn(&'static str),
}

impl Durability {
    /// Whether a write in a namespace may be acknowledged before it is on disk.
    pub fn is_relaxed(self, namespace: &str) -> bool {
        match self {
            Durability::OnDisk => false,
            Durability::Relaxed => true,
            Durability::RelaxedIn(only) => only == namespace,
        }
    }
}

/// What a column shows of an object.
pub type CellValue = Arc<dyn Fn(&Object, jiff::Timestamp) -> Value + Send + Sync>;

/// A printer column of `kubectl get`.
#[derive(Clone)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`
    pub type_: String,
    /// `name` for the first column, else "".
    pub format: String,
    pub description: String,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
    pub value: CellValue,
}

/// What hangs below an object's path.
#[derive(Clone, Debug, PartialEq)]
pub enum Subresource {
    /// get, update and patch of `status` alone
    Status,
    /// get, update and patch as `autoscaling/v1` Scale
    Scale(ScalePaths),
    /// Another view of the same object with get, update or patch: `finalize`, `ephemeralcontainers`, `approval`.
    /// `Strategy::prepare_for_update` finds the name in its context and takes over only what belongs to it.
    Part { name: String, verbs: Vec<Verb> },
    /// POST of another kind: `binding`, `eviction`, `token`
    Create { name: String, kind: GroupVersionKind },
    /// A stream, opened with GET or POST: `log`, `exec`, `attach`. RBAC sees get or create.
    Connect { name: String, options_kind: String, verbs: Vec<Verb> },
}

impl Subresource {
    /// The path segment.
    pub fn name(&self) -> &str {
        match self {
            Subresource::Status => "status",
            Subresource::Scale(_) => "scale",
            Subresource::Part { name, .. }
            | Subresource::Create { name, .. }
            | Subresource::Connect { name, .. } => name,
        }
    }

    /// Verbs in discovery.
    pub fn verbs(&self) -> Vec<Verb> {
        match self {
            Subresource::Status | Subresource::Scale(_) => vec![Verb::Get, Verb::Patch, Verb::Update],
            Subresource::Part { verbs, .. } | Subresource::Connect { verbs, .. } => verbs.clone(),
            Subresource::Create { .. } => vec![Verb::Create],
        }
    }
}

/// Where an object keeps what `Scale` shows, as field names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// `["spec", "replicas"]`
    pub spec_replicas: Vec<String>,
    /// `["status", "replicas"]`
    pub status_replicas: Vec<String>,
    /// A LabelSelector, or a plain map of labels (ReplicationController): `["spec", "selector"]`
    pub selector: Vec<String>,
}

impl ScalePaths {
    /// `spec.replicas`, `status.replicas`, `spec.selector`.
    pub fn usual() -> Self {
        let path = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        Self {
            spec_replicas: path("spec", "replicas"),
            status_replicas: path("status", "replicas"),
            selector: path("spec", "selector"),
        }
    }
}

/// Who sends a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of a name with groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// Whether the user is a member of a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// A value under a private key of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateEntry {
    pub key: String,
    pub value: Bytes,
    pub revision: u64,
}

/// What a strategy may read while it decides: other objects, and private keys under `/podium/`.
pub trait Reader: Send + Sync {
    /// One object as it is now.
    fn get<'a>(
        &'a self,
        gvr: &'a GroupVersionResource,
        key: &'a ObjectKey,
    ) -> BoxFuture<'a, Result<Option<Object>, Status>>;

    /// All objects of a resource, or of one namespace of it, as they are now.
    fn list<'a>(
        &'a self,
        gvr: &'a GroupVersionResource,
        namespace: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Object>, Status>>;

    /// One private key, from the store.
    fn private<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<PrivateEntry>, Status>>;

    /// All private keys of a prefix, from the store.
    fn private_range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<PrivateEntry>, Status>>;
}

/// What surrounds a write.
pub struct WriteContext<'a> {
    pub user: &'a UserInfo,
    pub now: jiff::Timestamp,
    pub subresource: Option<&'a str>,
    pub dry_run: bool,
    pub reader: &'a dyn Reader,
    /// Services get their addresses from here, one network a family, the primary one first: `10.96.0.0/16`.
    pub service_cidrs: &'a [String],
    /// Nodes get the networks of their pods from here, as many families as Services have: `10.244.0.0/16`.
    pub cluster_cidrs: &'a [String],
    /// Services get their node ports from here, both ends included.
    pub node_port_range: (u16, u16),
}

/// What a private key must be for the commit to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Present,
    ModifiedAt(u64),
}

/// Conditions and operations on private keys (`/podium/…`) that commit together with the object.
/// When only such a condition fails, `extend_txn` is called again with an empty extension.
#[derive(Clone, Debug, Default)]
pub struct Extension {
    pub conditions: Vec<(String, Expect)>,
    /// `None` deletes the key.
    pub ops: Vec<(String, Option<Bytes>)>,
}

impl Extension {
    /// Claims a free key.
    pub fn claim(&mut self, key: &str, value: impl Into<Bytes>) {
        self.conditions.push((key.to_owned(), Expect::Absent));
        self.ops.push((key.to_owned(), Some(value.into())));
    }

    /// Gives a key back.
    pub fn release(&mut self, key: &str) {
        self.ops.push((key.to_owned(), None));
    }

    /// Adds a condition without an operation.
    pub fn expect(&mut self, key: &str, expect: Expect) {
        self.conditions.push((key.to_owned(), expect));
    }
}

/// The write that a transaction carries.
pub enum Change<'a> {
    Create(&'a mut Object),
    Update { new: &'a mut Object, old: &'a Object },
    Delete(&'a Object),
}

/// How an object goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteDecision {
    /// At once (finalizers still hold it back).
    Now,
    /// `deletionTimestamp` is set; somebody else (the node agent) deletes it again with grace 0.
    Graceful { seconds: i64 },
}

/// The hooks of a kind. Synchronous hooks are pure; only `extend_txn` may read.
#[allow(unused_variables)]
pub trait Strategy: Send + Sync {
    /// Fills in defaults that the schema's literals cannot express. Idempotent.
    fn default(&self, object: &mut Object) {}

    /// Removes what a creator may not set and sets what only the server may. Status is already gone.
    fn prepare_for_create(&self, cx: &WriteContext<'_>, object: &mut Object) {}

    /// Carries over what this path may not change. The registry has already kept `metadata` system fields and
    /// either `status` (main path) or everything else (`status` path).
    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {}

    /// All findings on an object, new or updated.
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Findings on a new object beyond those of `validate`.
    fn validate_create(&self, object: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Findings on a change beyond those of `validate`.
    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// As `validate_update`, for a change through a part (`resize`); parts have the object's own rules unless they say otherwise.
    fn validate_part(&self, part: Option<&str>, new: &Object, old: &Object) -> Vec<FieldError> {
        self.validate_update(new, old)
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Decides how the object goes away, or refuses.
    ///
    /// # Errors
    /// The refusal as the user sees it.
    fn before_delete(
        &self,
        cx: &WriteContext<'_>,
        object: &Object,
        options: &RequestOptions,
    ) -> Result<DeleteDecision, Status> {
        Ok(DeleteDecision::Now)
    }

    /// Whether a creator's status is kept: who registers a Node says at once what it has.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// Whether an update without resourceVersion is taken as "whatever it is now" (true for most kinds).
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Whether a PUT to a missing object creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Structures at the top of the object that are written even when they are empty: clients look into them.
    fn always_present(&self) -> &[&'static str] {
        &[]
    }

    /// Changes an object that is asked to go away, before it is decided whether finalizers hold it back.
    fn prepare_for_delete(&self, object: &mut Object, now: jiff::Timestamp) {}

    /// Whether a write of such an object changes the table of kinds itself.
    fn changes_rows(&self) -> bool {
        false
    }

    /// Whether a write of such an object is acknowledged only when the watch caches show it, because what they show
    /// decides about later requests.
    fn takes_effect_at_once(&self) -> bool {
        false
    }

    /// Whether the kind takes strategic merge patches.
    fn merges_strategically(&self) -> bool {
        true
    }

    /// Whether `metadata.generation` is kept although the schema has no `spec`.
    fn counts_every_change(&self) -> bool {
        false
    }

    /// The kind's component in OpenAPI as JSON, where the table does not tell all of it.
    fn open_api(&self) -> Option<&str> {
        None
    }

    /// The webhook that converts stored objects of other versions.
    fn conversion(&self) -> Option<&crate::custom::Conversion> {
        None
    }

    /// Turns an object of this row's version into the stored one of `Resource::stored_as`.
    fn to_stored(&self, object: &mut Object) {}

    /// Turns a stored object of `Resource::stored_as` into this row's version.
    #[allow(clippy::wrong_self_convention)]
    fn from_stored(&self, object: &mut Object) {}

    /// Adds conditions and operations on private keys to the object's own commit, and may change the object
    /// accordingly (an allocated address).
    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        txn: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
}

/// A kind without hooks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Strategy for Plain {}

/// All rows, found by group, version and resource.
pub struct ResourceSet {
    rows: Vec<Arc<Resource>>,
    by_gvr: HashMap<GroupVersionResource, usize>,
}

impl ResourceSet {
    /// Indexes the rows; their order is kept (discovery shows it).
    pub fn new(rows: Vec<Resource>) -> Self {
        Self::from_rows(rows.into_iter().map(Arc::new).collect())
    }

    /// The same of rows that are shared with another set.
    pub fn from_rows(rows: Vec<Arc<Resource>>) -> Self {
        let by_gvr = rows.iter().enumerate().map(|(index, row)| (row.gvr.clone(), index)).collect();
        Self { rows, by_gvr }
    }

    /// The row of a path.
    pub fn get(&self, gvr: &GroupVersionResource) -> Option<&Arc<Resource>> {
        self.rows.get(*self.by_gvr.get(gvr)?)
    }

    /// The first row of a group and resource name, whatever its version.
    pub fn by_group_resource(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|row| row.gvr.group == group && row.gvr.resource == resource)
    }

    /// All rows in table order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.rows.iter()
    }

    /// Served group versions in the order of first appearance.
    pub fn group_versions(&self) -> Vec<(String, String)> {
        let mut list: Vec<(String, String)> = Vec::new();
        for row in &self.rows {
            let pair = (row.gvr.group.clone(), row.gvr.version.clone());
            if !list.contains(&pair) {
                list.push(pair);
            }
        }
        list
    }
}
