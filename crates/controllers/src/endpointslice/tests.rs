//! Golden plans of single situations.

use client::{Action, Controller, Plan, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::EndpointSliceController;
use crate::node::Node;
use crate::pod::Pod;
use crate::text::text;

fn service(spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({"app": "web"});
    json!({"metadata": {"name": "web", "namespace": "default", "uid": "s", "resourceVersion": "5", "labels": {"team": "a"}}, "spec": spec})
}

fn pod(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number}"), "resourceVersion": "6", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", number / 256, number % 256),
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn plan(service: &Value, pods: &[Value], slices: &[Value]) -> Plan {
    let node = json!({"metadata": {"name": "z", "labels": {"topology.kubernetes.io/zone": "east"}}});
    let view = View::default()
        .with_objects::<Node>(&[node])
        .with_objects::<Service>(std::slice::from_ref(service))
        .with_objects::<Pod>(pods)
        .with_objects::<EndpointSlice>(slices);
    EndpointSliceController.plan(&api::ObjectKey::new("default", "web"), &view, Timestamp::UNIX_EPOCH)
}

fn check(service: &Value, pods: &[Value], slices: &[Value], expected: Expect) {
    expected.assert_eq(&text(&plan(service, pods, slices)));
}

/// Slices as they are once the plan has been performed.
fn perform(plan: Plan, mut slices: Vec<Value>) -> Vec<Value> {
    let Plan::Do { actions, .. } = plan else { panic!("no reads are needed") };
    for action in actions {
        match action {
            Action::Create { mut object, .. } => {
                let number = slices.len() + 1;
                object["metadata"]["name"] = format!("web-{number}").into();
                object["metadata"]["uid"] = format!("slice-{number}").into();
                slices.push(object);
            }
            Action::Update { key, object, .. } => {
                let slot =
                    slices.iter_mut().find(|slice| slice["metadata"]["name"] == key.name.as_str()).unwrap();
                *slot = object;
            }
            Action::Delete { key, .. } => {
                slices.retain(|slice| slice["metadata"]["name"] != key.name.as_str())
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    slices
}

fn numbered() -> Value {
    service(
        json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}),
    )
}

#[test]
fn conditions_of_endpoints() {
    let mut unready = pod(2);
    unready["status"]["conditions"][0]["status"] = "False".into();
    let mut leaving = pod(3);
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut finished = pod(4);
    finished["status"]["phase"] = "Succeeded".into();
    let mut addressless = pod(5);
    addressless["status"]["podIP"] = "".into();
    check(
        &numbered(),
        &[pod(1), unready, leaving, finished, addressless],
        &[],
        expect![[r#"
        create endpointslices {"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"n1","targetRef":{"kind":"Pod","name":"p1","namespace":"default","uid":"u1"}},{"addresses":["10.0.0.2"],"conditions":{"ready":false,"serving":false,"terminating":false},"nodeName":"n1","targetRef":{"kind":"Pod","name":"p2","namespace":"default","uid":"u2"}},{"addresses":["10.0.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true},"nodeName":"n1","targetRef":{"kind":"Pod","name":"p3","namespace":"default","uid":"u3"}}],"kind":"EndpointSlice","metadata":{"generateName":"web-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web","team":"a"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":"web","uid":"s"}]},"ports":[{"name":"http","port":8080,"protocol":"TCP"}]}
    "#]],
    );
}

#[test]
fn named_ports_split_pods_by_what_they_resolve_to() {
    let named = service(
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]}),
    );
    let mut other = pod(2);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090.into();
    check(
        &named,
        &[pod(1), other],
        &[],
        expect![[r#"
        create endpointslices {"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"n1","targetRef":{"kind":"Pod","name":"p1","namespace":"default","uid":"u1"}}],"kind":"EndpointSlice","metadata":{"generateName":"web-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web","team":"a"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":"web","uid":"s"}]},"ports":[{"name":"","port":8080,"protocol":"TCP"}]}
        create endpointslices {"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["10.0.0.2"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"n1","targetRef":{"kind":"Pod","name":"p2","namespace":"default","uid":"u2"}}],"kind":"EndpointSlice","metadata":{"generateName":"web-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web","team":"a"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":"web","uid":"s"}]},"ports":[{"name":"","port":9090,"protocol":"TCP"}]}
    "#]],
    );
}

