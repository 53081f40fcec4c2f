//! The scale subresource: an `autoscaling/v1` Scale as a view of the object.

use api::{ApiResponse, ContentType, GroupVersionKind, Object, PatchType, Status, TypeId, Verb};
use serde_json::{Value, json};

use super::negotiate;
use super::update::Mode;
use super::{Call, Registry, codec};
use crate::resource::{Resource, ScalePaths};

impl Registry {
    pub(crate) async fn scale(&self, call: &Call<'_>, paths: &ScalePaths) -> Result<ApiResponse, Status> {
        let key = call.key();
        if call.request.verb == Verb::Get {
            let stored = self.stored(call.resource, &key).await?.ok_or_else(|| call.not_found())?;
            let object = negotiate::read(call.resource, &stored)?;
            return call.form.tree(200, &view(paths, &object).into_value());
        }
        let schema = scale_type(call.resource)?;
        let mut warnings = Vec::new();
        let body = match call.request.verb {
            Verb::Update => Some(codec::decode_as(call, call.resource, &gvk(), schema, &mut warnings)?),
            _ => None,
        };
        let mut mutate = |old: &Object, warnings: &mut Vec<String>| {
            let scale = match &body {
                Some(body) => body.clone(),
                None => patched(call, schema, &view(paths, old), warnings)?,
            };
            apply(paths, &scale, old)
        };
        let stored = self.update_object(call, &key, Mode::Client, &mut mutate, &mut warnings).await?;
        let object = negotiate::read(call.resource, &stored)?;
        let mut response = call.form.tree(200, &view(paths, &object).into_value())?;
        response.warnings = warnings;
        Ok(response)
    }
}

/// The kind of the view.
pub(crate) fn gvk() -> GroupVersionKind {
    GroupVersionKind::new("autoscaling", "v1", "Scale")
}

fn scale_type(resource: &Resource) -> Result<TypeId, Status> {
    let found = resource.table.kind("autoscaling", "v1", "Scale");
    found.ok_or_else(|| Status::internal("the schema table has no Scale"))
}

fn patched(
    call: &Call<'_>,
    schema: TypeId,
    scale: &Object,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let body = call.request.body.as_ref().ok_or_else(|| Status::bad_request("a patch needs a body"))?;
    match body.content_type {
        ContentType::Patch(PatchType::Apply)
        | ContentType::Json
        | ContentType::Yaml
        | ContentType::Protobuf => {
            // A Scale has one field to own; applying it is merging it.
            codec::patch_as(call, call.resource, schema, PatchType::Merge, &body.bytes, scale, warnings)
        }
        ContentType::Patch(kind) => {
            codec::patch_as(call, call.resource, schema, kind, &body.bytes, scale, warnings)
        }
    }
}

fn at<'a>(object: &'a Object, path: &[String]) -> Option<&'a Value> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    object.get(&path)
}

/// The Scale of an object.
pub(crate) fn view(paths: &ScalePaths, object: &Object) -> Object {
    let mut metadata = json!({});
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get(&["metadata", name]) {
            metadata[name] = value.clone();
        }
    }
    let count = |path| at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let mut spec = json!({});
    if count(&paths.spec_replicas) != 0 {
        spec["replicas"] = count(&paths.spec_replicas).into();
    }
    let mut status = json!({"replicas": count(&paths.status_replicas)});
    let selector = at(object, &paths.selector).map(selector_text).unwrap_or_default();
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut scale = Object::default();
    scale.set(&["apiVersion"], "autoscaling/v1");
    scale.set(&["kind"], "Scale");
    scale.set(&["metadata"], metadata);
    scale.set(&["spec"], spec);
    scale.set(&["status"], status);
    scale
}

/// Puts a Scale's wish into the object.
pub(crate) fn apply(paths: &ScalePaths, scale: &Object, old: &Object) -> Result<Object, Status> {
    let replicas = scale.i64(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let error = api::FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", old.name(), &[error]));
    }
    let mut new = old.clone();
    for name in ["resourceVersion", "uid"] {
        if let Some(value) =
            scale.get(&["metadata", name]).filter(|v| v.as_str().is_some_and(|s| !s.is_empty()))
        {
            new.set(&["metadata", name], value.clone());
        }
    }
    let path: Vec<&str> = paths.spec_replicas.iter().map(String::as_str).collect();
    new.set(&path, replicas);
    Ok(new)
}

/// A LabelSelector, a plain map of labels, or (custom resources) text already, as text.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else { return selector.as_str().unwrap_or_default().to_owned() };
    let structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels = if structured { selector.get("matchLabels").and_then(Value::as_object) } else { Some(map) };
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).filter(|_| structured);
    for expression in expressions.into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = expression["values"].as_array().map(Vec::as_slice).unwrap_or_default();
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_shows_and_sets_replicas() {
        let object = Object::from_value(json!({
            "metadata": {"name": "d", "resourceVersion": "5", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}},
            "status": {"replicas": 2},
        }))
        .unwrap();
        let paths = ScalePaths::usual();
        let mut scale = view(&paths, &object);
        assert_eq!(
            scale.clone().into_value(),
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
                "metadata": {"name": "d", "resourceVersion": "5"}, "spec": {"replicas": 3},
                "status": {"replicas": 2, "selector": "app=web,tier in (a,b)"}})
        );
        scale.set(&["spec", "replicas"], 7);
        scale.set(&["metadata", "resourceVersion"], "4");
        let new = apply(&paths, &scale, &object).unwrap();
        assert_eq!((new.i64(&["spec", "replicas"]), new.resource_version()), (Some(7), "4"));
        scale.set(&["spec", "replicas"], -1);
        assert_eq!(apply(&paths, &scale, &object).unwrap_err().code, 422);
    }
}
