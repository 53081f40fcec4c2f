//! The main job from end to end: `podium up --apply examples/web.yaml` on a machine of its own.
//!
//! The test runs itself again inside new network and mount namespaces. There it starts the real binary, talks to it over
//! TLS as any client would, breaks it, and looks at the host for leftovers after `podium down`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod cluster;
mod host;

use std::process::Command;
use std::time::Duration;

use cluster::{Cluster, NAMESPACE};
use serde_json::json;

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "PODIUM_E2E_INSIDE";

#[test]
fn the_main_job() {
    if std::env::var_os(INSIDE).is_some() {
        host::prepare();
        let pool = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        pool.block_on(main_job());
        return;
    }
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("PODIUM_TEST_REQUIRE").is_ok_and(|what| what == "root");
        assert!(!required, "this test needs root, and root is required");
        println!("skipped: needs root");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_main_job", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) starts");
    assert!(status.success(), "the main job failed: {status}");
}

async fn main_job() {
    let mut cluster = Cluster::start().await;

    step("the printed curl line answers");
    // the replicas are ready; the rules follow within moments, which are longer on a slow machine
    let greets = |answer: Option<String>| answer.is_some_and(|text| text.starts_with("hello from web-"));
    cluster.eventually("an answer", async |c| greets(c.try_get(&c.curl_line))).await;

    step("the client pod reaches all replicas by the Service's name");
    cluster
        .eventually("all three replicas in the client's log", async |c| {
            c.answering_replicas().await.len() == 3
        })
        .await;

    step("a container whose process ends is started again");
    let pod = cluster.web_pods().await.remove(0);
    cluster.get(&format!("http://{}:8080/exit", pod.ip));
    cluster
        .eventually("one restart", async |c| {
            c.pod(&pod.name).await.is_some_and(|p| p.restarts == 1 && p.ready)
        })
        .await;

    step("a failing health check takes the pod out of the Service, then restarts it");
    let pod = cluster.web_pods().await.remove(1);
    cluster.get(&format!("http://{}:8080/healthz/fail", pod.ip));
    cluster.eventually("not an endpoint", async |c| !c.ready_endpoints().await.contains(&pod.ip)).await;
    cluster
        .eventually("restarted and an endpoint again", async |c| {
            c.pod(&pod.name).await.is_some_and(|p| p.restarts == pod.restarts + 1 && p.ready)
                && c.ready_endpoints().await.contains(&pod.ip)
        })
        .await;

    step("a deleted pod is replaced");
    cluster.delete_pod(&pod.name).await;
    cluster
        .eventually("three other pods", async |c| {
            let pods = c.web_pods().await;
            pods.len() == 3 && pods.iter().all(|p| p.ready && p.name != pod.name)
        })
        .await;

    step("scale 3 → 20 → 1 → 3");
    for replicas in [20, 1, 3] {
        cluster.patch_deployment(&json!({"spec": {"replicas": replicas}})).await;
        cluster.eventually(&format!("{replicas} replicas"), async |c| c.rolled_out(replicas).await).await;
    }

    step("rolling update and back");
    for greeting in ["good day from", "hello from"] {
        let env = json!([{"name": "GREETING", "value": greeting, "valueFrom": null}]);
        let containers = json!([{"name": "web", "env": env}]);
        cluster.patch_deployment(&json!({"spec": {"template": {"spec": {"containers": containers}}}})).await;
        cluster.eventually("rolled out", async |c| c.rolled_out(3).await).await;
        cluster
            .eventually("only new answers", async |c| {
                (0..10).all(|_| c.try_get(&c.curl_line).is_some_and(|answer| answer.starts_with(greeting)))
            })
            .await;
    }

    step("kill -9 under write load: nothing acknowledged is lost, the containers go on");
    let before = cluster.containers().await;
    let mut next = 0;
    for _ in 0..3 {
        let acknowledged = cluster.write_and_kill(next).await;
        cluster.restart().await;
        let written = cluster.written().await;
        assert_eq!(written, (0..written.len()).collect::<Vec<_>>(), "no gap");
        // the write that the kill cut off may have become durable before its answer was sent
        assert!(
            (acknowledged..=acknowledged + 1).contains(&written.len()),
            "{acknowledged} acknowledged: {written:?}"
        );
        next = written.len();
    }
    cluster.eventually("the same containers", async |c| c.containers().await == before).await;
    cluster.eventually("an answer", async |c| greets(c.try_get(&c.curl_line))).await;

    step("deleting the namespace leaves no pod on the host");
    cluster.delete_namespace(NAMESPACE).await;
    cluster.eventually("no namespace", async |c| !c.namespace_exists(NAMESPACE).await).await;
    cluster
        .eventually("no pod on the host", async |c| {
            host::pod_links().is_empty() && host::pod_cgroups(&c.instance) == 0
        })
        .await;

    step("down leaves nothing");
    cluster.down();
    let left = host::leftovers(&cluster.instance, &cluster.data_dir());
    assert!(left.is_empty(), "left on the host: {left:?}");
}

fn step(what: &str) {
    println!("== {what}");
}

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
