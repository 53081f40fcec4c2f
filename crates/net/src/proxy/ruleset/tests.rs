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
    expected.assert_eq(&desired_rules(&view(services, slices), &here(), Family::V4).to_string());
}

fn here() -> Place {
    Place { node: "here".into(), zone: "z1".into() }
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
            Tcp node:30080 -> drop from outside
            Tcp node:30080 from inside -> 10.244.1.3:8080
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
            set.iter().map(|n| Target { address: IpAddr::from([10, 0, 0, *n]), port: 1 }).collect()
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

#[test]
fn clients_inside_reach_every_endpoint_of_an_outside_address_that_is_local() {
    let spec = json!({"clusterIP": "10.96.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["198.51.100.0/24", " 203.0.113.9/32"],
        "ports": [{"port": 80, "nodePort": 30080}]});
    let mut service = service("web", spec);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
    let there = json!([{"addresses": ["10.244.1.2"], "nodeName": "there"}]);
    check(
        json!([service.clone()]),
        json!([slice("web", json!([{"port": 8080}]), there)]),
        expect![[r#"
            Tcp node:30080 -> drop from outside
            Tcp node:30080 from inside -> 10.244.1.2:8080
            Tcp 10.96.0.1:80 -> 10.244.1.2:8080
            Tcp 192.0.2.9:80 -> drop from outside
            Tcp 192.0.2.9:80 from inside -> 10.244.1.2:8080
        "#]],
    );
    let both = json!([{"addresses": ["10.244.1.2"], "nodeName": "there"}, {"addresses": ["10.244.0.2"], "nodeName": "here"}]);
    check(
        json!([service]),
        json!([slice("web", json!([{"port": 8080}]), both)]),
        expect![[r#"
        Tcp node:30080 -> 10.244.0.2:8080
        Tcp node:30080 from inside -> 10.244.0.2:8080 10.244.1.2:8080
        Tcp 10.96.0.1:80 -> 10.244.0.2:8080 10.244.1.2:8080
        Tcp 192.0.2.9:80 -> 10.244.0.2:8080 from 198.51.100.0/24 from 203.0.113.9/32
        Tcp 192.0.2.9:80 from inside -> 10.244.0.2:8080 10.244.1.2:8080
    "#]],
    );
}

#[test]
fn hints_choose_endpoints_if_they_are_complete_and_somebody_is_near() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let hinted = |last: u8, zone: &str, node: &str| {
        let named = |name: &str| if name.is_empty() { json!(null) } else { json!([{"name": name}]) };
        json!({"addresses": [format!("10.244.0.{last}")], "hints": {"forZones": named(zone), "forNodes": named(node)}})
    };
    for (endpoints, chosen) in [
        (vec![hinted(1, "z1", ""), hinted(2, "z2", "")], vec![1]),
        (vec![hinted(1, "z1", ""), hinted(2, "", "")], vec![1, 2]),
        (vec![hinted(1, "z3", ""), hinted(2, "z2", "")], vec![1, 2]),
        (vec![hinted(1, "z1", "there"), hinted(2, "z1", "here")], vec![2]),
        (vec![hinted(1, "z1", "there"), hinted(2, "z2", "there")], vec![1]),
    ] {
        let view = view(
            json!([service("web", spec.clone())]),
            json!([slice("web", json!([{"port": 80}]), json!(endpoints))]),
        );
        let rules = desired_rules(&view, &here(), Family::V4);
        let Some(Backend::Targets { targets, .. }) = rules.frontends.values().next() else {
            panic!("{rules}")
        };
        assert_eq!(
            targets.iter().map(|t| crate::address::octets(t.address)[3]).collect::<Vec<_>>(),
            chosen,
            "{rules}"
        );
    }
}

#[test]
fn host_ports_lead_to_the_pod_while_it_has_an_address() {
    let pod = |extra: Value| -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [
            {"ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]},
            {"ports": [{"containerPort": 53, "hostPort": 8080, "protocol": "UDP", "hostIP": "127.0.0.1"},
                       {"containerPort": 54, "hostPort": 8054, "hostIP": "0.0.0.0"},
                       {"containerPort": 55, "hostPort": 8055, "hostIP": "::1"}]}],
            "initContainers": [{"ports": [{"containerPort": 1, "hostPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"containerPort": 2, "hostPort": 2}]}]},
            "status": {"phase": "Running", "podIP": "10.244.0.7"}});
        for (field, value) in extra.as_object().unwrap() {
            let (at, name) = field.split_once('.').unwrap();
            pod[at][name] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    };
    let rules =
        |pod: &Pod| Ruleset { frontends: host_ports(pod, Family::V4).into_iter().collect() }.to_string();
    expect![[r#"
        Tcp node:2 -> 10.244.0.7:2
        Tcp node:8054 -> 10.244.0.7:54
        Tcp node:8080 -> 10.244.0.7:80
        Udp 127.0.0.1:8080 -> 10.244.0.7:53
    "#]]
    .assert_eq(&rules(&pod(json!({}))));
    for without in
        [json!({"status.podIP": ""}), json!({"status.phase": "Failed"}), json!({"spec.hostNetwork": true})]
    {
        assert_eq!(rules(&pod(without)), "");
    }
}

#[test]
fn a_health_check_counts_ready_endpoints_of_the_node() {
    let endpoints = json!([{"addresses": ["10.244.0.1"], "nodeName": "here"},
        {"addresses": ["10.244.0.2"], "nodeName": "here", "conditions": {"ready": false}},
        {"addresses": ["10.244.0.3"], "nodeName": "there"}]);
    let view =
        view(json!([]), json!([slice("web", json!([{"port": 1}, {"name": "b", "port": 2}]), endpoints)]));
    assert_eq!(local_endpoints(&view, &ObjectKey::new("ns", "web"), "here"), 1);
}

#[test]
fn each_family_has_its_own_addresses_and_endpoints() {
    let spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "type": "LoadBalancer",
        "externalIPs": ["203.0.113.7", "2001:db8::7"], "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:1::/48"],
        "ports": [{"port": 80, "nodePort": 30080}], "healthCheckNodePort": 31000});
    let mut both = service("both", spec);
    both["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"ip": "2001:db8::9"}]}});
    let ports = json!([{"port": 8080}]);
    let fourth = slice("both", ports.clone(), json!([{"addresses": ["10.244.0.2"], "nodeName": "here"}]));
    let mut sixth = slice("both", ports, json!([{"addresses": ["fd00:10:244::2"], "nodeName": "here"}]));
    sixth["metadata"]["name"] = "both-2".into();
    sixth["addressType"] = "IPv6".into();
    let single = service(
        "single",
        json!({"clusterIP": "10.96.0.2", "type": "NodePort",
        "externalIPs": ["2001:db8::8"], "ports": [{"port": 80, "nodePort": 30081}]}),
    );
    let view = view(json!([both, single]), json!([fourth, sixth]));
    let rules = |family| desired_rules(&view, &here(), family).to_string();
    expect![[r#"
        Tcp node:30080 -> 10.244.0.2:8080
        Tcp node:30080 from inside -> 10.244.0.2:8080
        Tcp node:30081 -> reject
        Tcp 10.96.0.1:80 -> 10.244.0.2:8080
        Tcp 10.96.0.2:80 -> reject
        Tcp 192.0.2.9:80 -> 10.244.0.2:8080 from 198.51.100.0/24
        Tcp 192.0.2.9:80 from inside -> 10.244.0.2:8080
        Tcp 203.0.113.7:80 -> 10.244.0.2:8080
        Tcp 203.0.113.7:80 from inside -> 10.244.0.2:8080
    "#]]
    .assert_eq(&rules(Family::V4));
    expect![[r#"
        Tcp node:30080 -> [fd00:10:244::2]:8080
        Tcp node:30080 from inside -> [fd00:10:244::2]:8080
        Tcp [2001:db8::7]:80 -> [fd00:10:244::2]:8080
        Tcp [2001:db8::7]:80 from inside -> [fd00:10:244::2]:8080
        Tcp [2001:db8::9]:80 -> [fd00:10:244::2]:8080 from 2001:db8:1::/48
        Tcp [2001:db8::9]:80 from inside -> [fd00:10:244::2]:8080
        Tcp [fd00::1]:80 -> [fd00:10:244::2]:8080
    "#]]
    .assert_eq(&rules(Family::V6));
    assert_eq!(local_endpoints(&view, &ObjectKey::new("ns", "both"), "here"), 1);
}

#[test]
fn host_ports_are_open_in_the_families_of_the_pod() {
    let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [
        {"ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "::1"},
            {"containerPort": 82, "hostPort": 8082, "hostIP": "127.0.0.1"},
            {"containerPort": 83, "hostPort": 8083, "hostIP": "::"}]}]},
        "status": {"phase": "Running", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00::7"}]}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let rules = |family| Ruleset { frontends: host_ports(&pod, family).into_iter().collect() }.to_string();
    expect![[r#"
        Tcp node:8080 -> 10.244.0.7:80
        Tcp 127.0.0.1:8082 -> 10.244.0.7:82
    "#]]
    .assert_eq(&rules(Family::V4));
    expect![[r#"
        Tcp node:8080 -> [fd00::7]:80
        Tcp node:8083 -> [fd00::7]:83
    "#]]
    .assert_eq(&rules(Family::V6));
}
