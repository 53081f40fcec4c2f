//! The parameters of a policy: objects that its bindings name or select.

use api::{GroupVersionKind, ObjectKey};
use serde_json::Value;

use super::text;
use crate::admission::dynamic::Subject;
use crate::resource::Reader;
use crate::resources::selectors;

/// The parameters of a binding; null where the policy has none.
///
/// # Errors
/// Why they cannot be had.
pub(super) async fn of(subject: &Subject<'_>, kind: &Value, reference: &Value) -> Result<Vec<Value>, String> {
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let gvk = GroupVersionKind::from_api_version(text(&kind["apiVersion"]), text(&kind["kind"]));
    let rows = subject.registry.resources.current();
    let row = rows.iter().find(|row| row.gvk() == gvk);
    let row = row.ok_or_else(|| {
        format!("paramKind kind `{}, Kind={}` not known", text(&kind["apiVersion"]), gvk.kind)
    })?;
    let given = text(&reference["namespace"]);
    let namespace = match (row.namespaced, given) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "") if subject.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "") => subject.namespace.as_str(),
        (true, given) => given,
    };
    let reader: &dyn Reader = subject.registry;
    let name = text(&reference["name"]);
    let mut found = if name.is_empty() {
        let scope = Some(namespace).filter(|namespace| !namespace.is_empty());
        reader.list(&row.gvr, scope).await.map_err(|status| status.message)?
    } else {
        let key = ObjectKey::new(namespace, name);
        reader.get(&row.gvr, &key).await.map_err(|status| status.message)?.into_iter().collect()
    };
    if name.is_empty() {
        let selector = &reference["selector"];
        found.retain(|object| {
            let labels = object.get(&["metadata", "labels"]).cloned().unwrap_or_default();
            selectors::matches(selector, &labels)
        });
    }
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.into_iter().map(api::Object::into_value).collect())
}
