//! Hosts in namespaces: one runs `podium up`, a second one in the same segment and a third one behind a router join
//! with `podium agent`.
//!
//! ```text
//!   namespaces of the test            another one                       another one
//!   podium up --node-ip 192.168.77.1  podium agent, 192.168.77.2        podium agent, 192.168.78.2
//!             └─────────── segment ───────┴──────────── router ─────────────┘
//! ```
//!
//! Everything is looked at through the API, as any client would; at the end both hosts are cleaned up.

#![allow(clippy::unwrap_used, reason = "a test")]

mod hosts;

use std::process::Command;
use std::time::Duration;

use hosts::{Host, Hosts};
use serde_json::{Value, json};

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "PODIUM_TWO_NODES_INSIDE";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/two";
/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_second_host_joins() {
    if std::env::var_os(INSIDE).is_some() {
        let pool = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        pool.block_on(joining());
        return;
    }
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("PODIUM_TEST_REQUIRE").is_ok_and(|what| what == "root");
        assert!(!required, "this test needs root, and root is required");
        println!("skipped: needs root");
        return;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: needs `ip` (iproute2) to lay a wire between two hosts");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_second_host_joins", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) starts");
    assert!(status.success(), "joining failed: {status}");
}

async fn joining() {
    let mut two = Hosts::start();

    step("nobody joins with a wrong token, or trusts a wrong server");
    let token = two.new_token();
    let (bearer, authority) = token.rsplit_once('.').unwrap();
    let (id, _) = bearer.split_once('.').unwrap();
    let refused = two.refused(&format!("{id}.0000000000000000.{authority}"));
    assert!(refused.contains("Unauthorized"), "{refused}");
    let refused = two.refused(&format!("{bearer}.{}", "0".repeat(64)));
    assert!(refused.contains("does not belong to the cluster"), "{refused}");
    assert!(two.tokens().contains(id), "{}", two.tokens());

    step("a machine with the token becomes a node with a pod network of its own");
    two.join(Host::Second, Some(&token));
    two.delete_token(id);
    assert!(!two.tokens().contains(id), "a deleted token is gone");
    let cidrs = |node: &Value| node["spec"]["podCIDRs"].clone();
    let (one, second) = (two.read("/api/v1/nodes/one").await, two.read("/api/v1/nodes/two").await);
    assert_eq!(cidrs(&one), json!(["10.244.0.0/24", "fd00:10:244::/64"]));
    assert_eq!(cidrs(&second), json!(["10.244.1.0/24", "fd00:10:244:1::/64"]));

    step("pods of both nodes reach each other, services and names");
    two.create("services", service()).await;
    two.create("services", names()).await;
    for node in ["one", "two"] {
        two.create("pods", pod(&format!("web-{node}"), node, &["hello"], "web")).await;
    }
    let mut addresses = Vec::new();
    for node in ["one", "two"] {
        addresses.push(two.running(&format!("web-{node}")).await);
    }
    let script = format!(
        "while true; do fetch http://{}:8080/ && fetch http://{}:8080/ && fetch http://web/; sleep 1; done",
        addresses[0], addresses[1]
    );
    for node in ["one", "two"] {
        two.create("pods", pod(&format!("client-{node}"), node, &["sh", "-c", &script], "client")).await;
    }
    for node in ["one", "two"] {
        let name = format!("client-{node}");
        two.eventually(&format!("{name} hears both pods and the service"), async |t| {
            let log = t.log(&name).await;
            let lines: Vec<&str> = log.lines().collect();
            ["web-one", "web-two"].iter().all(|w| lines.contains(w)) && lines.len() >= 6
        })
        .await;
    }

    step("commands run on either node");
    for node in ["one", "two"] {
        let (output, status) = two.exec(&format!("client-{node}"), "echo from $(hostname); exit 3").await;
        assert_eq!(output, format!("from client-{node}\n"));
        assert_eq!(status["details"]["causes"][0]["message"], "3", "{status}");
    }

    step("ports are forwarded to, and output is heard from, either node");
    for node in ["one", "two"] {
        assert_eq!(two.forwarded(&format!("web-{node}"), 8080).await, format!("web-{node}\n"));
        let refused = two.forwarded(&format!("web-{node}"), 9).await;
        assert!(refused.starts_with(&format!("error forwarding port 9 to pod web-{node}")), "{refused}");
        two.attach(&format!("client-{node}"), "web-two").await;
    }

    step("an agent that starts again needs no token and finds its pods");
    let before = two.container("web-two").await;
    two.stop_agent(Host::Second);
    two.join(Host::Second, None);
    two.eventually("the same container", async |t| t.container("web-two").await == before).await;
    assert!(two.log("client-two").await.contains("web-one"), "logs of the second host");

    step("certificates that near their end are renewed while the agent runs");
    two.stop_agent(Host::Second);
    let aged = ["client", "serving"].map(|purpose| (purpose, two.age_certificate(purpose)));
    two.join(Host::Second, None);
    for (purpose, old) in &aged {
        two.eventually("another certificate", async |t| t.certificate(purpose) != *old).await;
    }
    two.eventually("the new one is shown", async |t| {
        let kept: String = t.certificate("serving").lines().filter(|l| !l.starts_with("-----")).collect();
        t.shown_certificate().await == kept
    })
    .await;
    let (output, _) = two.exec("client-two", "echo still").await;
    assert_eq!(output, "still\n");
    let renewed = two.read(LEASE).await["spec"]["renewTime"].clone();
    two.eventually("the node goes on reporting", async |t| {
        t.read(LEASE).await["spec"]["renewTime"] != renewed
    })
    .await;

    another_segment(&mut two).await;
    six(&two).await;
    policies(&mut two).await;
    a_dead_node(&mut two).await;
    a_cut_wire(&mut two).await;

    step("down leaves nothing on any host");
    two.down();
    assert_eq!(two.leftovers(Host::First), Vec::<String>::new());
    assert_eq!(two.leftovers(Host::Second), Vec::<String>::new());
    assert_eq!(two.leftovers(Host::Third), Vec::<String>::new());
}

