//! Golden plans of single situations.

use client::{Action, Controller, Plan, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::JobController;
use super::indexes::{format, parse};
use crate::pod::Pod;
use crate::text::brief;

fn job(spec: Value) -> Value {
    let mut job = json!({
        "metadata": {"name": "sum", "namespace": "default", "uid": "j", "resourceVersion": "5"},
        "spec": {
            "parallelism": 2, "completions": 2, "backoffLimit": 1, "selector": {"matchLabels": {"job": "j"}},
            "template": {"metadata": {"labels": {"job": "j"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}},
        },
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    });
    for (name, value) in spec.as_object().unwrap() {
        job["spec"][name] = value.clone();
    }
    job
}

fn pod(name: &str, phase: &str, index: Option<i32>) -> Value {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "6", "labels": {"job": "j"},
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["batch.kubernetes.io/job-tracking"],
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "sum", "uid": "j", "controller": true}],
        },
        "status": {"phase": phase},
    });
    if phase == "Failed" {
        pod["status"]["containerStatuses"] = json!([{"name": "c", "state": {"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:00:01Z"}}}]);
    }
    if let Some(index) = index {
        pod["metadata"]["annotations"] =
            json!({"batch.kubernetes.io/job-completion-index": index.to_string()});
    }
    pod
}

fn counted(mut pod: Value) -> Value {
    pod["metadata"]["finalizers"] = json!([]);
    pod
}

fn plan(job: &Value, pods: &[Value]) -> Plan {
    let view = View::default().with_objects::<Job>(std::slice::from_ref(job)).with_objects::<Pod>(pods);
    let now: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
    JobController.plan(&api::ObjectKey::new("default", "sum"), &view, now)
}

fn check(job: &Value, pods: &[Value], expected: Expect) {
    expected.assert_eq(&brief(&plan(job, pods)));
}

#[test]
fn index_lists_are_read_and_written() {
    for text in ["", "0", "0,1", "1,3-5,7"] {
        assert_eq!(format(&parse(text, 10)), text);
    }
    assert_eq!(format(&parse("3-20,x", 10)), "3-9");
}

#[test]
fn an_indexed_pod_knows_its_index() {
    let plan = plan(&job(json!({"completionMode": "Indexed", "completions": 1})), &[]);
    let Plan::Do { actions, .. } = plan else { panic!("{plan:?}") };
    let made = actions.iter().find_map(|action| match action {
        Action::Create { object, .. } => Some(object),
        _ => None,
    });
    expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "Pod",
          "metadata": {
            "annotations": {
              "batch.kubernetes.io/job-completion-index": "0"
            },
            "finalizers": [
              "batch.kubernetes.io/job-tracking"
            ],
            "generateName": "sum-0-",
            "labels": {
              "batch.kubernetes.io/job-completion-index": "0",
              "job": "j"
            },
            "name": "sum-0-p7qvw",
            "namespace": "default",
            "ownerReferences": [
              {
                "apiVersion": "batch/v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "Job",
                "name": "sum",
                "uid": "j"
              }
            ]
          },
          "spec": {
            "containers": [
              {
                "env": [
                  {
                    "name": "JOB_COMPLETION_INDEX",
                    "valueFrom": {
                      "fieldRef": {
                        "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                      }
                    }
                  }
                ],
                "name": "c"
              }
            ],
            "hostname": "sum-0",
            "restartPolicy": "Never"
          }
        }"#]]
    .assert_eq(&format!("{:#}", made.unwrap()));
}

