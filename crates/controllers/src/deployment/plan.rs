//! One step of a rollout.

use std::collections::BTreeMap;

use api::{ObjectKey, PatchType, RequestOptions};
use client::{Action, Cached, EventType, Kind, Plan, Read, View};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use super::revision::{
    DESIRED, HASH_LABEL, MAX, REVISION, Set, annotation, next_revision, number, revision, split,
    template_hash, wanted_annotations,
};
use super::scaling::{Bounds, Size, new_size, old_sizes, proportional};
use super::status::{Observed, Progress, available, pause_change, replicas};
use crate::pod::Pod;

/// Everything that a step is decided from.
pub(crate) struct Rollout<'a> {
    deployment: &'a Cached<Deployment>,
    spec: &'a DeploymentSpec,
    bounds: Bounds,
    new: Option<Set>,
    old: Vec<Set>,
    reference: OwnerReference,
    now: Timestamp,
    hash: String,
}

/// Actions of a step and what it means for the Progressing condition.
#[derive(Default)]
struct Step {
    actions: Vec<Action>,
    progress: Option<Progress>,
    /// Whether the new ReplicaSet is made.
    creates: bool,
}

impl<'a> Rollout<'a> {
    pub(crate) fn new(
        deployment: &'a Cached<Deployment>,
        spec: &'a DeploymentSpec,
        owned: &[Set],
        reference: OwnerReference,
        now: Timestamp,
    ) -> Self {
        let (new, old) = split(spec, owned);
        let collisions = deployment.object.status.as_ref().and_then(|status| status.collision_count);
        let hash = template_hash(&spec.template, collisions);
        Self { deployment, spec, bounds: Bounds::of(spec), new, old, reference, now, hash }
    }

    /// The whole plan; `claims` are performed before it.
    pub(crate) fn plan(&self, view: &View, claims: Vec<Action>) -> Plan {
        let name = self.new_name();
        let observed = Observed {
            deployment: self.deployment,
            bounds: self.bounds,
            new: self.new.as_ref(),
            new_name: &name,
            old: &self.old,
            now: self.now,
        };
        let counts = observed.counts();
        if self.deployment.deleting {
            return Plan::actions(observed.write(counts).into_iter().collect());
        }
        if let Some(plan) = self.resolve_collision(view, &observed, &counts) {
            return plan;
        }
        let paused = self.spec.paused.unwrap_or(false);
        let sizes_only = paused || self.was_resized();
        let step = if sizes_only { self.resize(&counts) } else { self.step(view) };
        let has_new = self.new.is_some() || step.creates;
        let refused = view.refused_creation();
        let progress = match refused {
            Some(status) => Some(Progress {
                status: "False",
                reason: "ReplicaSetCreateError",
                message: status.message.clone(),
            }),
            None => pause_change(self.deployment).or(step.progress),
        };
        let status = observed.with_progress(counts, progress, !sizes_only);
        let requeue_after = if paused { None } else { observed.check_after(&status) };
        let complete = observed.is_complete(&status);
        let write = observed.write(status);
        let mut actions = claims;
        if refused.is_some() {
            // What was refused will probably be refused again: the status must not wait behind it.
            actions.extend(write);
            actions.extend(step.actions);
        } else {
            actions.extend(step.actions);
            actions.extend(write);
        }
        if has_new {
            actions.extend(self.stamp_revision());
        }
        if complete || paused {
            actions.extend(self.forget_old_revisions());
        }
        Plan::Do { actions, requeue_after }
    }

    fn new_name(&self) -> String {
        match &self.new {
            Some(new) => new.key.name.clone(),
            None => format!("{}-{}", self.deployment.key.name, self.hash),
        }
    }

