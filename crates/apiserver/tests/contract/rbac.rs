//! Who may do what: a golden table of decisions, escalation, reviews.

use api::{ApiRequest, GroupVersionResource, Verb};
use apiserver::UserInfo;
use serde_json::{Value, json};

use crate::common::{Fixture, at, configmap, configmaps};

fn user(name: &str) -> UserInfo {
    UserInfo::new(name, &["system:authenticated"])
}

async fn setup() -> Fixture {
    let f = Fixture::new().await;
    let rbac = |resource: &str, namespace: &str| at("rbac.authorization.k8s.io", resource, namespace);
    let binding = |name: &str, kind: &str, role: &str, user: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]})
    };
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "one-secret"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"]},
            {"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"]}]});
    f.create(&rbac("roles", "default"), role).await.unwrap();
    let bindings = rbac("rolebindings", "default");
    f.create(&bindings, binding("viewers", "ClusterRole", "view", "vera")).await.unwrap();
    f.create(&bindings, binding("editors", "ClusterRole", "edit", "eddy")).await.unwrap();
    f.create(&bindings, binding("admins", "ClusterRole", "admin", "ada")).await.unwrap();
    f.create(&bindings, binding("secret", "Role", "one-secret", "sam")).await.unwrap();
    let service_account = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "robots"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "robot"}]});
    f.create(&bindings, service_account).await.unwrap();
    f
}

#[tokio::test]
async fn decisions() {
    let f = setup().await;
    let nodes = |name: &str| UserInfo::new(name, &["system:nodes", "system:authenticated"]);
    let anonymous = UserInfo::new("system:anonymous", &["system:unauthenticated"]);
    let table: Vec<(UserInfo, Verb, &str, &str, &str, &str, bool)> = vec![
        // user, verb, group, resource[/sub], namespace, name, allowed
        (user("nobody"), Verb::Get, "", "pods", "default", "x", false),
        (user("vera"), Verb::Get, "", "pods", "default", "x", true),
        (user("vera"), Verb::List, "apps", "deployments", "default", "", true),
        (user("vera"), Verb::List, "", "pods", "kube-system", "", false),
        (user("vera"), Verb::List, "", "pods", "", "", false),
        (user("vera"), Verb::Get, "", "secrets", "default", "x", false),
        (user("vera"), Verb::Get, "", "pods/log", "default", "x", true),
        (user("vera"), Verb::Delete, "", "pods", "default", "x", false),
        (user("vera"), Verb::Get, "", "namespaces", "default", "default", true),
        (user("eddy"), Verb::Delete, "", "pods", "default", "x", true),
        (user("eddy"), Verb::Create, "", "pods/exec", "default", "x", true),
        (user("vera"), Verb::Create, "", "pods/exec", "default", "x", false),
        (user("eddy"), Verb::Create, "rbac.authorization.k8s.io", "roles", "default", "", false),
        (user("ada"), Verb::Create, "rbac.authorization.k8s.io", "roles", "default", "", true),
        (user("ada"), Verb::Create, "rbac.authorization.k8s.io", "clusterroles", "", "", false),
        (user("sam"), Verb::Get, "", "secrets", "default", "mine", true),
        (user("sam"), Verb::Get, "", "secrets", "default", "yours", false),
        (user("sam"), Verb::List, "", "secrets", "default", "", false),
        (user("system:serviceaccount:kube-system:robot"), Verb::List, "", "pods", "default", "", true),
        (user("system:serviceaccount:default:robot"), Verb::List, "", "pods", "default", "", false),
        (user("system:kube-scheduler"), Verb::Create, "", "pods/binding", "default", "x", true),
        (user("system:kube-scheduler"), Verb::Create, "", "pods", "default", "", false),
        (user("system:kube-controller-manager"), Verb::Delete, "apps", "replicasets", "default", "x", true),
        (user("system:kube-controller-manager"), Verb::Create, "", "pods", "default", "", true),
        (user("system:kube-proxy"), Verb::Watch, "discovery.k8s.io", "endpointslices", "", "", true),
        (user("system:kube-dns"), Verb::Watch, "", "services", "", "", true),
        (nodes("system:node:n1"), Verb::Patch, "", "nodes/status", "", "n1", true),
        (
            nodes("system:node:n1"),
            Verb::Update,
            "coordination.k8s.io",
            "leases",
            "kube-node-lease",
            "n1",
            true,
        ),
        (nodes("system:node:n1"), Verb::Delete, "apps", "deployments", "default", "x", false),
        (anonymous.clone(), Verb::List, "", "pods", "default", "", false),
    ];
    for (user, verb, group, resource, namespace, name, want) in table {
        let (resource, subresource) = resource.split_once('/').map_or((resource, ""), |(r, s)| (r, s));
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": user.name, "groups": user.groups, "resourceAttributes": {"verb": verb.as_str(), "group": group,
                "resource": resource, "subresource": subresource, "namespace": namespace, "name": name}}});
        let answer = f.create(&at("authorization.k8s.io", "subjectaccessreviews", ""), review).await.unwrap();
        assert_eq!(
            answer["status"]["allowed"], want,
            "{} {verb:?} {resource}/{subresource} {namespace}",
            user.name
        );
    }
    for (who, path, want) in [
        (&anonymous, "/healthz", true),
        (&anonymous, "/version", true),
        (&anonymous, "/apis", false),
        (&user("nobody"), "/apis", true),
        (&user("nobody"), "/metrics", false),
    ] {
        let result = f.send(who, ApiRequest::path(path)).await;
        assert_eq!(result.is_ok(), want, "{} {path}", who.name);
    }
}

