//! Golden tables: what each plugin refuses or prefers, and the words it uses.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use api::ObjectKey;
use common::{asking, cluster, node, outcome, pod};
use scheduler::cycle::{Choice, Decision, schedule};
use serde_json::{Value, json};

fn on(name: &str, node: &str, change: Value) -> std::sync::Arc<scheduler::pod::PodInfo> {
    let mut merged = change;
    common::merge(&mut merged, json!({ "spec": { "nodeName": node } }));
    pod(name, merged)
}

fn labelled(name: &str, labels: Value) -> scheduler::node::NodeSpec {
    node(name, json!({ "metadata": { "labels": labels } }))
}

fn tainted(name: &str, key: &str, value: &str, effect: &str) -> scheduler::node::NodeSpec {
    node(name, json!({ "spec": { "taints": [{ "key": key, "value": value, "effect": effect }] } }))
}

#[test]
fn resources_are_summed_as_kubernetes_does() {
    let container =
        |cpu: &str| json!({ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": "1Gi" } } });
    let sidecar = |cpu: &str| {
        let mut sidecar = container(cpu);
        common::merge(&mut sidecar, json!({ "restartPolicy": "Always" }));
        sidecar
    };
    let cases = [
        ("containers add up", json!({ "containers": [container("1"), container("500m")] }), 1500),
        (
            "init runs before",
            json!({ "containers": [container("1")], "initContainers": [container("3")] }),
            3000,
        ),
        (
            "the largest init counts",
            json!({ "containers": [container("1")], "initContainers": [container("2"), container("3")] }),
            3000,
        ),
        ("sidecars stay", json!({ "containers": [container("1")], "initContainers": [sidecar("1")] }), 2000),
        (
            "init beside earlier sidecars",
            json!({ "containers": [container("1")], "initContainers": [sidecar("1"), container("3")] }),
            4000,
        ),
        (
            "init before later sidecars",
            json!({ "containers": [container("1")], "initContainers": [container("3"), sidecar("1")] }),
            3000,
        ),
        ("overhead", json!({ "containers": [container("1")], "overhead": { "cpu": "250m" } }), 1250),
        (
            "pod level",
            json!({ "containers": [container("1")], "resources": { "requests": { "cpu": "2" } } }),
            2000,
        ),
    ];
    for (what, spec, cpu) in cases {
        assert_eq!(pod("p", json!({ "spec": spec })).spec.requests.milli_cpu, cpu, "{what}");
    }
}

#[test]
fn refusals_are_worded_as_in_kubernetes() {
    let gpu = json!({ "example.com/gpu": "1" });
    let port = json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "hostPort": 80, "containerPort": 80 }] }] } });
    let selector = json!({ "spec": { "nodeSelector": { "disk": "ssd" } } });
    let full: Vec<_> = (0..10).map(|i| on(&format!("f{i}"), "a", json!({}))).collect();
    let cases = [
        ("no nodes available to schedule pods", cluster(&[], &[]), pod("p", json!({}))),
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {dedicated: db}.",
            cluster(
                &[
                    node("a", json!({})),
                    tainted("b", "dedicated", "db", "NoSchedule"),
                    tainted("c", "dedicated", "db", "NoExecute"),
                ],
                &[],
            ),
            asking("p", json!({ "cpu": "5" })),
        ),
        (
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient example.com/gpu, 1 Insufficient memory.",
            cluster(&[node("a", json!({}))], &[]),
            asking("p", json!({ "cpu": "5", "memory": "9Gi", "example.com/gpu": "1" })),
        ),
        (
            "0/1 nodes are available: 1 Insufficient example.com/gpu.",
            cluster(&[node("a", json!({}))], &[]),
            asking("p", gpu),
        ),
        (
            "0/1 nodes are available: 1 Too many pods.",
            cluster(&[node("a", json!({}))], &full),
            pod("p", json!({})),
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.",
            cluster(&[tainted("a", "node.kubernetes.io/not-ready", "", "NoSchedule")], &[]),
            pod("p", json!({})),
        ),
        (
            "0/1 nodes are available: 1 node(s) were unschedulable.",
            cluster(&[node("a", json!({ "spec": { "unschedulable": true } }))], &[]),
            pod("p", json!({})),
        ),
        (
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            cluster(&[labelled("a", json!({ "disk": "hdd" }))], &[]),
            pod("p", selector),
        ),
        (
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
            cluster(&[node("a", json!({}))], &[on("q", "a", port.clone())]),
            pod("p", port),
        ),
    ];
    for (want, mut snapshot, pod) in cases {
        assert_eq!(outcome(&mut snapshot, &pod), want);
    }
}

