//! exec, cp, port-forward, proxy, logs, attach, run, debug.

use std::net::Ipv4Addr;

use crate::PODS;
use crate::kubectl::{Kubectl, get};

pub(crate) fn exec_copy_forward(k: &Kubectl) {
    k.apply(PODS);
    k.run(&["wait", "--for=condition=Ready", "pod/web", "pod/sh", "--timeout=60s"]);
    exec(k);
    on_a_terminal(k);
    copies(k);
    forwards(k);
}

fn exec(k: &Kubectl) {
    let (out, code) = k.code(&["exec", "sh", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((out.as_str(), code), ("out\n", 7));
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let echo = k.feed(&["exec", "-i", "sh", "--", "cat"], &big);
    assert!(echo == big, "12 MB came back changed");
    // The older way of the same.
    let mut spdy = k.command(&["exec", "sh", "--", "sh", "-c", "echo spdy; exit 5"]);
    let output = spdy.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"spdy\n"[..], Some(5)));
    let second = k.run(&["exec", "web", "-c", "second", "--", "cat", "/etc/hostname"]);
    assert_eq!(second, "web\n");
}

fn on_a_terminal(k: &Kubectl) {
    let mut terminal = k.terminal(&["exec", "-it", "sh", "--", "sh"]);
    terminal.expect("# ");
    terminal.send("stty size\n");
    terminal.expect("24 80");
    terminal.resize(33, 77);
    // The new size is on its way; the shell asks until it is there.
    terminal.send("until test \"$(stty size)\" = '33 77'; do sleep 0.1; done; echo resized\n");
    terminal.expect("\r\nresized\r\n");
    terminal.send("exit 4\n");
    assert_eq!(terminal.end(), 4);
}

fn copies(k: &Kubectl) {
    let dir = tempfile::tempdir().unwrap();
    let (here, back) = (dir.path().join("here"), dir.path().join("back"));
    std::fs::create_dir(&here).unwrap();
    std::fs::write(here.join("file"), "text").unwrap();
    k.run(&["cp", here.to_str().unwrap(), "sh:/tmp/there"]);
    assert_eq!(k.run(&["exec", "sh", "--", "cat", "/tmp/there/file"]), "text");
    k.run(&["cp", "sh:/tmp/there", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back.join("file")).unwrap(), "text");
}

fn forwards(k: &Kubectl) {
    k.run(&["expose", "pod", "web", "--port=80", "--target-port=8080"]);
    for (target, port) in [("pod/web", ":8080"), ("svc/web", ":80")] {
        let (forward, line) = k.beside(&["port-forward", target, port], "Forwarding from 127.0.0.1");
        let local = line.split([':', ' ']).nth(3).unwrap();
        for _ in 0..3 {
            assert_eq!(get(&format!("{}:{local}", Ipv4Addr::LOCALHOST)), "web\n", "{target}");
        }
        drop(forward);
    }
    let namespace = k.namespace();
    let raw = |path: &str| k.run(&["get", "--raw", &format!("/api/v1/{path}")]);
    assert_eq!(raw(&format!("namespaces/{namespace}/pods/web:8080/proxy/")), "web\n");
    assert_eq!(raw("nodes/n1/proxy/healthz"), "ok");
    assert!(raw("nodes/n1:10250/proxy/stats/summary").contains("usageNanoCores"));
    assert!(raw("nodes/n1/proxy/metrics").contains("kubelet_running_pods"));
}

pub(crate) fn logs_and_attach(k: &Kubectl) {
    k.apply(PODS);
    k.run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    logs(k);
    attaches(k);
    debugs(k);
}

fn logs(k: &Kubectl) {
    k.until(&["get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], "1");
    assert_eq!(k.until(&["logs", "crash", "--previous"], "two"), "one\ntwo\n");
    assert_eq!(k.run(&["logs", "crash", "--tail=1"]), "two\n");
    assert_eq!(k.run(&["logs", "crash", "--since=1h", "--limit-bytes=5"]), "one\nt");
    assert_eq!(k.run(&["logs", "crash", "--since-time=2100-01-01T00:00:00Z"]), "");
    let stamped = k.run(&["logs", "crash", "--timestamps", "--tail=1"]);
    let time = stamped.split(' ').next().unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && stamped.ends_with(" two\n"), "{stamped}");
    let all = k.run(&["logs", "-l", "app=web", "--all-containers", "--prefix", "--max-log-requests=9"]);
    assert!(all.contains("[pod/web/second] second") && all.contains("[pod/web/web] "), "{all}");
    k.run(&[
        "run",
        "count",
        "--image=podium.local/toolbox",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        "seq 3; sleep 1; echo end",
    ]);
    k.until(&["get", "pod", "count", "-o", "jsonpath={.status.phase}"], "u");
    assert!(k.until(&["logs", "-f", "count"], "end").ends_with("1\n2\n3\nend\n"), "followed to its end");
}

fn attaches(k: &Kubectl) {
    let run = ["run", "in", "--rm", "-i", "--restart=Never", "--image=podium.local/toolbox", "--", "cat"];
    let echoed = k.feed(&run, b"hello\n");
    assert!(echoed.starts_with(b"hello\n"), "{:?}", String::from_utf8_lossy(&echoed));
    let talk = [
        "run",
        "talk",
        "--image=podium.local/toolbox",
        "--",
        "sh",
        "-c",
        "while true; do echo tick; sleep 1; done",
    ];
    k.run(&talk);
    k.run(&["wait", "--for=condition=Ready", "pod/talk", "--timeout=60s"]);
    // Two at a time see the same.
    let (first, _) = k.beside(&["attach", "talk"], "tick");
    let (second, _) = k.beside(&["attach", "talk"], "tick");
    drop((first, second));
    let run = ["run", "it", "--rm", "-it", "--restart=Never", "--image=podium.local/toolbox", "--", "sh"];
    let mut terminal = k.terminal(&run);
    terminal.send("echo hello\n");
    terminal.expect("\r\nhello\r\n");
    terminal.send("exit 3\n");
    assert_eq!(terminal.end(), 3, "kubectl takes the code from the pod");
}

fn debugs(k: &Kubectl) {
    let debug = |more: &[&str]| {
        let words = [&["debug", "--image=podium.local/toolbox", "--attach=false", "--profile=general"], more]
            .concat();
        k.run(&words)
    };
    debug(&["web", "--target=web", "-c", "dbg", "--", "sh", "-c", "echo debugging; sleep 1000"]);
    k.until(&["logs", "web", "-c", "dbg"], "debugging");
    debug(&["web", "--copy-to=web2", "-c", "dbg", "--", "sleep", "1000"]);
    k.run(&["wait", "--for=condition=Ready", "pod/web2", "--timeout=60s"]);
    debug(&["node/n1", "--", "sh", "-c", "ls /host; sleep 1000"]);
    k.until(&["get", "pods"], "node-debugger-n1-");
}
