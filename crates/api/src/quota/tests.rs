use serde_json::{Value, json};

use super::*;

fn share(spec: Value, group: &str, resource: &str, object: &Value) -> String {
    let allowance = Allowance::of(&spec);
    let share = allowance.share(&Measured::of(group, resource, object));
    assert!(share.is_empty() || allowance.is_about(group, resource), "{spec} is about {resource}");
    share.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

fn pod() -> Value {
    json!({"spec": {
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "10Mi", "example.com/gpu": "2"}, "limits": {"cpu": 1}}},
            {"name": "b", "resources": {"requests": {"cpu": "250m"}}},
        ],
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Mi"}}},
            {"name": "i", "resources": {"requests": {"memory": "1Gi"}}},
        ],
        "overhead": {"cpu": "10m"},
    }})
}

#[test]
fn pods_are_measured_by_what_they_take() {
    let all = json!({"hard": {"pods": 9, "count/pods": 9, "cpu": 9, "requests.cpu": 9, "limits.cpu": 9, "memory": "9Gi",
        "requests.example.com/gpu": 9, "limits.memory": 1, "services": 1}});
    let want = "count/pods=1,cpu=760m,limits.cpu=1010m,memory=1025Mi,pods=1,requests.cpu=760m,requests.example.com/gpu=2";
    assert_eq!(share(all.clone(), "", "pods", &pod()), want);
    let mut done = pod();
    done["status"]["phase"] = "Failed".into();
    assert_eq!(share(all.clone(), "", "pods", &done), "count/pods=1");
    let mut whole = pod();
    whole["spec"]["resources"] = json!({"requests": {"cpu": "3"}});
    assert!(share(all, "", "pods", &whole).contains(",requests.cpu=3010m,"));
}

#[test]
fn other_kinds_are_counted() {
    let hard = |names: &[&str]| {
        let hard: serde_json::Map<String, Value> =
            names.iter().map(|n| ((*n).to_owned(), json!("5"))).collect();
        json!({"hard": hard})
    };
    let secrets = hard(&["secrets", "count/secrets", "pods"]);
    assert_eq!(share(secrets, "", "secrets", &json!({})), "count/secrets=1,secrets=1");
    assert_eq!(share(hard(&["count/jobs.batch"]), "batch", "jobs", &json!({})), "count/jobs.batch=1");
    assert_eq!(share(hard(&["jobs", "count/jobs"]), "batch", "jobs", &json!({})), "");
    let services = hard(&["services", "services.nodeports", "services.loadbalancers"]);
    let service = |spec: Value| share(services.clone(), "", "services", &json!({"spec": spec}));
    let ports = json!([{"port": 1, "nodePort": 30000}, {"port": 2}]);
    assert_eq!(service(json!({"type": "ClusterIP", "ports": ports})), "services=1");
    assert_eq!(service(json!({"type": "NodePort", "ports": ports})), "services=1,services.nodeports=2");
    assert_eq!(
        service(json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false})),
        "services=1,services.loadbalancers=1,services.nodeports=1"
    );
    let claims = hard(&[
        "persistentvolumeclaims",
        "requests.storage",
        "gold.storageclass.storage.k8s.io/requests.storage",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims",
    ]);
    let claim = |class: &str| {
        let spec = json!({"storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}});
        share(claims.clone(), "", "persistentvolumeclaims", &json!({"spec": spec}))
    };
    assert_eq!(claim("tin"), "persistentvolumeclaims=1,requests.storage=1Gi");
    assert_eq!(
        claim("gold"),
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
         gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
    );
}

#[test]
fn scopes_choose_objects() {
    let scoped = |spec: Value, change: &dyn Fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        let mut spec = spec;
        spec["hard"] = json!({"pods": 5, "services": 5});
        assert_eq!(share(spec.clone(), "", "services", &json!({})), "", "scopes are about pods");
        !share(spec, "", "pods", &pod).is_empty()
    };
    let same = |_: &mut Value| {};
    let deadline = |pod: &mut Value| pod["spec"]["activeDeadlineSeconds"] = 5.into();
    let classed = |pod: &mut Value| pod["spec"]["priorityClassName"] = "high".into();
    let idle = |pod: &mut Value| pod["spec"] = json!({"containers": [{"name": "c"}]});
    let far = |pod: &mut Value| {
        pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!([{"namespaceSelector": {}}]);
    };
    let scopes = |name: &str| json!({"scopes": [name]});
    assert!(scoped(scopes("NotTerminating"), &same) && !scoped(scopes("NotTerminating"), &deadline));
    assert!(scoped(scopes("Terminating"), &deadline) && !scoped(scopes("Terminating"), &same));
    assert!(scoped(scopes("BestEffort"), &idle) && !scoped(scopes("BestEffort"), &same));
    assert!(scoped(scopes("NotBestEffort"), &same) && !scoped(scopes("NotBestEffort"), &idle));
    assert!(scoped(scopes("PriorityClass"), &classed) && !scoped(scopes("PriorityClass"), &same));
    let cross = "CrossNamespacePodAffinity";
    assert!(scoped(scopes(cross), &far) && !scoped(scopes(cross), &same));
    let classes = |operator: &str| {
        let one = json!({"scopeName": "PriorityClass", "operator": operator, "values": ["high"]});
        json!({"scopeSelector": {"matchExpressions": [one]}})
    };
    assert!(scoped(classes("In"), &classed) && !scoped(classes("In"), &same));
    assert!(scoped(classes("NotIn"), &same) && !scoped(classes("NotIn"), &classed));
    assert!(scoped(classes("DoesNotExist"), &same) && !scoped(classes("DoesNotExist"), &classed));
    assert!(!scoped(json!({"scopes": ["Terminating", "BestEffort"]}), &deadline));
}

#[test]
fn what_a_quota_is_about_must_be_said() {
    let check = |hard: Value, pod: &Value| {
        Allowance::of(&json!({"hard": hard})).unsaid(pod, &Measured::of("", "pods", pod)).unwrap_or_default()
    };
    assert_eq!(
        check(json!({"memory": 1, "limits.cpu": 1, "ephemeral-storage": 1}), &pod()),
        "must specify limits.cpu for: b,i,s; memory for: b"
    );
    assert_eq!(check(json!({"pods": 1}), &pod()), "");
    let mut whole = pod();
    whole["spec"]["resources"] = json!({"limits": {"cpu": "3"}});
    assert_eq!(check(json!({"memory": 1}), &whole), "");
}