#[test]
fn tolerations_match_taints() {
    let cases = [
        (json!({ "key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule" }), true),
        (json!({ "key": "k", "value": "v" }), true),
        (json!({ "key": "k", "operator": "Exists" }), true),
        (json!({ "operator": "Exists" }), true),
        (json!({ "key": "k", "value": "other" }), false),
        (json!({ "key": "other", "operator": "Exists" }), false),
        (json!({ "key": "k", "operator": "Exists", "effect": "NoExecute" }), false),
    ];
    for (toleration, tolerated) in cases {
        let mut snapshot = cluster(&[tainted("a", "k", "v", "NoSchedule")], &[]);
        let pod = pod("p", json!({ "spec": { "tolerations": [toleration] } }));
        assert_eq!(outcome(&mut snapshot, &pod) == "a", tolerated, "{toleration}");
    }
    let mut snapshot = cluster(&[tainted("a", "k", "v", "PreferNoSchedule"), node("b", json!({}))], &[]);
    assert_eq!(outcome(&mut snapshot, &pod("p", json!({}))), "b");
}

#[test]
fn node_affinity_operators() {
    let labels = json!({ "disk": "ssd", "cores": "8" });
    let expression = |key: &str, operator: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
    let name = |name: &str| json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] });
    let cases = [
        (vec![expression("disk", "In", json!(["ssd", "nvme"]))], true),
        (vec![expression("disk", "In", json!(["hdd"]))], false),
        (vec![expression("disk", "NotIn", json!(["hdd"]))], true),
        (vec![expression("zone", "NotIn", json!(["x"]))], true),
        (vec![expression("disk", "Exists", json!([]))], true),
        (vec![expression("disk", "DoesNotExist", json!([]))], false),
        (vec![expression("cores", "Gt", json!(["4"]))], true),
        (vec![expression("cores", "Lt", json!(["8"]))], false),
        (vec![expression("disk", "Gt", json!(["4"]))], false),
        (vec![expression("disk", "In", json!(["hdd"])), expression("cores", "Gt", json!(["1"]))], true),
        (vec![name("a")], true),
        (vec![name("b")], false),
        (vec![json!({})], false),
    ];
    for (terms, matches) in cases {
        let required =
            json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } });
        let pod = pod("p", json!({ "spec": { "affinity": { "nodeAffinity": required } } }));
        let mut snapshot = cluster(&[labelled("a", labels.clone())], &[]);
        assert_eq!(outcome(&mut snapshot, &pod) == "a", matches, "{terms:?}");
    }
    let preferred = json!([
        { "weight": 1, "preference": expression("disk", "In", json!(["hdd"])) },
        { "weight": 50, "preference": expression("disk", "In", json!(["ssd"])) },
    ]);
    let affinity =
        json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } });
    let nodes = [labelled("a", json!({ "disk": "hdd" })), labelled("b", json!({ "disk": "ssd" }))];
    assert_eq!(
        outcome(&mut cluster(&nodes, &[]), &pod("p", json!({ "spec": { "affinity": affinity } }))),
        "b"
    );
}

#[test]
fn host_ports_conflict_by_address_and_protocol() {
    let port = |ip: &str, protocol: &str| {
        let port = json!({ "hostPort": 80, "containerPort": 8080, "hostIP": ip, "protocol": protocol });
        json!({ "spec": { "containers": [{ "name": "c", "ports": [port] }] } })
    };
    let cases = [
        (("", "TCP"), ("", "TCP"), true),
        (("0.0.0.0", "TCP"), ("10.0.0.1", "TCP"), true),
        (("10.0.0.1", "TCP"), ("10.0.0.1", "TCP"), true),
        (("10.0.0.1", "TCP"), ("10.0.0.2", "TCP"), false),
        (("", "TCP"), ("", "UDP"), false),
    ];
    for (taken, wanted, conflicts) in cases {
        let mut snapshot = cluster(&[node("a", json!({}))], &[on("q", "a", port(taken.0, taken.1))]);
        let refused = outcome(&mut snapshot, &pod("p", port(wanted.0, wanted.1))) != "a";
        assert_eq!(refused, conflicts, "{taken:?} {wanted:?}");
    }
}

#[test]
fn emptier_and_better_balanced_nodes_win() {
    let big = json!({ "status": { "allocatable": { "cpu": "16", "memory": "8Gi", "pods": "10" } } });
    let load = |node: &str, requests: Value| {
        let container = json!({ "name": "c", "resources": { "requests": requests } });
        on(
            &format!("load-{node}"),
            node,
            json!({ "metadata": { "labels": { "app": "load" } }, "spec": { "containers": [container] } }),
        )
    };
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut snapshot = cluster(&nodes, &[load("a", json!({ "cpu": "2", "memory": "4Gi" }))]);
    assert_eq!(outcome(&mut snapshot, &asking("p", json!({ "cpu": "1", "memory": "2Gi" }))), "b");
    let nodes = [node("a", big), node("b", json!({}))];
    // Equally loaded by the mean; on `b` cpu and memory stay in balance.
    let mut snapshot = cluster(
        &nodes,
        &[
            load("a", json!({ "cpu": "2", "memory": "6Gi" })),
            load("b", json!({ "cpu": "2", "memory": "4Gi" })),
        ],
    );
    assert_eq!(outcome(&mut snapshot, &asking("p", json!({ "cpu": "100m", "memory": "200Mi" }))), "b");
}

