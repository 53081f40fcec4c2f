//! The status of a StatefulSet.

use client::Action;
use k8s_openapi::api::apps::v1::StatefulSetStatus;

use super::step::Step;
use crate::history::{History, REVISION_LABEL};
use crate::workload::{number, same, update_status};

impl Step<'_> {
    /// Writes the status if it is not what was observed.
    pub(super) fn status(&self, history: &History) -> Option<Action> {
        let old = self.set.object.status.clone().unwrap_or_default();
        let new = self.observe(&old, history);
        if same(&new, &old) {
            return None;
        }
        let mut object = self.set.object.clone();
        object.status = Some(new);
        Some(update_status(&self.set.key, &object))
    }

    fn observe(&self, old: &StatefulSetStatus, history: &History) -> StatefulSetStatus {
        let count = |test: &dyn Fn(&super::PodRef) -> bool| {
            number(self.pods.values().filter(|pod| test(pod)).count())
        };
        let of = |pod: &super::PodRef, name: &str| {
            !pod.deleting && pod.labels.get(REVISION_LABEL).is_some_and(|label| label == name)
        };
        let running = |pod: &super::PodRef| pod.object.status.phase == "Running" && pod.object.is_ready();
        let mut new = StatefulSetStatus {
            replicas: number(self.pods.len()),
            ready_replicas: Some(count(&running)),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: Some(count(&|pod| of(pod, &self.current.0))),
            updated_replicas: Some(count(&|pod| of(pod, &self.update))),
            current_revision: Some(self.current.0.clone()),
            update_revision: Some(self.update.clone()),
            observed_generation: self.set.object.metadata.generation,
            collision_count: history.collisions,
            conditions: old.conditions.clone(),
        };
        let all = |value: Option<i32>| value == Some(new.replicas);
        let complete =
            new.replicas == self.replicas() && all(new.updated_replicas) && all(new.ready_replicas);
        if complete && !self.on_delete() {
            new.current_replicas = new.updated_replicas;
            new.current_revision = new.update_revision.clone();
        }
        new
    }
}
