//! What a machine that joins needs: a pod network of its own, and a certificate request nobody can lie in.

use api::Object;
use api::Verb;
use apiserver::UserInfo;
use base64::Engine as _;
use serde_json::{Value, json};

use crate::common::{Fixture, at};

/// A CertificateSigningRequest that claims to be from an administrator.
pub(crate) fn certificate_request() -> Value {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    json!({"spec": {
        "request": base64::engine::general_purpose::STANDARD.encode(pem),
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"],
        "username": "admin", "groups": ["system:masters"],
    }})
}

#[tokio::test]
async fn each_node_has_its_pod_network() {
    let f = Fixture::new().await;
    let nodes = at("", "nodes", "");
    let node = |name: &str, cidr: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidr}});
    let cidr = |node: &Value| node["spec"]["podCIDRs"][0].as_str().unwrap_or_default().to_owned();
    let a = f.create(&nodes, node("a", Value::Null)).await.unwrap();
    let b = f.create(&nodes, node("b", Value::Null)).await.unwrap();
    assert_eq!((cidr(&a).as_str(), cidr(&b).as_str()), ("10.244.1.0/24", "10.244.2.0/24"));
    let first = f.create(&nodes, node("first", "10.244.0.0/24".into())).await.unwrap();
    assert_eq!(cidr(&first), "10.244.0.0/24");
    let taken = f.create(&nodes, node("c", "10.244.2.0/24".into())).await.unwrap_err();
    assert_eq!(taken.code, 422, "{taken}");
    f.delete(&nodes, "a").await.unwrap();
    let c = f.create(&nodes, node("c", Value::Null)).await.unwrap();
    assert_eq!(cidr(&c), "10.244.1.0/24", "what was given back is given again");
}

