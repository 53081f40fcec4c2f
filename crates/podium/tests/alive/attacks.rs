//! What stolen credentials are good for: a pod's token, and a token with which machines join.

use api::{ApiRequest, GroupVersionResource, ObjectKey, Verb};
use base64::Engine as _;
use client::{Client, Identity};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use crate::server::{Server, eventually};

fn gvr(group: &str, resource: &str) -> GroupVersionResource {
    GroupVersionResource::new(group, "v1", resource)
}

async fn post(client: &Client, gvr: GroupVersionResource, namespace: Option<&str>, object: Value) -> u16 {
    let request = ApiRequest::resource(Verb::Create, gvr, namespace, None, None);
    client.call(request.with_json(object.to_string())).await.map_or_else(|s| s.code, |answer| answer.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_pod_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let admin = server.access().admin();
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    eventually("a pod can be made", async || {
        post(&admin, gvr("", "pods"), Some("default"), pod("a")).await == 201
    })
    .await;
    for namespace in ["default", "kube-system"] {
        assert_eq!(
            post(&admin, gvr("", "secrets"), Some(namespace), json!({"metadata": {"name": "s"}})).await,
            201
        );
    }
    let uid = admin.get::<k8s_openapi::api::core::v1::Pod>(&ObjectKey::new("default", "a")).await.unwrap();
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "audiences": [], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": uid.metadata.uid}}});
    let account = ObjectKey::new("default", "default");
    let token =
        admin.create_subresource(&gvr("", "serviceaccounts"), &account, "token", &body).await.unwrap();
    let token = token.str(&["status", "token"]).to_owned();
    let thief = server.access().client(Identity::Token(token));

    let path =
        async |path: &str| thief.call(ApiRequest::path(path)).await.map_or_else(|s| s.code, |r| r.code);
    assert_eq!(path("/version").await, 200, "it is somebody");
    for forbidden in [
        "/api/v1/namespaces/default/secrets/s",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/kube-system/secrets/s",
        "/api/v1/secrets",
        "/api/v1/nodes",
        "/api/v1/namespaces/default/pods/a",
        "/api/v1/namespaces/kube-system/configmaps",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        "/metrics",
    ] {
        assert_eq!(path(forbidden).await, 403, "{forbidden}");
    }
    for (group, resource, object) in [
        ("", "pods", pod("b")),
        ("", "secrets", json!({"metadata": {"name": "t"}})),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"metadata": {"name": "r"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}}),
        ),
    ] {
        assert_eq!(post(&thief, gvr(group, resource), Some("default"), object).await, 403, "{resource}");
    }
    let token_of = thief.create_subresource(&gvr("", "serviceaccounts"), &account, "token", &body).await;
    assert_eq!(token_of.unwrap_err().code, 403, "no further token");

    admin
        .delete(&gvr("", "pods"), &ObjectKey::new("default", "a"), api::RequestOptions::default())
        .await
        .unwrap();
    assert_eq!(path("/api/v1/nodes").await, 401, "the token ends with its pod");
    server.stop();
}

/// A request for a client certificate.
fn request(name: &str, organisation: &str, signer: &str, usage: &str) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    serde_json::from_value(json!({
        "metadata": {"generateName": "attack-"},
        "spec": {"request": base64::engine::general_purpose::STANDARD.encode(pem), "signerName": signer,
            "usages": ["digital signature", usage]},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_makes_new_nodes_only() {
    const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let admin = server.access().admin();
    assert_eq!(post(&admin, gvr("", "nodes"), None, json!({"metadata": {"name": "there"}})).await, 201);
    let token = json!({"metadata": {"name": "bootstrap-token-abc123"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abc123", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true"}});
    assert_eq!(post(&admin, gvr("", "secrets"), Some("kube-system"), token).await, 201);
    let bearer = "abc123.0123456789abcdef".to_owned();
    let thief = server.access().client(Identity::Token(bearer));

    let outcome = async |object: &CertificateSigningRequest| {
        let name = thief.create(None, object).await.unwrap().metadata.name.unwrap();
        let key = ObjectKey::new("", name);
        let verdict = async || {
            let seen = admin.get::<CertificateSigningRequest>(&key).await.unwrap();
            let status = seen.status.unwrap_or_default();
            let words =
                status.conditions.unwrap_or_default().into_iter().map(|c| c.type_).collect::<Vec<_>>();
            (words.join(","), status.certificate.is_some())
        };
        for _ in 0..20 {
            if !verdict().await.0.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        // an approval is signed a moment later
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        verdict().await
    };
    let none = (String::new(), false);
    let new = request("system:node:new", "system:nodes", KUBELET, "client auth");
    assert_eq!(outcome(&new).await, ("Approved".to_owned(), true));
    let existing = request("system:node:there", "system:nodes", KUBELET, "client auth");
    assert_eq!(outcome(&existing).await, ("Denied".to_owned(), false), "a node that exists");
    for (name, organisation, signer, usage) in [
        ("system:node:x", "system:masters", KUBELET, "client auth"),
        ("kubernetes-admin", "system:nodes", KUBELET, "client auth"),
        ("system:node:there", "system:nodes", "kubernetes.io/kubelet-serving", "server auth"),
        ("jane", "people", "kubernetes.io/kube-apiserver-client", "client auth"),
    ] {
        assert_eq!(outcome(&request(name, organisation, signer, usage)).await, none, "{name} {signer}");
    }
    let masters = request("jane", "system:masters", "kubernetes.io/kube-apiserver-client", "client auth");
    assert_eq!(thief.create(None, &masters).await.unwrap_err().code, 403);

    for path in ["/api/v1/secrets", "/api/v1/namespaces/kube-system/secrets", "/api/v1/nodes", "/api/v1/pods"]
    {
        let code = thief.call(ApiRequest::path(path)).await.map_or_else(|s| s.code, |r| r.code);
        assert_eq!(code, 403, "{path}");
    }
    assert_eq!(post(&thief, gvr("", "nodes"), None, json!({"metadata": {"name": "n"}})).await, 403);
    server.stop();
}
