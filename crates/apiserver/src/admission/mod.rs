//! Built-in admission: what changes or refuses a write before validation, one file per plugin.
//!
//! Mutating hooks run in the order of [`Admission::builtin`], then validating ones. A plugin looks at the row's group
//! and resource itself; it sees clients' requests and the server's own alike.

mod default_tolerations;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod trust_bundle;
mod webhook;

pub(crate) use self::webhook::trust_roots;

use api::{Object, Status};
use futures_util::future::BoxFuture;

use crate::registry::{Call, Registry};
use crate::resource::Resource;

/// What kind of write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// What a plugin may know.
pub(crate) struct AdmissionContext<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) call: &'a Call<'a>,
    pub(crate) operation: Operation,
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
                Box::new(node_restriction::NodeRestriction),
                Box::new(rbac_escalation::RbacEscalation),
                Box::new(trust_bundle::TrustBundleAttest),
            ],
        }
    }

    pub(crate) async fn mutate(
        &self,
        cx: &AdmissionContext<'_>,
        object: &mut Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.mutate(cx, object, old).await?;
        }
        Ok(())
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
        Ok(())
    }
}
