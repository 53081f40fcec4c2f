//! From wanted endpoints to the fewest writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::{ObjectKey, RequestOptions};
use client::{Action, Cached, Kind};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::{Value, json};

use super::desired::{Group, families};
use super::{MANAGED_BY, MANAGER, SERVICE_NAME};

/// On whose behalf slices are written.
pub(crate) struct Owner {
    /// Of the Service.
    pub(crate) key: ObjectKey,
    /// What the slices are owned by, as an owner reference.
    pub(crate) reference: Value,
    pub(crate) labels: BTreeMap<String, String>,
    /// Families that have a slice even without an endpoint.
    pub(crate) families: Vec<&'static str>,
}

impl Owner {
    pub(crate) fn service(service: &Cached<Service>) -> Self {
        let reference = json!({
            "apiVersion": "v1", "kind": "Service", "name": service.key.name, "uid": service.uid,
            "controller": true, "blockOwnerDeletion": true,
        });
        let (labels, families) = (labels(service), families(service));
        Self { key: service.key.clone(), reference, labels, families }
    }
}

/// Endpoints in one slice.
const SLICE_SIZE: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

type Slice = Arc<Cached<EndpointSlice>>;

/// Writes that make the existing slices hold the wanted groups.
pub(crate) fn reconcile(owner: &Owner, mut groups: Vec<Group>, mut existing: Vec<Slice>) -> Vec<Action> {
    // A service without endpoints has one empty slice, so that watchers learn that there are none.
    for address_type in owner.families.iter().copied() {
        if !groups.iter().any(|group| group.address_type == address_type) {
            groups.push(Group { address_type, ports: Vec::new(), endpoints: Vec::new() });
        }
    }
    let mut actions = Vec::new();
    for group in groups {
        let fits = |slice: &Slice| {
            slice.object.address_type == group.address_type
                && same_ports(slice.object.ports.as_deref(), &group.ports)
        };
        let (mine, others): (Vec<Slice>, Vec<Slice>) = existing.into_iter().partition(fits);
        existing = others;
        actions.extend(reconcile_group(owner, &group, mine));
    }
    actions.extend(existing.iter().filter(|slice| !slice.deleting).map(|slice| delete(slice)));
    actions
}

fn same_ports(existing: Option<&[EndpointPort]>, wanted: &[EndpointPort]) -> bool {
    let key = |port: &EndpointPort| {
        (port.name.clone().unwrap_or_default(), port.port, port.protocol.clone(), port.app_protocol.clone())
    };
    let sorted = |ports: &[EndpointPort]| {
        let mut keys: Vec<_> = ports.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(existing.unwrap_or_default()) == sorted(wanted)
}

fn reconcile_group(owner: &Owner, group: &Group, slices: Vec<Slice>) -> Vec<Action> {
    let mut unplaced: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in &group.endpoints {
        let id = identity(endpoint);
        if unplaced.insert(id.clone(), endpoint.clone()).is_none() {
            order.push(id);
        }
    }
    let mut plans: Vec<(Slice, Vec<Endpoint>)> = Vec::new();
    for slice in slices.into_iter().filter(|slice| !slice.deleting) {
        let held = slice.object.endpoints.iter().flatten();
        let kept = held.filter_map(|endpoint| unplaced.remove(&identity(endpoint))).collect();
        plans.push((slice, kept));
    }
    let mut rest: Vec<Endpoint> = order.iter().filter_map(|id| unplaced.remove(id)).collect();
    rest.reverse();
    // Slices that are written anyway take the newcomers first.
    plans.sort_by_key(|(slice, kept)| !changed(slice, kept));
    for (_, kept) in &mut plans {
        while kept.len() < SLICE_SIZE
            && let Some(endpoint) = rest.pop()
        {
            kept.push(endpoint);
        }
    }
    rest.reverse();
    let keep_one_empty = group.endpoints.is_empty();
    let mut actions = Vec::new();
    for (index, (slice, kept)) in plans.iter().enumerate() {
        if kept.is_empty() && !(keep_one_empty && index == 0) {
            actions.push(delete(slice));
        } else if changed(slice, kept) || slice.labels != owner.labels {
            actions.push(update(owner, slice, kept));
        }
    }
    actions.extend(rest.chunks(SLICE_SIZE).map(|endpoints| create(owner, group, endpoints)));
    if keep_one_empty && plans.is_empty() {
        actions.push(create(owner, group, &[]));
    }
    actions
}

/// What makes two endpoints the same one, whatever its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(" "))
}

fn changed(slice: &Slice, endpoints: &[Endpoint]) -> bool {
    let held = slice.object.endpoints.as_deref().unwrap_or_default();
    held.len() != endpoints.len() || held.iter().zip(endpoints).any(|(a, b)| !same_endpoint(a, b))
}

/// Equal in all that this controller sets.
fn same_endpoint(a: &Endpoint, b: &Endpoint) -> bool {
    a.addresses == b.addresses
        && a.conditions == b.conditions
        && a.hostname == b.hostname
        && a.node_name == b.node_name
        && a.zone == b.zone
        && a.hints == b.hints
        && a.target_ref.as_ref().map(|t| &t.uid) == b.target_ref.as_ref().map(|t| &t.uid)
}

fn labels(service: &Cached<Service>) -> BTreeMap<String, String> {
    let mut labels = service.labels.clone();
    labels.insert(SERVICE_NAME.into(), service.key.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels.remove(HEADLESS);
    if service.object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn create(owner: &Owner, group: &Group, endpoints: &[Endpoint]) -> Action {
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{}-", owner.key.name), "namespace": owner.key.namespace,
            "labels": owner.labels,
            "ownerReferences": [owner.reference],
        },
        "addressType": group.address_type, "ports": group.ports, "endpoints": endpoints,
    });
    Action::Create { gvr: EndpointSlice::gvr(), namespace: owner.key.namespace.clone(), object }
}

fn update(owner: &Owner, slice: &Slice, endpoints: &[Endpoint]) -> Action {
    let mut object: Value = json!(slice.object);
    object["apiVersion"] = "discovery.k8s.io/v1".into();
    object["kind"] = "EndpointSlice".into();
    object["metadata"]["labels"] = json!(owner.labels);
    object["endpoints"] = json!(endpoints);
    Action::Update { gvr: EndpointSlice::gvr(), key: slice.key.clone(), object }
}

pub(crate) fn delete(slice: &Cached<EndpointSlice>) -> Action {
    let options = RequestOptions { precondition_uid: Some(slice.uid.clone()), ..RequestOptions::default() };
    Action::Delete { gvr: EndpointSlice::gvr(), key: slice.key.clone(), options }
}
