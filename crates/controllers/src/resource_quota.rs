//! ResourceQuota: counts what a namespace uses of what it is allowed. Refusing what is too much is not done here.

use std::collections::BTreeMap;

use api::{GroupVersionResource, ObjectKey, Quantity};
use client::{Cached, Controller, Metadata, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityField;

use crate::pod::{Container, Pod, Resources};
use crate::workload::{same, update_status};

/// Kinds whose objects are counted: (group, version, resource).
const COUNTED: [(&str, &str, &str); 11] = [
    ("", "v1", "configmaps"),
    ("", "v1", "secrets"),
    ("", "v1", "serviceaccounts"),
    ("", "v1", "replicationcontrollers"),
    ("", "v1", "resourcequotas"),
    ("apps", "v1", "deployments"),
    ("apps", "v1", "replicasets"),
    ("apps", "v1", "statefulsets"),
    ("apps", "v1", "daemonsets"),
    ("batch", "v1", "jobs"),
    ("batch", "v1", "cronjobs"),
];

type Used = BTreeMap<String, Quantity>;

pub struct ResourceQuotaController;

impl Controller for ResourceQuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        let counted = COUNTED.map(|(group, version, resource)| {
            let gvr = GroupVersionResource::new(group, version, resource);
            Watch::resource::<Metadata>(gvr, |view, _, object| quotas_of(view, &object.key.namespace))
        });
        let own = [
            Watch::own::<ResourceQuota>(),
            Watch::map::<Pod>(|view, pod| quotas_of(view, &pod.key.namespace)),
            Watch::map::<Service>(|view, service| quotas_of(view, &service.key.namespace)),
            Watch::map::<PersistentVolumeClaim>(|view, claim| quotas_of(view, &claim.key.namespace)),
        ];
        own.into_iter().chain(counted).collect()
    }

    fn plan(&self, key: &ObjectKey, view: &View, _: Timestamp) -> Plan {
        let Some(quota) = view.get::<ResourceQuota>(key) else { return Plan::nothing() };
        let spec = quota.object.spec.clone().unwrap_or_default();
        let mut used = count_objects(view, &key.namespace);
        for pod in view.in_namespace::<Pod>(&key.namespace) {
            if !pod.object.is_terminal() && in_scopes(&spec, &pod) {
                add_pod(&mut used, &pod.object);
            }
        }
        let hard = spec.hard.clone().unwrap_or_default();
        let value = |name: &String| {
            let value = used.get(name).cloned().unwrap_or_else(|| Quantity::whole(0));
            (name.clone(), QuantityField(value.to_string()))
        };
        let old = quota.object.status.clone().unwrap_or_default();
        let new = ResourceQuotaStatus { used: Some(hard.keys().map(value).collect()), hard: Some(hard) };
        if same(&new, &old) {
            return Plan::nothing();
        }
        let mut object = quota.object.clone();
        object.status = Some(new);
        Plan::actions(vec![update_status(key, &object)])
    }
}

fn quotas_of(view: &View, namespace: &str) -> Vec<ObjectKey> {
    view.in_namespace::<ResourceQuota>(namespace).iter().map(|quota| quota.key.clone()).collect()
}

fn add(used: &mut Used, name: impl Into<String>, amount: Quantity) {
    *used.entry(name.into()).or_insert_with(|| Quantity::whole(0)) += amount;
}