#[test]
fn pods_are_started_counted_and_the_job_completes() {
    let plain = job(json!({}));
    check(
        &plain,
        &[],
        expect![[r#"
        create pods "sum-p7qvw"
        create pods "sum-7kp9m"
    "#]],
    );
    check(
        &plain,
        &[pod("a", "Succeeded", None), pod("b", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{"succeeded":["a"]}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
    "#]],
    );
    let mut counting = plain.clone();
    counting["status"]["uncountedTerminatedPods"] = json!({"succeeded": ["a", "b"]});
    check(
        &counting,
        &[counted(pod("a", "Succeeded", None)), counted(pod("b", "Succeeded", None))],
        expect![[r#"
        status jobs default/sum {"active":0,"completionTime":"2026-01-01T00:00:05Z","conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Reached expected number of succeeded pods","reason":"CompletionsReached","status":"True","type":"SuccessCriteriaMet"},{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Reached expected number of succeeded pods","reason":"CompletionsReached","status":"True","type":"Complete"}],"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":2,"terminating":0,"uncountedTerminatedPods":{}}
    "#]],
    );
}

#[test]
fn failures_wait_and_then_fail_the_job() {
    let plain = job(json!({"completions": 1, "parallelism": 1}));
    check(
        &plain,
        &[pod("a", "Failed", None)],
        expect![[r#"
        status jobs default/sum {"active":0,"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{"failed":["a"]}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
        again after 6s
    "#]],
    );
    let mut once = plain.clone();
    once["status"]["failed"] = 1.into();
    check(
        &once,
        &[counted(pod("a", "Failed", None)), pod("b", "Failed", None), pod("c", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Job has reached the specified backoff limit","reason":"BackoffLimitExceeded","status":"True","type":"FailureTarget"}],"failed":1,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{"failed":["b"]}}
        patch pods default/b {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"b"}}
        delete pods default/c 
    "#]],
    );
    let mut late = job(json!({"activeDeadlineSeconds": 5}));
    check(
        &late,
        &[pod("a", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Job was active longer than specified deadline","reason":"DeadlineExceeded","status":"True","type":"FailureTarget"}],"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{}}
        delete pods default/a 
    "#]],
    );
    late["spec"]["activeDeadlineSeconds"] = 6.into();
    check(
        &late,
        &[pod("a", "Running", None), pod("b", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":2,"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{}}
        again after 1s
    "#]],
    );
}

#[test]
fn the_failure_policy_decides() {
    let rule = |action: &str| json!({"podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]}});
    check(
        &job(rule("FailJob")),
        &[pod("a", "Failed", None), pod("b", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Container c for pod default/a failed with exit code 3 matching FailJob rule at index 0","reason":"PodFailurePolicy","status":"True","type":"FailureTarget"}],"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{"failed":["a"]}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
        delete pods default/b 
    "#]],
    );
    check(
        &job(rule("Ignore")),
        &[pod("a", "Failed", None), pod("b", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
        again after 6s
    "#]],
    );
    let mut indexed = job(rule("FailIndex"));
    indexed["spec"]["completionMode"] = "Indexed".into();
    indexed["spec"]["backoffLimitPerIndex"] = 1.into();
    check(
        &indexed,
        &[pod("a", "Failed", Some(0)), pod("b", "Running", Some(1))],
        expect![[r#"
        status jobs default/sum {"active":1,"completedIndexes":"","failed":0,"failedIndexes":"0","ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":0,"terminating":0,"uncountedTerminatedPods":{"failed":["a"]}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
    "#]],
    );
}

#[test]
fn indexes_succeed_and_fail_by_themselves() {
    let indexed = job(
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 0}),
    );
    check(
        &indexed,
        &[pod("a", "Failed", Some(0)), pod("b", "Succeeded", Some(1)), pod("c", "Running", Some(2))],
        expect![[r#"
            status jobs default/sum {"active":1,"completedIndexes":"1","failed":0,"failedIndexes":"0","ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":1,"terminating":0,"uncountedTerminatedPods":{"failed":["a"]}}
            patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
            patch pods default/b {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"b"}}
        "#]],
    );
    let mut by_policy = job(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3}));
    by_policy["spec"]["successPolicy"] = json!({"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]});
    check(
        &by_policy,
        &[pod("a", "Running", Some(0)), pod("b", "Succeeded", Some(1)), pod("c", "Running", Some(2))],
        expect![[r#"
            status jobs default/sum {"active":2,"completedIndexes":"1","conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Matched rules at index 0","reason":"SuccessPolicy","status":"True","type":"SuccessCriteriaMet"}],"failed":0,"ready":0,"startTime":"2026-01-01T00:00:00Z","succeeded":1,"terminating":0,"uncountedTerminatedPods":{}}
            patch pods default/b {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"b"}}
            delete pods default/a 
            delete pods default/c 
        "#]],
    );
}

#[test]
fn a_suspended_job_stops_without_counting() {
    check(
        &job(json!({"suspend": true})),
        &[pod("a", "Running", None)],
        expect![[r#"
        status jobs default/sum {"active":1,"conditions":[{"lastProbeTime":"2026-01-01T00:00:05Z","lastTransitionTime":"2026-01-01T00:00:05Z","message":"Job suspended","reason":"JobSuspended","status":"True","type":"Suspended"}],"failed":0,"ready":0,"succeeded":0,"terminating":0,"uncountedTerminatedPods":{}}
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
        delete pods default/a 
    "#]],
    );
}

#[test]
fn a_finished_job_lets_go_and_ends_after_its_time() {
    let mut job = job(json!({"ttlSecondsAfterFinished": 3}));
    job["status"]["conditions"] =
        json!([{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:03Z"}]);
    check(
        &job,
        &[pod("a", "Succeeded", None)],
        expect![[r#"
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
        again after 1s
    "#]],
    );
    job["spec"]["ttlSecondsAfterFinished"] = 2.into();
    check(
        &job,
        &[],
        expect![[r#"
        delete jobs default/sum Foreground
    "#]],
    );
}

#[test]
fn pods_of_a_job_that_is_gone_are_let_go() {
    let view = View::default().with_objects::<Job>(&[]).with_objects::<Pod>(&[pod("a", "Running", None)]);
    let plan = JobController.plan(&api::ObjectKey::new("default", "sum"), &view, Timestamp::UNIX_EPOCH);
    expect![[r#"
        patch pods default/a {"metadata":{"finalizers":null,"resourceVersion":"6","uid":"a"}}
    "#]]
    .assert_eq(&brief(&plan));
}
