//! The table as text, and defaults and rules of the kinds as tables of cases.

use std::fmt::Write;

use api::{Object, Verb};
use expect_test::{expect, expect_file};
use serde_json::{Value, json};

use super::builtin;
use crate::resource::{Durability, Resource, ResourceSet};

pub(crate) fn set() -> ResourceSet {
    ResourceSet::new(builtin(schema::table()))
}

pub(crate) fn row(group: &str, resource: &str) -> std::sync::Arc<Resource> {
    set().by_group_resource(group, resource).expect("the row exists").clone()
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_value(value).expect("a JSON object")
}

/// Defaults an object and returns all findings as lines.
pub(crate) fn findings(group: &str, resource: &str, value: Value) -> String {
    let row = row(group, resource);
    let mut o = object(value);
    row.strategy.default(&mut o);
    row.strategy.validate(&o).iter().map(|e| format!("{e}\n")).collect()
}

/// Findings on a change of defaulted objects.
pub(crate) fn change_findings(group: &str, resource: &str, old: Value, new: Value) -> String {
    let row = row(group, resource);
    let (mut old, mut new) = (object(old), object(new));
    row.strategy.default(&mut old);
    row.strategy.default(&mut new);
    row.strategy.validate_update(&new, &old).iter().map(|e| format!("{e}\n")).collect()
}

pub(crate) fn defaulted(group: &str, resource: &str, value: Value) -> Value {
    let row = row(group, resource);
    let mut o = object(value);
    row.strategy.default(&mut o);
    let once = o.clone();
    row.strategy.default(&mut o);
    assert_eq!(o, once, "defaulting twice changes nothing more");
    o.into_value()
}

fn describe(row: &Resource) -> String {
    let mut text = format!("{} {} ({})", row.api_version(), row.gvr.resource, row.kind);
    let mut add = |text_: String| write!(text, " {text_}").expect("writing to a string cannot fail");
    add(if row.namespaced { "namespaced".into() } else { "cluster".into() });
    for (label, list) in [("short", &row.short_names), ("in", &row.categories)] {
        if !list.is_empty() {
            add(format!("{label}={}", list.join(",")));
        }
    }
    if row.verbs != crate::resource::ALL_VERBS {
        add(format!("verbs={}", row.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(",")));
    }
    match row.durability {
        Durability::OnDisk => {}
        Durability::Relaxed => add("relaxed".into()),
        Durability::RelaxedIn(namespace) => add(format!("relaxed in {namespace}")),
    }
    if let Some(gvr) = &row.stored_as {
        add(format!("stored as {gvr}"));
    }
    text.push('\n');
    for sub in &row.subresources {
        let verbs: Vec<_> = sub.verbs().iter().map(|v| v.as_str()).collect();
        writeln!(text, "  /{} {}", sub.name(), verbs.join(",")).expect("writing to a string cannot fail");
    }
    if !row.selectable_fields.is_empty() {
        writeln!(text, "  fields {}", row.selectable_fields.join(" "))
            .expect("writing to a string cannot fail");
    }
    let column = |c: &crate::resource::Column| format!("{}{}", c.name, if c.priority > 0 { "*" } else { "" });
    let columns: Vec<String> = row.columns.iter().map(column).collect();
    writeln!(text, "  columns {}", columns.join(" | ")).expect("writing to a string cannot fail");
    text
}

#[test]
fn the_whole_table() {
    let text: String = set().iter().map(|row| describe(row)).collect();
    expect_file!["./table.txt"].assert_eq(&text);
}

#[test]
fn rows_are_consistent() {
    let set = set();
    for row in set.iter() {
        let table = &row.table;
        if row.allows(Verb::List) {
            assert!(
                table.kind(&row.gvr.group, &row.gvr.version, &row.list_kind).is_some(),
                "{}",
                row.list_kind
            );
        }
        for path in row.field_paths().flat_map(|(_, paths)| paths) {
            let first = path.split('.').next().unwrap_or_default();
            assert!(table.get(row.schema).field(first).is_some(), "{} {path}", row.kind);
        }
        for column in &row.columns {
            // A value function must cope with an object that has nothing but a name.
            let empty = object(json!({"metadata": {"name": "x"}}));
            let value = (column.value)(&empty, jiff::Timestamp::UNIX_EPOCH);
            assert!(!value.is_object() && !value.is_array(), "{} {}", row.kind, column.name);
        }
    }
}