/// Everything but the pods' resources.
fn count_objects(view: &View, namespace: &str) -> Used {
    let mut used = Used::new();
    let count = |used: &mut Used, group: &str, resource: &str, number: usize| {
        let amount = Quantity::whole(i64::try_from(number).unwrap_or(i64::MAX));
        let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
        used.insert(format!("count/{resource}{suffix}"), amount);
        if group.is_empty() && resource != "pods" {
            used.insert(resource.to_owned(), amount);
        }
    };
    for (group, version, resource) in COUNTED {
        let gvr = GroupVersionResource::new(group, version, resource);
        count(&mut used, group, resource, view.in_namespace_of::<Metadata>(&gvr, namespace).len());
    }
    count(&mut used, "", "pods", view.in_namespace::<Pod>(namespace).len());
    let services = view.in_namespace::<Service>(namespace);
    count(&mut used, "", "services", services.len());
    for service in services {
        let Some(spec) = &service.object.spec else { continue };
        let type_ = spec.type_.as_deref().unwrap_or_default();
        let ports = i64::try_from(spec.ports.iter().flatten().count()).unwrap_or(0);
        let allocates = spec.allocate_load_balancer_node_ports.unwrap_or(true);
        if type_ == "NodePort" || (type_ == "LoadBalancer" && allocates) {
            add(&mut used, "services.nodeports", Quantity::whole(ports));
        }
        if type_ == "LoadBalancer" {
            add(&mut used, "services.loadbalancers", Quantity::whole(1));
        }
    }
    let claims = view.in_namespace::<PersistentVolumeClaim>(namespace);
    count(&mut used, "", "persistentvolumeclaims", claims.len());
    for claim in claims {
        let Some(spec) = &claim.object.spec else { continue };
        let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let storage = requests.and_then(|requests| Quantity::parse(&requests.get("storage")?.0).ok());
        let class = spec.storage_class_name.as_ref().filter(|class| !class.is_empty());
        let scope = class.map(|class| format!("{class}.storageclass.storage.k8s.io/"));
        for prefix in [Some(String::new()), scope.clone()].into_iter().flatten() {
            if let Some(storage) = &storage {
                add(&mut used, format!("{prefix}requests.storage"), *storage);
            }
        }
        if let Some(scope) = scope {
            add(&mut used, format!("{scope}persistentvolumeclaims"), Quantity::whole(1));
        }
    }
    used
}

/// Adds one pod's resources.
fn add_pod(used: &mut Used, pod: &Pod) {
    add(used, "pods", Quantity::whole(1));
    for (name, amount) in effective(pod, |container| &container.resources.requests) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            add(used, name.clone(), amount);
        }
        add(used, format!("requests.{name}"), amount);
    }
    for (name, amount) in effective(pod, |container| &container.resources.limits) {
        add(used, format!("limits.{name}"), amount);
    }
}

fn quantity(value: &serde_json::Value) -> Option<Quantity> {
    match value {
        serde_json::Value::String(text) => Quantity::parse(text).ok(),
        other => Quantity::parse(&other.to_string()).ok(),
    }
}

/// What a pod takes: all its containers together, or its largest initial one if that takes more; and its overhead.
fn effective<'p>(pod: &'p Pod, of: impl Fn(&'p Container) -> &'p Resources) -> Used {
    let parsed = |resources: &'p Resources| {
        resources.iter().filter_map(|(name, value)| Some((name.clone(), quantity(value)?)))
    };
    let mut sum = Used::new();
    for (name, amount) in pod.spec.containers.iter().flat_map(|container| parsed(of(container))) {
        add(&mut sum, name, amount);
    }
    // Sidecars run beside all that is started after them.
    let mut sidecars = Used::new();
    let mut peak = Used::new();
    for container in &pod.spec.init_containers {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        for (name, amount) in parsed(of(container)) {
            if is_sidecar {
                add(&mut sidecars, name.clone(), amount);
                add(&mut sum, name, amount);
            } else {
                let beside = sidecars.get(&name).cloned().unwrap_or_else(|| Quantity::whole(0));
                let all = amount + beside;
                let most = peak.entry(name).or_insert_with(|| all);
                if *most < all {
                    *most = all;
                }
            }
        }
    }
    for (name, amount) in peak {
        let most = sum.entry(name).or_insert_with(|| amount);
        if *most < amount {
            *most = amount;
        }
    }
    for (name, amount) in parsed(&pod.spec.overhead) {
        if sum.contains_key(&name) {
            add(&mut sum, name, amount);
        }
    }
    sum
}

