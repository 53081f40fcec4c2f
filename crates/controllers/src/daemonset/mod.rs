//! DaemonSet: one pod on every node that fits.
//!
//! ```text
//!   nodes ──fits?──▶ per node: none: create    failed: replace    unfitting, surplus: delete
//!   template ──▶ ControllerRevision ──▶ RollingUpdate: replace old pods within bounds │ OnDelete: wait
//!   all of it ──▶ status
//! ```

mod place;
mod status;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, PatchType};
use client::{Action, Cached, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use serde_json::{Value, json};

use crate::claim::{Claimant, selector};
use crate::history::{History, HistorySpec, REVISION_LABEL};
use crate::node::Node;
use crate::pod::Pod;
use crate::workload::{delete_pod, event, keys_of_pod, next_available, pod_of_template, suffixed_name};

type PodRef = Arc<Cached<Pod>>;

/// A failed pod is replaced no sooner than this after its creation, so that a pod that cannot run is not made anew
/// without pause.
const RETRY_FAILED: Duration = Duration::from_secs(5);

pub struct DaemonSetController;

impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::own::<DaemonSet>(),
            Watch::map::<Pod>(|view, pod| {
                keys_of_pod::<DaemonSet>(view, pod, |set| selector(&set.spec.selector))
            }),
            Watch::map::<Node>(|view, _| {
                view.list::<DaemonSet>().iter().map(|set| set.key.clone()).collect()
            }),
            Watch::cache_only::<ControllerRevision>(),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(set) = view.get::<DaemonSet>(key) else { return Plan::nothing() };
        let Some(labels) = selector(&set.object.spec.selector).filter(|s| !s.requirements.is_empty()) else {
            return Plan::nothing();
        };
        let claimant = Claimant {
            gvr: DaemonSet::gvr(),
            api_version: "apps/v1",
            kind: "DaemonSet",
            key,
            uid: &set.uid,
            deleting: set.deleting,
            selector: &labels,
        };
        let template = &set.object.spec.template;
        let meta = template.metadata.as_ref();
        let history = History::of(
            view,
            &HistorySpec {
                claimant: &claimant,
                template,
                labels: meta.and_then(|meta| meta.labels.clone()).unwrap_or_default(),
                hash_label: REVISION_LABEL,
                collisions: set.object.status.as_ref().and_then(|status| status.collision_count),
            },
        );
        let history = match history {
            Ok(history) => history,
            Err(first) => return first,
        };
        let claimed = claimant.claim(view, &Pod::gvr(), view.in_namespace::<Pod>(&key.namespace), |_| true);
        if let Some(read) = claimed.need {
            return Plan::Need(vec![read]);
        }
        let daemons = Daemons::new(&set, &claimant, view, &claimed.owned, &history, now);
        daemons.plan(claimed.actions)
    }
}

/// Pods of one node and whether there should be one.
pub(crate) struct Place {
    node: String,
    should_run: bool,
    may_stay: bool,
    /// Oldest first.
    pods: Vec<PodRef>,
}

/// Everything a plan is made from.
pub(crate) struct Daemons<'a> {
    set: &'a Cached<DaemonSet>,
    claimant: &'a Claimant<'a>,
    history: &'a History,
    places: Vec<Place>,
    /// Pods that wait for a node that is gone.
    stranded: Vec<PodRef>,
    owned: &'a [PodRef],
    min_ready: i32,
    now: Timestamp,
}

impl<'a> Daemons<'a> {
    fn new(
        set: &'a Cached<DaemonSet>,
        claimant: &'a Claimant<'a>,
        view: &View,
        owned: &'a [PodRef],
        history: &'a History,
        now: Timestamp,
    ) -> Self {
        let mut by_node: BTreeMap<String, Vec<PodRef>> = BTreeMap::new();
        for pod in owned {
            by_node.entry(place::target_node(&pod.object).unwrap_or_default()).or_default().push(pod.clone());
        }
        let template = place::template(set);
        let mut places = Vec::new();
        for node in view.list::<Node>() {
            let (should_run, may_stay) = place::fits(&template, &node);
            let mut pods = by_node.remove(&node.key.name).unwrap_or_default();
            pods.sort_by_key(|pod| (pod.object.metadata.creation_timestamp, pod.key.clone()));
            places.push(Place { node: node.key.name.clone(), should_run, may_stay, pods });
        }
        let stranded =
            by_node.into_values().flatten().filter(|pod| pod.object.spec.node_name.is_empty()).collect();
        let min_ready = set.object.spec.min_ready_seconds.unwrap_or(0);
        Self { set, claimant, history, places, stranded, owned, min_ready, now }
    }

    fn is_new(&self, pod: &Cached<Pod>) -> bool {
        pod.labels.get(REVISION_LABEL).is_some_and(|hash| *hash == self.history.hash)
    }

    fn is_available(&self, pod: &Cached<Pod>) -> bool {
        pod.object.available_in(self.min_ready, self.now).is_some_and(|wait| wait.is_zero())
    }

