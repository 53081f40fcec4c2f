//! Built-in admission: what changes or refuses a write before validation, one file per plugin.
//!
//! Mutating hooks run in the order of [`Admission::builtin`], then validating ones. A plugin looks at the row's group
//! and resource itself; it sees clients' requests and the server's own alike.

mod default_tolerations;
pub(crate) mod dynamic;
mod limit_ranger;
pub(crate) mod mirror_pod;
mod namespace_lifecycle;
mod node_restriction;
pub(crate) mod policy;
mod priority;
pub(crate) mod quota;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod signers;
mod storage;
mod webhook;

use std::sync::{Mutex, PoisonError};

use api::{GroupVersionKind, Object, Status};
use futures_util::future::BoxFuture;

use self::dynamic::{Dynamic, Round};

use crate::registry::{Call, Registry};
use crate::resource::Resource;

/// What kind of write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A stream is opened.
    Connect,
}

impl Operation {
    /// The word in rules and reviews.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Texts for `Warning` headers that come up on the way, each once.
#[derive(Default)]
pub(crate) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    pub(crate) fn extend(&self, texts: impl IntoIterator<Item = String>) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for text in texts {
            if !list.contains(&text) {
                list.push(text);
            }
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a plugin may know.
pub(crate) struct AdmissionContext<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) call: &'a Call<'a>,
    pub(crate) operation: Operation,
    /// Webhooks and policies are asked; the server's own steps within a request are not shown to them.
    pub(crate) reviewed: bool,
}

impl AdmissionContext<'_> {
    /// Whether the write creates an object of a row, on its main path.
    fn creates(&self, group: &str, resource: &str) -> bool {
        self.operation == Operation::Create
            && self.call.subresource.is_none()
            && is(self.call.resource, group, resource)
    }

    /// The refusal of an object.
    fn forbidden(&self, name: &str, why: &str) -> Status {
        let gvr = &self.call.resource.gvr;
        Status::forbidden(&gvr.group, &gvr.resource, name, why)
    }
}

fn is(resource: &Resource, group: &str, name: &str) -> bool {
    resource.gvr.group == group && resource.gvr.resource == name
}

/// One plugin; both hooks default to nothing.
#[allow(unused_variables)]
pub(crate) trait Plugin: Send + Sync {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }

    /// `object` is the new state (absent for a delete), `old` the present one (absent for a create).
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
}

/// The plugins in order.
pub(crate) struct Admission {
    plugins: Vec<Box<dyn Plugin>>,
    dynamic: Dynamic,
}

impl Admission {
    pub(crate) fn builtin() -> Self {
        Self {
            plugins: vec![
                Box::new(namespace_lifecycle::NamespaceLifecycle),
                Box::new(service_account::ServiceAccount),
                Box::new(default_tolerations::DefaultTolerationSeconds),
                Box::new(priority::Priority),
                Box::new(runtime_class::RuntimeClass),
                Box::new(limit_ranger::LimitRanger),
                Box::new(storage::Storage),
                Box::new(node_restriction::NodeRestriction),
                Box::new(rbac_escalation::RbacEscalation),
                Box::new(signers::Signers),
            ],
            dynamic: Dynamic::new(),
        }
    }

    pub(crate) async fn mutate(
        &self,
        cx: &AdmissionContext<'_>,
        object: &mut Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        let mut round = Round::default();
        self.mutate_once(cx, object, old, &mut round).await?;
        if round.changed {
            round.again = true;
            self.mutate_once(cx, object, old, &mut round).await?;
        }
        Ok(())
    }

    async fn mutate_once(
        &self,
        cx: &AdmissionContext<'_>,
        object: &mut Object,
        old: Option<&Object>,
        round: &mut Round,
    ) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.mutate(cx, object, old).await?;
        }
        self.dynamic.mutate(cx, object, old, round).await
    }

    pub(crate) async fn validate(
        &self,
        cx: &AdmissionContext<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.validate(cx, object, old).await?;
        }
        self.dynamic.validate(cx, object, old).await
    }

    /// Reviews a request whose body is of another kind than the row. Gives the body as it has become.
    pub(crate) async fn review(
        &self,
        cx: &AdmissionContext<'_>,
        kind: GroupVersionKind,
        body: Object,
    ) -> Result<Object, Status> {
        self.dynamic.review(cx, kind, body).await
    }
}