/// Whether a pod is among those that a quota is about.
fn in_scopes(spec: &ResourceQuotaSpec, pod: &Cached<Pod>) -> bool {
    let holds = |scope: &str| match scope {
        "Terminating" => pod.object.spec.active_deadline_seconds.is_some(),
        "NotTerminating" => pod.object.spec.active_deadline_seconds.is_none(),
        "BestEffort" => is_best_effort(&pod.object),
        "NotBestEffort" => !is_best_effort(&pod.object),
        "PriorityClass" => !pod.object.spec.priority_class_name.is_empty(),
        _ => false,
    };
    let selector = spec.scope_selector.as_ref().and_then(|selector| selector.match_expressions.as_ref());
    spec.scopes.iter().flatten().all(|scope| holds(scope))
        && selector.into_iter().flatten().all(|expression| {
            let named = expression.values.iter().flatten().any(|v| *v == pod.object.spec.priority_class_name);
            match (expression.scope_name.as_str(), expression.operator.as_str()) {
                ("PriorityClass", "In") => named,
                ("PriorityClass", "NotIn") => !named,
                (scope, "DoesNotExist") => !holds(scope),
                (scope, _) => holds(scope),
            }
        })
}

/// No container asks for, or is limited in, processor time or memory.
fn is_best_effort(pod: &Pod) -> bool {
    let all = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let mut resources = all.flat_map(|c| c.resources.requests.iter().chain(&c.resources.limits));
    resources.all(|(name, value)| {
        !matches!(name.as_str(), "cpu" | "memory") || quantity(value).is_none_or(|amount| amount.is_zero())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn check(spec: Value, expected: Expect) {
        let quota = json!({"metadata": {"name": "q", "namespace": "default"}, "spec": spec});
        let pod = |name: &str, phase: &str, resources: Value| {
            json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "containers": [{"name": "c", "resources": resources}],
                    "initContainers": [{"name": "i", "resources": {"requests": {"memory": "1Gi"}}}],
                },
                "status": {"phase": phase},
            })
        };
        let mut idle = pod("idle", "Running", json!({}));
        idle["spec"]["initContainers"] = json!([]);
        let pods = [
            pod(
                "busy",
                "Running",
                json!({"requests": {"cpu": "500m", "memory": "10Mi"}, "limits": {"cpu": 1}}),
            ),
            pod("done", "Succeeded", json!({"requests": {"cpu": "5"}})),
            idle,
        ];
        let service = json!({
            "metadata": {"name": "s", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]},
        });
        let secret = json!({"metadata": {"name": "s", "namespace": "default"}});
        let view = View::default()
            .with_objects::<ResourceQuota>(&[quota])
            .with_objects::<Pod>(&pods)
            .with_objects::<Service>(&[service])
            .with_resource::<Metadata>(GroupVersionResource::new("", "v1", "secrets"), &[secret]);
        let plan =
            ResourceQuotaController.plan(&ObjectKey::new("default", "q"), &view, Timestamp::UNIX_EPOCH);
        expected.assert_eq(&brief(&plan));
    }

    #[test]
    fn use_is_counted_by_kind_and_resource() {
        check(
            json!({"hard": {
                "pods": "5", "cpu": "2", "requests.memory": "2Gi", "limits.cpu": "4", "secrets": "9", "configmaps": "9",
                "count/pods": "9", "services": "3", "services.nodeports": "3", "services.loadbalancers": "0",
            }}),
            expect![[r#"
                status resourcequotas default/q {"hard":{"configmaps":"9","count/pods":"9","cpu":"2","limits.cpu":"4","pods":"5","requests.memory":"2Gi","secrets":"9","services":"3","services.loadbalancers":"0","services.nodeports":"3"},"used":{"configmaps":"0","count/pods":"3","cpu":"500m","limits.cpu":"1","pods":"2","requests.memory":"1Gi","secrets":"1","services":"1","services.loadbalancers":"0","services.nodeports":"2"}}
            "#]],
        );
    }

    #[test]
    fn scopes_choose_pods() {
        check(
            json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]}),
            expect![[r#"
            status resourcequotas default/q {"hard":{"pods":"5"},"used":{"pods":"1"}}
        "#]],
        );
        check(
            json!({"hard": {"pods": "5", "cpu": "1"}, "scopes": ["NotBestEffort", "NotTerminating"]}),
            expect![[r#"
            status resourcequotas default/q {"hard":{"cpu":"1","pods":"5"},"used":{"cpu":"500m","pods":"1"}}
        "#]],
        );
        check(
            json!({"hard": {"pods": "5"}, "scopes": ["Terminating"]}),
            expect![[r#"
            status resourcequotas default/q {"hard":{"pods":"5"},"used":{"pods":"0"}}
        "#]],
        );
    }
}
