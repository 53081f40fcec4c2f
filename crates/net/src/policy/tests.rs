use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn pod(name: &str, namespace: &str, address: u8, ports: Value) -> (ObjectKey, Pod) {
    let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": "here", "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIP": format!("10.244.0.{address}")}});
    (ObjectKey::new(namespace, name), serde_json::from_value(pod).unwrap())
}

/// The same pod with an address of the other family too.
fn dual((key, mut pod): (ObjectKey, Pod)) -> (ObjectKey, Pod) {
    let last = pod.status.pod_ip.rsplit('.').next().unwrap();
    let second = format!("fd00::{last}");
    pod.status.pod_ips = [pod.status.pod_ip.clone(), second].map(|ip| crate::model::PodIp { ip }).into();
    (key, pod)
}

fn check(policies: &[Value], expected: Expect) {
    check_with(|pod| pod, policies, expected);
}

fn check_with(change: impl Fn((ObjectKey, Pod)) -> (ObjectKey, Pod), policies: &[Value], expected: Expect) {
    let mut view = Policies::default();
    let pods = [
        pod(
            "web",
            "shop",
            2,
            json!([{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]),
        ),
        pod("db", "shop", 3, json!([{"name": "http", "containerPort": 9090}])),
        pod("other", "office", 9, json!([])),
    ];
    view.pods.extend(pods.map(change));
    view.namespaces.insert("shop".into(), [("team".to_owned(), "a".to_owned())].into());
    view.namespaces.insert("office".into(), [("team".to_owned(), "b".to_owned())].into());
    for (number, spec) in policies.iter().enumerate() {
        let name = format!("p{number}");
        let policy = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        view.policies.insert(ObjectKey::new("shop", name), serde_json::from_value(policy).unwrap());
    }
    let mut text = String::new();
    for (pod, rules) in view.of_node("here") {
        for (word, boxes) in [("receives", rules.ingress), ("sends", rules.egress)] {
            for range in boxes.iter().flatten() {
                let family = Family::of(pod);
                let (first, last) = (family.address(range.first), family.address(range.last));
                let Ports { protocol, first: low, last: high } = range.ports;
                let protocol = protocol.map_or("all".to_owned(), |p| p.to_string());
                text += &format!("{pod} {word} {first}-{last} protocol {protocol} ports {low}-{high}\n");
            }
        }
    }
    expected.assert_eq(&text);
}

fn web() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

#[test]
fn nothing_selected_nothing_isolated() {
    check(&[], expect![[""]]);
    check(&[json!({"podSelector": {"matchLabels": {"app": "none"}}})], expect![[""]]);
}

#[test]
fn a_policy_without_rules_denies_all_but_the_pod_itself() {
    check(
        &[json!({"podSelector": web()})],
        expect![[r#"
        10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
    "#]],
    );
    check(
        &[json!({"podSelector": web(), "policyTypes": ["Ingress", "Egress"]})],
        expect![[r#"
        10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
        10.244.0.2 sends 10.244.0.2-10.244.0.2 protocol all ports 0-65535
    "#]],
    );
}

#[test]
fn an_empty_rule_allows_all() {
    check(
        &[json!({"podSelector": web(), "ingress": [{}]})],
        expect![[r#"
        10.244.0.2 receives 0.0.0.0-255.255.255.255 protocol all ports 0-65535
    "#]],
    );
}

#[test]
fn peers_are_pods_of_the_namespace_or_of_others_or_blocks() {
    check(
        &[
            json!({"podSelector": web(), "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "http"}]}]}),
        ],
        expect![[r#"
        10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
        10.244.0.2 receives 10.244.0.3-10.244.0.3 protocol 6 ports 8080-8080
    "#]],
    );
    check(
        &[
            json!({"podSelector": web(), "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}]}),
        ],
        expect![[r#"
        10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
        10.244.0.2 receives 10.244.0.9-10.244.0.9 protocol all ports 0-65535
    "#]],
    );
    check(
        &[
            json!({"podSelector": web(), "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/30", "192.0.2.255/32"]}}],
        "ports": [{"port": 80, "endPort": 90}, {"protocol": "UDP"}]}]}),
        ],
        expect![[r#"
            10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
            10.244.0.2 receives 192.0.2.0-192.0.2.7 protocol 6 ports 80-90
            10.244.0.2 receives 192.0.2.0-192.0.2.7 protocol 17 ports 0-65535
            10.244.0.2 receives 192.0.2.12-192.0.2.254 protocol 6 ports 80-90
            10.244.0.2 receives 192.0.2.12-192.0.2.254 protocol 17 ports 0-65535
        "#]],
    );
}

#[test]
fn policies_add_up_and_named_ports_are_those_of_whom_is_asked() {
    check(
        &[
            json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]}),
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}),
        ],
        expect![[r#"
        10.244.0.2 sends 0.0.0.0-10.244.0.1 protocol 17 ports 53-53
        10.244.0.2 sends 10.244.0.2-10.244.0.2 protocol all ports 0-65535
        10.244.0.2 sends 10.244.0.3-10.244.0.3 protocol 6 ports 9090-9090
        10.244.0.2 sends 10.244.0.3-10.244.0.3 protocol 17 ports 53-53
        10.244.0.2 sends 10.244.0.4-255.255.255.255 protocol 17 ports 53-53
        10.244.0.3 sends 0.0.0.0-10.244.0.2 protocol 17 ports 53-53
        10.244.0.3 sends 10.244.0.3-10.244.0.3 protocol all ports 0-65535
        10.244.0.3 sends 10.244.0.4-255.255.255.255 protocol 17 ports 53-53
    "#]],
    );
}

#[test]
fn each_address_has_the_peers_of_its_family() {
    let block = |cidr: &str, except: Value| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let from = json!([{"podSelector": {"matchLabels": {"app": "db"}}}, block("192.0.2.0/24", json!(null)),
        block("2001:db8::/32", json!(["2001:db8::/33", "2001:db8:ffff::/48"]))]);
    check_with(
        dual,
        &[
            json!({"podSelector": web(), "ingress": [{"from": from, "ports": [{"port": 80}]}]}),
            json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [{}]}),
        ],
        expect![[r#"
            10.244.0.2 receives 10.244.0.2-10.244.0.2 protocol all ports 0-65535
            10.244.0.2 receives 10.244.0.3-10.244.0.3 protocol 6 ports 80-80
            10.244.0.2 receives 192.0.2.0-192.0.2.255 protocol 6 ports 80-80
            10.244.0.2 sends 0.0.0.0-255.255.255.255 protocol all ports 0-65535
            fd00::2 receives 2001:db8:8000::-2001:db8:fffe:ffff:ffff:ffff:ffff:ffff protocol 6 ports 80-80
            fd00::2 receives fd00::2-fd00::2 protocol all ports 0-65535
            fd00::2 receives fd00::3-fd00::3 protocol 6 ports 80-80
            fd00::2 sends ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff protocol all ports 0-65535
        "#]],
    );
}
