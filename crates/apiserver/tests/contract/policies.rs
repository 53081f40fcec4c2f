//! Admission policies: what is refused, warned of and changed, with parameters, variables and conditions.

use api::Verb;
use serde_json::{Value, json};

use crate::common::{At, Fixture, at, configmap, configmaps};

fn registration(resource: &str) -> At {
    at("admissionregistration.k8s.io", resource, "")
}

fn rule(resource: &str) -> Value {
    let (group, resource) = resource.rsplit_once('/').unwrap_or(("", resource));
    json!({"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]})
}

async fn policy(f: &Fixture, kind: &str, name: &str, resource: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [rule(resource)]});
    let policies = registration(&format!("{kind}admissionpolicies"));
    f.create(&policies, json!({"metadata": {"name": name}, "spec": spec})).await.unwrap()
}

async fn bind(f: &Fixture, kind: &str, name: &str, spec: Value) {
    let bindings = registration(&format!("{kind}admissionpolicybindings"));
    f.create(&bindings, json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_true_is_refused() {
    let f = Fixture::new().await;
    let spec = json!({
        "variables": [{"name": "size", "expression": "object.data.size()"}, {"name": "twice", "expression": "variables.size * 2"}],
        "matchConditions": [{"name": "not-me", "expression": "object.metadata.name != 'exempt'"}],
        "validations": [
            {"expression": "variables.twice < 4", "messageExpression": "'too many: ' + string(variables.size)"},
            {"expression": "namespaceObject.metadata.name == request.namespace && oldObject == null", "message": "no changes", "reason": "Forbidden"},
            {"expression": "!has(object.data.bad) || object.data.bad.x == 'y'"}]});
    policy(&f, "validating", "p", "configmaps", spec).await;
    let make =
        async |name: &str, data: Value| f.create(&configmaps(), configmap(name, json!({}), data)).await;
    make("unbound", json!({"a": "1", "b": "2"})).await.unwrap();
    bind(&f, "validating", "b", json!({"policyName": "p", "validationActions": ["Deny"]})).await;
    let refused = make("a", json!({"a": "1", "b": "2"})).await.unwrap_err();
    let want = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: too many: 2";
    assert_eq!((refused.code, refused.reason, refused.message.as_str()), (422, api::Reason::Invalid, want));
    make("exempt", json!({"a": "1", "b": "2"})).await.unwrap();
    let made = make("a", json!({"a": "1"})).await.unwrap();
    let refused = f.update(&configmaps(), "a", &made).await.unwrap_err();
    assert_eq!(refused.code, 403);
    assert!(refused.message.ends_with("denied request: no changes"), "{}", refused.message);
    let failed = make("c", json!({"bad": "1"})).await.unwrap_err().message;
    assert!(failed.contains("resulted in error: no such overload"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_actions_and_the_authorizer() {
    let f = Fixture::new().await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "web", "expression": "object.metadata.name.startsWith('web')"}],
        "validations": [{"expression": "int(object.data.n) <= int(params.data.most)"},
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('list').allowed()"},
            {"expression": "authorizer.requestResource.check('create').allowed()"}]});
    policy(&f, "validating", "p", "configmaps", spec).await;
    let reference = json!({"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"});
    bind(
        &f,
        "validating",
        "b",
        json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": reference}),
    )
    .await;
    let make = async |name: &str, n: &str| {
        f.create(&configmaps(), configmap(name, json!({}), json!({"n": n}))).await
    };
    let missing = make("web1", "1").await.unwrap_err().message;
    assert!(
        missing.contains("failed to configure binding: no params found for policy binding with `Deny`"),
        "{missing}"
    );
    make("other", "1").await.unwrap_err();
    let limits = registration("validatingadmissionpolicybindings");
    f.delete(&limits, "b").await.unwrap();
    f.create(&configmaps(), configmap("limits", json!({}), json!({"most": "3"}))).await.unwrap();
    bind(
        &f,
        "validating",
        "b",
        json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": reference}),
    )
    .await;
    make("web1", "3").await.unwrap();
    make("web2", "4").await.unwrap_err();
    f.delete(&limits, "b").await.unwrap();
    bind(
        &f,
        "validating",
        "b",
        json!({"policyName": "p", "validationActions": ["Warn"], "paramRef": reference}),
    )
    .await;
    let request = configmaps().request(Verb::Create, None, None);
    let request = request.with_json(configmap("web2", json!({}), json!({"n": "4"})).to_string());
    let response = f.send(&f.admin, request).await.unwrap();
    assert_eq!(
        response.warnings,
        [
            "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': failed expression: int(object.data.n) <= int(params.data.most)"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_change_objects() {
    let f = Fixture::new().await;
    let apply =
        |text: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": text}});
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        apply("Object{spec: Object.spec{replicas: 7, template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'b', image: 'new'}]}}}}"),
        apply("Object{metadata: Object.metadata{annotations: {'replicas': string(object.spec.replicas)}}}"),
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'x': 'y'}}]"}}]});
    policy(&f, "mutating", "p", "apps/deployments", spec).await;
    bind(&f, "mutating", "b", json!({"policyName": "p"})).await;
    let deployments = at("apps", "deployments", "default");
    let containers = json!([{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = f.create(&deployments, deployment.clone()).await.unwrap();
    assert_eq!(made["spec"]["replicas"], 7);
    let images: Vec<&Value> =
        (0..2).map(|i| &made["spec"]["template"]["spec"]["containers"][i]["image"]).collect();
    assert_eq!(images, ["a", "new"]);
    assert_eq!(made["metadata"]["annotations"]["replicas"], "7");
    assert_eq!(made["metadata"]["labels"], json!({"x": "y"}));
    // A list that only can be replaced as a whole, and an object in the wrong place.
    for (name, text, why) in [
        (
            "q",
            "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{tolerations: []}}}}",
            "may not mutate atomic arrays, maps or structs: .spec.template.spec.tolerations",
        ),
        ("r", "Object{spec: Object.status{}}", "type mismatch: unexpected type name \"Object.status\""),
    ] {
        policy(
            &f,
            "mutating",
            name,
            "apps/deployments",
            json!({"reinvocationPolicy": "Never", "mutations": [apply(text)]}),
        )
        .await;
        bind(&f, "mutating", name, json!({"policyName": name})).await;
        let refused = f.create(&deployments, deployment.clone()).await.unwrap_err();
        assert!(
            refused.message.starts_with(&format!("policy '{name}' with binding '{name}' denied request: ")),
            "{}",
            refused.message
        );
        assert!(refused.message.contains(why), "{}", refused.message);
        f.delete(&registration("mutatingadmissionpolicies"), name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_are_checked_when_they_are_written() {
    let f = Fixture::new().await;
    let make = async |validation: Value| {
        let spec = json!({"matchConstraints": {"resourceRules": [rule("apps/deployments")]}, "validations": [validation]});
        f.create(
            &registration("validatingadmissionpolicies"),
            json!({"metadata": {"name": "p"}, "spec": spec}),
        )
        .await
    };
    for (expression, why) in [
        (
            "nothing",
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'nothing' (in container '')",
        ),
        ("1 + 1", "must evaluate to bool"),
        ("variables.x == 1", "undefined field 'x'"),
        ("params.x == 1", "undeclared reference to 'params'"),
    ] {
        let refused = make(json!({"expression": expression})).await.unwrap_err();
        assert_eq!(refused.code, 422);
        assert!(
            refused.message.contains("spec.validations[0].expression: Invalid value"),
            "{}",
            refused.message
        );
        assert!(refused.message.contains(why), "{}", refused.message);
    }
    let made = make(json!({"expression": "object.spec.replicas > 1"})).await.unwrap();
    assert_eq!(made["status"], json!({"observedGeneration": 1, "typeChecking": {}}));
    let mut changed = made.clone();
    changed["spec"]["validations"][0]["expression"] = "object.spec.replicas > '1' && object.foo".into();
    let policies = registration("validatingadmissionpolicies");
    let changed = f.update(&policies, "p", &changed).await.unwrap();
    assert_eq!(changed["status"]["observedGeneration"], 2);
    let warning = &changed["status"]["typeChecking"]["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[0].expression");
    let text = warning["warning"].as_str().unwrap();
    assert!(
        text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload"),
        "{text}"
    );
    assert!(text.contains("undefined field 'foo'"), "{text}");
    let hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://x"}, "rules": [rule("pods")],
        "matchConditions": [{"name": "x", "expression": "... [] bad expression"}]});
    let hooks = json!({"metadata": {"name": "h"}, "webhooks": [hook]});
    let refused =
        f.create(&registration("validatingwebhookconfigurations"), hooks).await.unwrap_err().message;
    assert!(refused.contains("compilation failed: ERROR: <input>:1:2: Syntax error"), "{refused}");
}