#[tokio::test]
async fn a_cluster_may_gain_a_second_family() {
    let f = Fixture::new().await;
    let (nodes, services) = (at("", "nodes", ""), at("", "services", "default"));
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let networks = |node: &Value| node["spec"]["podCIDRs"].clone();
    let old = f.create(&nodes, node("old")).await.unwrap();
    assert_eq!(networks(&old), json!(["10.244.1.0/24"]));
    let spec = json!({"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec});
    f.create(&services, service).await.unwrap();

    let f = f.again_with_two_families().await;
    let both = json!(["10.244.1.0/24", "fd00:10:244:1::/64"]);
    assert_eq!(networks(&f.get(&nodes, "old").await.unwrap()), both);
    let new = f.create(&nodes, node("new")).await.unwrap();
    assert_eq!(networks(&new), json!(["10.244.2.0/24", "fd00:10:244:2::/64"]));
    let mut stolen = node("thief");
    stolen["spec"] = json!({"podCIDRs": ["10.244.7.0/24", "fd00:10:244:2::/64"]});
    assert_eq!(f.create(&nodes, stolen).await.unwrap_err().code, 422);
    let ranges = f.get(&at("networking.k8s.io", "servicecidrs", ""), "kubernetes").await.unwrap();
    assert_eq!(ranges["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:10:96::/112"]));
    // Services don't change because the cluster does.
    let mut web = f.get(&services, "web").await.unwrap();
    assert_eq!(web["spec"]["ipFamilies"], json!(["IPv4"]));
    web["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    let web = f.update(&services, "web", &web).await.unwrap();
    assert_eq!(web["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert!(web["spec"]["clusterIPs"][1].as_str().unwrap().starts_with("fd00:10:96::"), "{web}");
}

#[tokio::test]
async fn a_certificate_request_says_truly_who_asks() {
    let f = Fixture::new().await;
    let requests = at("certificates.k8s.io", "certificatesigningrequests", "");
    let mut object = certificate_request();
    object["apiVersion"] = "certificates.k8s.io/v1".into();
    object["kind"] = "CertificateSigningRequest".into();
    object["metadata"] = json!({"name": "x"});
    object["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let user = UserInfo::new("system:bootstrap:abc123", &["system:bootstrappers", "system:authenticated"]);
    let create = requests.request(Verb::Create, None, None).with_json(object.to_string());
    let created = f.send(&user, create).await.unwrap().into_bytes().unwrap();
    let created = Object::from_value(serde_json::from_slice(&created).unwrap()).unwrap();
    assert_eq!(created.str(&["spec", "username"]), "system:bootstrap:abc123");
    assert_eq!(
        created.get(&["spec", "groups"]),
        Some(&json!(["system:bootstrappers", "system:authenticated"]))
    );
    assert_eq!(created.get(&["status", "conditions"]), None, "nobody approves by creating");
    let approval = |verb| requests.request(verb, Some("x"), Some("approval"));
    object["metadata"]["resourceVersion"] = created.resource_version().into();
    let forbidden = f.send(&user, approval(Verb::Update).with_json(object.to_string())).await.err().unwrap();
    assert_eq!(forbidden.code, 403);
    object["status"]["certificate"] = "YQ==".into();
    let approved = f.json(approval(Verb::Update).with_json(object.to_string())).await.unwrap();
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(approved["status"]["certificate"], Value::Null, "the approver does not issue");
    assert_eq!(approved["spec"]["username"], "system:bootstrap:abc123");
    object["metadata"]["resourceVersion"] = approved["metadata"]["resourceVersion"].clone();
    object["status"]["conditions"] = json!([]);
    let issued = f.update_status(&requests, "x", &object).await.unwrap();
    assert_eq!(issued["status"]["certificate"], "YQ==");
    assert_eq!(issued["status"]["conditions"][0]["type"], "Approved", "the issuer does not decide");
}

#[tokio::test]
async fn who_decides_for_a_signer_needs_its_verb_too() {
    let f = Fixture::new().await;
    let rbac = |resource: &str| at("rbac.authorization.k8s.io", resource, "");
    let carl = UserInfo::new("carl", &["system:authenticated"]);
    let grant = async |name: &str, rule: Value| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": [rule]});
        f.create(&rbac("clusterroles"), role).await.unwrap();
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "carl"}]});
        f.create(&rbac("clusterrolebindings"), binding).await.unwrap();
    };
    let group = json!(["certificates.k8s.io"]);
    let parts = ["certificatesigningrequests/approval", "certificatesigningrequests/status"];
    grant("parts", json!({"verbs": ["update"], "apiGroups": group, "resources": parts})).await;

    let requests = at("certificates.k8s.io", "certificatesigningrequests", "");
    let mut object = certificate_request();
    object["metadata"] = json!({"name": "x"});
    let mut object = f.create(&requests, object).await.unwrap();
    let signer = object["spec"]["signerName"].clone();
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "Because"}]);
    let write = async |part: &str, object: &Value| {
        let put = requests.request(Verb::Update, Some("x"), Some(part)).with_json(object.to_string());
        f.send(&carl, put).await.map(|_| ()).map_err(|status| status.message)
    };
    object["status"] = json!({"conditions": condition("Approved")});
    let refused = write("approval", &object).await.unwrap_err();
    let want = "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client-kubelet\"";
    assert!(refused.ends_with(want), "{refused}");
    let rule = |verb: &str, name: &Value| {
        json!({"verbs": [verb], "apiGroups": group, "resources": ["signers"],
        "resourceNames": [name]})
    };
    grant("another", rule("approve", &"kubernetes.io/kubelet-serving".into())).await;
    assert!(write("approval", &object).await.is_err(), "another signer");
    grant("approve", rule("approve", &signer)).await;
    write("approval", &object).await.unwrap();

    let mut object = f.json(requests.request(Verb::Get, Some("x"), None)).await.unwrap();
    write("status", &object).await.expect("nothing is said in the signer's name");
    object["status"]["certificate"] = "YQ==".into();
    object["metadata"]["resourceVersion"] = Value::Null;
    let refused = write("status", &object).await.unwrap_err();
    assert!(refused.contains("user not permitted to sign requests with signerName"), "{refused}");
    grant("sign", rule("sign", &"kubernetes.io/*".into())).await;
    write("status", &object).await.unwrap();
}

