//! Plans as text, for golden tests.

use std::fmt::Write;

use client::{Action, Plan, Read};

/// One line an action.
pub(crate) fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    match plan {
        Plan::Need(reads) => reads.iter().for_each(|read| {
            line(match read {
                Read::Get { gvr, key } => format!("need get {} {key}", gvr.resource),
                Read::List { gvr, namespace, .. } => {
                    format!("need list {} in {}", gvr.resource, namespace.as_deref().unwrap_or_default())
                }
                Read::Subresource { gvr, key, subresource } => {
                    format!("need get {} {key}/{subresource}", gvr.resource)
                }
                Read::Path(path) => format!("need {path}"),
            })
        }),
        Plan::Do { actions, requeue_after } => {
            actions.iter().for_each(|one| line(action(one)));
            if let Some(after) = requeue_after {
                line(format!("again after {after:?}"));
            }
        }
    }
    out
}

fn action(action: &Action) -> String {
    match action {
        Action::Create { gvr, object, .. } => format!("create {} {object}", gvr.resource),
        Action::Update { gvr, key, object } => format!("update {} {key} {object}", gvr.resource),
        Action::Apply { gvr, key, object, .. } => format!("apply {} {key} {object}", gvr.resource),
        Action::Patch { gvr, key, patch, .. } => format!("patch {} {key} {patch}", gvr.resource),
        Action::UpdateStatus { gvr, key, object } => {
            format!("status {} {key} {}", gvr.resource, object["status"])
        }
        Action::Call { gvr, key, subresource, body, .. } => {
            format!("call {} {key}/{subresource} {}", gvr.resource, body["spec"])
        }
        Action::Delete { gvr, key, options } => {
            format!(
                "delete {} {key} {}",
                gvr.resource,
                options.propagation_policy.as_deref().unwrap_or_default()
            )
        }
        Action::DeleteCollection { gvr, namespace, .. } => {
            format!("delete all {} in {namespace}", gvr.resource)
        }
        Action::Event { reason, message, .. } => format!("event {reason}: {message}"),
    }
}

/// The same with created objects by name only, without events.
pub(crate) fn brief(plan: &Plan) -> String {
    let Plan::Do { actions, requeue_after } = plan else { return text(plan) };
    let mut out = String::new();
    for one in actions {
        match one {
            Action::Create { gvr, object, .. } => {
                let field =
                    |path: &str| object.pointer(path).map(|value| format!(" {value}")).unwrap_or_default();
                let node = field(
                    "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values",
                );
                let image = field("/spec/containers/0/image");
                writeln!(out, "create {}{}{image}{node}", gvr.resource, field("/metadata/name")).unwrap();
            }
            Action::Event { .. } => {}
            other => writeln!(out, "{}", action(other)).unwrap(),
        }
    }
    if let Some(after) = requeue_after {
        writeln!(out, "again after {after:?}").unwrap();
    }
    out
}
