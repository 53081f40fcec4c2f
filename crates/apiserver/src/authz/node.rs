//! What a node may do (Kubernetes, "Using Node Authorization"): the rules of the role `system:node`, but only on its own
//! Node and Lease, on pods that are bound to it, and on what those pods refer to.
//!
//! Reading objects one by one is all a node needs of Secrets and ConfigMaps: whoever breaks into one machine learns the
//! secrets of the pods on it and no others.

use std::sync::OnceLock;

use api::{GroupVersionResource, Object, ObjectKey, Status};
use serde_json::Value;

use super::Attributes;
use super::policy::CLUSTER_ROLES;
use super::rbac::Rule;
use crate::registry::Registry;
use crate::resource::{Reader, UserInfo};

const ROLE: &str = "system:node";
const GROUP: &str = "system:nodes";
const PROXY: &str = "system:kube-proxy";
const LEASES: &str = "kube-node-lease";

/// The node that a user is.
pub(crate) fn name_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:").filter(|name| !name.is_empty())?;
    user.in_group(GROUP).then_some(name)
}

/// What a decision depends on beyond the role's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nothing,
    /// It is refused whatever there is.
    Refused,
    /// A pod bound to the node refers to the object.
    Reference,
    /// A pod bound to the node runs as the service account.
    Account,
    /// The pod is bound to the node.
    OwnPod,
    /// The pod is bound to the node, or there is none.
    OwnPodIfAny,
}

fn needs(node: &str, a: &Attributes<'_>) -> Needs {
    let reads = matches!(a.verb, "get" | "list" | "watch");
    let own = |allowed: bool| if allowed { Needs::Nothing } else { Needs::Refused };
    match (a.group, a.resource) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims") => {
            let one = reads && !a.name.is_empty() && !a.namespace.is_empty();
            if one { Needs::Reference } else { Needs::Refused }
        }
        ("", "serviceaccounts") if a.subresource == "token" => Needs::Account,
        // Packet rules for network policies need the labels and addresses of all pods; the proxy's identity may read them.
        ("", "users") => own(a.verb == "impersonate" && a.name == PROXY),
        ("", "pods") if a.verb == "get" => Needs::OwnPodIfAny,
        // The field selector must ask for no more than the node's own (KEP-4601).
        ("", "pods") if reads => own(a.of_node == node),
        // Mirrors of its static pods alone: admission looks at them.
        ("", "pods") if a.verb == "create" && a.subresource.is_empty() => Needs::Nothing,
        ("", "pods") => Needs::OwnPod,
        // The name of a new Node, Lease or CSINode is in its body: admission looks at it.
        ("", "nodes") => own(reads || a.verb == "create" || (a.name == node && a.verb != "delete")),
        ("coordination.k8s.io", "leases") => {
            own(a.namespace == LEASES && (a.verb == "create" || a.name == node))
        }
        ("storage.k8s.io", "csinodes") => own(reads || a.verb == "create" || a.name == node),
        _ => Needs::Nothing,
    }
}

/// Whether a node may do something.
pub(crate) async fn allows(
    registry: &Registry,
    node: &str,
    attributes: &Attributes<'_>,
) -> Result<bool, Status> {
    if !rules().iter().any(|rule| rule.allows(attributes)) {
        return Ok(false);
    }
    let pods = GroupVersionResource::new("", "v1", "pods");
    let bound = |pod: &Object| pod.str(&["spec", "nodeName"]) == node;
    let (namespace, name) = (attributes.namespace, attributes.name);
    let fits: &(dyn Fn(&Object) -> bool + Sync) = match needs(node, attributes) {
        Needs::Nothing => return Ok(true),
        Needs::Refused => return Ok(false),
        Needs::OwnPod => {
            let pod = registry.get(&pods, &ObjectKey::new(namespace, name)).await?;
            return Ok(pod.is_some_and(|pod| bound(&pod)));
        }
        Needs::OwnPodIfAny => {
            let pod = registry.get(&pods, &ObjectKey::new(namespace, name)).await?;
            return Ok(pod.is_none_or(|pod| bound(&pod)));
        }
        Needs::Reference => &|pod| refers(pod, attributes.resource, name),
        Needs::Account => &|pod| pod.str(&["spec", "serviceAccountName"]) == name,
    };
    let pods = Reader::list(registry, &pods, Some(namespace)).await?;
    Ok(pods.iter().any(|pod| bound(pod) && fits(pod)))
}

fn rules() -> &'static [Rule] {
    static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
    RULES.get_or_init(|| {
        let role = CLUSTER_ROLES.iter().find(|role| role.name == ROLE);
        let rules = role.map(|role| serde_json::from_value(role.rules()));
        rules.and_then(Result::ok).expect("the role of nodes is one of the bootstrap roles")
    })
}

/// Whether a pod's spec names a Secret, ConfigMap or PersistentVolumeClaim, wherever it may do so.
fn refers(pod: &Object, resource: &str, name: &str) -> bool {
    let Some(spec) = pod.get(&["spec"]) else { return false };
    let pulls = spec["imagePullSecrets"].as_array().into_iter().flatten();
    (resource == "secrets" && pulls.into_iter().any(|secret| secret["name"] == name))
        || names_it(spec, resource, name)
}

