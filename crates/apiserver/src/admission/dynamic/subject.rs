//! A write as webhooks and policies see it.

use std::sync::Arc;

use api::codec::{self, Mode};
use api::{GroupVersionKind, GroupVersionResource, Object, ObjectKey, RequestOptions, Status, Verb};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use crate::admission::{AdmissionContext, Operation};
use crate::registry::{Call, Registry, codec as registry_codec, scale};
use crate::resource::{Reader, Resource, ScalePaths, Subresource, UserInfo};

/// What is written, by whom, and how.
pub(crate) struct Subject<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) user: &'a UserInfo,
    pub(crate) row: Arc<Resource>,
    /// The kind of the objects: of a subresource it may be another one than the row's.
    pub(crate) kind: GroupVersionKind,
    /// "" on the main path.
    pub(crate) subresource: &'a str,
    /// A namespace is within itself.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) operation: Operation,
    pub(crate) options: Value,
    pub(crate) dry_run: bool,
    pub(crate) object: Option<Object>,
    pub(crate) old: Option<Object>,
    pub(crate) namespace_object: OnceCell<Option<Object>>,
}

fn namespaces() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "namespaces")
}

impl<'a> Subject<'a> {
    /// The subject of a call; the objects are those of the call's row.
    pub(crate) fn of(
        cx: &AdmissionContext<'a>,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Subject<'a> {
        let call = cx.call;
        let lens = Lens::of(call);
        let view = |object: Option<&Object>| object.map(|object| lens.view(object));
        let kind = match lens {
            Lens::Scale(_) => scale::gvk(),
            Lens::Whole => call.resource.gvk(),
        };
        Self::new(cx, kind, view(object), view(old))
    }

    /// The subject of a call with objects of another kind.
    pub(crate) fn new(
        cx: &AdmissionContext<'a>,
        kind: GroupVersionKind,
        object: Option<Object>,
        old: Option<Object>,
    ) -> Subject<'a> {
        let call = cx.call;
        let own = object.as_ref().or(old.as_ref()).map(Object::name).unwrap_or_default();
        let name = if call.name.is_empty() { own } else { call.name };
        let namespace = if call.resource.gvr == namespaces() { name } else { call.namespace };
        Subject {
            registry: cx.registry,
            user: call.user,
            row: Arc::clone(call.resource),
            kind,
            subresource: call.subresource.unwrap_or_default(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            operation: cx.operation,
            options: options(cx.operation, call.request.verb, &call.request.options),
            dry_run: call.dry_run(),
            object,
            old,
            namespace_object: OnceCell::new(),
        }
    }

    /// The namespace of the objects, `None` for cluster-wide ones. A namespace is its own.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub(crate) async fn namespace_object(&self) -> Result<Option<&Object>, Status> {
        let load = async || {
            if self.namespace.is_empty() {
                return Ok(None);
            }
            if self.row.gvr == namespaces() {
                return Ok(self.object.clone().or_else(|| self.old.clone()));
            }
            let key = ObjectKey::new("", &*self.namespace);
            let found = Reader::get(self.registry, &namespaces(), &key).await?;
            found.map(Some).ok_or_else(|| Status::not_found("", "namespaces", &self.namespace))
        };
        self.namespace_object.get_or_try_init(load).await.map(Option::as_ref)
    }

    /// Puts a changed object in the place of the present one: pruned, checked against its type, defaulted.
    ///
    /// # Errors
    /// When it is no object of the kind, or another object.
    pub(crate) fn replace(&mut self, changed: Object, by: &str) -> Result<bool, Status> {
        let before = self.object.as_ref();
        let table = &self.row.table;
        let main = self.kind == self.row.gvk();
        let schema = if main {
            Some(self.row.schema)
        } else {
            table.kind(&self.kind.group, &self.kind.version, &self.kind.kind)
        };
        let mut changed = changed;
        if let Some(schema) = schema {
            let decoded = codec::decode_value(table, schema, changed.into_value(), Mode::Ignore);
            changed = decoded.map_err(|error| Status::internal(format!("{by}: {error}")))?.object;
        }
        if let Some(before) = before
            && ((!before.name().is_empty() && before.name() != changed.name())
                || before.namespace() != changed.namespace())
        {
            return Err(Status::internal(format!("{by} attempted to change the name of the object")));
        }
        if main {
            registry_codec::default(&self.row, &mut changed);
        }
        let differs = before != Some(&changed);
        self.object = Some(changed);
        Ok(differs)
    }

    /// The objects in another version of the row.
    ///
    /// # Errors
    /// When they cannot be converted.
    pub(crate) async fn converted(
        &self,
        to: &Arc<Resource>,
    ) -> Result<(Option<Object>, Option<Object>), Status> {
        let convert = async |object: &Option<Object>| match object {
            Some(object) => self.convert(object.clone(), &self.row, to).await.map(Some),
            None => Ok(None),
        };
        Ok((convert(&self.object).await?, convert(&self.old).await?))
    }

    /// One object from a version into another; other kinds than the row's stay as they are.
    pub(crate) async fn convert(
        &self,
        object: Object,
        from: &Arc<Resource>,
        to: &Arc<Resource>,
    ) -> Result<Object, Status> {
        if from.gvr == to.gvr || self.kind != self.row.gvk() {
            return Ok(object);
        }
        self.registry.convert(object, from, to).await
    }

    /// The kind of the objects in a version of the row.
    pub(crate) fn kind_in(&self, row: &Resource) -> GroupVersionKind {
        if self.kind == self.row.gvk() { row.gvk() } else { self.kind.clone() }
    }
}

/// What a subresource shows of an object.
pub(crate) enum Lens<'a> {
    Whole,
    Scale(&'a ScalePaths),
}

impl<'a> Lens<'a> {
    pub(crate) fn of(call: &Call<'a>) -> Self {
        match call.subresource.and_then(|name| call.resource.subresource(name)) {
            Some(Subresource::Scale(paths)) => Lens::Scale(paths),
            _ => Lens::Whole,
        }
    }

    fn view(&self, object: &Object) -> Object {
        match self {
            Lens::Whole => object.clone(),
            Lens::Scale(paths) => scale::view(paths, object),
        }
    }

    /// Takes a changed view over into the object.
    pub(crate) fn put_back(&self, view: Object, object: &mut Object) -> Result<(), Status> {
        *object = match self {
            Lens::Whole => view,
            Lens::Scale(paths) => scale::apply(paths, &view, object)?,
        };
        Ok(())
    }
}

/// The options of a request as an object.
fn options(operation: Operation, verb: Verb, options: &RequestOptions) -> Value {
    let kind = match operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut map = Map::new();
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    if options.dry_run {
        map.insert("dryRun".into(), json!(["All"]));
    }
    let mut text = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            map.insert(name.into(), value.as_str().into());
        }
    };
    if operation == Operation::Delete {
        text("propagationPolicy", &options.propagation_policy);
        if let Some(seconds) = options.grace_period_seconds {
            map.insert("gracePeriodSeconds".into(), seconds.into());
        }
        let pairs =
            [("uid", &options.precondition_uid), ("resourceVersion", &options.precondition_resource_version)];
        for (name, value) in pairs {
            if let Some(value) = value {
                let preconditions = map.entry("preconditions").or_insert_with(|| json!({}));
                preconditions[name] = value.as_str().into();
            }
        }
    } else {
        text("fieldManager", &options.field_manager);
        text("fieldValidation", &options.field_validation);
        if options.force && verb == Verb::Patch {
            map.insert("force".into(), true.into());
        }
    }
    Value::Object(map)
}
