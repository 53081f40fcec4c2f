//! Two hosts in namespaces: one runs `podium up`, the other joins with `podium agent`.
//!
//! ```text
//!   network + mount namespace of the test                 another one
//!   podium up --node-ip 192.168.77.1 ──── veth ──── podium agent --server https://192.168.77.1:6443
//! ```
//!
//! Everything is looked at through the API, as any client would; at the end both hosts are cleaned up.

#![allow(clippy::unwrap_used, reason = "a test")]

mod hosts;

use std::process::Command;
use std::time::Duration;

use hosts::{Host, TwoHosts};
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
    let mut two = TwoHosts::start();

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
    two.join(Some(&token));
    two.delete_token(id);
    assert!(!two.tokens().contains(id), "a deleted token is gone");
    let cidr = |node: &Value| node["spec"]["podCIDR"].as_str().unwrap().to_owned();
    let (one, second) = (two.read("/api/v1/nodes/one").await, two.read("/api/v1/nodes/two").await);
    assert_eq!((cidr(&one).as_str(), cidr(&second).as_str()), ("10.244.0.0/24", "10.244.1.0/24"));

    step("pods of both nodes reach each other, services and names");
    two.create("services", service()).await;
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

    step("an agent that starts again needs no token and finds its pods");
    let before = two.container("web-two").await;
    two.stop_agent();
    two.join(None);
    two.eventually("the same container", async |t| t.container("web-two").await == before).await;
    assert!(two.log("client-two").await.contains("web-one"), "logs of the second host");

    step("a certificate that nears its end is renewed while the agent runs");
    two.stop_agent();
    let old = two.age_certificate();
    two.join(None);
    two.eventually("another client certificate", async |t| t.certificate() != old).await;
    let renewed = two.read(LEASE).await["spec"]["renewTime"].clone();
    two.eventually("the node goes on reporting", async |t| {
        t.read(LEASE).await["spec"]["renewTime"] != renewed
    })
    .await;

    step("down leaves nothing on either host");
    two.down();
    assert_eq!(two.leftovers(Host::First), Vec::<String>::new());
    assert_eq!(two.leftovers(Host::Second), Vec::<String>::new());
}

fn pod(name: &str, node: &str, command: &[&str], app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "podium.local/toolbox:latest", "command": command},
        ]},
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
