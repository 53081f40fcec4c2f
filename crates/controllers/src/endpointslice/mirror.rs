//! EndpointSlices of Endpoints that somebody else than the controller of Endpoints writes, for Services without a
//! selector: what reads slices only sees them too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::ObjectKey;
use client::{Cached, Controller, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use serde_json::json;

use super::desired::Group;
use super::diff::{self, Owner};
use super::{MANAGED_BY, SERVICE_NAME, pod_selector, service_of_slice};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// A label that keeps Endpoints to themselves.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// An annotation of Endpoints that are but a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset; more are left out.
const MOST: usize = 1000;

pub struct EndpointSliceMirroringController;

impl Controller for EndpointSliceMirroringController {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<Endpoints>(),
            Watch::own::<Service>(),
            Watch::map::<EndpointSlice>(|_, slice| service_of_slice(slice, MANAGER).into_iter().collect()),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let mut existing = view.in_namespace::<EndpointSlice>(&key.namespace);
        existing.retain(|slice| service_of_slice(slice, MANAGER).as_ref() == Some(key));
        let service = view.get::<Service>(key).filter(|service| !service.deleting && stands_alone(service));
        let endpoints = view.get::<Endpoints>(key).filter(|endpoints| is_mirrored(endpoints));
        let (Some(_), Some(endpoints)) = (service, endpoints) else {
            let stale = existing.iter().filter(|slice| !slice.deleting);
            return Plan::actions(stale.map(|slice| diff::delete(slice)).collect());
        };
        let mut labels = endpoints.labels.clone();
        labels.insert(SERVICE_NAME.into(), key.name.clone());
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        let reference = json!({
            "apiVersion": "v1", "kind": "Endpoints", "name": key.name, "uid": endpoints.uid,
            "controller": true, "blockOwnerDeletion": true,
        });
        let owner = Owner { key: key.clone(), reference, labels, families: Vec::new() };
        let groups = groups(endpoints.object.subsets.as_deref().unwrap_or_default());
        Plan::actions(diff::reconcile(&owner, groups, existing))
    }
}

/// A service whose endpoints nobody derives from pods.
fn stands_alone(service: &Cached<Service>) -> bool {
    let external = service.object.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("ExternalName"));
    !external && pod_selector(service).is_none()
}

fn is_mirrored(endpoints: &Cached<Endpoints>) -> bool {
    let annotations = endpoints.object.metadata.annotations.as_ref();
    !endpoints.deleting
        && endpoints.labels.get(SKIP).map(String::as_str) != Some("true")
        && annotations.is_none_or(|annotations| !annotations.contains_key(LEADER))
}

/// Endpoints that share an address family and ports.
fn groups(subsets: &[EndpointSubset]) -> Vec<Group> {
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for subset in subsets {
        let mut ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(mirrored_port).collect();
        ports.sort_by(|a, b| a.name.cmp(&b.name));
        let id = serde_json::to_string(&ports).expect("ports can be encoded");
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().flatten().map(|address| (address, false)));
        for (address, ready) in all.take(MOST) {
            let address_type = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            let group = groups.entry((address_type, id.clone()));
            let group =
                group.or_insert_with(|| Group { address_type, ports: ports.clone(), endpoints: Vec::new() });
            group.endpoints.push(mirrored(address, ready));
        }
    }
    groups.into_values().collect()
}

fn mirrored_port(port: &k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::text;
    use expect_test::{Expect, expect};
    use serde_json::Value;

    fn check(service: Value, endpoints: Value, slices: &[Value], expected: Expect) {
        let metadata = json!({"name": "s", "namespace": "default", "uid": "1"});
        let mut all = endpoints;
        if all.is_object() {
            all["metadata"] = merged(&metadata, &all["metadata"]);
        }
        let endpoints: Vec<Value> = Some(all).filter(Value::is_object).into_iter().collect();
        let view = View::default()
            .with_objects::<Service>(&[json!({"metadata": metadata, "spec": service})])
            .with_objects::<Endpoints>(&endpoints)
            .with_objects::<EndpointSlice>(slices);
        let key = ObjectKey::new("default", "s");
        let plan = EndpointSliceMirroringController.plan(&key, &view, Timestamp::UNIX_EPOCH);
        expected.assert_eq(&text(&plan));
    }

    fn merged(base: &Value, more: &Value) -> Value {
        let mut base = base.clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            base[name] = value.clone();
        }
        base
    }

    fn subsets() -> Value {
        json!([{"addresses": [{"ip": "10.1.2.3"}], "notReadyAddresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}])
    }

    fn slice() -> Value {
        json!({
            "metadata": {"name": "s-x", "namespace": "default", "uid": "x", "labels": {MANAGED_BY: MANAGER, SERVICE_NAME: "s"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": true}}],
        })
    }

    #[test]
    fn endpoints_become_slices() {
        check(
            json!({}),
            json!({"subsets": subsets()}),
            &[slice()],
            expect![[r#"
                create endpointslices {"addressType":"IPv6","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["fd00::1"],"conditions":{"ready":false}}],"kind":"EndpointSlice","metadata":{"generateName":"s-","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslicemirroring-controller.k8s.io","kubernetes.io/service-name":"s"},"namespace":"default","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Endpoints","name":"s","uid":"1"}]},"ports":[{"name":"","port":80,"protocol":"TCP"}]}
            "#]],
        );
    }

    #[test]
    fn slices_go_with_their_endpoints() {
        check(json!({}), Value::Null, &[slice()], expect![["delete endpointslices default/s-x \n"]]);
        let subsets = json!({"subsets": subsets()});
        check(json!({"selector": {"a": "b"}}), subsets.clone(), &[], expect![""]);
        let mut skipped = subsets.clone();
        skipped["metadata"] = json!({"labels": {SKIP: "true"}});
        check(json!({}), skipped, &[], expect![""]);
        let mut lock = subsets;
        lock["metadata"] = json!({"annotations": {LEADER: "{}"}});
        check(json!({}), lock, &[], expect![""]);
    }
}
