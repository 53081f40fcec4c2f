//! What an object counts for in a ResourceQuota, and which quotas look at it (Kubernetes documentation, "Resource
//! Quotas"). Used where use is charged and where it is shown, so that both count alike.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Quantity;

#[cfg(test)]
mod tests;

/// Amounts by the names that a quota's `hard` uses: `pods`, `requests.cpu`, `count/jobs.batch`.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds of the core group that may be named without `count/`.
const ALIASES: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
/// Processor time, memory and local storage of pods.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// A pod must say these for each of its containers once a quota is about them.
const MUST_SAY: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// What a quota needs to know of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    pub usage: Usage,
    facts: Facts,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Facts {
    Pod {
        terminating: bool,
        best_effort: bool,
        cross_namespace: bool,
        priority_class: String,
    },
    Claim {
        attributes_classes: BTreeSet<String>,
    },
    /// No scope is about it.
    #[default]
    Other,
}

impl Measured {
    /// Measures an object of a resource.
    pub fn of(group: &str, resource: &str, object: &Value) -> Self {
        let mut measured = Measured::default();
        let dot = if group.is_empty() { "" } else { "." };
        add(&mut measured.usage, format!("count/{resource}{dot}{group}"), Quantity::whole(1));
        match (group, resource) {
            ("", "pods") => measured.pod(object),
            ("", "services") => service(object, &mut measured.usage),
            ("", "persistentvolumeclaims") => measured.claim(object),
            ("", alias) if ALIASES.contains(&alias) => add(&mut measured.usage, alias, Quantity::whole(1)),
            _ => {}
        }
        measured
    }

    fn pod(&mut self, pod: &Value) {
        let spec = &pod["spec"];
        self.facts = Facts::Pod {
            terminating: spec["activeDeadlineSeconds"].as_i64().is_some(),
            best_effort: is_best_effort(spec),
            cross_namespace: reaches_other_namespaces(spec),
            priority_class: spec["priorityClassName"].as_str().unwrap_or_default().to_owned(),
        };
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return;
        }
        add(&mut self.usage, "pods", Quantity::whole(1));
        let mut requests = pod_resources(spec, "requests");
        let mut limits = pod_resources(spec, "limits");
        for (name, amount) in quantities(&spec["overhead"]) {
            add(&mut requests, &*name, amount);
            if limits.contains_key(&name) {
                add(&mut limits, name, amount);
            }
        }
        compute_usage(&requests, &limits, &mut self.usage);
    }

    fn claim(&mut self, claim: &Value) {
        let (spec, status) = (&claim["spec"], &claim["status"]);
        let classes = [
            &spec["volumeAttributesClassName"],
            &status["currentVolumeAttributesClassName"],
            &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
        ];
        let classes = classes.into_iter().filter_map(Value::as_str).filter(|class| !class.is_empty());
        self.facts = Facts::Claim { attributes_classes: classes.map(str::to_owned).collect() };
        let class = spec["storageClassName"].as_str().filter(|class| !class.is_empty());
        let prefix = class.map(|class| format!("{class}.storageclass.storage.k8s.io/"));
        let asked = quantity(&spec["resources"]["requests"]["storage"]);
        // A volume that could not be shrunk back still has the size that was tried.
        let given = quantity(&status["allocatedResources"]["storage"]);
        let storage = asked.into_iter().chain(given).max();
        for prefix in [Some(String::new()), prefix].into_iter().flatten() {
            add(&mut self.usage, format!("{prefix}persistentvolumeclaims"), Quantity::whole(1));
            if let Some(storage) = storage {
                add(&mut self.usage, format!("{prefix}requests.storage"), storage);
            }
        }
    }
}

/// One side of the resources of a pod (`requests` or `limits`), without its overhead: all containers together, or its
/// largest initial one if that takes more; what the pod itself says goes before that.
pub fn pod_resources(spec: &Value, side: &str) -> Usage {
    let mut sum = Usage::new();
    for container in items(&spec["containers"]) {
        for (name, amount) in quantities(&container["resources"][side]) {
            add(&mut sum, name, amount);
        }
    }
    // Sidecars run beside all that is started after them.
    let mut sidecars = Usage::new();
    let mut peak = Usage::new();
    for container in items(&spec["initContainers"]) {
        let is_sidecar = container["restartPolicy"] == "Always";
        for (name, amount) in quantities(&container["resources"][side]) {
            let beside = sidecars.get(&name).copied().unwrap_or_default();
            if is_sidecar {
                add(&mut sidecars, &*name, amount);
                add(&mut sum, &*name, amount);
            }
            let most = peak.entry(name).or_default();
            *most = (*most).max(amount + beside);
        }
    }
    for (name, amount) in peak {
        let most = sum.entry(name).or_default();
        *most = (*most).max(amount);
    }
    for (name, amount) in quantities(&spec["resources"][side]) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            sum.insert(name, amount);
        }
    }
    sum
}