    /// Another object has the name that the new ReplicaSet needs: count it, which changes the hash.
    fn resolve_collision(
        &self,
        view: &View,
        observed: &Observed<'_>,
        counts: &DeploymentStatus,
    ) -> Option<Plan> {
        let status = view.refused_creation().filter(|status| status.is_already_exists())?;
        if self.new.is_some() || status.name != self.new_name() {
            return None;
        }
        let key = ObjectKey::new(&self.deployment.key.namespace, self.new_name());
        let read = Read::Get { gvr: ReplicaSet::gvr(), key };
        let Some(live) = view.read(&read) else { return Some(Plan::Need(vec![read])) };
        let Ok(live) = live else { return None };
        let owners = live["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ours = owners.iter().any(|owner| owner["uid"] == self.deployment.uid.as_str());
        let set: Option<ReplicaSet> = serde_json::from_value(live.clone()).ok();
        let template = set.and_then(|set| set.spec.template);
        if ours && template.is_some_and(|template| same_hash(&template, &self.hash)) {
            // Made by an earlier plan; the cache will show it.
            return Some(Plan::nothing());
        }
        let mut status = counts.clone();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        Some(Plan::actions(observed.write(status).into_iter().collect()))
    }

    fn sets(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    /// Whether the Deployment's size is not the one its sets were last sized for.
    fn was_resized(&self) -> bool {
        let mut active = self.sets().filter(|set| replicas(&set.object) > 0);
        active.any(|set| number(set, DESIRED).is_some_and(|desired| desired != self.bounds.replicas))
    }

    /// Paused or resized: no new ReplicaSet, only sizes.
    fn resize(&self, counts: &DeploymentStatus) -> Step {
        let mut step = Step::default();
        step.actions.extend(self.refresh_new_set(None));
        let active: Vec<&Set> = self.sets().filter(|set| replicas(&set.object) > 0).collect();
        let only = match active.as_slice() {
            [] => self.new.as_ref().or(self.old.last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(set) = only {
            step.actions.extend(self.size(set, self.bounds.replicas));
            return step;
        }
        if active.is_empty() {
            return step;
        }
        let saturated = self.new.as_ref().is_some_and(|new| {
            let wanted = self.bounds.replicas;
            replicas(&new.object) == wanted
                && number(new, DESIRED) == Some(wanted)
                && available(&new.object) == wanted
        });
        if saturated {
            step.actions.extend(self.old.iter().flat_map(|set| self.size(set, 0)));
        } else if self.bounds.rolling {
            let sizes: Vec<Size> = active.iter().map(|set| size_of(set)).collect();
            let status_replicas = counts.replicas.unwrap_or(0);
            for (set, size) in active.iter().zip(proportional(&self.bounds, &sizes, status_replicas)) {
                step.actions.extend(self.size(set, size));
            }
        }
        step
    }

    fn step(&self, view: &View) -> Step {
        if self.bounds.rolling { self.rolling_step() } else { self.recreate_step(view) }
    }

    fn rolling_step(&self) -> Step {
        let old: Vec<Size> = self.old.iter().map(size_of).collect();
        let Some(new) = &self.new else { return self.create(new_size(&self.bounds, 0, &old)) };
        let size = size_of(new);
        let wanted = new_size(&self.bounds, size.replicas, &old);
        let mut step = Step { progress: self.found_new_set(new), ..Step::default() };
        if wanted != size.replicas {
            step.actions.extend(self.refresh_new_set(Some(wanted)));
            return step;
        }
        step.actions.extend(self.refresh_new_set(None));
        for (set, wanted) in self.old.iter().zip(old_sizes(&self.bounds, &size, &old)) {
            if wanted != replicas(&set.object) {
                step.actions.extend(self.size(set, wanted));
            }
        }
        step
    }

    /// All old pods go before the first new one comes.
    fn recreate_step(&self, view: &View) -> Step {
        let down: Vec<Action> = self.old.iter().flat_map(|set| self.size_if_different(set, 0)).collect();
        if !down.is_empty() {
            return Step { actions: down, ..Step::default() };
        }
        let runs = |set: &Set| view.owned_by::<Pod>(&set.uid).iter().any(|pod| !pod.object.is_terminal());
        if self.old.iter().any(runs) {
            return Step::default();
        }
        match &self.new {
            None => self.create(self.bounds.replicas),
            Some(new) => Step {
                actions: self.refresh_new_set(Some(self.bounds.replicas)),
                progress: self.found_new_set(new),
                creates: false,
            },
        }
    }

    fn found_new_set(&self, new: &Set) -> Option<Progress> {
        let status = self.deployment.object.status.as_ref();
        let known = status.and_then(|s| super::status::condition(s, super::status::PROGRESSING)).is_some();
        (!known).then(|| Progress {
            status: "True",
            reason: "FoundNewReplicaSet",
            message: format!("Found new replica set {:?}", new.key.name),
        })
    }

    fn create(&self, size: i32) -> Step {
        let name = self.new_name();
        let mut annotations = wanted_annotations(self.deployment, None, next_revision(&self.old));
        annotations.extend(self.size_annotations());
        let mut template = json!(self.spec.template);
        template["metadata"]["labels"][HASH_LABEL] = self.hash.as_str().into();
        let mut selector = json!(self.spec.selector);
        selector["matchLabels"][HASH_LABEL] = self.hash.as_str().into();
        let mut spec = json!({"replicas": size, "selector": selector, "template": template});
        if let Some(seconds) = self.spec.min_ready_seconds {
            spec["minReadySeconds"] = seconds.into();
        }
        let namespace = self.deployment.key.namespace.clone();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": namespace, "annotations": annotations,
                "labels": template["metadata"]["labels"], "ownerReferences": [self.reference],
            },
            "spec": spec,
        });
        let mut actions = vec![Action::Create { gvr: ReplicaSet::gvr(), namespace, object }];
        if size > 0 {
            actions.push(self.scaled_event(&name, 0, size));
        }
        let message = format!("Created new replica set {name:?}");
        Step {
            actions,
            progress: Some(Progress { status: "True", reason: "NewReplicaSetCreated", message }),
            creates: true,
        }
    }

    fn size_annotations(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (DESIRED.to_owned(), self.bounds.replicas.to_string()),
            (MAX.to_owned(), self.bounds.max_total().to_string()),
        ])
    }

    /// Brings the new set's annotations, minReadySeconds and, if given, size up to date in one write.
    fn refresh_new_set(&self, size: Option<i32>) -> Vec<Action> {
        let Some(new) = &self.new else { return Vec::new() };
        let mut wanted = wanted_annotations(self.deployment, Some(new), next_revision(&self.old));
        let resized = size.filter(|size| *size != replicas(&new.object));
        if resized.is_some() || size.is_some() {
            wanted.extend(self.size_annotations());
        }
        wanted.retain(|name, value| annotation(new, name) != Some(value));
        let mut spec = json!({});
        if let Some(size) = resized {
            spec["replicas"] = size.into();
        }
        let min_ready = new.object.spec.min_ready_seconds.unwrap_or(0);
        if min_ready != self.spec.min_ready_seconds.unwrap_or(0) {
            spec["minReadySeconds"] = self.spec.min_ready_seconds.unwrap_or(0).into();
        }
        self.patch_set(new, &wanted, spec)
    }

    fn size_if_different(&self, set: &Set, size: i32) -> Vec<Action> {
        if replicas(&set.object) == size { Vec::new() } else { self.size(set, size) }
    }

    /// Sets a size, with the annotations that say what it was computed for.
    fn size(&self, set: &Set, size: i32) -> Vec<Action> {
        let mut annotations = self.size_annotations();
        annotations.retain(|name, value| annotation(set, name) != Some(value));
        let spec = if replicas(&set.object) == size { json!({}) } else { json!({"replicas": size}) };
        self.patch_set(set, &annotations, spec)
    }

    fn patch_set(&self, set: &Set, annotations: &BTreeMap<String, String>, spec: Value) -> Vec<Action> {
        if annotations.is_empty() && spec == json!({}) {
            return Vec::new();
        }
        let mut patch = json!({"metadata": {"uid": set.uid}});
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(annotations);
        }
        let size = spec["replicas"].as_i64().and_then(|size| i32::try_from(size).ok());
        if spec != json!({}) {
            patch["spec"] = spec;
        }
        let kind = PatchType::Merge;
        let mut actions = vec![Action::Patch {
            gvr: ReplicaSet::gvr(),
            key: set.key.clone(),
            subresource: None,
            kind,
            patch,
        }];
        actions.extend(size.map(|size| self.scaled_event(&set.key.name, replicas(&set.object), size)));
        actions
    }

    fn scaled_event(&self, set: &str, from: i32, to: i32) -> Action {
        let direction = if to > from { "up" } else { "down" };
        Action::Event {
            about: ObjectReference {
                api_version: Some("apps/v1".into()),
                kind: Some("Deployment".into()),
                namespace: Some(self.deployment.key.namespace.clone()),
                name: Some(self.deployment.key.name.clone()),
                uid: Some(self.deployment.uid.clone()),
                resource_version: Some(self.deployment.revision.to_string()),
                field_path: None,
            },
            event_type: EventType::Normal,
            reason: "ScalingReplicaSet".into(),
            message: format!("Scaled {direction} replica set {set} from {from} to {to}"),
        }
    }

    /// The Deployment carries the revision of its new set.
    fn stamp_revision(&self) -> Option<Action> {
        let wanted = self.new.as_ref().map_or(0, |new| revision(new)).max(next_revision(&self.old));
        let wanted = wanted.to_string();
        let annotations = self.deployment.object.metadata.annotations.as_ref();
        if annotations.and_then(|all| all.get(REVISION)) == Some(&wanted) {
            return None;
        }
        Some(Action::Patch {
            gvr: Deployment::gvr(),
            key: self.deployment.key.clone(),
            subresource: None,
            kind: PatchType::Merge,
            patch: json!({"metadata": {"uid": self.deployment.uid, "annotations": {REVISION: wanted}}}),
        })
    }

    /// Deletes empty old sets beyond `revisionHistoryLimit`, the oldest revisions first.
    fn forget_old_revisions(&self) -> Vec<Action> {
        let Some(limit) = self.spec.revision_history_limit.and_then(|limit| usize::try_from(limit).ok())
        else {
            return Vec::new();
        };
        let mut alive: Vec<&Set> = self.old.iter().filter(|set| !set.deleting).collect();
        let surplus = alive.len().saturating_sub(limit);
        alive.sort_by_key(|set| revision(set));
        let empty = |set: &&&Set| {
            let status = set.object.status.as_ref();
            replicas(&set.object) == 0
                && status.is_none_or(|status| status.replicas == 0)
                && set.object.metadata.generation <= status.and_then(|status| status.observed_generation)
        };
        let gone = alive.iter().take(surplus).filter(empty);
        gone.map(|set| Action::Delete {
            gvr: ReplicaSet::gvr(),
            key: set.key.clone(),
            options: RequestOptions { precondition_uid: Some(set.uid.clone()), ..RequestOptions::default() },
        })
        .collect()
    }
}

fn same_hash(template: &k8s_openapi::api::core::v1::PodTemplateSpec, hash: &str) -> bool {
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    labels.and_then(|labels| labels.get(HASH_LABEL)).is_some_and(|own| own == hash)
}

fn size_of(set: &Set) -> Size {
    Size {
        replicas: replicas(&set.object),
        available: available(&set.object),
        max_replicas: number(set, MAX),
    }
}
