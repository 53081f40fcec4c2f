//! LimitRanger: the LimitRanges of a namespace give containers their default resources and bound what containers, pods
//! and claims may ask for (Kubernetes documentation, "Limit Ranges").

use api::quota::{Usage, pod_resources, quantity};
use api::{GroupVersionResource, Object, Quantity, Status};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{AdmissionContext, Operation, Plugin, is};
use crate::resource::Reader;

/// Says which defaults a pod has got.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(crate) struct LimitRanger;

impl Plugin for LimitRanger {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if cx.creates("", "pods") {
                for limit in limits(cx).await?.iter().filter(|limit| limit["type"] == "Container") {
                    give_defaults(object, limit);
                }
            }
            Ok(())
        })
    }

    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let Some(object) = object else { return Ok(()) };
            let claim = is(cx.call.resource, "", "persistentvolumeclaims")
                && cx.call.subresource.is_none()
                && matches!(cx.operation, Operation::Create | Operation::Update);
            let resized = is(cx.call.resource, "", "pods") && cx.call.subresource == Some("resize");
            if !(claim || resized || cx.creates("", "pods")) {
                return Ok(());
            }
            let mut found = Vec::new();
            for limit in limits(cx).await? {
                findings(&limit, object, &mut found);
            }
            match found.as_slice() {
                [] => Ok(()),
                [one] => Err(cx.forbidden(object.name(), one)),
                many => Err(cx.forbidden(object.name(), &format!("[{}]", many.join(", ")))),
            }
        })
    }
}

/// Every limit of the namespace.
async fn limits(cx: &AdmissionContext<'_>) -> Result<Vec<Value>, Status> {
    let gvr = GroupVersionResource::new("", "v1", "limitranges");
    let ranges = Reader::list(cx.registry, &gvr, Some(cx.call.namespace)).await?;
    let limits = ranges.iter().filter_map(|range| range.get(&["spec", "limits"]).and_then(Value::as_array));
    Ok(limits.flatten().cloned().collect())
}

/// Fills in what the containers of a pod don't say themselves.
fn give_defaults(pod: &mut Object, limit: &Value) {
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers =
            pod.0.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (side, from, word) in
                [("requests", "defaultRequest", "request"), ("limits", "default", "limit")]
            {
                let given = fill(container, side, limit[from].as_object());
                if !given.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", given.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set(&["metadata", "annotations", ANNOTATION], text);
    }
}

/// Names of the resources that were missing on a side, in order.
fn fill(container: &mut Value, side: &str, from: Option<&Map<String, Value>>) -> Vec<String> {
    let mut given = Vec::new();
    for (name, amount) in from.into_iter().flatten() {
        if !container["resources"].is_object() {
            container["resources"] = json!({});
        }
        if !container["resources"][side].is_object() {
            container["resources"][side] = json!({});
        }
        if container["resources"][side].get(name).is_none() {
            container["resources"][side][name] = amount.clone();
            given.push(name.clone());
        }
    }
    given.sort();
    given
}

/// What is wrong with an object by one limit.
fn findings(limit: &Value, object: &Object, found: &mut Vec<String>) {
    let type_ = limit["type"].as_str().unwrap_or_default();
    let spec = object.get(&["spec"]).unwrap_or(&Value::Null);
    let side = |of: &Value, side: &str| {
        let amounts = of["resources"][side].as_object().into_iter().flatten();
        amounts.filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect::<Usage>()
    };
    let is_pod = spec["containers"].is_array();
    match type_ {
        "Container" => {
            let containers =
                ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array());
            for container in containers.flatten() {
                let asked =
                    Asked { requests: side(container, "requests"), limits: side(container, "limits") };
                asked.check(limit, type_, found);
            }
        }
        "Pod" if is_pod => {
            let asked =
                Asked { requests: pod_resources(spec, "requests"), limits: pod_resources(spec, "limits") };
            asked.check(limit, type_, found);
        }
        "PersistentVolumeClaim" if !is_pod => {
            // What a claim wants at most is what it asks for.
            let requests = side(spec, "requests");
            let asked = Asked { limits: Usage::new(), requests: requests.clone() };
            asked.each(limit, "min", |name, bound| asked.below(type_, name, bound), found);
            let asked = Asked { requests: Usage::new(), limits: requests };
            asked.each(limit, "max", |name, bound| asked.claim_above(type_, name, bound), found);
        }
        _ => {}
    }
}

/// What a container, pod or claim asks for.
struct Asked {
    requests: Usage,
    limits: Usage,
}