#[tokio::test]
async fn nobody_asks_for_the_certificate_of_an_administrator() {
    let f = Fixture::new().await;
    let requests = at("certificates.k8s.io", "certificatesigningrequests", "");
    for (organisation, code) in [("system:masters", 403), ("people", 201)] {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organisation);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let object = json!({"metadata": {"name": organisation.replace(':', "-")}, "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
        let created = f.create(&requests, object).await;
        assert_eq!(created.map_or_else(|status| status.code, |_| 201), code, "{organisation}");
    }
}

#[tokio::test]
async fn a_node_sees_the_secrets_of_its_own_pods_and_writes_only_about_itself() {
    let f = Fixture::new().await;
    let node = UserInfo::new("system:node:a", &["system:nodes", "system:authenticated"]);
    let (secrets, pods, nodes) =
        (at("", "secrets", "default"), at("", "pods", "default"), at("", "nodes", ""));
    f.create(&at("", "serviceaccounts", "default"), json!({"metadata": {"name": "default"}})).await.unwrap();
    for name in ["used", "elsewhere", "unused"] {
        f.create(&secrets, json!({"metadata": {"name": name}})).await.unwrap();
    }
    for (name, at_node, secret) in [("mine", "a", "used"), ("other", "b", "elsewhere")] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": at_node,
            "containers": [{"name": "c", "image": "x", "envFrom": [{"secretRef": {"name": secret}}]}]}});
        f.create(&pods, pod).await.unwrap();
    }
    let code =
        async |request: api::ApiRequest| f.send(&node, request).await.map_or_else(|s| s.code, |r| r.code);
    for (secret, want) in [("used", 200), ("elsewhere", 403), ("unused", 403)] {
        assert_eq!(code(secrets.request(Verb::Get, Some(secret), None)).await, want, "{secret}");
    }
    assert_eq!(code(secrets.request(Verb::List, None, None)).await, 403);
    let mut pinned = secrets.request(Verb::Watch, None, None);
    pinned.options.field_selector = Some("metadata.name=used".into());
    assert_eq!(code(pinned).await, 200);

    let of_node = |verb, selector: Option<&str>| {
        let mut request = pods.request(verb, None, None);
        request.options.field_selector = selector.map(str::to_owned);
        code(request)
    };
    for (selector, want) in [(Some("spec.nodeName=a"), 200), (Some("spec.nodeName=b"), 403), (None, 403)] {
        assert_eq!(of_node(Verb::List, selector).await, want, "{selector:?}");
        assert_eq!(of_node(Verb::Watch, selector).await, want, "{selector:?}");
    }
    for (pod, want) in [("mine", 200), ("other", 403), ("gone", 404)] {
        assert_eq!(code(pods.request(Verb::Get, Some(pod), None)).await, want, "{pod}");
    }

    let object = |name: &str| json!({"metadata": {"name": name}}).to_string();
    let patch = |at: &crate::common::At, name: &str, sub: Option<&str>, body: Value| {
        let mut request = crate::common::patch_request(at, name, api::PatchType::Merge, &body);
        if let api::Target::Resource { subresource, .. } = &mut request.target {
            *subresource = sub.map(str::to_owned);
        }
        request
    };
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(code(patch(&pods, "mine", Some("status"), status.clone())).await, 200);
    assert_eq!(code(patch(&pods, "other", Some("status"), status)).await, 403);
    assert_eq!(code(patch(&pods, "other", None, json!({"metadata": {"labels": {"a": "b"}}}))).await, 403);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "other"}});
    let evict = pods.request(Verb::Create, Some("other"), Some("eviction")).with_json(eviction.to_string());
    assert_eq!(code(evict).await, 403);
    assert_eq!(code(pods.request(Verb::Delete, Some("other"), None)).await, 403);
    f.create(&at("", "serviceaccounts", "default"), json!({"metadata": {"name": "foreign"}})).await.unwrap();
    let token =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let accounts = at("", "serviceaccounts", "default");
    let of_foreign =
        accounts.request(Verb::Create, Some("foreign"), Some("token")).with_json(token.to_string());
    assert_eq!(code(of_foreign).await, 403, "an account that no pod of the node runs as");
    assert_eq!(code(secrets.request(Verb::Create, None, None).with_json(object("new"))).await, 403);
    assert_eq!(code(nodes.request(Verb::Create, None, None).with_json(object("b"))).await, 403);
    f.create(&nodes, json!({"metadata": {"name": "c"}})).await.unwrap();
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    assert_eq!(code(patch(&nodes, "c", None, label.clone())).await, 403, "another node");
    assert_eq!(code(patch(&nodes, "c", Some("status"), json!({"status": {}}))).await, 403, "its status");
    assert_eq!(code(nodes.request(Verb::Delete, Some("c"), None)).await, 403);
    assert_eq!(code(nodes.request(Verb::Create, None, None).with_json(object("a"))).await, 201);
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    assert_eq!(code(patch(&nodes, "a", None, taint)).await, 403);
    assert_eq!(code(patch(&nodes, "a", None, json!({"metadata": {"labels": {"x": "y"}}}))).await, 200);
    let lease = at("coordination.k8s.io", "leases", "kube-node-lease");
    assert_eq!(code(lease.request(Verb::Create, None, None).with_json(object("a"))).await, 201);
    assert_eq!(code(lease.request(Verb::Create, None, None).with_json(object("b"))).await, 403);
    let own = at("coordination.k8s.io", "leases", "default");
    assert_eq!(code(own.request(Verb::Create, None, None).with_json(object("a"))).await, 403);
}
