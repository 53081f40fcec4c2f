//! May they: role-based access control over the watch caches of roles and bindings, and what a node may do besides.
//!
//! The group `system:masters` may do everything; it is how the first administrator gets in. Rules only ever
//! allow; what no rule allows is forbidden.

pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod rbac;
pub(crate) mod reviews;

use api::{GroupVersionResource, Reason, Status};

use crate::registry::Registry;
use crate::resource::UserInfo;

pub(crate) const MASTERS: &str = "system:masters";

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// The one node whose pods a field selector `spec.nodeName=…` leaves of a collection, else "".
    pub(crate) of_node: &'a str,
    /// A path outside the resources; the other fields but the verb are "" then.
    pub(crate) path: &'a str,
}

impl<'a> Attributes<'a> {
    /// A verb on a resource.
    pub(crate) fn on(
        verb: &'a str,
        gvr: &'a GroupVersionResource,
        namespace: &'a str,
        name: &'a str,
    ) -> Self {
        Self { verb, group: &gvr.group, resource: &gvr.resource, namespace, name, ..Self::default() }
    }

    /// `pods` or `pods/log`.
    pub(crate) fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Whether a user may do something: the one question that the pipeline and the access reviews ask.
pub(crate) async fn allows(
    registry: &Registry,
    user: &UserInfo,
    attributes: &Attributes<'_>,
) -> Result<bool, Status> {
    if let Some(node) = node::name_of(user)
        && node::allows(registry, node, attributes).await?
    {
        return Ok(true);
    }
    registry.rbac.allows(user, attributes).await
}

/// The refusal as Kubernetes words it.
pub(crate) fn forbidden(user: &UserInfo, attributes: &Attributes<'_>) -> Status {
    let Attributes { verb, group, resource, namespace, name, path, .. } = *attributes;
    let who = &user.name;
    if resource.is_empty() {
        return Status::new(
            Reason::Forbidden,
            format!("forbidden: User {who:?} cannot {verb} path {path:?}"),
        );
    }
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let what = attributes.full_resource();
    let why = format!("User {who:?} cannot {verb} resource {what:?} in API group {group:?} {scope}");
    Status::forbidden(group, resource, name, &why)
}
