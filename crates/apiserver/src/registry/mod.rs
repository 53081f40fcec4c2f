//! The registry: every generic verb for every row of the table.
//!
//! ```text
//!   read  = negotiate → store → selectors → stored bytes, revision spliced in
//!   write = decode → default → mutating admission → prepare → prune and validate → validating admission
//!           → Txn (object + extend_txn + namespace conditions) → encode
//! ```
//!
//! On a conflict the object's own key means: read again and repeat from the mutation on; a private key of
//! `extend_txn` means: ask the strategy again. Both are bounded.

pub(crate) mod codec;
mod create;
mod delete;
mod duplicates;
mod eviction;
pub(crate) mod finalize;
mod list;
pub(crate) mod meta;
pub(crate) mod negotiate;
pub(crate) mod protobuf;
pub(crate) mod scale;
mod special;
mod update;
mod watch;

use std::sync::Arc;

use api::{
    ApiRequest, ApiResponse, GroupVersionKind, GroupVersionResource, Object, ObjectKey, Status, Target, Verb,
};
use futures_util::future::BoxFuture;
use store::Store;

use crate::admission::{Admission, AdmissionContext, Operation, Warnings};
use crate::authn::token::ServiceAccountTokens;
use crate::authz::rbac::Rbac;
use crate::custom::Catalog;
use crate::resource::{PrivateEntry, Reader, Resource, Subresource, UserInfo, WriteContext};
use crate::url::method_not_allowed;
use crate::watch_cache::{ResourceCache, WatchCaches};
use negotiate::{Form, Forms, Versioned};

/// Objects in the store, and everything a write needs to consult.
pub(crate) struct Registry {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) resources: Arc<Catalog>,
    pub(crate) caches: Arc<WatchCaches>,
    pub(crate) rbac: Arc<Rbac>,
    pub(crate) tokens: Arc<ServiceAccountTokens>,
    pub(crate) admission: Admission,
    /// Whose turn it is to charge the quotas of a namespace.
    pub(crate) turns: crate::admission::quota::Turns,
    pub(crate) service_cidrs: Vec<String>,
    pub(crate) cluster_cidrs: Vec<String>,
    pub(crate) node_port_range: (u16, u16),
    pub(crate) messages: Arc<protobuf::Messages>,
}

/// One request on its way through the registry.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) request: &'a ApiRequest,
    pub(crate) resource: &'a Arc<Resource>,
    /// "" when the request names none.
    pub(crate) namespace: &'a str,
    /// "" for collections.
    pub(crate) name: &'a str,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) form: Form,
    pub(crate) now: jiff::Timestamp,
    /// What clients are told besides the answer.
    pub(crate) warnings: &'a Warnings,
    /// Webhooks and policies are asked.
    pub(crate) reviewed: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(if self.resource.namespaced { self.namespace } else { "" }, self.name)
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.resource.gvr.group, &self.resource.gvr.resource, self.name)
    }

    pub(crate) fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(&self.resource.gvr.group, &self.resource.gvr.resource, name, why)
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.request.options.dry_run
    }

    /// Who owns the fields that this request sets: the parameter, else the client's name in its User-Agent.
    pub(crate) fn manager(&self) -> String {
        let agent = self.request.user_agent.split('/').next().unwrap_or_default();
        let name = self.request.options.field_manager.as_deref().unwrap_or(agent);
        let end = (0..=name.len().min(128)).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
        if name.is_empty() { "unknown".to_owned() } else { name[..end].to_owned() }
    }
}

/// Query parameters as the object that they stand for: `PodExecOptions`.
fn connect_options(kind: &GroupVersionKind, parameters: &[(String, String)]) -> Object {
    let mut options = Object::default();
    options.set(&["kind"], kind.kind.as_str());
    options.set(&["apiVersion"], kind.api_version());
    for (name, value) in parameters {
        let typed = match (name.as_str(), value.as_str()) {
            ("command", _) => {
                let words =
                    parameters.iter().filter(|(other, _)| other == name).map(|(_, word)| word.as_str());
                words.collect()
            }
            ("stdin" | "stdout" | "stderr" | "tty", "1" | "true") => true.into(),
            ("stdin" | "stdout" | "stderr" | "tty", _) => false.into(),
            ("ports", ports) => ports.split(',').filter_map(|port| port.parse::<i64>().ok()).collect(),
            (_, text) => serde_json::Value::from(text),
        };
        options.set(&[name], typed);
    }
    options
}

/// What a row answers to a GET of `exec` and the like: the caller opens the stream.
pub(crate) fn is_connect(resource: &Resource, subresource: Option<&str>) -> bool {
    subresource.is_some_and(|name| matches!(resource.subresource(name), Some(Subresource::Connect { .. })))
}

impl Registry {
    /// The row that a target names.
    pub(crate) fn row(&self, target: &Target) -> Result<Arc<Resource>, Status> {
        let not_found = || Status {
            message: "the server could not find the requested resource".into(),
            ..Status::not_found("", "", "")
        };
        match target {
            Target::Resource { gvr, .. } => self.resources.get(gvr).ok_or_else(not_found),
            Target::Path(_) => Err(not_found()),
        }
    }