fn spreading(key: &str, when: &str, max_skew: i64) -> Value {
    let constraint = json!({
        "topologyKey": key, "whenUnsatisfiable": when, "maxSkew": max_skew,
        "labelSelector": { "matchLabels": { "app": "web" } },
    });
    json!({ "spec": { "topologySpreadConstraints": [constraint] } })
}

#[test]
fn hard_spreading_bounds_the_skew() {
    let zone = |name: &str, zone: &str| labelled(name, json!({ "zone": zone }));
    let nodes = [
        zone("a", "x"),
        zone("b", "x"),
        zone("c", "y"),
        node("d", json!({ "spec": { "unschedulable": true } })),
    ];
    let hard = || spreading("zone", "DoNotSchedule", 1);
    let mut snapshot = cluster(&nodes, &[on("p0", "a", json!({}))]);
    assert_eq!(outcome(&mut snapshot, &pod("p", hard())), "c");
    snapshot.set_pod(&on("p1", "c", json!({})));
    snapshot.set_pod(&on("p2", "b", json!({})));
    assert_eq!(outcome(&mut snapshot, &pod("p", hard())), "c");
    let full: Vec<_> = (0..9)
        .map(|i| on(&format!("full{i}"), "c", json!({ "metadata": { "labels": { "app": "x" } } })))
        .collect();
    full.iter().for_each(|pod| drop(snapshot.set_pod(pod)));
    assert_eq!(
        outcome(&mut snapshot, &pod("p", hard())),
        "0/4 nodes are available: 1 Too many pods, 1 node(s) were unschedulable, \
         2 node(s) didn't match pod topology spread constraints."
    );
    let mut snapshot = cluster(&[node("a", json!({}))], &[]);
    assert_eq!(
        outcome(&mut snapshot, &pod("p", hard())),
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
    // Too few domains count as an empty one.
    let mut few = spreading("zone", "DoNotSchedule", 1);
    few["spec"]["topologySpreadConstraints"][0]["minDomains"] = json!(3);
    let mut snapshot = cluster(&nodes, &[on("p0", "a", json!({})), on("p1", "c", json!({}))]);
    assert!(outcome(&mut snapshot, &pod("p", few)).starts_with("0/4"));
    assert_ne!(&outcome(&mut snapshot, &pod("p", hard()))[..1], "0");
}

#[test]
fn soft_spreading_prefers_emptier_domains() {
    let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
    let placed = [
        on("p0", "a", json!({})),
        on("p1", "a", json!({})),
        on("p2", "b", json!({})),
        on("p3", "c", json!({})),
    ];
    let mut snapshot = cluster(&nodes, &placed);
    // c is as empty as b for this pod, but its pod is going away.
    snapshot.set_pod(&on("p3", "c", json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } })));
    let soft = pod("p", spreading("kubernetes.io/hostname", "ScheduleAnyway", 1));
    assert_eq!(outcome(&mut snapshot, &soft), "c");
}

#[test]
fn replicas_are_spread_without_being_asked() {
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true }]);
    for by_service in [false, true] {
        let nodes: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| {
                node(
                    name,
                    json!({ "status": { "allocatable": { "cpu": "64", "memory": "64Gi", "pods": "110" } } }),
                )
            })
            .collect();
        let mut snapshot = cluster(&nodes, &[]);
        let meta = if by_service { json!({}) } else { json!({ "ownerReferences": owner }) };
        if by_service {
            let selector = [("app".to_owned(), "web".to_owned())].into();
            snapshot.set_service(&ObjectKey::new("default", "web"), Some(selector));
        }
        for round in 1..=4 {
            let mut used = BTreeSet::new();
            for i in 0..3 {
                let replica = pod(&format!("r{round}-{i}"), json!({ "metadata": meta }));
                snapshot.prepare(&replica);
                // Whatever decides between equals.
                let choice = Choice { start: i, random: 7 * i as u64 + round };
                let Decision::Bind { node } = schedule(&snapshot, &replica, choice) else {
                    panic!("refused")
                };
                snapshot.assume(&replica, &node);
                used.insert(node);
            }
            assert_eq!(used.len(), 3, "round {round}, by service: {by_service}");
        }
    }
}

