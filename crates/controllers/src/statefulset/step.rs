//! One step of a StatefulSet towards its members.

use std::collections::BTreeMap;

use api::ObjectKey;
use client::{Action, Cached, EventType, Kind, Metadata, View};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodTemplateSpec};

use super::{PodRef, identity};
use crate::claim::Claimant;
use crate::history::{History, REVISION_LABEL};
use crate::pod::Pod;
use crate::workload::{delete_pod, event, scaled};

/// Everything a step is decided from.
pub(super) struct Step<'a> {
    pub(super) set: &'a Cached<StatefulSet>,
    pub(super) claimant: &'a Claimant<'a>,
    pub(super) view: &'a View,
    pub(super) pods: BTreeMap<i32, PodRef>,
    /// Name and template of the revision that pods below the partition keep.
    pub(super) current: (String, PodTemplateSpec),
    /// Name of the revision of today's template.
    pub(super) update: String,
    pub(super) min_ready: i32,
    pub(super) now: Timestamp,
}

impl Step<'_> {
    pub(super) fn replicas(&self) -> i32 {
        self.set.object.spec.replicas.unwrap_or(1).max(0)
    }

    fn start(&self) -> i32 {
        self.set.object.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
    }

    fn ordinals(&self) -> std::ops::Range<i32> {
        self.start()..self.start() + self.replicas()
    }

    fn is_parallel(&self) -> bool {
        self.set.object.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    pub(super) fn on_delete(&self) -> bool {
        let strategy = self.set.object.spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
    }

    fn rolling(&self) -> Option<&k8s_openapi::api::apps::v1::RollingUpdateStatefulSetStrategy> {
        self.set.object.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    /// First ordinal that is updated.
    fn first_updated(&self) -> i32 {
        self.start() + self.rolling().and_then(|rolling| rolling.partition).unwrap_or(0)
    }

    pub(super) fn is_available(&self, pod: &Cached<Pod>) -> bool {
        pod.object.status.phase == "Running"
            && pod.object.available_in(self.min_ready, self.now).is_some_and(|wait| wait.is_zero())
    }

    fn is_healthy(&self, pod: &Cached<Pod>) -> bool {
        !pod.deleting && self.is_available(pod)
    }

    pub(super) fn is_updated(&self, pod: &Cached<Pod>) -> bool {
        pod.labels.get(REVISION_LABEL).is_some_and(|name| *name == self.update)
    }

    pub(super) fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        // Parallel sets go on with whatever else can be done; ordered ones stop where they must wait.
        if self.fill(&mut actions) && self.shrink(&mut actions) && !self.on_delete() {
            self.roll(&mut actions);
        }
        actions
    }

    /// Makes missing members; `false` when the next phase must wait.
    fn fill(&self, actions: &mut Vec<Action>) -> bool {
        let ordered = !self.is_parallel();
        let mut complete = true;
        let (mut claims, mut creations, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for ordinal in self.ordinals() {
            let Some(pod) = self.pods.get(&ordinal) else {
                claims.extend(self.missing_claims(ordinal));
                creations.push(self.create(ordinal));
                let name = identity::pod_name(self.set, ordinal);
                let text = format!("create Pod {name} in StatefulSet {} successful", self.set.key.name);
                events.push(event(self.set, EventType::Normal, "SuccessfulCreate", text));
                complete = false;
                if ordered {
                    break;
                }
                continue;
            };
            if pod.object.is_terminal() {
                if !pod.deleting {
                    let text = format!(
                        "StatefulSet {} is recreating {} Pod {}",
                        self.set.key,
                        pod.object.status.phase.to_lowercase(),
                        pod.key.name
                    );
                    events.push(event(self.set, EventType::Warning, "RecreatingTerminatedPod", text));
                    actions.push(delete_pod(pod));
                }
                complete = false;
                if ordered {
                    break;
                }
            } else if ordered && !self.is_healthy(pod) {
                complete = false;
                break;
            }
        }
        actions.extend(claims);
        actions.extend(creations);
        actions.extend(events);
        complete || !ordered
    }

    fn missing_claims(&self, ordinal: i32) -> Vec<Action> {
        let gvr = PersistentVolumeClaim::gvr();
        let namespace = &self.set.key.namespace;
        let missing = |claim: &serde_json::Value| {
            let key = ObjectKey::new(namespace, claim["metadata"]["name"].as_str().unwrap_or_default());
            self.view.get_in::<Metadata>(&gvr, &key).is_none()
        };
        let claims = identity::claims(self.set, self.claimant, ordinal).into_iter().filter(missing);
        let create = |object| Action::Create { gvr: gvr.clone(), namespace: namespace.clone(), object };
        claims.map(create).collect()
    }

    fn create(&self, ordinal: i32) -> Action {
        let strategy_keeps_old = !self.on_delete() && ordinal < self.first_updated();
        let (revision, template) = if strategy_keeps_old {
            (&self.current.0, &self.current.1)
        } else {
            (&self.update, &self.set.object.spec.template)
        };
        Action::Create {
            gvr: Pod::gvr(),
            namespace: self.set.key.namespace.clone(),
            object: identity::pod(self.set, self.claimant, ordinal, revision, template),
        }
    }

    /// Deletes members beyond the wanted number, the highest first; `false` when the next phase must wait.
    fn shrink(&self, actions: &mut Vec<Action>) -> bool {
        let wanted = self.ordinals();
        let surplus: Vec<_> =
            self.pods.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)).collect();
        let first_unhealthy = self.pods.values().find(|pod| !self.is_healthy(pod));
        for (_, pod) in surplus {
            if pod.deleting {
                if self.is_parallel() {
                    continue;
                }
                return false;
            }
            let blocked =
                !self.is_available(pod) && first_unhealthy.is_some_and(|first| first.uid != pod.uid);
            if !self.is_parallel() && blocked {
                return false;
            }
            self.remove(pod, actions);
            if !self.is_parallel() {
                return false;
            }
        }
        true
    }

    fn remove(&self, pod: &PodRef, actions: &mut Vec<Action>) {
        let text = format!("delete Pod {} in StatefulSet {} successful", pod.key.name, self.set.key.name);
        actions.push(delete_pod(pod));
        actions.push(event(self.set, EventType::Normal, "SuccessfulDelete", text));
    }

    /// Deletes members of old templates, the highest first, within `maxUnavailable` (1 unless said otherwise).
    fn roll(&self, actions: &mut Vec<Action>) {
        let limit = self.rolling().and_then(|rolling| rolling.max_unavailable.as_ref());
        let limit = limit.map_or(1, |limit| scaled(limit, self.replicas(), false)).max(1);
        let mut unavailable = 0;
        for ordinal in self.ordinals().rev() {
            if ordinal < self.first_updated() || unavailable >= limit {
                return;
            }
            let Some(pod) = self.pods.get(&ordinal) else {
                unavailable += 1;
                continue;
            };
            if !self.is_updated(pod) && !pod.deleting {
                self.remove(pod, actions);
                unavailable += 1;
            } else if !self.is_healthy(pod) {
                unavailable += 1;
            }
        }
    }

    pub(super) fn forget_old_revisions(&self, history: &History) -> Vec<Action> {
        let limit = usize::try_from(self.set.object.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let current = self.set.object.status.as_ref().and_then(|status| status.current_revision.clone());
        history.truncate(limit, |revision| {
            let name = revision.metadata.name.as_ref();
            current.as_ref() == name || self.pods.values().any(|pod| pod.labels.get(REVISION_LABEL) == name)
        })
    }
}