#[tokio::test]
async fn refusals_read_as_in_kubernetes() {
    let f = setup().await;
    let list = configmaps().request(Verb::List, None, None);
    let refused = f.send(&user("nobody"), list).await.err().unwrap();
    let text = "configmaps is forbidden: User \"nobody\" cannot list resource \"configmaps\" in API group \"\" in the \
                namespace \"default\"";
    assert_eq!((refused.code, refused.message.as_str()), (403, text));
    let gvr = GroupVersionResource::new("apps", "v1", "deployments");
    let scale = ApiRequest::resource(Verb::Get, gvr, Some("shop"), Some("d"), Some("scale"));
    let refused = f.send(&user("nobody"), scale).await.err().unwrap();
    let text = "deployments.apps \"d\" is forbidden: User \"nobody\" cannot get resource \"deployments/scale\" in API \
                group \"apps\" in the namespace \"shop\"";
    assert_eq!(refused.message, text);
    let path = f.send(&user("nobody"), ApiRequest::path("/secret")).await.err().unwrap();
    assert_eq!(path.message, "forbidden: User \"nobody\" cannot get path \"/secret\"");
}

#[tokio::test]
async fn a_pinned_name_counts_for_lists() {
    let f = setup().await;
    let mut request = at("", "secrets", "default").request(Verb::List, None, None);
    request.options.field_selector = Some("metadata.name=mine".into());
    assert!(f.send(&user("sam"), request).await.is_ok());
}

#[tokio::test]
async fn nobody_gives_more_than_they_have() {
    let f = setup().await;
    let roles = at("rbac.authorization.k8s.io", "roles", "default");
    let role = |name: &str, resource: &str, verb: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]})
    };
    let send = |who: &'static str, object: Value, collection: crate::common::At| {
        let f = &f;
        async move {
            let request = collection.request(Verb::Create, None, None).with_json(object.to_string());
            f.send(&user(who), request).await.map(drop)
        }
    };
    send("ada", role("fine", "pods", "get"), roles.clone()).await.unwrap();
    let refused = send("ada", role("too-much", "nodes", "delete"), roles.clone()).await.unwrap_err();
    assert!(refused.code == 403 && refused.message.contains("not currently held"), "{refused}");
    let bindings = at("rbac.authorization.k8s.io", "rolebindings", "default");
    let bind = |name: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "friend"}]})
    };
    send("ada", bind("f-view", "view"), bindings.clone()).await.unwrap();
    assert_eq!(send("ada", bind("f-root", "cluster-admin"), bindings.clone()).await.unwrap_err().code, 403);
    let allowed = f.send(&user("friend"), configmaps().request(Verb::List, None, None)).await;
    assert!(allowed.is_ok(), "a binding works as soon as it is made");
}

#[tokio::test]
async fn self_reviews_answer_for_the_caller() {
    let f = setup().await;
    let ask = |collection: crate::common::At, object: Value| {
        let f = &f;
        async move {
            let request = collection.request(Verb::Create, None, None).with_json(object.to_string());
            let bytes = f.send(&user("vera"), request).await.unwrap().into_bytes().unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        }
    };
    let me = ask(
        at("authentication.k8s.io", "selfsubjectreviews", ""),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
    );
    assert_eq!(me.await["status"]["userInfo"]["username"], "vera");
    let rules = ask(
        at("authorization.k8s.io", "selfsubjectrulesreviews", ""),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}}),
    );
    assert!(rules.await["status"]["resourceRules"].as_array().is_some_and(|rules| rules.len() > 5));
    let can = ask(
        at("authorization.k8s.io", "selfsubjectaccessreviews", ""),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}}),
    );
    assert_eq!(can.await["status"]["allowed"], true);
}

#[tokio::test]
async fn the_bootstrap_policy_comes_back_and_keeps_additions() {
    let f = Fixture::new().await;
    let roles = at("rbac.authorization.k8s.io", "clusterroles", "");
    let mut view = f.get(&roles, "view").await.unwrap();
    let count = view["rules"].as_array().unwrap().len();
    let own = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["things"]});
    view["rules"] = json!([own]);
    f.update(&roles, "view", &view).await.unwrap();
    f.delete(&roles, "edit").await.unwrap();
    let store = std::sync::Arc::clone(&f.store) as std::sync::Arc<dyn store::Store>;
    apiserver::ApiServer::open(store, crate::common::config(&f.pki)).await.unwrap();
    let view = f.get(&roles, "view").await.unwrap();
    assert_eq!(view["rules"].as_array().unwrap().len(), count + 1);
    assert!(f.get(&roles, "edit").await.is_ok());
    assert!(f.create(&configmaps(), configmap("x", json!({}), json!({}))).await.is_ok());
}