fn affinity(kind: &str, key: &str, app: &str) -> Value {
    let term = json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } });
    json!({ "spec": { "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [term] } } } })
}

#[test]
fn required_pod_affinity_and_anti_affinity() {
    let zone = |name: &str, zone: &str| labelled(name, json!({ "zone": zone }));
    let nodes = [zone("a", "x"), zone("b", "x"), zone("c", "y")];
    let db = |node: &str| on("db", node, json!({ "metadata": { "labels": { "app": "db" } } }));

    let mut snapshot = cluster(&nodes, &[db("a")]);
    let away = pod("p", affinity("podAntiAffinity", "zone", "db"));
    assert_eq!(outcome(&mut snapshot, &away), "c");
    assert_eq!(
        outcome(&mut snapshot, &pod("p", affinity("podAffinity", "kubernetes.io/hostname", "db"))),
        "a"
    );

    let nobody = pod("p", affinity("podAffinity", "zone", "none"));
    assert_eq!(
        outcome(&mut snapshot, &nobody),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    let itself = pod("p", affinity("podAffinity", "zone", "web"));
    assert!(
        ["a", "b", "c"].contains(&&*outcome(&mut snapshot, &itself)),
        "the first of its kind may go anywhere"
    );

    let everywhere = [db("a"), on("db2", "c", json!({ "metadata": { "labels": { "app": "db" } } }))];
    assert_eq!(
        outcome(&mut cluster(&nodes, &everywhere), &away),
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    );

    // The other direction: a running pod keeps others out.
    let hermit = on("hermit", "c", affinity("podAntiAffinity", "zone", "web"));
    let mut snapshot = cluster(&nodes[2..], std::slice::from_ref(&hermit));
    assert_eq!(
        outcome(&mut snapshot, &pod("p", json!({}))),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    snapshot.remove_pod(&hermit.key);
    assert_eq!(outcome(&mut snapshot, &pod("p", json!({}))), "c");
}

#[test]
fn affinity_respects_namespaces() {
    let term = |more: Value| {
        let mut pod = affinity("podAntiAffinity", "kubernetes.io/hostname", "db");
        let list =
            &mut pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        common::merge(&mut list[0], more);
        pod
    };
    let db = on("db", "a", json!({ "metadata": { "namespace": "other", "labels": { "app": "db" } } }));
    let cases = [
        (json!({}), true),
        (json!({ "namespaces": ["other"] }), false),
        (json!({ "namespaceSelector": {} }), false),
        (json!({ "namespaceSelector": { "matchLabels": { "team": "red" } } }), false),
        (json!({ "namespaceSelector": { "matchLabels": { "team": "blue" } } }), true),
    ];
    for (more, fits) in cases {
        let mut snapshot = cluster(&[node("a", json!({}))], std::slice::from_ref(&db));
        let incoming = pod("p", term(more.clone()));
        snapshot.prepare(&incoming);
        snapshot.set_namespace("other", Some([("team".to_owned(), "red".to_owned())].into()));
        assert_eq!(outcome(&mut snapshot, &incoming) == "a", fits, "{more}");
    }
}

#[test]
fn preferred_pod_affinity_draws_and_repels() {
    let preferred = |kind: &str| {
        let term = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "db" } } });
        let list = json!([{ "weight": 100, "podAffinityTerm": term }]);
        json!({ "spec": { "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": list } } } })
    };
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let db = on("db", "a", json!({ "metadata": { "labels": { "app": "db" } } }));
    let mut snapshot = cluster(&nodes, std::slice::from_ref(&db));
    assert_eq!(outcome(&mut snapshot, &pod("p", preferred("podAffinity"))), "a");
    assert_eq!(outcome(&mut snapshot, &pod("p", preferred("podAntiAffinity"))), "b");
    // Preferences of running pods count for those they are about.
    let mut seeker = preferred("podAffinity");
    common::merge(&mut seeker, json!({ "metadata": { "labels": { "app": "seeker" } } }));
    let mut snapshot = cluster(&nodes, &[on("s", "a", seeker)]);
    let db = pod("db2", json!({ "metadata": { "labels": { "app": "db" } } }));
    assert_eq!(outcome(&mut snapshot, &db), "a");
}

#[test]
fn only_pods_that_want_this_scheduler_are_pending() {
    let cases = [
        (json!({}), true),
        (json!({ "spec": { "schedulerName": "other" } }), false),
        (json!({ "spec": { "nodeName": "a" } }), false),
        (json!({ "spec": { "schedulingGates": [{ "name": "g" }] } }), false),
        (json!({ "status": { "phase": "Succeeded" } }), false),
        (json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }), false),
    ];
    for (change, pending) in cases {
        assert_eq!(pod("p", change.clone()).is_pending(), pending, "{change}");
    }
}
