//! What is written for a pod's claims before it is bound to its node.

use std::time::Duration;

use api::{ObjectKey, PatchType, RequestOptions, Status};
use client::{Client, Informer, Kind};
use serde_json::json;

use crate::volumes::{ClaimInfo, Step, VolumeInfo};

/// How long a volume may take to come.
const PATIENCE: Duration = Duration::from_secs(600);
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Caches that the writes are made from and waited for with.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) claims: Informer<ClaimInfo>,
    pub(crate) volumes: Informer<VolumeInfo>,
}

/// Performs the steps and waits until every claim has its volume.
pub(crate) async fn perform(
    client: &Client,
    caches: &Caches,
    steps: &[Step],
    node: &str,
) -> Result<(), Status> {
    if steps.is_empty() {
        return Ok(());
    }
    for step in steps {
        match step {
            Step::Reserve { volume, claim } => reserve(client, caches, volume, claim).await?,
            Step::Provision { claim } => {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                let options = RequestOptions::default();
                client.patch(&ClaimInfo::gvr(), claim, None, PatchType::Merge, &patch, options).await?;
            }
        }
    }
    let mut changes = caches.claims.subscribe();
    let mut waiting: Vec<&ObjectKey> = steps
        .iter()
        .map(|step| match step {
            Step::Reserve { claim, .. } | Step::Provision { claim } => claim,
        })
        .collect();
    let arrived = async {
        while !waiting.is_empty() {
            let Some(change) = changes.recv().await else { return false };
            let bound = change.new.as_ref().is_some_and(|claim| claim.object.bound_to.is_some());
            if bound {
                waiting.retain(|key| **key != change.key);
            }
        }
        true
    };
    let bound = tokio::select! {
        arrived = arrived => arrived,
        () = client.clock().sleep(PATIENCE) => false,
    };
    if bound { Ok(()) } else { Err(Status::internal("timed out waiting for volumes to be bound")) }
}

async fn reserve(client: &Client, caches: &Caches, volume: &str, claim: &ObjectKey) -> Result<(), Status> {
    let key = ObjectKey::new("", volume);
    let (Some(known), Some(owner)) = (caches.volumes.get(&key), caches.claims.get(claim)) else {
        return Err(Status::not_found("", "persistentvolumes", volume));
    };
    if known.object.claim.as_ref().is_some_and(|(_, uid)| *uid == owner.uid) {
        return Ok(());
    }
    let reference = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace, "name": claim.name,
        "uid": owner.uid,
    });
    let patch = json!({
        "metadata": {
            "resourceVersion": known.object.resource_version,
            "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
        },
        "spec": {"claimRef": reference},
    });
    let options = RequestOptions::default();
    client.patch(&VolumeInfo::gvr(), &key, None, PatchType::Merge, &patch, options).await?;
    Ok(())
}