/// A third host, which the others reach through a router: routes in the segment, tunnels across.
async fn another_segment(hosts: &mut Hosts) {
    step("pods across segments reach each other through tunnels");
    let token = hosts.new_token();
    hosts.join(Host::Third, Some(&token));
    hosts.create("pods", pod("web-three", "three", &["hello"], "web")).await;
    let address = hosts.running("web-three").await;
    let script = "while true; do fetch http://web/; sleep 0.2; done";
    for node in ["one", "two", "three"] {
        let name = format!("late-{node}");
        hosts.create("pods", pod(&name, node, &["sh", "-c", script], "client")).await;
    }
    for node in ["one", "two", "three"] {
        let name = format!("late-{node}");
        hosts
            .eventually(&format!("{name} hears the pods of all nodes"), async |t| {
                let log = t.log(&name).await;
                ["web-one", "web-two", "web-three"].iter().all(|w| log.lines().any(|line| line == *w))
            })
            .await;
        let (mtu, _) = hosts.exec(&name, "cat /sys/class/net/eth0/mtu").await;
        assert_eq!(mtu, "1450\n", "a pod's packets fit into a tunnel's");
    }
    let large = large_exchange(&address);
    assert!(large > 6000, "a long request and its long answer came through: {large}");
    let routes = hosts.ip(Host::First, "route show");
    let via = |network: &str| routes.lines().find(|l| l.starts_with(network)).unwrap().to_owned();
    assert!(via("10.244.1.0/24").contains("via 192.168.77.2 dev cable"), "{routes}");
    assert!(via("10.244.2.0/24").contains("via 10.244.2.1 dev p"), "{routes}");
}

/// The same ways for IPv6, and a service of both families. In the segment it is routed; the third host has an address
/// that the others have no way to, so it is tunnelled.
async fn six(hosts: &Hosts) {
    step("pods of all nodes reach each other, and services, over IPv6");
    let mut service = service();
    service["metadata"]["name"] = "web-dual".into();
    service["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    hosts.create("services", service).await;
    let service = hosts.read("/api/v1/namespaces/default/services/web-dual").await;
    let cluster_ip = service["spec"]["clusterIPs"][1].as_str().unwrap().to_owned();
    assert!(cluster_ip.starts_with("fd00:10:96::"), "{service}");
    let mut addresses = Vec::new();
    for node in ["one", "two", "three"] {
        addresses.push((node, hosts.sixth_address(&format!("web-{node}")).await));
    }
    for from in ["late-one", "late-two", "late-three"] {
        for (node, address) in &addresses {
            let (heard, _) = hosts.exec(from, &format!("fetch http://[{address}]:8080/")).await;
            assert_eq!(heard, format!("web-{node}\n"), "{from} to {address}");
        }
        let script = format!("fetch --count 40 --every 0.01s http://[{cluster_ip}]/");
        hosts
            .eventually(&format!("{from} hears all pods behind [{cluster_ip}]"), async |t| {
                let (heard, _) = t.exec(from, &script).await;
                ["web-one", "web-two", "web-three"].iter().all(|web| heard.lines().any(|line| line == *web))
            })
            .await;
    }
    let routes = hosts.ip(Host::First, "-6 route show");
    let via = |network: &str| routes.lines().find(|l| l.starts_with(network)).unwrap_or_default().to_owned();
    assert!(via("fd00:10:244:1::/64").contains("via fd77::2 dev cable"), "{routes}");
    assert!(via("fd00:10:244:2::/64").contains("via fd00:10:244:2::1 dev p"), "{routes}");
}

/// A policy holds on every node, for pods of every node.
async fn policies(hosts: &mut Hosts) {
    step("network policies hold on every node");
    let only_one = json!([{"podSelector": {"matchExpressions": [{"key": "name", "operator": "In", "values": ["late-one"]}]}}]);
    hosts
        .create_in(
            "networking.k8s.io",
            "networkpolicies",
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
                "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": only_one}]},
            }),
        )
        .await;
    let reaches = async |t: &Hosts, from: &str, to: &str| {
        let script = format!("fetch --timeout 1s http://{to}.names:8080/ > /dev/null && echo yes");
        t.exec(from, &script).await.0 == "yes\n"
    };
    for to in ["web-one", "web-two", "web-three"] {
        hosts
            .eventually(&format!("late-two does not reach {to}"), async |t| !reaches(t, "late-two", to).await)
            .await;
        assert!(reaches(hosts, "late-one", to).await, "{to}");
    }
    hosts.delete("networking.k8s.io", "networkpolicies", "web").await;
    hosts.eventually("late-two reaches web-three", async |t| reaches(t, "late-two", "web-three").await).await;
}

