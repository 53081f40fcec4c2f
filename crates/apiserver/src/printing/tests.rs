//! What `kubectl get` shows.

use api::Object;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{IncludeObject, table};
use crate::resources::tests::{object, row};

const NOW: &str = "2026-01-10T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn cells(group: &str, resource: &str, value: Value) -> Vec<String> {
    let row = row(group, resource);
    let o = object(value);
    row.columns.iter().map(|c| super::cells::plain(&(c.value)(&o, now()))).collect()
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-10T11:54:57Z"}, "spec": spec, "status": status})
}

#[test]
fn pods() {
    let one = json!({"containers": [{"name": "a"}]});
    let status = |statuses: Value| json!({"phase": "Running", "containerStatuses": statuses});
    let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let done = json!({"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let inits = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let sidecar =
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let init = |state: Value| {
        json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "restartCount": 2, "state": state}]})
    };
    let crash = json!([{"name": "a", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"finishedAt": "2026-01-10T11:55:00Z"}}}]);
    let mut deleted = pod(one.clone(), status(json!([running])));
    deleted["metadata"]["deletionTimestamp"] = NOW.into();
    let cases = [
        (pod(one.clone(), json!({"phase": "Pending"})), "0/1", "Pending", "0"),
        (pod(one.clone(), status(json!([running]))), "1/1", "Running", "0"),
        (pod(one.clone(), status(crash)), "0/1", "CrashLoopBackOff", "2 (5m ago)"),
        (
            pod(one.clone(), json!({"phase": "Succeeded", "containerStatuses": [done]})),
            "0/1",
            "Completed",
            "0",
        ),
        (
            pod(one.clone(), status(json!([{"name": "a", "state": {"terminated": {"exitCode": 3}}}]))),
            "0/1",
            "ExitCode:3",
            "0",
        ),
        (
            pod(
                one.clone(),
                status(json!([{"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}])),
            ),
            "0/1",
            "Signal:9",
            "0",
        ),
        (pod(one.clone(), json!({"phase": "Failed", "reason": "Evicted"})), "0/1", "Evicted", "0"),
        (
            pod(
                one,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ),
            "0/1",
            "SchedulingGated",
            "0",
        ),
        (pod(inits.clone(), init(json!({"running": {}}))), "0/1", "Init:1/2", "2"),
        (
            pod(inits.clone(), init(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
            "0/1",
            "Init:CrashLoopBackOff",
            "2",
        ),
        (
            pod(inits, init(json!({"terminated": {"exitCode": 1, "reason": "Error"}}))),
            "0/1",
            "Init:Error",
            "2",
        ),
        (
            pod(
                sidecar,
                json!({"phase": "Running",
            "initContainerStatuses": [{"name": "s", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}}],
            "containerStatuses": [running]}),
            ),
            "2/2",
            "Running",
            "1",
        ),
        (deleted, "1/1", "Terminating", "0"),
    ];
    for (pod, ready, status, restarts) in cases {
        let got = cells("", "pods", pod.clone());
        assert_eq!(got[..5], ["p", ready, status, restarts, "5m3s"], "{pod}");
    }
    let wide = cells(
        "",
        "pods",
        pod(
            json!({"nodeName": "n", "containers": [], "readinessGates": [{"conditionType": "g"}]}),
            json!({"podIPs": [{"ip": "10.0.0.5"}]}),
        ),
    );
    assert_eq!(wide[5..], ["10.0.0.5", "n", "<none>", "0/1"]);
}

#[test]
fn other_kinds() {
    let meta = || json!({"name": "x", "creationTimestamp": "2026-01-08T12:00:00Z"});
    let cases = [
        (
            "",
            "services",
            json!({"metadata": meta(), "spec": {"type": "NodePort", "clusterIP": "10.96.0.1",
            "selector": {"app": "web"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
            vec!["x", "NodePort", "10.96.0.1", "<none>", "80:30080/TCP", "2d", "app=web"],
        ),
        (
            "apps",
            "deployments",
            json!({"metadata": meta(), "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
            vec!["x", "2/3", "3", "2", "2d", "a,b", "i:1,j", "app=web"],
        ),
        (
            "",
            "nodes",
            json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-08T12:00:00Z",
            "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
            vec![
                "n",
                "Ready,SchedulingDisabled",
                "control-plane",
                "2d",
                "v1",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>",
            ],
        ),
        (
            "",
            "events",
            json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "R", "message": "m",
            "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "c", "host": "h"},
            "firstTimestamp": "2026-01-10T11:00:00Z", "lastTimestamp": "2026-01-10T11:59:30Z", "count": 4}),
            vec!["30s", "Normal", "R", "pod/p", "", "c, h", "m", "60m", "4", "e"],
        ),
        (
            "batch",
            "jobs",
            json!({"metadata": meta(), "spec": {"completions": 2, "template": {"spec": {"containers": []}}},
            "status": {"succeeded": 2, "startTime": "2026-01-10T11:00:00Z", "completionTime": "2026-01-10T11:00:42Z",
                "conditions": [{"type": "Complete", "status": "True"}]}}),
            vec!["x", "Complete", "2/2", "42s", "2d", "", "", "<none>"],
        ),
        (
            "",
            "endpoints",
            json!({"metadata": meta(), "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}],
            "ports": [{"port": 80}, {"port": 81}]}]}),
            vec!["x", "1.1.1.1:80,1.1.1.2:80,1.1.1.1:81 + 1 more...", "2d"],
        ),
    ];
    for (group, resource, value, want) in cases {
        assert_eq!(cells(group, resource, value), want, "{resource}");
    }
}

#[test]
fn tables() {
    let row = row("", "configmaps");
    let objects: Vec<Object> = vec![object(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}),
    )];
    let get = |include, definitions| table(&row, &objects, Map::new(), include, definitions, now());
    let full = get(IncludeObject::Metadata, true);
    assert_eq!(full["columnDefinitions"][0]["format"], "name");
    assert_eq!(full["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
    assert_eq!(full["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(full["rows"][0]["object"].get("data").is_none());
    assert_eq!(get(IncludeObject::Object, true)["rows"][0]["object"]["data"], json!({"k": "v"}));
    let bare = get(IncludeObject::None, false);
    assert!(bare["rows"][0].get("object").is_none());
    assert_eq!(bare["columnDefinitions"], json!([]));
}
