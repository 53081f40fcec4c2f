//! What must hold when the dust has settled.

use std::collections::BTreeMap;

use api::{RequestOptions, Status};
use client::Client;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::workload::{NAMESPACE, Wanted};

/// Pods per node that the fake nodes offer, and thousandths of a processor.
const PODS_PER_NODE: usize = 20;
const MILLIS_PER_NODE: usize = 4000;
const MILLIS_PER_POD: usize = 250;

/// What is not (yet) as it must be.
pub(crate) async fn differences(client: &Client, wanted: &Wanted) -> Result<Vec<String>, Status> {
    let mut found = Vec::new();
    let deployments = client.list::<Deployment>(Some(NAMESPACE), RequestOptions::default()).await?.items;
    let sets = client.list::<ReplicaSet>(Some(NAMESPACE), RequestOptions::default()).await?.items;
    let pods = client.list::<Pod>(Some(NAMESPACE), RequestOptions::default()).await?.items;
    let maps = client.list::<ConfigMap>(Some(NAMESPACE), RequestOptions::default()).await?.items;
    for (name, (replicas, version)) in &wanted.deployments {
        match deployments.iter().find(|d| d.metadata.name.as_ref() == Some(name)) {
            None => found.push(format!("no Deployment {name}")),
            Some(deployment) => found.extend(deployment_differences(deployment, *replicas, *version, &sets)),
        }
    }
    for set in &sets {
        let wanted = set.spec.replicas.unwrap_or(0);
        let owned = pods.iter().filter(|pod| owner(&pod.metadata) == set.metadata.uid);
        let living = owned.filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
        if usize::try_from(wanted) != Ok(living) {
            found.push(format!("{:?} wants {wanted} pods and has {living}", set.metadata.name));
        }
    }
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &pods {
        match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            Some(node) => *nodes.entry(node).or_default() += 1,
            None => found.push(format!("{:?} has no node", pod.metadata.name)),
        }
    }
    let full = |count: usize| count > PODS_PER_NODE || count * MILLIS_PER_POD > MILLIS_PER_NODE;
    found.extend(nodes.iter().filter(|(_, count)| full(**count)).map(|(n, c)| format!("{c} pods on {n}")));
    for (name, (acknowledged, tried)) in &wanted.maps {
        let map = maps.iter().find(|map| map.metadata.name.as_ref() == Some(name));
        let value = map.and_then(|map| map.data.as_ref()?.get("value")?.parse::<u64>().ok()).unwrap_or(0);
        if !(*acknowledged..=*tried).contains(&value) {
            found.push(format!("{name} is {value}; {acknowledged} was acknowledged, {tried} tried"));
        }
    }
    Ok(found)
}

fn deployment_differences(
    deployment: &Deployment,
    replicas: i64,
    version: u64,
    sets: &[ReplicaSet],
) -> Vec<String> {
    let mut found = Vec::new();
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation != deployment.metadata.generation {
        found.push(format!("{name}: generation {:?} observed", status.observed_generation));
    }
    let counts = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
    if counts.iter().any(|count| i64::from(count.unwrap_or(0)) != replicas) {
        found.push(format!("{name}: {counts:?} instead of {replicas}"));
    }
    let owned: Vec<&ReplicaSet> =
        sets.iter().filter(|set| owner(&set.metadata) == deployment.metadata.uid).collect();
    for set in owned {
        let wanted = set.spec.replicas.unwrap_or(0);
        let newest = set_version(set) == Some(version);
        if i64::from(wanted) != if newest { replicas } else { 0 } {
            found.push(format!("{:?} is scaled to {wanted}", set.metadata.name));
        }
    }
    found
}

fn set_version(set: &ReplicaSet) -> Option<u64> {
    let spec = set.spec.template.as_ref()?.spec.as_ref()?;
    spec.containers.first()?.env.as_ref()?.first()?.value.as_ref()?.parse().ok()
}

/// Uid of the controlling owner.
fn owner(metadata: &ObjectMeta) -> Option<String> {
    let owners = metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next()
}
