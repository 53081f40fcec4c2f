//! The status of a DaemonSet.

use client::Action;
use k8s_openapi::api::apps::v1::DaemonSetStatus;

use super::Daemons;
use crate::workload::{same, update_status};

impl Daemons<'_> {
    /// Writes the status if it is not what was observed.
    pub(super) fn status(&self) -> Option<Action> {
        let old = self.set.object.status.clone().unwrap_or_default();
        let new = self.observe(&old);
        if same(&new, &old) {
            return None;
        }
        let mut object = self.set.object.clone();
        object.status = Some(new);
        Some(update_status(&self.set.key, &object))
    }

    fn observe(&self, old: &DaemonSetStatus) -> DaemonSetStatus {
        let mut new = DaemonSetStatus {
            observed_generation: self.set.object.metadata.generation,
            collision_count: self.history.collisions,
            conditions: old.conditions.clone(),
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        for place in &self.places {
            if !place.should_run {
                new.number_misscheduled += i32::from(!place.pods.is_empty());
                continue;
            }
            new.desired_number_scheduled += 1;
            new.current_number_scheduled += i32::from(!place.pods.is_empty());
            updated += i32::from(place.pods.iter().any(|pod| self.is_new(pod)));
            new.number_ready += i32::from(place.pods.iter().any(|pod| pod.object.is_ready()));
            available += i32::from(place.pods.iter().any(|pod| self.is_available(pod)));
        }
        new.updated_number_scheduled = Some(updated);
        new.number_available = Some(available);
        new.number_unavailable = Some(new.desired_number_scheduled - available);
        new
    }
}