    /// The row that a target names, also when its definition was committed just now.
    pub(crate) async fn settled_row(&self, target: &Target) -> Result<Arc<Resource>, Status> {
        match self.row(target) {
            Ok(row) => Ok(row),
            Err(_) => {
                self.resources.settle().await;
                self.row(target)
            }
        }
    }

    /// Performs a request on a resource. The caller is known and allowed to.
    pub(crate) async fn handle(&self, user: &UserInfo, request: &ApiRequest) -> Result<ApiResponse, Status> {
        self.perform(user, request, true).await
    }

    /// The same for what the server does by itself: no webhook and no policy can stop it.
    pub(crate) async fn handle_unreviewed(
        &self,
        user: &UserInfo,
        request: &ApiRequest,
    ) -> Result<ApiResponse, Status> {
        self.perform(user, request, false).await
    }

    async fn perform(
        &self,
        user: &UserInfo,
        request: &ApiRequest,
        reviewed: bool,
    ) -> Result<ApiResponse, Status> {
        let resource = &self.row(&request.target)?;
        let Target::Resource { namespace, name, subresource, .. } = &request.target else {
            return Err(Status::internal("a path came where a resource was expected"));
        };
        let include = request.options.extra("includeObject").unwrap_or_default();
        let other_kind = subresource.as_deref().and_then(|name| resource.subresource(name));
        let answered = matches!(other_kind, Some(Subresource::Create { .. })) || !resource.allows(Verb::List);
        let offer = Forms { protobuf: protobuf::has_form(resource), table: !answered };
        let form = Form::negotiate(&request.accept, include, request.options.pretty, offer)?;
        let warnings = Warnings::default();
        let call = Call {
            user,
            request,
            resource,
            namespace: namespace.as_deref().unwrap_or_default(),
            name: name.as_deref().unwrap_or_default(),
            subresource: subresource.as_deref(),
            form,
            now: crate::ambient::now(),
            warnings: &warnings,
            reviewed,
        };
        self.check_scope(&call)?;
        let mut response = match call.subresource {
            None => self.on_objects(&call).await,
            Some(name) => {
                let subresource = resource.subresource(name).ok_or_else(|| self.no_subresource())?;
                self.on_subresource(&call, subresource).await
            }
        }?;
        response.warnings.extend(warnings.take());
        Ok(response)
    }

    /// The surroundings of admission.
    pub(crate) fn admission_context<'a>(
        &'a self,
        call: &'a Call<'a>,
        operation: Operation,
    ) -> AdmissionContext<'a> {
        AdmissionContext { registry: self, call, operation, reviewed: call.reviewed }
    }

    /// Lets webhooks and policies decide about a stream that is to be opened. Logs are read, not connected to.
    pub(crate) async fn admit_connect(
        &self,
        user: &UserInfo,
        request: &ApiRequest,
        resource: &Arc<Resource>,
    ) -> Result<(), Status> {
        let Target::Resource { namespace, name, subresource, .. } = &request.target else { return Ok(()) };
        let found = subresource.as_deref().and_then(|name| resource.subresource(name));
        let Some(Subresource::Connect { options_kind, verbs, .. }) = found else { return Ok(()) };
        if !verbs.contains(&Verb::Create) {
            return Ok(());
        }
        let warnings = Warnings::default();
        let call = Call {
            user,
            request,
            resource,
            namespace: namespace.as_deref().unwrap_or_default(),
            name: name.as_deref().unwrap_or_default(),
            subresource: subresource.as_deref(),
            form: Form::JSON,
            now: crate::ambient::now(),
            warnings: &warnings,
            reviewed: true,
        };
        let kind = GroupVersionKind::new("", "v1", options_kind);
        let context = self.admission_context(&call, Operation::Connect);
        let options = connect_options(&kind, &request.options.extra);
        self.admission.review(&context, kind, options).await.map(drop)
    }

    fn no_subresource(&self) -> Status {
        Status {
            message: "the server could not find the requested resource".into(),
            ..Status::not_found("", "", "")
        }
    }

    fn check_scope(&self, call: &Call<'_>) -> Result<(), Status> {
        let whole = matches!(call.request.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
        if !call.resource.namespaced && !call.namespace.is_empty() {
            return Err(self.no_subresource());
        }
        if call.resource.namespaced
            && call.namespace.is_empty()
            && (!whole || call.request.verb == Verb::DeleteCollection)
        {
            return Err(method_not_allowed());
        }
        Ok(())
    }

    async fn on_objects(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        if !call.resource.allows(call.request.verb) {
            return Err(method_not_allowed());
        }
        match call.request.verb {
            Verb::Get => self.get(call).await,
            Verb::List => self.list(call).await,
            Verb::Watch => self.watch(call).await,
            Verb::Create if call.name.is_empty() => self.create(call).await,
            Verb::Create => Err(method_not_allowed()),
            Verb::Update => self.update(call).await,
            Verb::Patch => self.patch(call).await,
            Verb::Delete => self.delete(call).await,
            Verb::DeleteCollection => self.delete_collection(call).await,
        }
    }

    async fn on_subresource(
        &self,
        call: &Call<'_>,
        subresource: &Subresource,
    ) -> Result<ApiResponse, Status> {
        if !subresource.verbs().contains(&call.request.verb) || call.name.is_empty() {
            return Err(method_not_allowed());
        }
        match (subresource, call.request.verb) {
            (Subresource::Scale(paths), _) => self.scale(call, paths).await,
            (Subresource::Create { name, .. }, _) => self.create_special(call, name).await,
            (Subresource::Connect { .. }, _) => Err(Status::bad_request("Upgrade request required")),
            (_, Verb::Get) => self.get(call).await,
            (_, Verb::Update) => self.update(call).await,
            (_, Verb::Patch) => self.patch(call).await,
            _ => Err(method_not_allowed()),
        }
    }

    async fn get(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let stored = self.stored(call.resource, &call.key()).await?.ok_or_else(|| call.not_found())?;
        if let Some(response) = negotiate::shared(call.resource, call.form, &self.messages, &stored)? {
            return Ok(response);
        }
        negotiate::one(call.resource, call.form, 200, &stored)
    }

    /// The stored bytes of an object.
    pub(crate) async fn stored(
        &self,
        resource: &Resource,
        key: &ObjectKey,
    ) -> Result<Option<Versioned>, Status> {
        let entry = self.store.get(&resource.store_key(key)).await.map_err(store_error)?;
        self.make_readable(resource, entry.iter().map(|entry| &entry.value)).await?;
        Ok(entry.map(|entry| Versioned { value: entry.value, revision: entry.mod_revision }))
    }

    /// The row under which a row's objects are stored.
    pub(crate) fn stored_row(&self, resource: &Arc<Resource>) -> Arc<Resource> {
        let stored = resource.stored_as.as_ref().and_then(|gvr| self.resources.get(gvr));
        stored.unwrap_or_else(|| Arc::clone(resource))
    }

    /// The watch cache that feeds watches of a row.
    pub(crate) async fn cache(
        &self,
        resource: &Arc<Resource>,
        since: Option<u64>,
    ) -> Result<Arc<ResourceCache>, Status> {
        self.caches.of(&self.stored_row(resource), since).await
    }

    /// The surroundings of a write, for strategies.
    pub(crate) fn write_context<'a>(&'a self, call: &Call<'a>) -> WriteContext<'a> {
        WriteContext {
            user: call.user,
            now: call.now,
            subresource: call.subresource,
            dry_run: call.dry_run(),
            reader: self,
            service_cidrs: &self.service_cidrs,
            cluster_cidrs: &self.cluster_cidrs,
            node_port_range: self.node_port_range,
        }
    }
}

