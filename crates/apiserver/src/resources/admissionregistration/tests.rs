use serde_json::{Value, json};

use crate::resources::tests::{defaulted, findings};

const GROUP: &str = "admissionregistration.k8s.io";

fn rule() -> Value {
    json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]})
}

fn configuration(change: impl FnOnce(&mut Value)) -> Value {
    let mut hook = json!({"name": "a.b.c", "rules": [rule()], "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": {"service": {"name": "s", "namespace": "n"}}});
    change(&mut hook);
    json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": [hook]})
}

#[test]
fn webhooks_get_kubernetes_defaults() {
    let hook =
        defaulted(GROUP, "mutatingwebhookconfigurations", configuration(|_| {}))["webhooks"][0].clone();
    let want = json!({"failurePolicy": "Fail", "matchPolicy": "Equivalent", "namespaceSelector": {},
        "objectSelector": {}, "timeoutSeconds": 10, "reinvocationPolicy": "Never"});
    for (field, value) in want.as_object().unwrap() {
        assert_eq!(&hook[field], value, "{field}");
    }
    assert_eq!(hook["rules"][0]["scope"], "*");
    assert_eq!(hook["clientConfig"]["service"]["port"], 443);
}

#[test]
fn wrong_webhooks_are_refused() {
    let table: Vec<(&str, Value, &str)> = vec![
        (
            "name",
            json!("a.b"),
            "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots\n",
        ),
        (
            "sideEffects",
            json!("Some"),
            "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"\n",
        ),
        (
            "timeoutSeconds",
            json!(31),
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds\n",
        ),
        (
            "admissionReviewVersions",
            json!(["v2"]),
            "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1\n",
        ),
        (
            "clientConfig",
            json!({"url": "http://x/"}),
            "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]\n",
        ),
        (
            "clientConfig",
            json!({}),
            "webhooks[0].clientConfig: Required value: exactly one of url or service is required\n",
        ),
        (
            "clientConfig",
            json!({"service": {"name": "s", "namespace": "n", "path": "/a//b"}}),
            "webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty\n",
        ),
        (
            "matchConditions",
            json!([{"name": "x", "expression": " "}]),
            "webhooks[0].matchConditions[0].expression: Required value\n",
        ),
        ("sideEffects", json!("None"), ""),
    ];
    for (field, value, want) in table {
        let object = configuration(|hook| hook[field] = value.clone());
        assert_eq!(findings(GROUP, "mutatingwebhookconfigurations", object), want, "{field} {value}");
    }
}

#[test]
fn rules_with_stars_stand_alone() {
    let table = [
        (json!(["pods/*", "pods/exec"]), "must not specify pods/exec"),
        (json!(["*/*", "pods"]), "must not specify other resources"),
        (json!(["*", "pods"]), "must not specify other resources without subresources"),
        (json!([]), "Required value"),
    ];
    for (resources, want) in table {
        let object = configuration(|hook| hook["rules"][0]["resources"] = resources.clone());
        let found = findings(GROUP, "validatingwebhookconfigurations", object);
        assert!(found.contains(want), "{resources}: {found}");
    }
}

fn policy(spec: &Value) -> Value {
    let mut whole = json!({"matchConstraints": {"resourceRules": [rule()]},
        "validations": [{"expression": "true"}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"metadata": {"name": "p"}, "spec": whole})
}

#[test]
fn wrong_policies_are_refused() {
    let table = [
        (json!({}), ""),
        (
            json!({"validations": []}),
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item\nspec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item\n",
        ),
        (
            json!({"variables": [{"name": "in", "expression": "1"}]}),
            "spec.variables[0].name: Invalid value: \"in\": must be a valid CEL identifier\n",
        ),
        (
            json!({"paramKind": {"apiVersion": "a/b/c", "kind": "X"}}),
            "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c\n",
        ),
        (
            json!({"validations": [{"expression": "true", "message": "a\nb"}]}),
            "spec.validations[0].message: Invalid value: \"a\\nb\": must not contain line breaks\n",
        ),
        (json!({"matchConstraints": null}), "spec.matchConstraints: Required value\n"),
    ];
    for (spec, want) in table {
        assert_eq!(findings(GROUP, "validatingadmissionpolicies", policy(&spec)), want, "{spec}");
    }
    let mutating = json!({"validations": null, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}}]});
    let found = findings(GROUP, "mutatingadmissionpolicies", policy(&mutating));
    assert!(
        found.contains(
            "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch"
        ),
        "{found}"
    );
}

#[test]
fn wrong_bindings_are_refused() {
    let binding = |spec: Value| {
        findings(GROUP, "validatingadmissionpolicybindings", json!({"metadata": {"name": "b"}, "spec": spec}))
    };
    assert_eq!(binding(json!({"policyName": "p", "validationActions": ["Deny"]})), "");
    let found = binding(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}));
    assert!(found.contains("must not contain both Deny and Warn"), "{found}");
    let found = binding(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {}}));
    assert!(
        found.contains("spec.paramRef: Required value: one of name or selector must be specified"),
        "{found}"
    );
    assert!(found.contains("parameterNotFoundAction: Required value"), "{found}");
}
