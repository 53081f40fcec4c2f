//! What a control plane says about itself: metrics and logs.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use api::ApiRequest;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::server::{Server, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_a_strict_page_under_kubernetes_names() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let admin = server.access().admin();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }))
    .unwrap();
    eventually("a pod can be created", async || admin.create(Some("default"), &pod).await.is_ok()).await;
    let page = async || {
        let answer = admin.call(ApiRequest::path("/metrics")).await.unwrap().into_bytes().unwrap();
        api::metrics::format::parse(std::str::from_utf8(&answer).unwrap()).unwrap()
    };
    eventually("the scheduler has tried", async || {
        page().await.iter().any(|s| s.name == "scheduler_pending_pods" && s.value == 1.0)
    })
    .await;
    let samples = page().await;
    let names: BTreeSet<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
    for name in [
        "apiserver_request_total",
        "apiserver_request_duration_seconds_bucket",
        "apiserver_longrunning_requests",
        "apiserver_current_inflight_requests",
        "apiserver_storage_objects",
        "kubernetes_build_info",
        "process_cpu_seconds_total",
        "rest_client_requests_total",
        "rest_client_request_duration_seconds_count",
        "scheduler_schedule_attempts_total",
        "scheduler_scheduling_attempt_duration_seconds_sum",
        "workqueue_adds_total",
        "workqueue_depth",
        "workqueue_queue_duration_seconds_bucket",
        "workqueue_work_duration_seconds_bucket",
        "workqueue_retries_total",
        "workqueue_unfinished_work_seconds",
        "workqueue_longest_running_processor_seconds",
    ] {
        assert!(names.contains(name), "no {name}");
    }
    let adds = samples.iter().find(|s| s.name == "workqueue_adds_total" && s.labels["name"] == "namespace");
    assert!(adds.unwrap().value >= 4.0, "{adds:?}");
    server.stop();
}

#[test]
fn logs_are_json_lines_on_demand_and_bad_levels_are_named() {
    let podium = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podium"));
        command.args(arguments).env_remove("PODIUM_LOG");
        command
    };
    let output = podium(&["--log-level", "loud", "version"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("podium: --log-level: \"loud\" is no level"), "{error}");
    let output = podium(&["version"]).env("PODIUM_LOG", "node=loud").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("podium: PODIUM_LOG: \"node=loud\""));

    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = podium(&["--log-format", "json", "--log-level", "info"]);
    command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    Server::start_by(command, &dir.path().join("data")).stop();
    let text = std::fs::read_to_string(log).unwrap();
    assert!(!text.is_empty());
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for field in ["ts", "level", "target", "msg"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
        assert_ne!(line["level"], "error", "nothing fails in an ordinary start: {line}");
    }
}
