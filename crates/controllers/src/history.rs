//! The history of a workload's template, kept as ControllerRevisions: shared by DaemonSet and StatefulSet.
//!
//! A revision's data is a patch that restores the template. Equal data is one revision: going back to an old template
//! gives the old revision a new number instead of making another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{ObjectKey, PatchType};
use client::{Action, Cached, Kind, Plan, Read, View};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};

use crate::claim::Claimant;
use crate::workload::{delete, short_hash};

/// Label of pods that says which revision they are of.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

type Revision = Arc<Cached<ControllerRevision>>;

/// What identifies the revisions of one workload.
pub(crate) struct HistorySpec<'a> {
    pub(crate) claimant: &'a Claimant<'a>,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) labels: BTreeMap<String, String>,
    /// Label on the revision that holds its hash.
    pub(crate) hash_label: &'a str,
    pub(crate) collisions: Option<i32>,
}

/// The history as it is and what makes it right.
pub(crate) struct History {
    /// Name of the revision of today's template.
    pub(crate) name: String,
    /// Its hash.
    pub(crate) hash: String,
    /// All revisions but the template's, oldest first.
    pub(crate) old: Vec<Revision>,
    pub(crate) actions: Vec<Action>,
    /// Hashes of further revisions with the same data, which go.
    pub(crate) duplicates: Vec<String>,
    pub(crate) collisions: Option<i32>,
}

impl History {
    /// Reads the history; `Err` is a plan that must be made first.
    pub(crate) fn of(view: &View, spec: &HistorySpec<'_>) -> Result<History, Plan> {
        let claimant = spec.claimant;
        let candidates = view.in_namespace::<ControllerRevision>(&claimant.key.namespace);
        let claimed = claimant.claim(view, &ControllerRevision::gvr(), candidates, |_| true);
        if let Some(read) = claimed.need {
            return Err(Plan::Need(vec![read]));
        }
        let mut all = claimed.owned;
        all.sort_by_key(|revision| (number(revision), revision.key.clone()));
        let data = data_of(spec.template);
        let newest = all.last().map_or(0, number);
        let (mut equal, old): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|revision| revision.object.data.0 == data);
        let mut history = History {
            name: String::new(),
            hash: String::new(),
            old,
            actions: claimed.actions,
            duplicates: Vec::new(),
            collisions: spec.collisions,
        };
        match equal.pop() {
            Some(current) => history.use_existing(spec, &current, &equal, newest),
            None => history.add(view, spec, &data, newest + 1)?,
        }
        Ok(history)
    }

    fn use_existing(&mut self, spec: &HistorySpec<'_>, current: &Revision, equal: &[Revision], newest: i64) {
        self.name = current.key.name.clone();
        self.hash = hash_of(spec, current);
        if !spec.claimant.deleting {
            self.duplicates = equal.iter().map(|revision| hash_of(spec, revision)).collect();
            self.actions.extend(equal.iter().map(|revision| delete(ControllerRevision::gvr(), revision)));
        }
        if number(current) < newest && !spec.claimant.deleting {
            self.actions.push(Action::Patch {
                gvr: ControllerRevision::gvr(),
                key: current.key.clone(),
                subresource: None,
                kind: PatchType::Merge,
                patch: json!({"metadata": {"uid": current.uid}, "revision": newest + 1}),
            });
        }
    }

    /// A revision for a template never seen. Its name may be taken by another one with the same hash.
    fn add(&mut self, view: &View, spec: &HistorySpec<'_>, data: &Value, revision: i64) -> Result<(), Plan> {
        let bytes = serde_json::to_vec(data).expect("JSON can be encoded");
        let claimant = spec.claimant;
        let name = |hash: &str| format!("{}-{hash}", claimant.key.name);
        self.hash = short_hash(&bytes, self.collisions);
        self.name = name(&self.hash);
        let taken = view.refused_creation().filter(|status| status.is_already_exists());
        if taken.is_some_and(|status| status.name == self.name) {
            let key = ObjectKey::new(&claimant.key.namespace, &self.name);
            let read = Read::Get { gvr: ControllerRevision::gvr(), key };
            let Some(live) = view.read(&read) else { return Err(Plan::Need(vec![read])) };
            if live.as_ref().is_ok_and(|live| live["data"] == *data) {
                // Made by an earlier plan; the cache will show it.
                return Err(Plan::nothing());
            }
            self.collisions = Some(self.collisions.unwrap_or(0) + 1);
            self.hash = short_hash(&bytes, self.collisions);
            self.name = name(&self.hash);
        }
        if claimant.deleting {
            return Ok(());
        }
        let mut labels = spec.labels.clone();
        labels.insert(spec.hash_label.into(), self.hash.clone());
        self.actions.push(Action::Create {
            gvr: ControllerRevision::gvr(),
            namespace: claimant.key.namespace.clone(),
            object: json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {
                    "name": self.name, "namespace": claimant.key.namespace, "labels": labels,
                    "ownerReferences": [claimant.reference()],
                },
                "data": data, "revision": revision,
            }),
        });
        Ok(())
    }

    /// Removes the oldest revisions above a limit that nothing refers to any more.
    pub(crate) fn truncate(&self, limit: usize, in_use: impl Fn(&ControllerRevision) -> bool) -> Vec<Action> {
        let unused: Vec<&Revision> = self.old.iter().filter(|revision| !in_use(&revision.object)).collect();
        let surplus = unused.len().saturating_sub(limit);
        unused[..surplus].iter().map(|revision| delete(ControllerRevision::gvr(), revision)).collect()
    }
}

fn number(revision: &Revision) -> i64 {
    revision.object.revision.unwrap_or(0)
}

fn hash_of(spec: &HistorySpec<'_>, revision: &Revision) -> String {
    let suffix = || revision.key.name.rsplit_once('-').map(|(_, hash)| hash.to_owned());
    revision.labels.get(spec.hash_label).cloned().or_else(suffix).unwrap_or_default()
}

/// The patch that restores a template.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision restores.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.0.pointer("/spec/template")?.clone()).ok()
}
