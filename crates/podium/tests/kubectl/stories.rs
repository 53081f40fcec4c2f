//! `kubectl describe pod` tells the whole story of what went wrong.

use crate::kubectl::Kubectl;

/// A pod whose one container has these fields besides name and image; the rest goes into the pod's spec.
fn pod(name: &str, container: &str, spec: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 2
  {spec}
  containers:
  - name: c
    image: podium.local/toolbox
    {container}
---
"#
    )
}

pub(crate) fn of_pods(k: &Kubectl) {
    let sleep = "command: [sleep, '1000']";
    let manifests = [
        pod("good", sleep, ""),
        pod("nowhere", sleep, "nodeSelector: {no: where}"),
        pod("imageless", "image: localhost:1/none:1", "").replacen(
            "    image: podium.local/toolbox\n",
            "",
            1,
        ),
        pod("crashing", "command: ['false']", ""),
        pod(
            "unready",
            &format!("{sleep}\n    readinessProbe: {{exec: {{command: ['false']}}, periodSeconds: 1}}"),
            "",
        ),
        pod(
            "dying",
            &format!(
                "{sleep}\n    livenessProbe: {{exec: {{command: ['false']}}, periodSeconds: 1, failureThreshold: 1}}"
            ),
            "",
        ),
        pod(
            "mountless",
            &format!("{sleep}\n    volumeMounts: [{{name: v, mountPath: /v}}]"),
            "volumes: [{name: v, configMap: {name: absent}}]",
        ),
        pod(
            "secretless",
            &format!(
                "{sleep}\n    env: [{{name: A, valueFrom: {{secretKeyRef: {{name: absent, key: k}}}}}}]"
            ),
            "",
        ),
        pod("greedy", "command: [stress, memory, '200']\n    resources: {limits: {memory: 20Mi}}", ""),
        pod(
            "stubborn",
            &format!("{sleep}\n    lifecycle: {{preStop: {{exec: {{command: ['false']}}}}}}"),
            "",
        ),
    ];
    k.apply(&manifests.concat());
    let describe = |name: &str, words: &[&str]| {
        let last = words.last().unwrap();
        let text = k.until(&["describe", "pod", name], last);
        for word in words {
            assert!(text.contains(word), "{name}: no {word:?} in\n{text}");
        }
    };
    describe("good", &["Successfully assigned", "Pulled", "Created", "Started"]);
    describe("nowhere", &["FailedScheduling", "0/1 nodes are available: 1 node(s) didn't match"]);
    describe(
        "imageless",
        &["Pulling image", "Failed to pull image", "ErrImagePull", "Back-off pulling image"],
    );
    describe("crashing", &["Back-off restarting failed container", "(x"]);
    describe("unready", &["Unhealthy", "Readiness probe failed", "(x"]);
    describe("dying", &["Liveness probe failed", "failed liveness probe, will be restarted"]);
    describe("mountless", &["FailedMount", "configmap \"absent\" not found"]);
    describe("secretless", &["CreateContainerConfigError", "secret \"absent\" not found"]);
    describe("greedy", &["Exit Code:    137", "OOMKilled"]);
    k.run(&["wait", "--for=condition=Ready", "pod/stubborn", "--timeout=60s"]);
    k.run(&["delete", "pod", "stubborn", "--wait=false"]);
    k.until(&["get", "events"], "FailedPreStopHook");
    k.run(&["delete", "pods", "--all", "--wait=false"]);
}