/// Requests and limits under the names that quotas use.
fn compute_usage(requests: &Usage, limits: &Usage, usage: &mut Usage) {
    for (name, amount) in requests {
        let plain = COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-");
        if plain {
            add(usage, &**name, *amount);
        }
        if plain || is_extended(name) {
            add(usage, format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits.iter().filter(|(name, _)| COMPUTE.contains(&name.as_str())) {
        add(usage, format!("limits.{name}"), *amount);
    }
}

/// A resource that somebody else than Kubernetes has defined.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !domain.starts_with("requests.")
    })
}

fn service(service: &Value, usage: &mut Usage) {
    let spec = &service["spec"];
    add(usage, "services", Quantity::whole(1));
    let ports = || items(&spec["ports"]);
    let count = |number: usize| Quantity::whole(i64::try_from(number).unwrap_or(i64::MAX));
    match spec["type"].as_str() {
        Some("NodePort") => add(usage, "services.nodeports", count(ports().count())),
        Some("LoadBalancer") => {
            let all = spec["allocateLoadBalancerNodePorts"] != false;
            let given = ports().filter(|port| all || port["nodePort"].as_i64().unwrap_or(0) != 0);
            add(usage, "services.nodeports", count(given.count()));
            add(usage, "services.loadbalancers", Quantity::whole(1));
        }
        _ => {}
    }
}

/// No container asks for, or is limited in, processor time or memory.
fn is_best_effort(spec: &Value) -> bool {
    let containers = items(&spec["containers"]).chain(items(&spec["initContainers"]));
    let mut all = containers.map(|container| &container["resources"]).chain([&spec["resources"]]);
    all.all(|resources| {
        ["requests", "limits"].into_iter().all(|side| {
            ["cpu", "memory"]
                .into_iter()
                .all(|name| quantity(&resources[side][name]).is_none_or(|n| n.is_zero()))
        })
    })
}

/// Whether a pod wants to be near, or far from, pods of other namespaces.
fn reaches_other_namespaces(spec: &Value) -> bool {
    let affinities = ["podAffinity", "podAntiAffinity"].into_iter().map(|name| &spec["affinity"][name]);
    let mut terms = affinities.flat_map(|affinity| {
        let required = items(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = items(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]);
        required.chain(preferred.map(|term| &term["podAffinityTerm"]))
    });
    terms.any(|term| items(&term["namespaces"]).next().is_some() || term["namespaceSelector"].is_object())
}

/// What a quota allows, and for which objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowance {
    /// Quantities as they are written.
    pub hard: BTreeMap<String, String>,
    scopes: Vec<Scope>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Scope {
    scope_name: String,
    operator: String,
    values: Vec<String>,
}

impl Scope {
    /// Whether the scope takes in objects of one of these classes.
    fn chooses<'a>(&self, mut classes: impl Iterator<Item = &'a str> + Clone) -> bool {
        let named = |class: &str| self.values.iter().any(|value| value == class);
        match self.operator.as_str() {
            "In" => classes.any(named),
            "NotIn" => !classes.any(named),
            "DoesNotExist" => classes.next().is_none(),
            _ => classes.next().is_some(),
        }
    }

    fn holds(&self, facts: &Facts) -> bool {
        match (facts, self.scope_name.as_str()) {
            (Facts::Pod { terminating, .. }, "Terminating") => *terminating,
            (Facts::Pod { terminating, .. }, "NotTerminating") => !terminating,
            (Facts::Pod { best_effort, .. }, "BestEffort") => *best_effort,
            (Facts::Pod { best_effort, .. }, "NotBestEffort") => !best_effort,
            (Facts::Pod { cross_namespace, .. }, "CrossNamespacePodAffinity") => *cross_namespace,
            (Facts::Pod { priority_class, .. }, "PriorityClass") => {
                self.chooses([priority_class.as_str()].into_iter().filter(|class| !class.is_empty()))
            }
            (Facts::Claim { attributes_classes }, "VolumeAttributesClass") => {
                self.chooses(attributes_classes.iter().map(String::as_str))
            }
            _ => false,
        }
    }
}

