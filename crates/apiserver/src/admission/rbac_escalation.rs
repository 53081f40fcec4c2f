//! Nobody gives permissions that they do not have: roles need the rules or the verb `escalate`, bindings need the
//! role's rules or the verb `bind` (Kubernetes, "Using RBAC Authorization", privilege escalation prevention).

use api::{GroupVersionResource, Object, Status};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;

use super::{AdmissionContext, Plugin};
use crate::authz::rbac::{GROUP, RoleRef, Rule, missing};
use crate::authz::{Attributes, MASTERS};

pub(crate) struct RbacEscalation;

impl Plugin for RbacEscalation {
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let Some(object) = object else { return Ok(()) };
            if cx.call.resource.gvr.group != GROUP || cx.call.user.in_group(MASTERS) {
                return Ok(());
            }
            match cx.call.resource.gvr.resource.as_str() {
                "roles" | "clusterroles" => check_role(cx, object, old).await,
                "rolebindings" | "clusterrolebindings" => check_binding(cx, object).await,
                _ => Ok(()),
            }
        })
    }
}

fn read<T: for<'de> Deserialize<'de> + Default>(object: &Object, field: &str) -> T {
    let value = object.get(&[field]).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).unwrap_or_default()
}

async fn check_role(cx: &AdmissionContext<'_>, role: &Object, old: Option<&Object>) -> Result<(), Status> {
    let rules: Vec<Rule> = read(role, "rules");
    if old.is_some_and(|old| read::<Vec<Rule>>(old, "rules") == rules) {
        return Ok(());
    }
    let escalate = Attributes::on("escalate", &cx.call.resource.gvr, role.namespace(), role.name());
    if cx.registry.rbac.allows(cx.call.user, &escalate).await? {
        return Ok(());
    }
    check_rules(cx, role.name(), role.namespace(), &rules).await
}

async fn check_binding(cx: &AdmissionContext<'_>, binding: &Object) -> Result<(), Status> {
    let reference = RoleRef {
        kind: binding.str(&["roleRef", "kind"]).to_owned(),
        name: binding.str(&["roleRef", "name"]).to_owned(),
    };
    let namespace = binding.namespace();
    let resource = if reference.kind == "Role" { "roles" } else { "clusterroles" };
    let gvr = GroupVersionResource::new(GROUP, "v1", resource);
    let bind = Attributes::on("bind", &gvr, namespace, &reference.name);
    if cx.registry.rbac.allows(cx.call.user, &bind).await? {
        return Ok(());
    }
    let rules = cx.registry.rbac.role(&reference, namespace).await?;
    let rules = rules.ok_or_else(|| Status::not_found(GROUP, resource, &reference.name))?;
    check_rules(cx, binding.name(), namespace, &rules).await
}

async fn check_rules(
    cx: &AdmissionContext<'_>,
    name: &str,
    namespace: &str,
    rules: &[Rule],
) -> Result<(), Status> {
    let mine = cx.registry.rbac.rules(cx.call.user, namespace).await?;
    let lacking = missing(&mine, rules);
    if lacking.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = lacking.iter().map(text).collect();
    let user = cx.call.user;
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        list.join("\n")
    );
    Err(cx.forbidden(name, &why))
}

fn text(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let shown =
        parts.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("{name}:{list:?}"));
    format!("{{{}}}", shown.collect::<Vec<_>>().join(", "))
}
