//! How a row of the table is written down.

use std::sync::Arc;

use api::{
    FieldError, GroupVersionKind, GroupVersionResource, Object, RequestOptions, SchemaTable, Status, Verb,
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Errors;
use super::{names, required};
use crate::printing::cells;
use crate::resource::{
    ALL_VERBS, Change, Column, DeleteDecision, Durability, Extension, Plain, Resource, ScalePaths, Strategy,
    Subresource, WriteContext,
};

type Cell = fn(&Object, Timestamp) -> Value;

/// A column that is always shown.
pub(crate) fn col(name: &str, type_: &str, description: &str, value: Cell) -> Column {
    Column {
        name: name.to_owned(),
        type_: type_.to_owned(),
        format: String::new(),
        description: description.to_owned(),
        priority: 0,
        value: Arc::new(value),
    }
}

/// A column of `-o wide`.
pub(crate) fn wide(name: &str, type_: &str, description: &str, value: Cell) -> Column {
    Column { priority: 1, ..col(name, type_, description, value) }
}

/// The first column of most kinds.
pub(crate) fn name_col() -> Column {
    let description = "Name, unique within a namespace. Is required when creating resources.";
    Column { format: "name".to_owned(), ..col("Name", "string", description, cells::name) }
}

const CREATION: &str = "When the object was created, on the server's clock.";

pub(crate) fn age_col() -> Column {
    col("Age", "string", CREATION, cells::age)
}

/// What an object's name must look like.
pub(crate) type NameRule = fn(&str) -> Vec<String>;

/// A row as the table's authors write it; [`Row::build`] makes the [`Resource`].
pub(crate) struct Row {
    resource: &'static str,
    kind: &'static str,
    singular: Option<&'static str>,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    fields: &'static [&'static str],
    columns: Vec<Column>,
    subresources: Vec<Subresource>,
    verbs: &'static [Verb],
    durability: Durability,
    strategy: Arc<dyn Strategy>,
    name_rule: NameRule,
    stored_as: Option<GroupVersionResource>,
}

impl Row {
    /// A namespaced kind with all verbs, named by DNS subdomains, printed as name and age.
    pub(crate) fn new(resource: &'static str, kind: &'static str) -> Self {
        Self {
            resource,
            kind,
            singular: None,
            short_names: &[],
            categories: &[],
            namespaced: true,
            fields: &[],
            columns: vec![name_col(), col("Created At", "date", CREATION, cells::created_at)],
            subresources: Vec::new(),
            verbs: ALL_VERBS,
            durability: Durability::OnDisk,
            strategy: Arc::new(Plain),
            name_rule: names::dns_subdomain,
            stored_as: None,
        }
    }

    /// A kind that is only created, and never stored.
    pub(crate) fn review(resource: &'static str, kind: &'static str) -> Self {
        Self { verbs: &[Verb::Create], name_rule: |_| Vec::new(), ..Self::new(resource, kind) }
    }

    pub(crate) fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    /// Member of the category that `kubectl get all` lists.
    pub(crate) fn in_all(mut self) -> Self {
        self.categories = &["all"];
        self
    }

    pub(crate) fn categories(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }

    pub(crate) fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    pub(crate) fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = fields;
        self
    }

    /// The columns between name and age, then those after age.
    pub(crate) fn columns(mut self, before_age: Vec<Column>, after_age: Vec<Column>) -> Self {
        self.columns = [vec![name_col()], before_age, vec![age_col()], after_age].concat();
        self
    }

    /// All columns.
    pub(crate) fn exact_columns(mut self, columns: Vec<Column>) -> Self {
        self.columns = columns;
        self
    }

    /// Another value for the first column.
    pub(crate) fn first_column(&mut self, value: Cell) {
        if let Some(first) = self.columns.first_mut() {
            first.value = Arc::new(value);
        }
    }

    pub(crate) fn sub(mut self, subresource: Subresource) -> Self {
        self.subresources.push(subresource);
        self
    }

    pub(crate) fn status(self) -> Self {
        self.sub(Subresource::Status)
    }

    pub(crate) fn scale(self, status_replicas: &[&str]) -> Self {
        let status_replicas = status_replicas.iter().map(|s| (*s).to_owned()).collect();
        self.sub(Subresource::Scale(ScalePaths { status_replicas, ..ScalePaths::usual() }))
    }

    pub(crate) fn part(self, name: &str, verbs: &[Verb]) -> Self {
        self.sub(Subresource::Part { name: name.to_owned(), verbs: verbs.to_vec() })
    }

    pub(crate) fn create(self, name: &str, group: &str, version: &str, kind: &str) -> Self {
        self.sub(Subresource::Create {
            name: name.to_owned(),
            kind: GroupVersionKind::new(group, version, kind),
        })
    }

    pub(crate) fn connect(self, name: &str, options_kind: &str, verbs: &[Verb]) -> Self {
        let (name, options_kind) = (name.to_owned(), options_kind.to_owned());
        self.sub(Subresource::Connect { name, options_kind, verbs: verbs.to_vec() })
    }

    pub(crate) fn verbs(mut self, verbs: &'static [Verb]) -> Self {
        self.verbs = verbs;
        self
    }

    pub(crate) fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    pub(crate) fn strategy(mut self, strategy: impl Strategy + 'static) -> Self {
        self.strategy = Arc::new(strategy);
        self
    }

    pub(crate) fn named(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    pub(crate) fn stored_as(mut self, group: &str, version: &str, resource: &str) -> Self {
        self.stored_as = Some(GroupVersionResource::new(group, version, resource));
        self
    }

    pub(crate) fn resource(&self) -> &'static str {
        self.resource
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// The row in a group and version, or `None` when the schema does not know the kind.
    pub(crate) fn build(self, group: &str, version: &str, table: &Arc<SchemaTable>) -> Option<Resource> {
        let schema = table.kind(group, version, self.kind)?;
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let strategy = Checked {
            inner: self.strategy,
            name_rule: self.name_rule,
            table: Arc::clone(table),
            schema,
            stored: self.verbs.contains(&Verb::List),
            always_present: STRUCTURES.into_iter().filter(|name| is_structure(table, schema, name)).collect(),
        };
        Some(Resource {
            gvr: GroupVersionResource::new(group, version, self.resource),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            singular: self.singular.map_or_else(|| self.kind.to_lowercase(), str::to_owned),
            short_names: owned(self.short_names),
            categories: owned(self.categories),
            namespaced: self.namespaced,
            schema,
            table: Arc::clone(table),
            selectable_fields: owned(self.fields),
            columns: self.columns,
            subresources: self.subresources,
            verbs: self.verbs.to_vec(),
            durability: self.durability,
            strategy: Arc::new(strategy),
            stored_as: self.stored_as,
        })
    }
}

/// Adds to a kind's own hooks what every kind has: the rule of its names and the required fields of its schema.
struct Checked {
    inner: Arc<dyn Strategy>,
    name_rule: NameRule,
    table: Arc<SchemaTable>,
    schema: api::TypeId,
    stored: bool,
    always_present: Vec<&'static str>,
}

/// Kubernetes' types hold these by value and so always write them.
const STRUCTURES: [&str; 2] = ["spec", "status"];

fn is_structure(table: &SchemaTable, schema: api::TypeId, name: &str) -> bool {
    table.get(schema).field(name).is_some_and(|field| matches!(field.ty, api::FieldType::Ref(_)))
}

impl Strategy for Checked {
    fn default(&self, object: &mut Object) {
        self.inner.default(object);
    }

    fn prepare_for_create(&self, cx: &WriteContext<'_>, object: &mut Object) {
        self.inner.prepare_for_create(cx, object);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        self.inner.prepare_for_update(cx, new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        if self.stored && !object.name().is_empty() {
            for detail in (self.name_rule)(object.name()) {
                e.push(FieldError::invalid("metadata.name", object.name(), &detail));
            }
        }
        e.extend(self.inner.validate(object));
        let known: Vec<String> = e.iter().map(|f| f.field.clone()).collect();
        let missing = required::missing(&self.table, self.schema, object);
        e.extend(missing.into_iter().filter(|f| !known.contains(&f.field)));
        e
    }

    fn validate_create(&self, object: &Object) -> Vec<FieldError> {
        self.inner.validate_create(object)
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        self.inner.validate_update(new, old)
    }

    fn validate_part(&self, part: Option<&str>, new: &Object, old: &Object) -> Vec<FieldError> {
        self.inner.validate_part(part, new, old)
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        self.inner.warnings(object)
    }

    fn before_delete(
        &self,
        cx: &WriteContext<'_>,
        object: &Object,
        options: &RequestOptions,
    ) -> Result<DeleteDecision, Status> {
        self.inner.before_delete(cx, object, options)
    }

    fn allow_unconditional_update(&self) -> bool {
        self.inner.allow_unconditional_update()
    }

    fn allow_create_on_update(&self) -> bool {
        self.inner.allow_create_on_update()
    }

    fn always_present(&self) -> &[&'static str] {
        &self.always_present
    }

    fn keeps_status_on_create(&self) -> bool {
        self.inner.keeps_status_on_create()
    }

    fn prepare_for_delete(&self, object: &mut Object, now: Timestamp) {
        self.inner.prepare_for_delete(object, now);
    }

    fn changes_rows(&self) -> bool {
        self.inner.changes_rows()
    }

    fn takes_effect_at_once(&self) -> bool {
        self.inner.takes_effect_at_once()
    }

    fn merges_strategically(&self) -> bool {
        self.inner.merges_strategically()
    }

    fn counts_every_change(&self) -> bool {
        self.inner.counts_every_change()
    }

    fn open_api(&self) -> Option<&str> {
        self.inner.open_api()
    }

    fn to_stored(&self, object: &mut Object) {
        self.inner.to_stored(object);
    }

    fn from_stored(&self, object: &mut Object) {
        self.inner.from_stored(object);
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        txn: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        self.inner.extend_txn(cx, change, txn)
    }
}

/// The synchronous hooks of a kind as plain functions.
#[derive(Clone, Copy)]
pub(crate) struct Hooks {
    pub(crate) default: fn(&mut Object),
    pub(crate) create: fn(&WriteContext<'_>, &mut Object),
    pub(crate) update: fn(&WriteContext<'_>, &mut Object, &Object),
    pub(crate) validate: fn(&Object, &mut Errors),
    pub(crate) validate_update: fn(&Object, &Object, &mut Errors),
    /// PUT to a missing object creates it.
    pub(crate) create_on_update: bool,
    /// A creator's status is kept.
    pub(crate) status_on_create: bool,
}

impl Hooks {
    /// No hook does anything.
    pub(crate) const NONE: Hooks = Hooks {
        default: |_| {},
        create: |_, _| {},
        update: |_, _, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        create_on_update: false,
        status_on_create: false,
    };
}

impl Strategy for Hooks {
    fn default(&self, object: &mut Object) {
        (self.default)(object);
    }

    fn prepare_for_create(&self, cx: &WriteContext<'_>, object: &mut Object) {
        (self.create)(cx, object);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        (self.update)(cx, new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        (self.validate)(object, &mut e);
        e
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        (self.validate_update)(new, old, &mut e);
        e
    }

    fn keeps_status_on_create(&self) -> bool {
        self.status_on_create
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }
}
