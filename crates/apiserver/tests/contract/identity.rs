//! Tokens of service accounts: issued, recognised, and worthless once what they are bound to is gone.

use api::Verb;
use serde_json::{Value, json};

use crate::common::{Fixture, at};

async fn setup() -> Fixture {
    let f = Fixture::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    f.create(&at("", "pods", "default"), pod).await.unwrap();
    f
}

async fn request_token(f: &Fixture, spec: Value) -> Result<Value, api::Status> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request = at("", "serviceaccounts", "default").request(Verb::Create, Some("default"), Some("token"));
    f.json(request.with_json(body.to_string())).await
}

async fn review(f: &Fixture, token: &str, audiences: Value) -> Value {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences}});
    f.create(&at("authentication.k8s.io", "tokenreviews", ""), body).await.unwrap()["status"].clone()
}

#[tokio::test]
async fn tokens_make_the_round_trip() {
    let f = setup().await;
    let token = request_token(&f, json!({"audiences": []})).await.unwrap();
    let text = token["status"]["token"].as_str().unwrap();
    assert_eq!(token["spec"]["expirationSeconds"], 3600);
    let status = review(&f, text, json!([])).await;
    assert_eq!(
        (&status["authenticated"], &status["user"]["username"]),
        (&json!(true), &json!("system:serviceaccount:default:default"))
    );
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(status["user"]["groups"], groups);
    assert_eq!(
        review(&f, text, json!(["elsewhere"])).await["authenticated"],
        Value::Null,
        "another audience"
    );
    assert_eq!(
        review(&f, &format!("{text}x"), json!([])).await["authenticated"],
        Value::Null,
        "another signature"
    );
    assert_eq!(
        request_token(&f, json!({"audiences": [], "expirationSeconds": 5})).await.unwrap_err().code,
        422
    );
}

#[tokio::test]
async fn audiences_are_kept() {
    let f = setup().await;
    let token = request_token(&f, json!({"audiences": ["vault"]})).await.unwrap();
    let text = token["status"]["token"].as_str().unwrap();
    assert_eq!(review(&f, text, json!([])).await["authenticated"], Value::Null);
    let status = review(&f, text, json!(["vault", "other"])).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
}

#[tokio::test]
async fn bound_tokens_end_with_what_they_are_bound_to() {
    let f = setup().await;
    let bound = json!({"audiences": [], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}});
    let token = request_token(&f, bound.clone()).await.unwrap();
    let text = token["status"]["token"].as_str().unwrap();
    let status = review(&f, text, json!([])).await;
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    f.delete(&at("", "pods", "default"), "p").await.unwrap();
    assert_eq!(review(&f, text, json!([])).await["authenticated"], Value::Null);
    assert_eq!(request_token(&f, bound).await.unwrap_err().code, 404);
    let wrong =
        json!({"audiences": [], "boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "p"}});
    assert_eq!(request_token(&f, wrong).await.unwrap_err().code, 400);
    let other = request_token(&f, json!({"audiences": []})).await.unwrap();
    f.delete(&at("", "serviceaccounts", "default"), "default").await.unwrap();
    let status = review(&f, other["status"]["token"].as_str().unwrap(), json!([])).await;
    assert_eq!(status["authenticated"], Value::Null, "the service account is gone");
}

#[tokio::test]
async fn keys_are_published() {
    let f = Fixture::new().await;
    let keys = f.json(api::ApiRequest::path("/openid/v1/jwks")).await.unwrap();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
    let discovery = f.json(api::ApiRequest::path("/.well-known/openid-configuration")).await.unwrap();
    assert_eq!(discovery["issuer"], "https://kubernetes.default.svc.cluster.local");
}