/// A failure of the store as a client sees it.
pub(crate) fn store_error(error: store::StoreError) -> Status {
    match error {
        store::StoreError::Closed => Status::unavailable("the API server is shutting down"),
        store::StoreError::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        store::StoreError::FutureRevision { requested, current } => too_large(requested, current),
        other => Status::internal(other),
    }
}

/// A resourceVersion from the future.
pub(crate) fn too_large(requested: u64, current: u64) -> Status {
    let mut status = Status::new(
        api::Reason::Timeout,
        format!("Too large resource version: {requested}, current: {current}"),
    );
    status.causes.push(api::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    status.retry_after_seconds = Some(1);
    status
}

impl Reader for Registry {
    fn get<'a>(
        &'a self,
        gvr: &'a GroupVersionResource,
        key: &'a ObjectKey,
    ) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        Box::pin(async move {
            let Some(resource) = self.resources.get(gvr) else { return Ok(None) };
            let stored = self.stored(&resource, key).await?;
            stored.map(|stored| negotiate::read(&resource, &stored)).transpose()
        })
    }

    fn list<'a>(
        &'a self,
        gvr: &'a GroupVersionResource,
        namespace: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Object>, Status>> {
        Box::pin(async move {
            let Some(resource) = self.resources.get(gvr) else { return Ok(Vec::new()) };
            let prefix = list::prefix(&resource, namespace.unwrap_or_default());
            let page = self.store.range(&prefix, None, None, None).await.map_err(store_error)?;
            self.make_readable(&resource, page.entries.iter().map(|entry| &entry.value)).await?;
            let versioned = page
                .entries
                .into_iter()
                .map(|entry| Versioned { value: entry.value, revision: entry.mod_revision });
            versioned.map(|stored| negotiate::read(&resource, &stored)).collect()
        })
    }

    fn private<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<PrivateEntry>, Status>> {
        Box::pin(async move { Ok(self.store.get(key).await.map_err(store_error)?.map(private_entry)) })
    }

    fn private_range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<PrivateEntry>, Status>> {
        Box::pin(async move {
            let page = self.store.range(prefix, None, None, None).await.map_err(store_error)?;
            Ok(page.entries.into_iter().map(private_entry).collect())
        })
    }
}

fn private_entry(entry: store::Entry) -> PrivateEntry {
    PrivateEntry { key: entry.key.to_string(), value: entry.value, revision: entry.mod_revision }
}