/// Sends a request that fills several packets from the first host to a pod; returns the length of the answer.
fn large_exchange(address: &str) -> usize {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((address, 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let lines: String = (0..60).map(|n| format!("x-{n}: {}\r\n", "y".repeat(100))).collect();
    write!(stream, "GET /headers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.len()
}

/// The agent dies and its pods are replaced elsewhere; when it comes back, it clears up.
async fn a_dead_node(hosts: &mut Hosts) {
    step("pods of a dead node are replaced elsewhere, and their remains go when it comes back");
    hosts.cordon("three", true).await;
    hosts.create_in("apps", "replicasets", replicas()).await;
    hosts
        .eventually("a replica on two", async |t| {
            t.pods_of("moving").await.iter().any(|(_, node, ready, _)| node == "two" && *ready)
        })
        .await;
    hosts.cordon("three", false).await;
    let first = hosts.pods_of("moving").await[0].0.clone();
    assert_eq!(processes(MARK), 1);
    hosts.kill_agent(Host::Second);
    hosts.eventually("two is not ready", async |t| t.ready("two").await == "Unknown").await;
    hosts
        .eventually("a replica on three, the old one given up", async |t| {
            let pods = t.pods_of("moving").await;
            let old = pods.iter().any(|(name, _, _, deleted)| *name == first && *deleted);
            old && pods.iter().any(|(_, node, ready, _)| node == "three" && *ready)
        })
        .await;
    assert_eq!(processes(MARK), 2, "nobody could stop the old one");
    let node = hosts.read("/api/v1/nodes/two").await;
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    assert!(taints.iter().any(|t| t["key"] == "node.kubernetes.io/unreachable"), "{taints:?}");
    let before = hosts.container("web-two").await;
    hosts.join(Host::Second, None);
    hosts.eventually("two is ready", async |t| t.ready("two").await == "True").await;
    hosts.eventually("the old replica is gone", async |t| t.pods_of("moving").await.len() == 1).await;
    hosts.eventually("and its process", async |_| processes(MARK) == 1).await;
    hosts
        .eventually("two has no taints", async |t| {
            t.read("/api/v1/nodes/two").await["spec"]["taints"].is_null()
        })
        .await;
    assert_eq!(hosts.container("web-two").await, before, "who tolerated it was not touched");
}

/// The machine is fine but nobody reaches it for a while.
async fn a_cut_wire(hosts: &mut Hosts) {
    step("a node whose wire was cut comes back with all its ways");
    hosts.running("web-two").await;
    let before = hosts.container("web-two").await;
    hosts.ip(Host::Second, "link set cable down");
    hosts.eventually("two is not ready", async |t| t.ready("two").await == "Unknown").await;
    hosts.ip(Host::Second, "link set cable up");
    hosts.ip(Host::Second, "route add 192.168.78.0/24 via 192.168.77.254");
    hosts.eventually("two is ready", async |t| t.ready("two").await == "True").await;
    hosts.running("web-two").await;
    assert_eq!(hosts.container("web-two").await, before);
    for (from, other) in [("late-two", "web-one"), ("late-two", "web-three"), ("late-three", "web-two")] {
        let heard = async |t: &Hosts| t.log(from).await.lines().filter(|line| *line == other).count();
        let so_far = heard(hosts).await;
        hosts.eventually(&format!("{from} hears {other} again"), async |t| heard(t).await > so_far).await;
    }
}

/// An argument that only the processes of the replicas have.
const MARK: &str = "98765.25";

fn processes(argument: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|b| *b == 0).any(|word| word == argument.as_bytes())).count()
}

/// One replica that runs on the hosts that joined and leaves a lost one after a second.
fn replicas() -> Value {
    let toleration =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    let mut template = pod("x", "x", &["sleep", MARK], "moving");
    template["metadata"].as_object_mut().unwrap().remove("name");
    let spec = template["spec"].as_object_mut().unwrap();
    spec.remove("nodeName");
    let joined = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": ["two", "three"]}]);
    spec.insert(
        "affinity".into(),
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": joined}]}}}),
    );
    let keys = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];
    spec.insert("tolerations".into(), json!(keys.map(toleration)));
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "moving"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "moving"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]}},
    })
}

fn pod(name: &str, node: &str, command: &[&str], app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app, "name": name}},
        "spec": {"nodeName": node, "hostname": name, "subdomain": "names", "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "podium.local/toolbox:latest", "command": command},
        ]},
    })
}

/// Gives each web pod a name of its own.
fn names() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "names"},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 8080}]},
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn step(what: &str) {
    println!("== {what}");
}
