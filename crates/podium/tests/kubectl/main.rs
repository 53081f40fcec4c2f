//! What people do with kubectl every day, with the real kubectl on one started cluster.
//!
//! The test runs itself again inside new network and mount namespaces. Its tracks share the cluster, each in a namespace
//! of its own, side by side. `PODIUM_TEST_KUBECTL` names another kubectl than the one in the path; without any it is skipped.

#![allow(clippy::unwrap_used, reason = "a test")]

mod attacks;
#[path = "../e2e/host.rs"]
#[allow(dead_code, reason = "shared with the end-to-end test")]
mod host;
mod images;
mod kubectl;
#[path = "../../../runtime/src/image/pull/tests/registry.rs"]
#[allow(dead_code, reason = "shared with the tests of pulls")]
mod registry;
mod stories;
mod streams;
mod workloads;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kubectl::Kubectl;

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "PODIUM_KUBECTL_INSIDE";

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: podium.local/toolbox, command: [hello], ports: [{containerPort: 8080, name: http}]}
  - {name: second, image: podium.local/toolbox, command: [sh, -c, "echo second; sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: sh}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: sh, image: podium.local/toolbox, command: [sleep, "1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: crash, image: podium.local/toolbox, command: [sh, -c, "echo one; echo two; exit 3"]}
"#;

#[test]
fn daily_use() {
    if std::env::var_os(INSIDE).is_some() {
        host::prepare();
        return inside();
    }
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("PODIUM_TEST_REQUIRE").is_ok_and(|what| what == "root");
        assert!(!required, "this test needs root, and root is required");
        println!("skipped: needs root");
        return;
    }
    if !kubectl::is_there() {
        println!("skipped: needs kubectl");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "daily_use", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) starts");
    assert!(status.success(), "kubectl's tour failed: {status}");
}

fn inside() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut podium = Command::new(env!("CARGO_BIN_EXE_podium"))
        .args(["up", "--node-name", "n1", "--data-dir"])
        .arg(&data)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(podium.stdout.take().unwrap()).lines();
    while !lines.next().expect("podium ended early").unwrap().starts_with("cluster ready") {}
    std::thread::spawn(move || lines.for_each(drop));
    let outcome = std::panic::catch_unwind(|| tour(&data));
    down(&mut podium, &data);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn tour(data: &Path) {
    let k = |namespace: &str| Kubectl::new(&data.join("admin.kubeconfig"), namespace);
    let tracks: [(&str, fn(&Kubectl)); 7] = [
        ("streams", streams::exec_copy_forward),
        ("logs", streams::logs_and_attach),
        ("deployments", workloads::deployments),
        ("objects", workloads::objects),
        ("attacks", attacks::a_pod_and_its_node),
        ("stories", stories::of_pods),
        ("images", images::pulls),
    ];
    std::thread::scope(|scope| {
        for (name, track) in tracks {
            let k = k(name);
            scope.spawn(move || {
                k.run(&["create", "namespace", name]);
                track(&k);
                println!("== {name}: done");
            });
        }
    });
    // Cordons the only node: nothing else may need it meanwhile.
    workloads::the_node(&k("deployments"));
}

fn down(podium: &mut Child, data: &Path) {
    let pid = rustix::process::Pid::from_child(podium);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    podium.wait().unwrap();
    let down = Command::new(env!("CARGO_BIN_EXE_podium"));
    let status = { down }.args(["down", "--purge", "--data-dir"]).arg(data).status().unwrap();
    assert!(status.success(), "down: {status}");
}
