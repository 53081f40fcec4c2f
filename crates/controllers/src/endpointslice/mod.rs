//! EndpointSlices of Services that have a selector.
//!
//! ```text
//!   Service + matching pods ──▶ endpoints, grouped by the ports they resolve to ──▶ slices of at most 100
//!                                      existing slices keep what they hold; only what differs is written
//! ```

pub(crate) mod desired;
pub(crate) mod diff;
mod hints;
mod mirror;
#[cfg(test)]
mod tests;

use api::selector::Requirement;
use api::{LabelSelector, ObjectKey};
use client::{Cached, Controller, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::node::Node;
use crate::pod::Pod;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";

pub use mirror::EndpointSliceMirroringController;

pub struct EndpointSliceController;

impl Controller for EndpointSliceController {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<Service>(),
            Watch::map::<Pod>(services_of_pod),
            Watch::cache_only::<Node>(),
            Watch::map::<EndpointSlice>(|_, slice| service_of_slice(slice, MANAGER).into_iter().collect()),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let Some(service) = view.get::<Service>(key).filter(|service| !service.deleting) else {
            return Plan::nothing();
        };
        let Some(selector) = pod_selector(&service) else { return Plan::nothing() };
        let pods = view.select::<Pod>(&key.namespace, &selector);
        let mut existing = view.in_namespace::<EndpointSlice>(&key.namespace);
        existing.retain(|slice| service_of_slice(slice, MANAGER).as_ref() == Some(key));
        let mut wanted = desired::groups(&service, &pods);
        hints::add(&service, &mut wanted, |node| {
            view.get::<Node>(&ObjectKey::new("", node))?.labels.get(hints::ZONE).cloned()
        });
        Plan::actions(diff::reconcile(&diff::Owner::service(&service), wanted, existing))
    }
}

/// Pods of a service; `None` when its endpoints are somebody else's affair.
pub(crate) fn pod_selector(service: &Cached<Service>) -> Option<LabelSelector> {
    let spec = service.object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    let one = |(key, value): (&String, &String)| Requirement::In(key.clone(), vec![value.clone()]);
    Some(LabelSelector { requirements: labels.iter().map(one).collect() })
}

pub(crate) fn services_of_pod(view: &View, pod: &Cached<Pod>) -> Vec<ObjectKey> {
    let services = view.in_namespace::<Service>(&pod.key.namespace).into_iter();
    let matching = services.filter(|service| pod_selector(service).is_some_and(|s| s.matches(&pod.labels)));
    matching.map(|service| service.key.clone()).collect()
}

fn service_of_slice(slice: &Cached<EndpointSlice>, manager: &str) -> Option<ObjectKey> {
    if slice.labels.get(MANAGED_BY).map(String::as_str) != Some(manager) {
        return None;
    }
    Some(ObjectKey::new(&slice.key.namespace, slice.labels.get(SERVICE_NAME)?))
}
