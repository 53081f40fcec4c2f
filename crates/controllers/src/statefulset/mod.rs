//! StatefulSet: pods with stable names, volumes and an order.
//!
//! ```text
//!   ordinals start..start+replicas ──▶ lowest first: claims, then pod (OrderedReady waits for each, Parallel does not)
//!   pods beyond ──▶ highest first: delete
//!   RollingUpdate ──▶ highest first, down to the partition: delete what has the old template
//! ```

mod identity;
mod status;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::ObjectKey;
use client::{Cached, Controller, Kind, Metadata, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::claim::{Claimant, selector};
use crate::history::{History, HistorySpec, template_of};
use crate::pod::Pod;
use crate::workload::{keys_of_pod, next_available};

type PodRef = Arc<Cached<Pod>>;

/// Label on a revision that holds its hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub struct StatefulSetController;

impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<StatefulSet>(),
            Watch::map::<Pod>(|view, pod| {
                keys_of_pod::<StatefulSet>(view, pod, |set| selector(&set.spec.selector))
            }),
            Watch::cache_only::<ControllerRevision>(),
            Watch::resource::<Metadata>(PersistentVolumeClaim::gvr(), |_, _, _| Vec::new()),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(set) = view.get::<StatefulSet>(key) else { return Plan::nothing() };
        let Some(labels) = selector(&set.object.spec.selector).filter(|s| !s.requirements.is_empty()) else {
            return Plan::nothing();
        };
        let claimant = Claimant {
            gvr: StatefulSet::gvr(),
            api_version: "apps/v1",
            kind: "StatefulSet",
            key,
            uid: &set.uid,
            deleting: set.deleting,
            selector: &labels,
        };
        let template = &set.object.spec.template;
        let old_status = set.object.status.clone().unwrap_or_default();
        let meta = template.metadata.as_ref();
        let history = History::of(
            view,
            &HistorySpec {
                claimant: &claimant,
                template,
                labels: meta.and_then(|meta| meta.labels.clone()).unwrap_or_default(),
                hash_label: HASH_LABEL,
                collisions: old_status.collision_count,
            },
        );
        let history = match history {
            Ok(history) => history,
            Err(first) => return first,
        };
        let member = |pod: &Cached<Pod>| identity::ordinal(&set.key.name, &pod.key.name).is_some();
        let claimed = claimant.claim(view, &Pod::gvr(), view.in_namespace::<Pod>(&key.namespace), member);
        if let Some(read) = claimed.need {
            return Plan::Need(vec![read]);
        }
        // The template that pods below the partition keep.
        let named = |name: &str| {
            let revision = view.get::<ControllerRevision>(&ObjectKey::new(&key.namespace, name))?;
            Some((name.to_owned(), template_of(&revision.object)?))
        };
        let current = old_status.current_revision.as_deref().and_then(named);
        let current = current.unwrap_or_else(|| (history.name.clone(), template.clone()));
        let step = step::Step {
            set: &set,
            claimant: &claimant,
            view,
            pods: identity::by_ordinal(&set, &claimed.owned),
            current,
            update: history.name.clone(),
            min_ready: set.object.spec.min_ready_seconds.unwrap_or(0),
            now,
        };
        let mut actions = claimed.actions;
        actions.extend(step.status(&history));
        if !set.deleting {
            actions.extend(history.actions.iter().cloned());
            actions.extend(step.actions());
            actions.extend(step.forget_old_revisions(&history));
        }
        Plan::Do { actions, requeue_after: next_available(&claimed.owned, step.min_ready, now) }
    }
}
