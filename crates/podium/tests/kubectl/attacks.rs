//! What a pod sees of its node: nothing that is not its own.

use crate::kubectl::Kubectl;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: podium.local/toolbox
    command: [sleep, "1000"]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  - {name: v, emptyDir: {}}
"#;

pub(crate) fn a_pod_and_its_node(k: &Kubectl) {
    for name in ["victim", "thief"] {
        k.apply(&POD.replace("NAME", name));
    }
    k.run(&["wait", "--for=condition=Ready", "pod/victim", "pod/thief", "--timeout=60s"]);
    k.run(&["exec", "victim", "--", "sh", "-c", "echo treasure > /v/secret"]);
    let sh = |script: &str| k.code(&["exec", "thief", "--", "sh", "-c", script]);

    let (processes, _) = sh("ps");
    let commands: Vec<&str> = processes.lines().skip(1).collect();
    assert!(
        commands.len() <= 4 && !processes.contains("podium-spawner"),
        "only its own processes: {processes}"
    );
    assert!(sh("cat /proc/1/cmdline").0.starts_with("sleep"), "process 1 is its own");

    let data = k.data_dir().display().to_string();
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    assert_ne!(sh(&format!("cat {token}")).0, k.code(&["exec", "victim", "--", "cat", token]).0);
    for absent in [data.as_str(), "/run/podium", "/var/lib/podium", "/sys/fs/cgroup/podium.slice"] {
        let (text, code) = sh(&format!("ls {absent}"));
        assert_ne!(code, 0, "{absent} is the node's: {text}");
    }
    assert_eq!(sh("ls /v"), (String::new(), 0), "its own volume, and not the other pod's");

    for (script, why) in [
        ("echo x > /proc/sys/kernel/core_pattern", "kernel settings"),
        ("echo x > /proc/sysrq-trigger", "the magic key"),
        ("echo x > /sys/kernel/uevent_helper", "helpers of the kernel"),
        ("mkdir /sys/fs/cgroup/memory/x", "control groups"),
        ("mkdir /sys/fs/cgroup/pids/x", "control groups"),
    ] {
        let (_, code) = sh(script);
        assert_ne!(code, 0, "{why}: {script}");
    }
    for hidden in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        assert_eq!(sh(&format!("cat {hidden}")).0, "", "{hidden}");
    }
    let devices = sh("ls /dev").0;
    let usual = ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"];
    let known =
        |name: &str| usual.contains(&name) || ["termination-log", "tty", "urandom", "zero"].contains(&name);
    assert!(devices.split_whitespace().all(known), "no devices of the node: {devices}");

    // The API server of the node answers nobody but the API server; on the control plane's own node nothing listens.
    let node = k.run(&["get", "node", "n1", "-o", "jsonpath={.status.addresses[0].address}"]);
    for port in ["10250", "10255"] {
        assert_ne!(sh(&format!("fetch http://{node}:{port}/pods")).1, 0, "port {port} of the node");
    }
    k.run(&["delete", "pod", "victim", "thief", "--wait=false"]);
}