impl Asked {
    fn check(&self, limit: &Value, type_: &str, found: &mut Vec<String>) {
        self.each(limit, "min", |name, bound| self.below(type_, name, bound), found);
        self.each(limit, "max", |name, bound| self.above(type_, name, bound), found);
        self.each(limit, "maxLimitRequestRatio", |name, bound| self.stretched(type_, name, bound), found);
    }

    fn each(
        &self,
        limit: &Value,
        rule: &str,
        check: impl Fn(&str, Quantity) -> Option<String>,
        found: &mut Vec<String>,
    ) {
        let bounds = limit[rule].as_object().into_iter().flatten();
        found.extend(bounds.filter_map(|(name, bound)| check(name, quantity(bound)?)));
    }

    fn below(&self, type_: &str, name: &str, bound: Quantity) -> Option<String> {
        let rule = format!("minimum {name} usage per {type_} is {bound}");
        match (self.requests.get(name), self.limits.get(name)) {
            (None, _) => Some(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < bound => Some(format!("{rule}, but request is {request}")),
            (_, Some(limit)) if *limit < bound => Some(format!("{rule}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, type_: &str, name: &str, bound: Quantity) -> Option<String> {
        let rule = format!("maximum {name} usage per {type_} is {bound}");
        match (self.requests.get(name), self.limits.get(name)) {
            (_, None) => Some(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => Some(format!("{rule}, but limit is {limit}")),
            (Some(request), _) if *request > bound => Some(format!("{rule}, but request is {request}")),
            _ => None,
        }
    }

    fn claim_above(&self, type_: &str, name: &str, bound: Quantity) -> Option<String> {
        let rule = format!("maximum {name} usage per {type_} is {bound}");
        match self.limits.get(name) {
            None => Some(format!("{rule}.  No request is specified")),
            Some(request) if *request > bound => Some(format!("{rule}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn stretched(&self, type_: &str, name: &str, bound: Quantity) -> Option<String> {
        let rule = format!("{name} max limit to request ratio per {type_} is {bound}");
        let given = |side: &Usage| side.get(name).filter(|amount| !amount.is_zero()).map(Quantity::as_f64);
        let Some(request) = given(&self.requests) else {
            return Some(format!("{rule}, but no request is specified or request is 0"));
        };
        let Some(limit) = given(&self.limits) else {
            return Some(format!("{rule}, but no limit is specified or limit is 0"));
        };
        let ratio = limit / request;
        (ratio > bound.as_f64()).then(|| format!("{rule}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Object {
        Object::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
    }

    fn check(limit: Value, object: &Object) -> String {
        let mut found = Vec::new();
        findings(&limit, object, &mut found);
        found.join("; ")
    }

    #[test]
    fn missing_resources_are_given() {
        let limit = json!({"type": "Container", "default": {"cpu": "1", "memory": "2"}, "defaultRequest": {"memory": "1"}});
        let mut pod = pod(json!({"limits": {"cpu": "3"}}));
        give_defaults(&mut pod, &limit);
        let container = &pod.get(&["spec", "containers"]).unwrap()[0];
        assert_eq!(
            container["resources"],
            json!({"limits": {"cpu": "3", "memory": "2"}, "requests": {"memory": "1"}})
        );
        assert_eq!(
            pod.str(&["metadata", "annotations", ANNOTATION]),
            "LimitRanger plugin set: memory request for container c; memory limit for container c"
        );
    }

    #[test]
    fn bounds_hold() {
        let limit = |type_: &str| json!({"type": type_, "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": 2}});
        let cpu =
            |request: &str, limit: &str| pod(json!({"requests": {"cpu": request}, "limits": {"cpu": limit}}));
        assert_eq!(check(limit("Container"), &cpu("300m", "500m")), "");
        assert_eq!(check(limit("Pod"), &cpu("300m", "500m")), "");
        assert_eq!(
            check(limit("Container"), &cpu("10m", "600m")),
            "minimum cpu usage per Container is 50m, but request is 10m; maximum cpu usage per Container is 500m, \
             but limit is 600m; cpu max limit to request ratio per Container is 2, but provided ratio is 60.000000"
        );
        assert_eq!(
            check(limit("Pod"), &pod(json!({}))),
            "minimum cpu usage per Pod is 50m.  No request is specified; maximum cpu usage per Pod is 500m.  \
             No limit is specified; cpu max limit to request ratio per Pod is 2, but no request is specified or request is 0"
        );
        let claim = |storage: &str| {
            let spec = json!({"resources": {"requests": {"storage": storage}}});
            Object::from_value(json!({"spec": spec})).unwrap()
        };
        let limit =
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
        assert_eq!(check(limit.clone(), &claim("2Gi")), "");
        assert_eq!(
            check(limit.clone(), &claim("3Gi")),
            "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        );
        assert_eq!(
            check(limit, &claim("1")),
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1"
        );
    }
}
