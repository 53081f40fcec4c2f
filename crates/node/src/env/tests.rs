//! Expansion, sources and service variables.

use expect_test::expect;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::{EnvInputs, ServiceView, environment, expand, services_for};
use crate::fields::FieldContext;
use crate::references::Sources;

#[test]
fn expansion() {
    let known = |name: &str| (name == "A").then(|| "1".to_owned());
    let table = [
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("$", "$"),
        ("", ""),
        ("$()", "$()"),
    ];
    for (text, wanted) in table {
        assert_eq!(expand(text, known), wanted, "{text}");
    }
}

fn env(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
    let pod: core::Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"}}, "spec": {"containers": [container]},
    }))
    .unwrap();
    let mut sources = Sources::default();
    let map = json!({"metadata": {}, "data": {"k": "v", "$(A)": "odd"}});
    sources.config_maps.insert("cm".into(), serde_json::from_value(map).unwrap());
    sources
        .secrets
        .insert("s".into(), serde_json::from_value(json!({"metadata": {}, "data": {"p": "cHc="}})).unwrap());
    sources.config_maps.insert("none".into(), None);
    let service: ServiceView = serde_json::from_value(
        json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
    )
    .unwrap();
    let services = services_for(&pod, |ns| {
        if ns == "default" { vec![("kubernetes".into(), service.clone())] } else { Vec::new() }
    });
    let fields = FieldContext {
        node_name: "n1".into(),
        pod_ips: vec!["10.0.0.1".parse().unwrap()],
        node_cpu_milli: 2000,
        ..FieldContext::default()
    };
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let pod_dir = std::path::Path::new("/nowhere");
    let (sources, services, fields) = (&sources, &services, &fields);
    environment(&EnvInputs { pod: &pod, container, sources, services, fields, pod_dir })
}

#[test]
fn all_sources() {
    let list = env(json!({"name": "c",
    "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
    "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
        {"configMapRef": {"name": "none", "optional": true}}],
    "env": [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(KUBERNETES_SERVICE_HOST)-$(LATER)"},
        {"name": "LATER", "value": "2"},
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
        {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x", "optional": true}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
        {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        {"name": "MAX", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "A", "value": "again"},
    ]}));
    let text: String = list.unwrap().into_iter().map(|(n, v)| format!("{n}={v}\n")).collect();
    expect![[r#"
        P_$(A)=odd
        P_k=v
        p=pw
        A=again
        B=1-10.96.0.1-$(LATER)
        LATER=2
        K=v
        S=pw
        IP=10.0.0.1
        L=b
        MEM=64
        CPU=250
        MAX=2
        KUBERNETES_PORT=tcp://10.96.0.1:443
        KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
        KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
        KUBERNETES_PORT_443_TCP_PORT=443
        KUBERNETES_PORT_443_TCP_PROTO=tcp
        KUBERNETES_SERVICE_HOST=10.96.0.1
        KUBERNETES_SERVICE_PORT=443
        KUBERNETES_SERVICE_PORT_HTTPS=443
    "#]]
    .assert_eq(&text);
}

#[test]
fn missing_sources_say_so() {
    let of =
        |source: serde_json::Value| env(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}));
    let table = [
        (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
        (json!({"configMapKeyRef": {"name": "cm", "key": "x"}}), "couldn't find key x in ConfigMap ns/cm"),
        (json!({"secretKeyRef": {"name": "s", "key": "x"}}), "couldn't find key x in Secret ns/s"),
        (json!({"fieldRef": {"fieldPath": "spec.x"}}), "unsupported fieldPath: spec.x"),
    ];
    for (source, wanted) in table {
        assert_eq!(of(source).unwrap_err(), wanted);
    }
}
