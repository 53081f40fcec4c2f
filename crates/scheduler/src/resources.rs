//! Amounts of resources of a pod or node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// What the scheduler takes a container to use when it asks for nothing, for ranking nodes only.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts by resource; extended resources (and huge pages) by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    /// bytes
    pub memory: i64,
    /// bytes
    pub ephemeral_storage: i64,
    pub extended: BTreeMap<String, i64>,
}

type List = BTreeMap<String, Quantity>;

impl Resources {
    /// Reads a resource list; `pods` is left out, unreadable amounts count as zero.
    pub(crate) fn from_list(list: Option<&List>) -> Self {
        let mut resources = Self::default();
        for (name, Quantity(text)) in list.into_iter().flatten() {
            let amount = if name == "cpu" { quantity::milli(text) } else { quantity::units(text) };
            if name != "pods" {
                *resources.slot(name) = amount.unwrap_or(0);
            }
        }
        resources.extended.retain(|_, amount| *amount != 0);
        resources
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.milli_cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            _ => self.extended.entry(name.to_owned()).or_default(),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
        self.extended.retain(|_, amount| *amount != 0);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let slot = self.extended.entry(name.clone()).or_default();
            *slot = f(*slot, *amount);
        }
    }
}

/// What a pod asks for (Kubernetes documentation, "Resource sharing within containers"; KEP-753, KEP-2837):
/// containers and sidecars together, or what the largest step of initialisation needs if that is more;
/// pod-level requests replace the sum; overhead is added.
pub(crate) fn pod_requests(spec: &PodSpec) -> Resources {
    aggregate(spec, |container| {
        Resources::from_list(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
    })
}

/// The same for ranking nodes: containers without a request count as small, not as nothing.
pub(crate) fn pod_requests_for_ranking(spec: &PodSpec) -> Resources {
    aggregate(spec, |container| {
        let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let mut resources = Resources::from_list(list);
        let asks = |name: &str| list.is_some_and(|list| list.contains_key(name));
        if !asks("cpu") {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !asks("memory") {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    })
}

fn aggregate(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut initialising = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&step);
            sidecars.add(&step);
            step = sidecars.clone();
        } else {
            step.add(&sidecars);
        }
        initialising.raise_to(&step);
    }
    total.raise_to(&initialising);
    let pod_level = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let replacement = Resources::from_list(pod_level);
    for name in pod_level.into_iter().flat_map(BTreeMap::keys) {
        match name.as_str() {
            "cpu" => total.milli_cpu = replacement.milli_cpu,
            "memory" => total.memory = replacement.memory,
            _ => {}
        }
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}