    fn plan(&self, claims: Vec<Action>) -> Plan {
        let mut actions = claims;
        actions.extend(self.status());
        if self.set.deleting {
            return Plan::actions(actions);
        }
        actions.extend(self.history.actions.iter().cloned());
        actions.extend(self.relabel());
        let mut retry = None;
        let mut creations: Vec<&str> = Vec::new();
        let mut deletions: Vec<PodRef> = self.stranded.iter().filter(|pod| !pod.deleting).cloned().collect();
        let mut events = Vec::new();
        for place in &self.places {
            self.tend(place, &mut creations, &mut deletions, &mut events, &mut retry);
        }
        let (replaced, surged) = self.roll(&deletions);
        deletions.extend(replaced);
        creations.extend(surged);
        let create = |(index, node): (usize, &&str)| self.create(index, node);
        let created: Vec<(String, Action)> = creations.iter().enumerate().map(create).collect();
        for (name, _) in &created {
            events.push(event(
                self.set,
                EventType::Normal,
                "SuccessfulCreate",
                format!("Created pod: {name}"),
            ));
        }
        for pod in &deletions {
            let text = format!("Deleted pod: {}", pod.key.name);
            events.push(event(self.set, EventType::Normal, "SuccessfulDelete", text));
        }
        actions.extend(deletions.iter().map(|pod| delete_pod(pod)));
        actions.extend(created.into_iter().map(|(_, action)| action));
        actions.extend(events);
        actions.extend(self.forget_old_revisions());
        let available = next_available(self.owned, self.min_ready, self.now);
        Plan::Do { actions, requeue_after: available.into_iter().chain(retry).min() }
    }

    /// Pods of duplicate revisions get the label of the one that stays.
    fn relabel(&self) -> Vec<Action> {
        let of_duplicate = |pod: &&PodRef| {
            pod.labels.get(REVISION_LABEL).is_some_and(|hash| self.history.duplicates.contains(hash))
                && !self.is_new(pod)
        };
        let patch = |pod: &PodRef| Action::Patch {
            gvr: Pod::gvr(),
            key: pod.key.clone(),
            subresource: None,
            kind: PatchType::Merge,
            patch: json!({"metadata": {"uid": pod.uid, "labels": {REVISION_LABEL: self.history.hash}}}),
        };
        self.owned.iter().filter(of_duplicate).map(patch).collect()
    }

    /// Brings one node in order, apart from updates.
    fn tend<'p>(
        &self,
        place: &'p Place,
        creations: &mut Vec<&'p str>,
        deletions: &mut Vec<PodRef>,
        events: &mut Vec<Action>,
        retry: &mut Option<Duration>,
    ) {
        if place.should_run && place.pods.is_empty() {
            creations.push(&place.node);
        }
        if !place.may_stay {
            deletions.extend(place.pods.iter().filter(|pod| !pod.deleting).cloned());
            return;
        }
        let mut running = Vec::new();
        for pod in place.pods.iter().filter(|pod| !pod.deleting) {
            if !pod.object.is_terminal() {
                running.push(pod);
                continue;
            }
            let created = pod.object.metadata.creation_timestamp.unwrap_or(Timestamp::UNIX_EPOCH);
            let age = u64::try_from(self.now.as_second() - created.as_second()).unwrap_or(0);
            let wait = RETRY_FAILED.saturating_sub(Duration::from_secs(age));
            if !wait.is_zero() {
                *retry = Some(retry.map_or(wait, |other| other.min(wait)));
                continue;
            }
            let phase = &pod.object.status.phase;
            let text = format!(
                "Found {} daemon pod {} on node {}, will try to kill it",
                phase.to_lowercase(),
                pod.key,
                place.node
            );
            events.push(event(self.set, EventType::Warning, &format!("{phase}DaemonPod"), text));
            deletions.push(pod.clone());
        }
        if self.max_surge() == 0 {
            deletions.extend(running.into_iter().skip(1).cloned());
            return;
        }
        // While surging, one pod of each template may run.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| self.is_new(pod));
        deletions.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)).cloned());
    }

    fn create(&self, index: usize, node: &str) -> (String, Action) {
        let name = suffixed_name(&self.set.key.name, &self.set.uid, self.now, index);
        let mut pod =
            pod_of_template(&place::template(self.set), &self.set.key.namespace, &self.claimant.reference());
        pod["metadata"]["name"] = name.as_str().into();
        pod["metadata"]["generateName"] = format!("{}-", self.set.key.name).into();
        pod["metadata"]["labels"][REVISION_LABEL] = self.history.hash.as_str().into();
        let generation = self.set.object.metadata.generation.unwrap_or(0);
        pod["metadata"]["labels"]["pod-template-generation"] = generation.to_string().into();
        place::bind_to(&mut pod, node);
        let create = Action::Create {
            gvr: Pod::gvr(),
            namespace: self.set.key.namespace.clone(),
            object: Value::clone(&pod),
        };
        (name, create)
    }

    fn forget_old_revisions(&self) -> Vec<Action> {
        let limit = usize::try_from(self.set.object.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        self.history.truncate(limit, |revision| {
            let label = revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
            self.owned.iter().any(|pod| pod.labels.get(REVISION_LABEL) == label)
        })
    }
}