#[test]
fn a_headless_service_names_hosts_and_may_publish_the_unready() {
    let headless = service(json!({"clusterIP": "None", "publishNotReadyAddresses": true}));
    let mut host = pod(1);
    host["spec"]["hostname"] = "db-0".into();
    host["spec"]["subdomain"] = "web".into();
    host["status"]["conditions"][0]["status"] = "False".into();
    check(
        &headless,
        &[host],
        &[],
        expect![[r#"
        create endpointslices {"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":false,"terminating":false},"hostname":"db-0","nodeName":"n1","targetRef":{"kind":"Pod","name":"p1","namespace":"default","uid":"u1"}}],"kind":"EndpointSlice","metadata":{"generateName":"web-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web","service.kubernetes.io/headless":"","team":"a"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":"web","uid":"s"}]},"ports":[]}
    "#]],
    );
}

#[test]
fn no_pods_mean_one_empty_slice() {
    check(
        &numbered(),
        &[],
        &[],
        expect![[r#"
        create endpointslices {"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[],"kind":"EndpointSlice","metadata":{"generateName":"web-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web","team":"a"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":"web","uid":"s"}]},"ports":[]}
    "#]],
    );
}

#[test]
fn a_service_without_selector_is_left_alone() {
    let mut object = numbered();
    object["spec"]["selector"] = json!({});
    check(&object, &[pod(1)], &[], expect![[""]]);
}

#[test]
fn only_the_slice_that_differs_is_written() {
    let mut pods: Vec<Value> = (1..=150).map(pod).collect();
    let slices = perform(plan(&numbered(), &pods, &[]), Vec::new());
    let sizes: Vec<usize> = slices.iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [100, 50]);
    assert_eq!(plan(&numbered(), &pods, &slices), Plan::nothing());
    pods.remove(0);
    pods.push(pod(151));
    let change = plan(&numbered(), &pods, &slices);
    let Plan::Do { actions, .. } = &change else { panic!("no reads are needed") };
    assert_eq!(actions.len(), 1, "the newcomer takes the place in the slice that is written anyway");
    let slices = perform(change, slices);
    assert_eq!(plan(&numbered(), &pods, &slices), Plan::nothing());
    let slices = perform(plan(&numbered(), &[], &slices), slices);
    assert_eq!(plan(&numbered(), &[], &slices), Plan::nothing());
    assert_eq!(slices.len(), 1);
}

#[test]
fn endpoints_are_meant_for_their_zone_or_node_if_the_service_says_so() {
    let mut in_zone = pod(1);
    in_zone["spec"]["nodeName"] = "z".into();
    for (wish, hints) in [
        (json!(null), json!(null)),
        (json!("PreferClose"), json!({"forZones": [{"name": "east"}]})),
        (json!("PreferSameNode"), json!({"forNodes": [{"name": "z"}], "forZones": [{"name": "east"}]})),
    ] {
        let spec = json!({"ports": [{"port": 80}], "trafficDistribution": wish});
        let slices = perform(plan(&service(spec.clone()), &[in_zone.clone()], &[]), Vec::new());
        assert_eq!(slices[0]["endpoints"][0]["zone"], "east");
        assert_eq!(slices[0]["endpoints"][0]["hints"], hints);
        let again = perform(plan(&service(spec), &[in_zone.clone()], &slices), slices.clone());
        assert_eq!(again, slices, "nothing left to do");
    }
}

#[test]
fn a_service_of_two_families_has_slices_of_both() {
    let mut both = pod(1);
    both["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    let pods = [both, pod(2)];
    let of = |families: Value| {
        service(json!({"clusterIP": "10.96.0.1", "ipFamilies": families, "ports": [{"port": 80}]}))
    };
    let shown = |slices: &[Value]| -> String {
        let line = |slice: &Value| {
            let addresses = slice["endpoints"].as_array().unwrap().iter().map(|e| e["addresses"][0].clone());
            format!("{} {}\n", slice["addressType"].as_str().unwrap(), json!(addresses.collect::<Vec<_>>()))
        };
        slices.iter().map(line).collect()
    };
    let dual = of(json!(["IPv4", "IPv6"]));
    let slices = perform(plan(&dual, &pods, &[]), Vec::new());
    expect![[r#"
        IPv4 ["10.0.0.1","10.0.0.2"]
        IPv6 ["fd00::1"]
    "#]]
    .assert_eq(&shown(&slices));
    assert_eq!(plan(&dual, &pods, &slices), Plan::nothing());
    let empty = perform(plan(&dual, &pods[1..], &[]), Vec::new());
    expect![[r#"
        IPv4 ["10.0.0.2"]
        IPv6 []
    "#]]
    .assert_eq(&shown(&empty));
    // The family that a service loses takes its slices along.
    let left = perform(plan(&of(json!(["IPv6"])), &pods, &slices), slices);
    expect![[r#"
        IPv6 ["fd00::1"]
    "#]]
    .assert_eq(&shown(&left));
}