/// Fields that refer to an object are called after its kind (`secretKeyRef`, `configMap`, `nodePublishSecretRef`); the name is
/// in `name`, `secretName` or `claimName`.
fn names_it(value: &Value, resource: &str, name: &str) -> bool {
    let refers = |field: &str| match resource {
        "secrets" => field.starts_with("secret") || field.ends_with("SecretRef"),
        "configmaps" => field.starts_with("configMap"),
        _ => field == "persistentVolumeClaim",
    };
    match value {
        Value::Array(items) => items.iter().any(|item| names_it(item, resource, name)),
        Value::Object(fields) => {
            let direct = resource == "secrets" && fields.get("secretName").is_some_and(|n| n == name);
            direct
                || fields.iter().any(|(field, inner)| {
                    let named = ["name", "claimName"].iter().any(|n| inner[*n] == name);
                    (named && refers(field)) || names_it(inner, resource, name)
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_lists_its_own_pods_only() {
        let asks = |verb, of_node| Attributes { verb, resource: "pods", of_node, ..Attributes::default() };
        for verb in ["list", "watch"] {
            assert_eq!(needs("a", &asks(verb, "a")), Needs::Nothing);
            assert_eq!(needs("a", &asks(verb, "b")), Needs::Refused);
            assert_eq!(needs("a", &asks(verb, "")), Needs::Refused);
        }
    }

    #[test]
    fn nodes_are_who_they_say_and_in_the_group() {
        let user = |name: &str, group: &str| UserInfo::new(name, &[group]);
        assert_eq!(name_of(&user("system:node:a", GROUP)), Some("a"));
        for (name, group) in [("system:node:a", "x"), ("system:node:", GROUP), ("a", GROUP)] {
            assert_eq!(name_of(&user(name, group)), None, "{name} {group}");
        }
    }

    #[test]
    fn a_node_keeps_to_its_own() {
        use Needs::{Account, Nothing, OwnPod, OwnPodIfAny, Reference, Refused};
        let table = [
            ("get", "", "secrets", "", "default", "s", Reference),
            ("watch", "", "configmaps", "", "default", "s", Reference),
            ("list", "", "secrets", "", "default", "", Refused),
            ("list", "", "secrets", "", "", "", Refused),
            ("update", "", "secrets", "", "default", "s", Refused),
            ("create", "", "serviceaccounts", "token", "default", "s", Account),
            ("get", "", "serviceaccounts", "", "default", "s", Nothing),
            ("get", "", "pods", "", "default", "p", OwnPodIfAny),
            ("list", "", "pods", "", "", "", Refused),
            ("create", "", "pods", "", "default", "", Nothing),
            ("patch", "", "pods", "status", "default", "p", OwnPod),
            ("delete", "", "pods", "", "default", "p", OwnPod),
            ("create", "", "pods", "eviction", "default", "p", OwnPod),
            ("patch", "", "nodes", "status", "", "a", Nothing),
            ("patch", "", "nodes", "status", "", "b", Refused),
            ("delete", "", "nodes", "", "", "a", Refused),
            ("list", "", "nodes", "", "", "", Nothing),
            ("patch", "coordination.k8s.io", "leases", "", LEASES, "a", Nothing),
            ("patch", "coordination.k8s.io", "leases", "", LEASES, "b", Refused),
            ("patch", "coordination.k8s.io", "leases", "", "default", "a", Refused),
            ("list", "", "services", "", "", "", Nothing),
            ("impersonate", "", "users", "", "", PROXY, Nothing),
            ("impersonate", "", "users", "", "", "kubernetes-admin", Refused),
        ];
        for (verb, group, resource, subresource, namespace, name, want) in table {
            let attributes =
                Attributes { verb, group, resource, subresource, namespace, name, ..Attributes::default() };
            assert_eq!(needs("a", &attributes), want, "{attributes:?}");
        }
    }

    #[test]
    fn every_reference_of_a_pod_is_found_and_nothing_else() {
        let pod = Object::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "other", "secret": {"secretName": "volume"}},
                {"name": "x", "configMap": {"name": "settings"}},
                {"name": "y", "projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "part-c"}}]}},
                {"name": "z", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "publish"}}},
                {"name": "f", "azureFile": {"secretName": "azure"}},
            ],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "all-c"}}]}],
            "containers": [{"name": "main", "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "key-c", "key": "k"}}},
            ]}],
        }}))
        .unwrap();
        for name in ["pull", "volume", "part", "publish", "azure", "all", "key"] {
            assert!(refers(&pod, "secrets", name), "{name}");
            assert!(!refers(&pod, "configmaps", name), "{name}");
        }
        for name in ["settings", "part-c", "all-c", "key-c"] {
            assert!(refers(&pod, "configmaps", name), "{name}");
            assert!(!refers(&pod, "secrets", name), "{name}");
        }
        assert!(refers(&pod, "persistentvolumeclaims", "claim"));
        for name in ["main", "other", "A", "d", "k", ""] {
            assert!(!refers(&pod, "secrets", name) && !refers(&pod, "configmaps", name), "{name}");
        }
    }
}
