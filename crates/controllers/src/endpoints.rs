//! Endpoints of Services that have a selector: the older picture of what EndpointSlices say, one object a Service.

use std::sync::Arc;

use api::ObjectKey;
use client::{Action, Cached, Controller, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::Endpoint;

use crate::endpointslice::{desired, pod_selector, services_of_pod};
use crate::pod::Pod;
use crate::workload::{delete, same, whole};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Says that there are more addresses than [`MOST`].
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object.
const MOST: usize = 1000;

pub struct EndpointsController;

impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<Service>(), Watch::own::<Endpoints>(), Watch::map::<Pod>(services_of_pod)]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let existing = view.get::<Endpoints>(key).filter(|endpoints| !endpoints.deleting);
        let Some(service) = view.get::<Service>(key).filter(|service| !service.deleting) else {
            // What others have written stays: it may be a lock, or be meant for a service to come.
            let ours = existing.filter(|e| e.labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER));
            return Plan::actions(ours.iter().map(|e| delete(Endpoints::gvr(), e)).collect());
        };
        let Some(selector) = pod_selector(&service) else { return Plan::nothing() };
        let pods = view.select::<Pod>(&key.namespace, &selector);
        let (subsets, truncated) = subsets(&service, &pods);
        let mut object = existing.as_ref().map(|e| e.object.clone()).unwrap_or_default();
        object.metadata.name = Some(key.name.clone());
        object.metadata.namespace = Some(key.namespace.clone());
        let mut labels = service.labels.clone();
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        labels.remove(HEADLESS);
        if service.object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
            labels.insert(HEADLESS.into(), String::new());
        }
        object.metadata.labels = Some(labels);
        let annotations = object.metadata.annotations.get_or_insert_default();
        match truncated {
            true => drop(annotations.insert(OVER_CAPACITY.into(), "truncated".into())),
            false => drop(annotations.remove(OVER_CAPACITY)),
        }
        object.subsets = Some(subsets);
        match existing {
            None => {
                let (gvr, namespace) = (Endpoints::gvr(), key.namespace.clone());
                Plan::actions(vec![Action::Create { gvr, namespace, object: whole(&object) }])
            }
            Some(existing) if same(&existing.object, &object) => Plan::nothing(),
            Some(_) => {
                let (gvr, key) = (Endpoints::gvr(), key.clone());
                Plan::actions(vec![Action::Update { gvr, key, object: whole(&object) }])
            }
        }
    }
}

/// Pods by the ports they resolve to, and whether there were too many.
fn subsets(service: &Cached<Service>, pods: &[Arc<Cached<Pod>>]) -> (Vec<EndpointSubset>, bool) {
    let family = desired::families(service).into_iter().next().unwrap_or("IPv4");
    let has_ports =
        service.object.spec.as_ref().is_some_and(|s| s.ports.as_ref().is_some_and(|p| !p.is_empty()));
    let mut left = MOST;
    let mut truncated = false;
    let mut subsets = Vec::new();
    for group in desired::groups(service, pods) {
        if group.address_type != family || (has_ports && group.ports.is_empty()) {
            continue;
        }
        let state = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            (conditions.ready == Some(true), conditions.terminating == Some(true))
        };
        let mut take = |wanted: (bool, bool)| {
            let chosen =
                group.endpoints.iter().filter(|e| state(e).0 == wanted.0 && (wanted.0 || !state(e).1));
            let mut addresses: Vec<EndpointAddress> = chosen.map(address).collect();
            addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
            truncated |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
            addresses
        };
        let (ready, not_ready) = (take((true, false)), take((false, false)));
        if ready.is_empty() && not_ready.is_empty() {
            continue;
        }
        let some = |list: Vec<EndpointAddress>| Some(list).filter(|list| !list.is_empty());
        let ports = group.ports.iter().map(|port| EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port.unwrap_or(0),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        });
        subsets.push(EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(not_ready),
            ports: Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty()),
        });
    }
    (subsets, truncated)
}

fn address(endpoint: &Endpoint) -> EndpointAddress {
    EndpointAddress {
        ip: endpoint.addresses.first().cloned().unwrap_or_default(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::text;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn pod(name: &str, ip: &str, ready: &str, deleting: bool) -> Value {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "x"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 81}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        }
        pod
    }

    fn check(service: &[Value], existing: &[Value], expected: Expect) {
        let pods = [
            pod("b", "10.0.0.2", "True", false),
            pod("a", "10.0.0.1", "True", false),
            pod("sick", "10.0.0.3", "False", false),
            pod("old", "10.0.0.4", "True", true),
        ];
        let view = View::default()
            .with_objects::<Service>(service)
            .with_objects::<Endpoints>(existing)
            .with_objects::<Pod>(&pods);
        let plan = EndpointsController.plan(&ObjectKey::new("default", "s"), &view, Timestamp::UNIX_EPOCH);
        expected.assert_eq(&text(&plan));
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "default", "labels": {"l": "1"}}, "spec": spec})
    }

    #[test]
    fn pods_are_listed_by_readiness() {
        let spec =
            json!({"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
        check(
            &[service(spec)],
            &[],
            expect![[r#"
                create endpoints {"apiVersion":"v1","kind":"Endpoints","metadata":{"annotations":{},"labels":{"endpoints.kubernetes.io/managed-by":"endpoint-controller","l":"1"},"name":"s","namespace":"default"},"subsets":[{"addresses":[{"ip":"10.0.0.1","nodeName":"n","targetRef":{"kind":"Pod","name":"a","namespace":"default","uid":"a"}},{"ip":"10.0.0.2","nodeName":"n","targetRef":{"kind":"Pod","name":"b","namespace":"default","uid":"b"}}],"notReadyAddresses":[{"ip":"10.0.0.3","nodeName":"n","targetRef":{"kind":"Pod","name":"sick","namespace":"default","uid":"sick"}}],"ports":[{"name":"http","port":81,"protocol":"TCP"}]}]}
            "#]],
        );
        let none =
            json!({"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80, "targetPort": "none"}]});
        let empty = json!({
            "metadata": {"name": "s", "namespace": "default", "labels": {"l": "1", MANAGED_BY: MANAGER}},
        });
        check(&[service(none)], &[empty], expect![""]);
    }

    #[test]
    fn what_others_write_stays() {
        let named =
            |labels: Value| json!({"metadata": {"name": "s", "namespace": "default", "labels": labels}});
        check(&[service(json!({}))], &[named(json!({}))], expect![""]);
        check(&[], &[named(json!({}))], expect![""]);
        check(&[], &[named(json!({MANAGED_BY: MANAGER}))], expect![["delete endpoints default/s \n"]]);
    }
}
