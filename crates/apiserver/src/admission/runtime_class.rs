//! RuntimeClass: a pod's class must exist; its overhead and its scheduling constraints become the pod's.

use api::{GroupVersionResource, Object, ObjectKey, Status};
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{AdmissionContext, Plugin};
use crate::resource::Reader;

pub(crate) struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if cx.creates("", "pods") {
                let class = class_of(cx, object).await?;
                apply(class.as_ref(), object).map_err(|why| cx.forbidden(object.name(), why))?;
            }
            Ok(())
        })
    }
}

async fn class_of(cx: &AdmissionContext<'_>, pod: &Object) -> Result<Option<Object>, Status> {
    let name = pod.str(&["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(None);
    }
    let classes = GroupVersionResource::new("node.k8s.io", "v1", "runtimeclasses");
    let found = Reader::get(cx.registry, &classes, &ObjectKey::new("", name)).await?;
    let why = format!("pod rejected: RuntimeClass {name:?} not found");
    found.map(Some).ok_or_else(|| cx.forbidden(pod.name(), &why))
}

/// Takes over what the class says, or says why it cannot.
fn apply(class: Option<&Object>, pod: &mut Object) -> Result<(), &'static str> {
    let overhead = class.and_then(|class| class.get(&["overhead", "podFixed"]));
    match (pod.get(&["spec", "overhead"]).filter(|given| !is_empty(given)), overhead) {
        (Some(_), None) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead");
        }
        (Some(given), Some(overhead)) if given != overhead => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead");
        }
        (_, Some(overhead)) => pod.set(&["spec", "overhead"], overhead.clone()),
        (None, None) => {}
    }
    let scheduling = |field: &str| class.and_then(|class| class.get(&["scheduling", field]));
    for (label, value) in scheduling("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        let path = ["spec", "nodeSelector", label.as_str()];
        if pod.get(&path).is_some_and(|given| given != value) {
            return Err(
                "pod rejected: conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector differ",
            );
        }
        pod.set(&path, value.clone());
    }
    let wanted = scheduling("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    if !wanted.is_empty() {
        let mut list =
            pod.get(&["spec", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
        list.extend(wanted.into_iter().filter(|toleration| !list.contains(toleration)).collect::<Vec<_>>());
        pod.set(&["spec", "tolerations"], list);
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_takes_over_what_its_class_says() {
        let class = object(json!({"overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm"}]}}));
        let mut pod = object(json!({"spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "vm"}]}}));
        apply(Some(&class), &mut pod).unwrap();
        let whole = json!({"spec": {"overhead": {"cpu": "10m"}, "nodeSelector": {"a": "b", "vm": "yes"},
            "tolerations": [{"key": "vm"}]}});
        assert_eq!(pod.clone().into_value(), whole);
        apply(Some(&class), &mut pod).unwrap();
        assert_eq!(pod.clone().into_value(), whole, "a second time changes nothing");
        assert!(apply(None, &mut pod).is_err(), "an overhead of the pod's own");
        for spec in [json!({"overhead": {"cpu": "1"}}), json!({"nodeSelector": {"vm": "no"}})] {
            assert!(apply(Some(&class), &mut object(json!({"spec": spec}))).is_err(), "{spec}");
        }
    }
}
