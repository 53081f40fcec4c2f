//! NamespaceLifecycle: the three namespaces that every cluster needs stay. (That nothing is created in a missing or
//! terminating namespace is a condition of the commit itself: `registry::finalize`.)

use api::{Object, Status};
use futures_util::future::BoxFuture;

use super::{AdmissionContext, Operation, Plugin};
use crate::registry::finalize;

const KEPT: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(crate) struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        _: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let name = old.map(Object::name).unwrap_or_default();
            let delete = cx.operation == Operation::Delete && finalize::is_namespace(cx.call.resource);
            if delete && KEPT.contains(&name) {
                return Err(cx.forbidden(name, "this namespace may not be deleted"));
            }
            Ok(())
        })
    }
}
