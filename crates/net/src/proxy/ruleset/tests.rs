use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn view(services: Value, slices: Value) -> View {
    let mut view = View::default();
    for service in serde_json::from_value::<Vec<Service>>(services).unwrap() {
        view.set_service(&service.metadata.key(), Some(service));
    }
    for slice in serde_json::from_value::<Vec<EndpointSlice>>(slices).unwrap() {
        view.set_slice(&slice.metadata.key(), Some(slice));
    }
    view
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})
}

fn slice(of: &str, ports: Value, endpoints: Value) -> Value {
    json!({
        "metadata": {"name": format!("{of}-1"), "namespace": "ns", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

fn check(services: Value, slices: Value, expected: Expect) {
    expected.assert_eq(&desired_rules(&view(services, slices), "here").to_string());
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "type": "NodePort",
        "externalIPs": ["203.0.113.7"], "ports": [
        {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53},
        {"name": "metrics", "port": 9153}]});
    let ports = json!([{"name": "dns", "protocol": "UDP", "port": 5353},
        {"name": "dns-tcp", "protocol": "TCP", "port": 5354}]);
    let endpoints = json!([{"addresses": ["10.244.0.3"]},
        {"addresses": ["10.244.0.2"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]);
    check(
        json!([service("dns", spec)]),
        json!([slice("dns", ports, endpoints)]),
        expect![[r#"
            Udp node:30053 -> 10.244.0.2:5353 10.244.0.3:5353
            Tcp 10.96.0.10:53 -> 10.244.0.2:5354 10.244.0.3:5354
            Tcp 10.96.0.10:9153 -> reject
            Udp 10.96.0.10:53 -> 10.244.0.2:5353 10.244.0.3:5353
            Tcp 203.0.113.7:53 -> 10.244.0.2:5354 10.244.0.3:5354
            Tcp 203.0.113.7:9153 -> reject
            Udp 203.0.113.7:53 -> 10.244.0.2:5353 10.244.0.3:5353
        "#]],
    );
}

#[test]
fn services_without_a_cluster_ip_or_with_another_proxy_have_no_rules() {
    let port = json!([{"port": 80}]);
    let labelled = |label: &str| {
        json!({"metadata": {"name": label.len().to_string(), "namespace": "ns", "labels": {label: "x"}},
               "spec": {"clusterIP": "10.96.0.1", "ports": port}})
    };
    check(
        json!([
            service("headless", json!({"clusterIP": "None", "ports": port})),
            service("external", json!({"type": "ExternalName", "externalName": "a.example", "ports": port})),
            service("fresh", json!({"ports": port})),
            labelled(OTHER_PROXY_LABEL),
            labelled(HEADLESS_LABEL),
        ]),
        json!([]),
        expect![[""]],
    );
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready() {
    let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"port": 80}]});
    let ports = json!([{"name": "", "port": 8080}]);
    let dying = json!({"addresses": ["10.244.0.5"],
        "conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"addresses": ["10.244.0.6"],
        "conditions": {"ready": false, "serving": false, "terminating": true}});
    let ready = json!({"addresses": ["10.244.0.7"], "conditions": {"ready": true}});
    check(
        json!([
            service("a", spec("10.96.0.1")),
            service("b", spec("10.96.0.2")),
            service("c", spec("10.96.0.3"))
        ]),
        json!([
            slice("a", ports.clone(), json!([dying, dead, ready])),
            slice("b", ports.clone(), json!([dying, dead])),
            slice("c", ports, json!([dead])),
        ]),
        expect![[r#"
            Tcp 10.96.0.1:80 -> 10.244.0.7:8080
            Tcp 10.96.0.2:80 -> 10.244.0.5:8080
            Tcp 10.96.0.3:80 -> reject
        "#]],
    );
}

#[test]
fn local_policies_keep_to_this_node_and_drop_where_it_has_nothing() {
    let ports = json!([{"name": null, "port": 8080}]);
    let on = |address: &str, node: &str| json!({"addresses": [address], "nodeName": node});
    check(
        json!([
            service(
                "a",
                json!({"clusterIP": "10.96.0.1", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]})
            ),
            service(
                "b",
                json!({"clusterIP": "10.96.0.2", "externalTrafficPolicy": "Local",
                "ports": [{"port": 80, "nodePort": 30080}]})
            ),
        ]),
        json!([
            slice("a", ports.clone(), json!([on("10.244.0.2", "here"), on("10.244.1.2", "there")])),
            slice("b", ports, json!([on("10.244.1.3", "there")])),
        ]),
        expect![[r#"
            Tcp node:30080 -> drop
            Tcp 10.96.0.1:80 -> 10.244.0.2:8080
            Tcp 10.96.0.2:80 -> 10.244.1.3:8080
        "#]],
    );
}

#[test]
fn affinity_and_competing_claims() {
    let ports = json!([{"name": "", "port": 1}]);
    check(
        json!([
            service(
                "a",
                json!({"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.7"], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}}, "ports": [{"port": 80}]})
            ),
            service(
                "b",
                json!({"clusterIP": "10.96.0.2", "externalIPs": ["203.0.113.7"], "sessionAffinity": "ClientIP",
                "ports": [{"port": 80}]})
            ),
        ]),
        json!([
            slice("a", ports.clone(), json!([{"addresses": ["10.244.0.2"]}])),
            slice("b", ports, json!([{"addresses": ["10.244.0.3"]}])),
        ]),
        expect![[r#"
            Tcp 10.96.0.1:80 -> 10.244.0.2:1 (same client, same target for 90 s)
            Tcp 10.96.0.2:80 -> 10.244.0.3:1 (same client, same target for 10800 s)
            Tcp 203.0.113.7:80 -> 10.244.0.2:1 (same client, same target for 90 s)
        "#]],
    );
}

#[test]
fn a_relabelled_slice_leaves_its_old_service() {
    let mut view = view(json!([]), json!([slice("a", json!([]), json!([]))]));
    let moved = slice("b", json!([]), json!([]));
    let mut moved: EndpointSlice = serde_json::from_value(moved).unwrap();
    moved.metadata.name = "a-1".into();
    let touched = view.set_slice(&ObjectKey::new("ns", "a-1"), Some(moved));
    assert_eq!(touched, [ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b")].into());
    assert_eq!(view.slices(&ObjectKey::new("ns", "a")).count(), 0);
    assert_eq!(view.slices(&ObjectKey::new("ns", "b")).count(), 1);
}

proptest! {
    /// Nothing is lost or doubled, and no more places change than targets do.
    #[test]
    fn places_are_kept(old in proptest::collection::btree_set(1u8..20, 0..12),
                       new in proptest::collection::btree_set(1u8..20, 0..12)) {
        let make = |set: &std::collections::BTreeSet<u8>| -> Vec<Target> {
            set.iter().map(|n| Target { address: Ipv4Addr::new(10, 0, 0, *n), port: 1 }).collect()
        };
        let (before, wanted) = (make(&old), make(&new));
        let after = keep_places(&before, wanted.clone());
        let mut sorted = after.clone();
        sorted.sort();
        prop_assert_eq!(sorted, wanted);
        let rewritten = after.iter().enumerate().filter(|(i, t)| before.get(*i) != Some(t)).count();
        let added = new.difference(&old).count();
        let removed = old.difference(&new).count();
        prop_assert!(rewritten <= added.max(removed), "{before:?} -> {after:?}");
    }
}
