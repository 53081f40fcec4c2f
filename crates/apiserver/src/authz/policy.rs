//! The roles and bindings every cluster starts with, as data. They are reconciled at each start: what is missing is
//! added, what an administrator added stays, and `rbac.authorization.kubernetes.io/autoupdate: "false"` is obeyed.
//!
//! Source of the user-facing ones: Kubernetes, "Using RBAC Authorization", default roles. Those of components say what
//! Podium's own components do.

use serde_json::{Value, json};

/// (verbs, API groups, resources), words separated by spaces; the core group is written `core`.
/// An empty group list means that the resources are URLs.
type Rule = (&'static str, &'static str, &'static str);

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";

/// What `view` may read; `edit` and `admin` have it too.
const VIEW: &[Rule] = &[
    (
        READ,
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
         replicationcontrollers/scale serviceaccounts services services/status bindings events limitranges \
         namespaces namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas \
         resourcequotas/status",
    ),
    (READ, "discovery.k8s.io", "endpointslices"),
    (READ, "events.k8s.io", "events"),
    (
        READ,
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
         replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
    ),
    (READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
    (READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    (READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    (READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
    (READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
];

const EDIT: &[Rule] = &[
    (READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
    ("impersonate", "core", "serviceaccounts"),
    (WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
    ("create", "core", "pods/eviction serviceaccounts/token"),
    (
        WRITE,
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
         serviceaccounts services services/proxy",
    ),
    (
        WRITE,
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
    ),
    (WRITE, "autoscaling", "horizontalpodautoscalers"),
    (WRITE, "batch", "cronjobs jobs"),
    (WRITE, "policy", "poddisruptionbudgets"),
    (WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    (WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
    ("create delete deletecollection get list patch update watch", "coordination.k8s.io", "leases"),
];

const ADMIN: &[Rule] = &[
    ("create", "authorization.k8s.io", "localsubjectaccessreviews"),
    (
        "create delete deletecollection get list patch update watch",
        "rbac.authorization.k8s.io",
        "roles rolebindings",
    ),
];

const EVENTS: Rule = ("create patch update", "core events.k8s.io", "events");

const NODE: &[Rule] = &[
    ("create", "authentication.k8s.io", "tokenreviews"),
    ("create", "authorization.k8s.io", "subjectaccessreviews localsubjectaccessreviews"),
    (READ, "core", "services pods namespaces serviceaccounts"),
    ("impersonate", "core", "users"),
    ("create get list watch patch update delete", "core", "nodes"),
    ("patch update", "core", "nodes/status pods/status"),
    ("create delete", "core", "pods"),
    ("create", "core", "pods/eviction serviceaccounts/token"),
    (READ, "core", "configmaps secrets persistentvolumeclaims persistentvolumes"),
    ("create delete get list watch patch update", "coordination.k8s.io", "leases"),
    (READ, "storage.k8s.io", "csidrivers volumeattachments storageclasses"),
    ("create delete get list watch patch update", "storage.k8s.io", "csinodes"),
    (READ, "node.k8s.io", "runtimeclasses"),
    (READ, "discovery.k8s.io", "endpointslices"),
    ("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    (READ, "certificates.k8s.io", "clustertrustbundles"),
    ("create get list watch", "certificates.k8s.io", "podcertificaterequests"),
    EVENTS,
];

const SCHEDULER: &[Rule] = &[
    EVENTS,
    ("create get list watch update patch", "coordination.k8s.io", "leases"),
    (READ, "core", "nodes namespaces services replicationcontrollers"),
    ("get list watch patch update", "core", "persistentvolumes"),
    ("get list watch delete", "core", "pods"),
    ("create", "core", "bindings pods/binding"),
    ("patch update", "core", "pods/status"),
    (READ, "apps", "replicasets statefulsets"),
    (READ, "policy", "poddisruptionbudgets"),
    ("get list watch patch update", "core", "persistentvolumeclaims"),
    (READ, "scheduling.k8s.io", "priorityclasses"),
    (READ, "storage.k8s.io", "csidrivers csinodes csistoragecapacities storageclasses volumeattachments"),
];

/// The controllers share one identity: deleting namespaces and collecting garbage reach every kind.
const CONTROLLERS: &[Rule] = &[
    ("get list watch delete deletecollection patch update", "*", "*"),
    (
        "create",
        "core",
        "pods configmaps endpoints events persistentvolumeclaims replicationcontrollers secrets serviceaccounts \
         serviceaccounts/token pods/eviction services",
    ),
    ("create", "apps", "controllerrevisions daemonsets deployments replicasets statefulsets"),
    ("create", "batch", "jobs"),
    ("create", "discovery.k8s.io", "endpointslices"),
    ("create", "coordination.k8s.io", "leases"),
    ("create", "events.k8s.io", "events"),
    ("create", "networking.k8s.io", "ipaddresses"),
    ("create", "authorization.k8s.io", "subjectaccessreviews"),
    ("approve sign", "certificates.k8s.io", "signers"),
    ("get", "", "*"),
];

const PROXIER: &[Rule] = &[
    (READ, "core", "endpoints services nodes"),
    (READ, "discovery.k8s.io", "endpointslices"),
    (READ, "networking.k8s.io", "servicecidrs networkpolicies"),
    (READ, "core", "pods namespaces"),
    EVENTS,
];

const DNS: &[Rule] = &[
    (READ, "core", "endpoints services pods namespaces nodes"),
    (READ, "discovery.k8s.io", "endpointslices"),
];

const SELF_REVIEWS: &[Rule] = &[
    ("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
    ("create", "authentication.k8s.io", "selfsubjectreviews"),
];

/// A cluster role: name, label of the aggregated role it belongs to or "", and its parts.
pub(crate) struct RoleData {
    pub(crate) name: &'static str,
    parts: &'static [&'static [Rule]],
}

pub(crate) const CLUSTER_ROLES: &[RoleData] = &[
    RoleData { name: "cluster-admin", parts: &[&[("*", "*", "*"), ("*", "", "*")]] },
    RoleData { name: "admin", parts: &[VIEW, EDIT, ADMIN] },
    RoleData { name: "edit", parts: &[VIEW, EDIT] },
    RoleData { name: "view", parts: &[VIEW] },
    RoleData { name: "system:basic-user", parts: &[SELF_REVIEWS] },
    RoleData {
        name: "system:discovery",
        parts: &[&[(
            "get",
            "",
            "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
        )]],
    },
    RoleData {
        name: "system:public-info-viewer",
        parts: &[&[("get", "", "/healthz /livez /readyz /version /version/")]],
    },
    RoleData {
        name: "system:service-account-issuer-discovery",
        parts: &[&[(
            "get",
            "",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )]],
    },
    RoleData {
        name: "system:monitoring",
        parts: &[&[(
            "get",
            "",
            "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
        )]],
    },
    RoleData {
        name: "system:auth-delegator",
        parts: &[&[
            ("create", "authentication.k8s.io", "tokenreviews"),
            ("create", "authorization.k8s.io", "subjectaccessreviews"),
        ]],
    },
    RoleData { name: "system:node", parts: &[NODE] },
    RoleData { name: "system:node-proxier", parts: &[PROXIER] },
    RoleData { name: "system:kube-scheduler", parts: &[SCHEDULER] },
    RoleData { name: "system:kube-controller-manager", parts: &[CONTROLLERS] },
    RoleData { name: "system:kube-dns", parts: &[DNS] },
    RoleData {
        name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        parts: &[&[("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")]],
    },
    RoleData {
        name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        parts: &[&[("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")]],
    },
    RoleData {
        name: "system:cluster-trust-bundle-discovery",
        parts: &[&[(READ, "certificates.k8s.io", "clustertrustbundles")]],
    },
    RoleData {
        name: "system:node-bootstrapper",
        parts: &[&[("create get list watch", "certificates.k8s.io", "certificatesigningrequests")]],
    },
];

/// (name of binding and cluster role, subjects as `User:…` or `Group:…`).
pub(crate) const CLUSTER_ROLE_BINDINGS: &[(&str, &str)] = &[
    ("cluster-admin", "Group:system:masters"),
    ("system:basic-user", "Group:system:authenticated"),
    ("system:discovery", "Group:system:authenticated"),
    ("system:public-info-viewer", "Group:system:authenticated Group:system:unauthenticated"),
    ("system:service-account-issuer-discovery", "Group:system:serviceaccounts"),
    ("system:cluster-trust-bundle-discovery", "Group:system:serviceaccounts"),
    ("system:monitoring", "Group:system:monitoring"),
    ("system:node-proxier", "User:system:kube-proxy"),
    ("system:kube-scheduler", "User:system:kube-scheduler"),
    ("system:kube-controller-manager", "User:system:kube-controller-manager"),
    ("system:node-bootstrapper", "Group:system:bootstrappers"),
    ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", "Group:system:bootstrappers"),
    ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "Group:system:nodes"),
    ("system:kube-dns", "User:system:kube-dns User:system:serviceaccount:kube-system:kube-dns"),
];

impl RoleData {
    /// The rules as they are in the object.
    pub(crate) fn rules(&self) -> Value {
        self.parts.iter().flat_map(|part| part.iter()).map(rule).collect()
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().map(|word| if word == "core" { "" } else { word }).collect()
}

fn rule((verbs, groups, resources): &Rule) -> Value {
    if groups.is_empty() {
        json!({"verbs": words(verbs), "nonResourceURLs": words(resources)})
    } else {
        json!({"verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources)})
    }
}

/// Metadata of a bootstrap object.
fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

/// All bootstrap ClusterRoles.
pub(crate) fn cluster_roles() -> impl Iterator<Item = Value> {
    CLUSTER_ROLES.iter().map(|role| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": metadata(role.name), "rules": role.rules(),
        })
    })
}

/// All bootstrap ClusterRoleBindings.
pub(crate) fn cluster_role_bindings() -> impl Iterator<Item = Value> {
    CLUSTER_ROLE_BINDINGS.iter().map(|(name, subjects)| {
        let subjects: Vec<Value> = subjects
            .split_whitespace()
            .filter_map(|subject| subject.split_once(':'))
            .map(|(kind, name)| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}))
            .collect();
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": metadata(name), "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        })
    })
}

/// Where the namespaced ones are.
pub(crate) const NAMESPACE: &str = "kube-system";
/// The ConfigMap that tells other API servers how to find out who asks them.
pub(crate) const AUTHENTICATION: &str = "extension-apiserver-authentication";
const AUTHENTICATION_READER: &str = "extension-apiserver-authentication-reader";

/// All bootstrap Roles.
pub(crate) fn roles() -> [Value; 1] {
    [json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata(AUTHENTICATION_READER),
        "rules": [{"verbs": words(READ), "apiGroups": [""], "resources": ["configmaps"],
            "resourceNames": [AUTHENTICATION]}],
    })]
}

/// All bootstrap RoleBindings.
pub(crate) fn role_bindings() -> [Value; 1] {
    let users = ["system:kube-controller-manager", "system:kube-scheduler"];
    let subjects =
        users.map(|name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}));
    [json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": metadata(&format!("system::{AUTHENTICATION_READER}")), "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": AUTHENTICATION_READER},
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_has_its_role_and_subjects() {
        for (name, subjects) in CLUSTER_ROLE_BINDINGS {
            assert!(CLUSTER_ROLES.iter().any(|role| role.name == *name), "{name}");
            assert!(
                subjects.split_whitespace().all(|s| s.starts_with("User:") || s.starts_with("Group:")),
                "{name}"
            );
        }
    }

    #[test]
    fn url_rules_and_resource_rules_differ() {
        let rules = CLUSTER_ROLES[0].rules();
        assert_eq!(rules[0], json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert_eq!(rules[1], json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
}
