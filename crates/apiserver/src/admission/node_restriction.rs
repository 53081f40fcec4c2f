//! NodeRestriction (Kubernetes, "Admission Control"): what a node writes is about itself. The authorizer has looked at
//! names in the path before; here are those in the body, and the fields that decide which pods a node gets.

use api::{Object, Status};
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{AdmissionContext, Operation, Plugin, mirror_pod};
use crate::authz::node;

/// Labels by which administrators keep workloads to nodes they trust.
const PROTECTED_LABELS: &str = "node-restriction.kubernetes.io/";

pub(crate) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let (Some(node), Some(object)) = (node::name_of(cx.call.user), object) else { return Ok(()) };
            let gvr = &cx.call.resource.gvr;
            if gvr.resource == "podcertificaterequests" && object.str(&["spec", "nodeName"]) != node {
                let why = format!("node {node:?} is not allowed to ask for certificates of pods elsewhere");
                return Err(cx.forbidden(object.name(), &why));
            }
            if cx.creates("", "pods")
                && let Some(why) = no_mirror_of(node, object)
            {
                return Err(cx.forbidden(object.name(), &why));
            }
            let named_after_it =
                matches!(gvr.resource.as_str(), "nodes" | "csinodes") || gvr.resource == "leases";
            if !named_after_it {
                return Ok(());
            }
            if cx.operation == Operation::Create && object.name() != node {
                let why = format!("node {node:?} is not allowed to create it: only what has its own name");
                return Err(cx.forbidden(object.name(), &why));
            }
            if gvr.resource == "nodes"
                && let Some(what) = overreach(object, old)
            {
                let why = format!("node {node:?} is not allowed to change {what}");
                return Err(cx.forbidden(object.name(), &why));
            }
            Ok(())
        })
    }
}

/// Why a pod is no mirror of one of the node's static pods, if it is none.
fn no_mirror_of(node: &str, pod: &Object) -> Option<String> {
    if !mirror_pod::is_mirror(pod) {
        let annotation = mirror_pod::MIRROR;
        return Some(format!(
            "pod does not have {annotation:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod.str(&["spec", "nodeName"]) != node {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    if let Some(what) = mirror_pod::reference(pod) {
        return Some(format!("node {node:?} can not create pods that reference {what}"));
    }
    let owners = pod.get(&["metadata", "ownerReferences"]).and_then(Value::as_array);
    let own = |owner: &Value| {
        let named = owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
        named && owner["controller"] == true && owner["blockOwnerDeletion"] != true
    };
    let owners = owners.map(Vec::as_slice).unwrap_or_default();
    (owners.len() > 1 || !owners.iter().all(own))
        .then(|| format!("node {node:?} can only create pods with an owner reference set to itself"))
}

/// What a node changed of itself although it may not.
fn overreach(new: &Object, old: Option<&Object>) -> Option<&'static str> {
    let protected = |o: &Object| -> Vec<(String, Value)> {
        let labels = o.get(&["metadata", "labels"]).and_then(Value::as_object);
        let labels = labels.into_iter().flatten().filter(|(key, _)| key.starts_with(PROTECTED_LABELS));
        labels.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    if protected(new) != old.map(protected).unwrap_or_default() {
        return Some("labels of node-restriction.kubernetes.io/");
    }
    let taints = |o: &Object| o.get(&["spec", "taints"]).filter(|t| !t.is_null()).cloned();
    match old {
        Some(old) if taints(old) != taints(new) => Some("taints"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_makes_mirrors_of_its_own_alone() {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u", "controller": true});
        let mirror = |owner: Value, spec: Value| {
            let meta = json!({"annotations": {mirror_pod::MIRROR: "u"}, "ownerReferences": [owner]});
            Object::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
        };
        let own = json!({"nodeName": "a"});
        assert_eq!(no_mirror_of("a", &mirror(owner.clone(), own.clone())), None);
        assert!(no_mirror_of("b", &mirror(owner.clone(), own.clone())).is_some());
        let account = json!({"nodeName": "a", "serviceAccountName": "s"});
        assert!(no_mirror_of("a", &mirror(owner.clone(), account)).is_some());
        for (field, value) in
            [("name", json!("b")), ("controller", json!(false)), ("blockOwnerDeletion", json!(true))]
        {
            let mut owner = owner.clone();
            owner[field] = value;
            assert!(no_mirror_of("a", &mirror(owner, own.clone())).is_some(), "{field}");
        }
        let plain = Object::from_value(json!({"spec": own})).unwrap();
        assert!(no_mirror_of("a", &plain).is_some());
    }

    #[test]
    fn a_node_neither_lures_nor_frees_itself() {
        let node = |labels: Value, taints: Value| {
            Object::from_value(json!({"metadata": {"labels": labels}, "spec": {"taints": taints}})).unwrap()
        };
        let plain = node(json!({"a": "b"}), Value::Null);
        let tainted = node(json!({"a": "b"}), json!([{"key": "k", "effect": "NoSchedule"}]));
        let secure = node(json!({"node-restriction.kubernetes.io/secure": "true"}), Value::Null);
        assert_eq!(overreach(&tainted, None), None, "a new node may taint itself");
        assert_eq!(overreach(&node(json!({"a": "c"}), Value::Null), Some(&plain)), None);
        assert_eq!(overreach(&plain, Some(&tainted)), Some("taints"));
        assert!(overreach(&secure, Some(&plain)).is_some());
        assert!(overreach(&secure, None).is_some());
        assert!(overreach(&plain, Some(&secure)).is_some());
    }
}
