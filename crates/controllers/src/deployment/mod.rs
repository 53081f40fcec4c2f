//! Deployment: moves from one pod template to the next through ReplicaSets.
//!
//! ```text
//!   own ReplicaSets ──▶ new (same template) + old ──▶ paused or resized: proportional scaling
//!                                                └──▶ RollingUpdate │ Recreate: one safe step
//!                                                └──▶ status, conditions, old revisions removed
//! ```
//!
//! Each plan is one step that is safe whatever happens next; the ReplicaSets' own progress leads to the next step.

mod plan;
mod revision;
mod scaling;
#[cfg(test)]
mod scaling_tests;
mod status;
#[cfg(test)]
mod tests;

use api::ObjectKey;
use client::{Cached, Controller, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use crate::claim::{Claimant, selector};
use crate::pod::Pod;

pub struct DeploymentController;

impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<Deployment>(),
            Watch::map::<ReplicaSet>(deployments_of_set),
            Watch::map::<Pod>(recreated_deployment_of_pod),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(deployment) = view.get::<Deployment>(key) else { return Plan::nothing() };
        let spec = &deployment.object.spec;
        let Some(labels) = selector(&spec.selector).filter(|s| !s.requirements.is_empty()) else {
            return Plan::nothing();
        };
        let claimant = Claimant {
            gvr: Deployment::gvr(),
            api_version: "apps/v1",
            kind: "Deployment",
            key,
            uid: &deployment.uid,
            deleting: deployment.deleting,
            selector: &labels,
        };
        let candidates = view.in_namespace::<ReplicaSet>(&key.namespace);
        let claimed = claimant.claim(view, &ReplicaSet::gvr(), candidates, |_| true);
        if let Some(read) = claimed.need {
            return Plan::Need(vec![read]);
        }
        let rollout = plan::Rollout::new(&deployment, spec, &claimed.owned, claimant.reference(), now);
        rollout.plan(view, claimed.actions)
    }
}

fn deployments_of_set(view: &View, set: &Cached<ReplicaSet>) -> Vec<ObjectKey> {
    if let Some(owner) = set.controller() {
        let key = ObjectKey::new(&set.key.namespace, &owner.name);
        return if owner.kind == "Deployment" { vec![key] } else { Vec::new() };
    }
    let deployments = view.in_namespace::<Deployment>(&set.key.namespace).into_iter();
    let matching = deployments.filter(|deployment| {
        let labels = selector(&deployment.object.spec.selector);
        labels.is_some_and(|labels| !labels.requirements.is_empty() && labels.matches(&set.labels))
    });
    matching.map(|deployment| deployment.key.clone()).collect()
}

/// Only Recreate waits for single pods to go.
fn recreated_deployment_of_pod(view: &View, pod: &Cached<Pod>) -> Vec<ObjectKey> {
    let Some(owner) = pod.controller().filter(|owner| owner.kind == "ReplicaSet") else { return Vec::new() };
    let set = view.get::<ReplicaSet>(&ObjectKey::new(&pod.key.namespace, &owner.name));
    let Some(key) = set.and_then(|set| {
        let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
        Some(ObjectKey::new(&pod.key.namespace, &owner.name))
    }) else {
        return Vec::new();
    };
    let deployment = view.get::<Deployment>(&key);
    let recreates = deployment.and_then(|d| d.object.spec.strategy.as_ref()?.type_.clone());
    if recreates.as_deref() == Some("Recreate") { vec![key] } else { Vec::new() }
}