impl Allowance {
    /// Reads the `spec` of a ResourceQuota.
    pub fn of(spec: &Value) -> Self {
        let hard = spec["hard"].as_object().into_iter().flatten();
        let hard = hard.filter_map(|(name, value)| Some((name.clone(), quantity(value)?.to_string())));
        let named = items(&spec["scopes"]).filter_map(Value::as_str);
        let named = named.map(|name| Scope {
            scope_name: name.to_owned(),
            operator: "Exists".to_owned(),
            values: Vec::new(),
        });
        let selected = items(&spec["scopeSelector"]["matchExpressions"]).map(|expression| {
            let text = |name: &str| expression[name].as_str().unwrap_or_default().to_owned();
            let values = items(&expression["values"]).filter_map(Value::as_str).map(str::to_owned);
            Scope { scope_name: text("scopeName"), operator: text("operator"), values: values.collect() }
        });
        Self { hard: hard.collect(), scopes: named.chain(selected).collect() }
    }

    /// How much of what is allowed an object takes; empty for one that the quota does not look at.
    pub fn share(&self, object: &Measured) -> Usage {
        let mut share = Usage::new();
        if self.scopes.iter().all(|scope| scope.holds(&object.facts)) {
            let counted = object.usage.iter().filter(|(name, _)| self.hard.contains_key(*name));
            share.extend(counted.map(|(name, amount)| (name.clone(), *amount)));
        }
        share
    }

    /// Whether some object of a resource may take a share.
    pub fn is_about(&self, group: &str, resource: &str) -> bool {
        let dot = if group.is_empty() { "" } else { "." };
        let count = format!("count/{resource}{dot}{group}");
        self.hard.keys().any(|name| {
            *name == count
                || group.is_empty()
                    && match resource {
                        "services" => name == "services" || name.starts_with("services."),
                        "persistentvolumeclaims" => {
                            name.ends_with("persistentvolumeclaims") || name.ends_with("requests.storage")
                        }
                        "pods" => {
                            let plain = name.strip_prefix("requests.").or(name.strip_prefix("limits."));
                            let plain = plain.unwrap_or(name);
                            plain == "pods"
                                || COMPUTE.contains(&plain)
                                || plain != "storage" && plain != name
                                || plain.starts_with("hugepages-")
                        }
                        alias => ALIASES.contains(&alias) && name == alias,
                    }
        })
    }

    /// What a pod fails to say although this quota is about it: `must specify cpu for: a,b; memory for: a`.
    pub fn unsaid(&self, pod: &Value, measured: &Measured) -> Option<String> {
        let applies = self.scopes.iter().all(|scope| scope.holds(&measured.facts));
        let of_pod = |side: &str| pod["spec"]["resources"][side].as_object().is_some_and(|o| !o.is_empty());
        if !applies || of_pod("requests") || of_pod("limits") {
            return None;
        }
        let required: Vec<&str> = MUST_SAY.into_iter().filter(|name| self.hard.contains_key(*name)).collect();
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let spec = &pod["spec"];
        for container in items(&spec["containers"]).chain(items(&spec["initContainers"])) {
            let side = |side: &str| quantities(&container["resources"][side]).collect::<Usage>();
            let mut said = Usage::new();
            compute_usage(&side("requests"), &side("limits"), &mut said);
            let name = container["name"].as_str().unwrap_or_default();
            for required in required.iter().filter(|required| !said.contains_key(**required)) {
                missing.entry(required).or_default().insert(name);
            }
        }
        let each = missing.into_iter().map(|(resource, containers)| {
            format!("{resource} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
        });
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| format!("must specify {}", each.join("; ")))
    }
}

/// Adds an amount to what is used under a name.
pub fn add(usage: &mut Usage, name: impl Into<String>, amount: Quantity) {
    let name = name.into();
    match usage.get_mut(&name) {
        Some(sum) => *sum += amount,
        None => drop(usage.insert(name, amount)),
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn quantities(value: &Value) -> impl Iterator<Item = (String, Quantity)> {
    value.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), quantity(value)?)))
}

/// A quantity as JSON may have it.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}
