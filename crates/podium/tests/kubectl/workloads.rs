//! Generators, rollouts, patches, editing, waiting, asking, and the node.

use std::io::Write as _;

use crate::kubectl::Kubectl;

const IMAGE: &str = "--image=podium.local/toolbox";

pub(crate) fn deployments(k: &Kubectl) {
    k.run(&["create", "deployment", "web", IMAGE, "--replicas=2", "--", "hello"]);
    k.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    k.run(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    k.run(&["set", "env", "deploy/web", "A=1"]);
    k.run(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let history = k.run(&["rollout", "history", "deploy/web"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    k.run(&["rollout", "undo", "deploy/web"]);
    let env = ["get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env}"];
    assert_eq!(k.run(&env), "");
    k.run(&["rollout", "pause", "deploy/web"]);
    k.run(&["rollout", "resume", "deploy/web"]);
    k.run(&["rollout", "restart", "deploy/web"]);
    k.run(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    k.run(&["scale", "deploy/web", "--replicas=3"]);
    k.run(&["wait", "--for=jsonpath={.status.readyReplicas}=3", "deploy/web", "--timeout=60s"]);
    let events = k.run(&["events", "--for=deployment/web"]);
    assert!(events.contains("ScalingReplicaSet"), "{events}");
    let described = k.run(&["describe", "pod", "-l", "app=web"]);
    assert!(described.contains("Successfully assigned") && described.contains("Started"), "{described}");
    let top = k.until(&["top", "pods"], "web-");
    assert!(top.starts_with("NAME") && top.contains('m'), "{top}");
    assert!(k.run(&["top", "nodes"]).contains("n1"));
    assert!(k.run(&["top", "pods", "--containers", "-l", "app=web"]).contains("toolbox"));
    cascades(k);
}

fn cascades(k: &Kubectl) {
    k.run(&["create", "deployment", "gone", IMAGE, "--", "sleep", "1000"]);
    k.run(&["rollout", "status", "deploy/gone", "--timeout=60s"]);
    k.run(&["delete", "deploy", "gone", "--cascade=orphan"]);
    assert!(k.run(&["get", "rs", "-l", "app=gone", "-o", "name"]).contains("gone"));
    k.run(&["delete", "rs", "-l", "app=gone", "--cascade=background"]);
    k.until_nothing(&["get", "pods", "-l", "app=gone", "-o", "name"]);
    k.run(&["create", "job", "j", IMAGE, "--", "true"]);
    k.run(&["wait", "--for=condition=Complete", "job/j", "--timeout=60s"]);
    k.run(&["delete", "job", "j", "--cascade=foreground"]);
    assert_eq!(k.run(&["get", "pods", "-l", "job-name=j", "-o", "name"]), "", "foreground waits for them");
}

pub(crate) fn objects(k: &Kubectl) {
    generators(k);
    changes(k);
    applied(k);
    asks(k);
}

fn generators(k: &Kubectl) {
    for words in [
        "create configmap cm --from-literal=a=b",
        "create secret generic s --from-literal=a=b",
        "create serviceaccount sa",
        "create role r --verb=get,list --resource=pods",
        "create rolebinding rb --role=r --serviceaccount=objects:sa",
        "create clusterrole objects-r --verb=get --resource=nodes",
        "create clusterrolebinding objects-rb --clusterrole=objects-r --serviceaccount=objects:sa",
        "create quota q --hard=configmaps=50",
        "create cronjob cj --image=podium.local/toolbox --schedule=5,10 * * * * -- true",
        "create job j --from=cronjob/cj",
        "create ingress ing --rule=a.b/c=web:80",
        "create poddisruptionbudget pdb --selector=app=web --min-available=1",
        "create priorityclass objects-pc --value=5",
        "create service clusterip cs --tcp=80:8080",
        "create service nodeport np --tcp=80:8080",
        "create service externalname en --external-name=a.b",
        "create token sa",
    ] {
        let words = words.replace("5,10 * * * *", "5,10_*_*_*_*");
        let words: Vec<String> = words.split(' ').map(|word| word.replace('_', " ")).collect();
        k.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

fn changes(k: &Kubectl) {
    let data = || k.run(&["get", "cm", "cm", "-o", "jsonpath={.data}"]);
    k.run(&["label", "cm", "cm", "x=y"]);
    k.run(&["label", "cm", "cm", "x=z", "--overwrite"]);
    k.run(&["annotate", "cm", "cm", "note=1"]);
    let meta =
        k.run(&["get", "cm", "cm", "-o", "jsonpath={.metadata.labels.x} {.metadata.annotations.note}"]);
    assert_eq!(meta, "z 1");
    k.run(&["patch", "cm", "cm", "-p", r#"{"data":{"b":"1"}}"#]);
    k.run(&["patch", "cm", "cm", "--type=merge", "-p", r#"{"data":{"b":null,"c":"2"}}"#]);
    k.run(&["patch", "cm", "cm", "--type=json", "-p", r#"[{"op":"add","path":"/data/d","value":"3"}]"#]);
    assert_eq!(data(), r#"{"a":"b","c":"2","d":"3"}"#);
    let mut edit = k.command(&["edit", "cm", "cm"]);
    let status = edit.env("KUBE_EDITOR", "sed -i s/a:.b/a:\\ edited/").status().unwrap();
    assert!(status.success() && data().contains(r#""a":"edited""#), "{}", data());
}

fn applied(k: &Kubectl) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {k: first}\n";
    file.write_all(manifest.as_bytes()).unwrap();
    k.run(&["apply", "--server-side", "-f", &path]);
    assert_eq!(k.code(&["diff", "--server-side", "-f", &path]).1, 0, "no difference");
    std::fs::write(&path, manifest.replace("first", "second")).unwrap();
    let (diff, code) = k.code(&["diff", "-f", &path]);
    assert!(code == 1 && diff.contains("+  k: second"), "{diff}");
    k.run(&["apply", "--server-side", "-f", &path]);
    let conflict = k.output(&["apply", "--server-side", "--field-manager=other", "-f", &path]);
    assert!(conflict.status.success(), "the same value is no conflict");
    std::fs::write(&path, manifest.replace("first", "third")).unwrap();
    let conflict = k.output(&["apply", "--server-side", "--field-manager=other", "-f", &path]);
    assert!(String::from_utf8_lossy(&conflict.stderr).contains("conflict"), "{conflict:?}");
    k.run(&["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", &path]);
    k.run(&["replace", "--force", "-f", &path]);
}

fn asks(k: &Kubectl) {
    let says = |words: &[&str], want: &str| {
        let text = k.run(words);
        assert!(text.contains(want), "{words:?}: {text}");
    };
    says(&["explain", "pod.spec.containers.resources"], "limits");
    says(&["explain", "deployment", "--recursive"], "maxSurge");
    says(&["api-resources"], "deployments");
    says(&["api-versions"], "apps/v1");
    says(&["auth", "can-i", "--list"], "*.*");
    says(&["auth", "can-i", "get", "pods", "--as=system:serviceaccount:objects:sa"], "yes");
    assert_eq!(k.code(&["auth", "can-i", "delete", "pods", "--as=system:serviceaccount:objects:sa"]).1, 1);
    says(&["auth", "whoami"], "system:masters");
    says(&["cluster-info"], "control plane");
    let dump = tempfile::tempdir().unwrap();
    k.run(&["cluster-info", "dump", &format!("--output-directory={}", dump.path().display())]);
    assert!(dump.path().join("nodes.json").exists());
    says(&["get", "all"], "service/cs");
    says(&["describe", "quota", "q"], "configmaps");
}

pub(crate) fn the_node(k: &Kubectl) {
    k.run(&["taint", "node", "n1", "a=b:PreferNoSchedule"]);
    k.run(&["taint", "node", "n1", "a-"]);
    k.run(&["cordon", "n1"]);
    let words =
        ["drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--grace-period=0"];
    k.run(&[&words[..], &["--pod-selector=app=web", "--timeout=60s"]].concat());
    k.until(&["get", "pods", "-l", "app=web"], "Pending");
    k.run(&["uncordon", "n1"]);
    k.run(&["wait", "--for=condition=Available", "deploy/web", "--timeout=60s"]);
}