#[test]
fn one_address_in_two_fields() {
    let out = defaulted(
        "",
        "nodes",
        json!({"spec": {"podCIDR": "10.1.0.0/24"}, "status": {"capacity": {"cpu": "2"}}}),
    );
    assert_eq!(out["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    assert_eq!(out["status"]["allocatable"], json!({"cpu": "2"}));
    let out = defaulted("", "pods", json!({"spec": {}, "status": {"podIPs": [{"ip": "10.1.0.2"}]}}));
    assert_eq!(out["status"]["podIP"], "10.1.0.2");
}

fn deployment() -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 80}]}]}}}})
}

#[test]
fn deployment_defaults() {
    let mut value = deployment();
    value["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    let out = defaulted("apps", "deployments", value);
    let spec = &out["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Always");
    assert_eq!(pod["dnsPolicy"], "ClusterFirst");
    assert_eq!(pod.get("enableServiceLinks"), None, "only pods have it");
    assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}), "only pods get requests");
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
}

#[test]
fn workload_rules() {
    assert_eq!(findings("apps", "deployments", deployment()), "");
    let mut bad = deployment();
    bad["metadata"]["name"] = "Web_1".into();
    bad["spec"]["replicas"] = (-1).into();
    bad["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    bad["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    bad["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}});
    expect![[r#"
        metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.replicas: Invalid value: -1: must be greater than or equal to 0
        spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`
        spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
        spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0
    "#]]
    .assert_eq(&findings("apps", "deployments", bad));
    let mut other = deployment();
    other["spec"]["selector"]["matchLabels"]["app"] = "x".into();
    expect![[r#"
        spec.selector: Invalid value: {"matchLabels":{"app":"x"}}: field is immutable
    "#]]
    .assert_eq(&change_findings("apps", "deployments", deployment(), other));
    let empty = json!({"metadata": {"name": "a"}, "spec": {"selector": {}, "template": {}}});
    let text = findings("apps", "replicasets", empty);
    assert!(
        text.contains("spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
        "{text}"
    );
    assert!(text.contains("spec.template.spec.containers: Required value"), "{text}");
}

#[test]
fn secrets() {
    let out = defaulted("", "secrets", json!({"stringData": {"a": "x"}, "data": {"a": "eQ==", "b": "eg=="}}));
    assert_eq!(out["data"], json!({"a": "eA==", "b": "eg=="}));
    assert_eq!(out["type"], "Opaque");
    assert!(out.get("stringData").is_none());
    expect![[r#"
        data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        data[tls.crt]: Required value
        data[tls.key]: Required value
    "#]]
    .assert_eq(&findings("", "secrets", json!({"type": "kubernetes.io/tls", "data": {"a/b": ""}})));
    let old = json!({"immutable": true, "type": "Opaque", "data": {"a": "eA=="}});
    let new = json!({"immutable": false, "type": "other", "data": {"a": "eQ=="}});
    expect![[r#"
        type: Invalid value: "other": field is immutable
        immutable: Forbidden: field is immutable when `immutable` is set
        data: Forbidden: field is immutable when `immutable` is set
    "#]]
    .assert_eq(&change_findings("", "secrets", old, new));
    assert_eq!(findings("", "serviceaccounts", json!({"imagePullSecrets": [{"name": ""}]})), "");
    let big = json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}});
    assert!(findings("", "configmaps", big).contains("Too long"));
}

#[test]
fn rules_of_smaller_kinds() {
    let cases: &[(&str, &str, Value, &str)] = &[
        (
            "",
            "nodes",
            json!({"spec": {"taints": [{"key": "a", "effect": "Bad"}], "podCIDR": "x"}}),
            "spec.taints[0].effect: Unsupported value: \"Bad\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"\n\
             spec.podCIDRs[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)\n",
        ),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
            "",
        ),
        (
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}}),
            "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"\n",
        ),
        (
            "rbac.authorization.k8s.io",
            "roles",
            json!({"metadata": {"name": "system:x"}, "rules": [{"verbs": ["get"]}]}),
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group\n\
             rules[0].resources: Required value: resource rules must supply at least one resource\n",
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"metadata": {"name": "a"}, "value": 2_000_000_000}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000\n",
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"metadata": {"name": "system-cluster-critical"}, "value": 2_000_000_000}),
            "",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "200%"}}),
            "spec.minAvailable: Invalid value: \"200%\": must not be greater than 100%\n",
        ),
        (
            "coordination.k8s.io",
            "leases",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0\n",
        ),
        ("storage.k8s.io", "storageclasses", json!({}), "provisioner: Required value\n"),
        (
            "networking.k8s.io",
            "ingresses",
            json!({"spec": {"defaultBackend": {"service": {"name": "web"}}}}),
            "spec.defaultBackend.service.port: Required value: port name or number is required\n",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
            "",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address\n\
             endpoints[0].addresses[0]: Invalid value: \"::1\": may not be in the loopback, link-local or multicast range\n",
        ),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources.requests.storage: Required value\n",
        ),
        (
            "batch",
            "cronjobs",
            json!({"spec": {"schedule": "* *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "a", "image": "a"}]}}}}}}),
            "spec.schedule: Invalid value: \"* *\": expected exactly 5 fields, found 2: [* *]\n",
        ),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            json!({"spec": {"minReplicas": 3, "maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}}),
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`\n",
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "flowschemas",
            json!({"spec": {"matchingPrecedence": 20000, "priorityLevelConfiguration": {"name": "a"},
                "rules": [{"subjects": [{"kind": "User"}], "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}]}}),
            "spec.matchingPrecedence: Invalid value: 20000: must be between 1 and 10000, inclusive\n\
             spec.rules[0].subjects[0].user: Required value: is required when subject kind says so\n\
             spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace\n",
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "prioritylevelconfigurations",
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 2}}}}}),
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: should not be greater than queues (2)\n",
        ),
        (
            "node.k8s.io",
            "runtimeclasses",
            json!({"handler": "A", "overhead": {"podFixed": {"cpu": "-1"}}}),
            "handler: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
             and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')\n\
             overhead.podFixed[cpu]: Invalid value: \"-1\": must be greater than or equal to 0\n",
        ),
        (
            "resource.k8s.io",
            "resourceclaims",
            json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}, {"name": "s"}]}}}),
            "spec.devices.requests[1]: Invalid value: {\"name\":\"s\"}: exactly one of `exactly` or `firstAvailable` is required\n",
        ),
        (
            "resource.k8s.io",
            "resourceslices",
            json!({"spec": {"driver": "d", "pool": {"name": "p", "resourceSliceCount": 1}}}),
            "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required\n",
        ),
        (
            "certificates.k8s.io",
            "clustertrustbundles",
            json!({"metadata": {"name": "b"}, "spec": {"signerName": "a.b/c", "trustBundle": "x"}}),
            "metadata.name: Invalid value: \"b\": ClusterTrustBundle for signerName a.b/c must be named with prefix a.b:c:\n\
             spec.trustBundle: Invalid value: \"x\": must contain at least one certificate\n",
        ),
    ];
    for (group, resource, value, want) in cases {
        assert_eq!(findings(group, resource, value.clone()), *want, "{resource} {value}");
    }
}

#[test]
fn events_have_two_views_of_one_object() {
    let new_style = row("events.k8s.io", "events");
    let mut event = object(json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n",
        "regarding": {"kind": "Pod", "name": "p"}, "reportingController": "c", "deprecatedCount": 2}));
    let original = event.clone();
    new_style.strategy.to_stored(&mut event);
    assert_eq!(
        event.clone().into_value(),
        json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"kind": "Pod", "name": "p"},
            "reportingComponent": "c", "count": 2})
    );
    new_style.strategy.from_stored(&mut event);
    assert_eq!(event, original);
}

#[test]
fn only_heartbeats_are_acknowledged_before_they_are_on_disk() {
    let leases = row("coordination.k8s.io", "leases").durability;
    assert!(leases.is_relaxed("kube-node-lease") && !leases.is_relaxed("kube-system"));
    assert!(row("", "events").durability.is_relaxed("any"));
    assert!(!row("", "pods").durability.is_relaxed("kube-node-lease"));
}
