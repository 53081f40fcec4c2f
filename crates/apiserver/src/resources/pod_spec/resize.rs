//! What may change through a pod's `resize` (KEP-1287): cpu and memory of its containers, within its QoS class.

use api::{FieldError, Object};
use serde_json::Value;

use crate::admission::mirror_pod::MIRROR;
use crate::resources::check::{At, Errors};

const LISTS: [&str; 2] = ["containers", "initContainers"];
const MUTABLE: [&str; 2] = ["cpu", "memory"];

/// The old pod with the new one's container resources: nothing else changes on this path.
pub(crate) fn take_over(new: &mut Object, old: &Object) {
    let mut kept = old.clone();
    for list in LISTS {
        let wanted = new.get(&["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut containers = old.get(&["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
        for container in &mut containers {
            let Some(found) = wanted.iter().find(|c| c["name"] == container["name"]) else { continue };
            match found.get("resources") {
                Some(resources) => container["resources"] = resources.clone(),
                None => drop(container.as_object_mut().and_then(|map| map.remove("resources"))),
            }
        }
        if !containers.is_empty() {
            kept.set(&["spec", list], Value::Array(containers));
        }
    }
    for field in ["resourceVersion", "managedFields"] {
        match new.get(&["metadata", field]).cloned() {
            Some(value) => kept.set(&["metadata", field], value),
            None => drop(kept.remove(&["metadata", field])),
        }
    }
    *new = kept;
}

/// Findings on a resize. `classes`: QoS class of the new and of the old pod.
pub(crate) fn validate(new: &Object, old: &Object, classes: (&str, &str), e: &mut Errors) {
    let (new_spec, old_spec) = (At::top(new, "spec"), At::top(old, "spec"));
    if !old.str(&["metadata", "annotations", MIRROR]).is_empty() {
        e.push(FieldError::forbidden("", "static pods cannot be resized"));
        return;
    }
    if classes.0 != classes.1 {
        let detail = "Pod QOS Class may not change as a result of resizing";
        e.push(FieldError::invalid("spec", classes.0, detail));
    }
    for list in LISTS {
        let pairs = new_spec.field(list).items().zip(old_spec.field(list).items());
        for (new, old) in pairs {
            container(&new, &old, list == "initContainers", e);
        }
    }
}

fn container(new: &At<'_>, old: &At<'_>, init: bool, e: &mut Errors) {
    let (after, before) = (new.field("resources"), old.field("resources"));
    if after.value == before.value {
        return;
    }
    let restarts = |policy: &At<'_>| policy.field("restartPolicy").str() == "RestartContainer";
    let sidecar = old.field("restartPolicy").str() == "Always";
    if init && !sidecar && old.field("resizePolicy").items().any(|policy| restarts(&policy)) {
        let detail = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
        new.forbidden(e, detail);
    }
    for kind in ["requests", "limits"] {
        let (after, before) = (after.field(kind), before.field(kind));
        for (name, _) in before.entries() {
            if MUTABLE.contains(&name) && !after.field(name).is_set() {
                let name = name.to_owned();
                after.forbidden(e, &format!("resource {kind} cannot be removed: {name}"));
            }
        }
        let names = before.entries().chain(after.entries()).map(|(name, _)| name);
        let fixed = names.filter(|name| !MUTABLE.contains(name));
        if fixed.into_iter().any(|name| after.field(name).value != before.field(name).value) {
            e.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: Value) -> Object {
        let container = json!({"name": "c", "image": "i", "resources": resources});
        Object::from_value(
            json!({"metadata": {"name": "p", "resourceVersion": "7"}, "spec": {"containers": [container]}}),
        )
        .unwrap()
    }

    #[test]
    fn only_cpu_and_memory_change_and_nothing_is_taken_away() {
        let old = json!({"requests": {"cpu": "1", "memory": "1Gi", "x.y/z": "1"}});
        let table = [
            (
                json!({"requests": {"cpu": "2", "memory": "2Gi", "x.y/z": "1"}, "limits": {"cpu": "4"}}),
                vec![],
            ),
            (json!({"requests": {"cpu": "1", "x.y/z": "1"}}), vec!["spec.containers[0].resources.requests"]),
            (json!({"requests": {"cpu": "1", "memory": "1Gi", "x.y/z": "2"}}), vec!["spec"]),
        ];
        for (wanted, fields) in table {
            let mut e = Errors::new();
            validate(&pod(wanted.clone()), &pod(old.clone()), ("Burstable", "Burstable"), &mut e);
            assert_eq!(e.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), fields, "{wanted}");
        }
        let mut e = Errors::new();
        validate(&pod(old.clone()), &pod(old), ("Guaranteed", "Burstable"), &mut e);
        assert_eq!(e.len(), 1);
    }

    #[test]
    fn everything_else_stays() {
        let old = pod(json!({"requests": {"cpu": "1"}}));
        let mut new = pod(json!({"requests": {"cpu": "2"}}));
        new.set(&["spec", "nodeName"], "elsewhere");
        new.set(&["metadata", "resourceVersion"], "8");
        take_over(&mut new, &old);
        assert_eq!(new.str(&["spec", "nodeName"]), "");
        assert_eq!(new.resource_version(), "8");
        assert_eq!(new.get(&["spec", "containers"]).unwrap()[0]["resources"]["requests"]["cpu"], "2");
    }
}
