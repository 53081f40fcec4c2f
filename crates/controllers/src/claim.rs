//! Who controls what: adoption and release by selector (controller references of Kubernetes' workload API).

use std::sync::Arc;

use api::selector::Requirement;
use api::{GroupVersionResource, LabelSelector, ObjectKey, PatchType, Status};
use client::{Action, Cached, Read, View};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as LabelSelectorField, OwnerReference};
use serde_json::{Value, json};

/// The object that claims others.
pub struct Claimant<'a> {
    pub gvr: GroupVersionResource,
    pub api_version: &'a str,
    pub kind: &'a str,
    pub key: &'a ObjectKey,
    pub uid: &'a str,
    pub deleting: bool,
    pub selector: &'a LabelSelector,
}

/// Objects that are controlled now, and what makes it so.
pub struct Claimed<T> {
    pub owned: Vec<Arc<Cached<T>>>,
    pub actions: Vec<Action>,
    /// A live read of the claimant without which no orphan is adopted.
    pub need: Option<Read>,
}

impl Claimant<'_> {
    /// The reference that a controlled object carries.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.into(),
            kind: self.kind.into(),
            name: self.key.name.clone(),
            uid: self.uid.into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Sorts candidates: controlled and matching are kept, controlled and not matching are released, orphans that
    /// match (and pass `adoptable`) are adopted.
    pub fn claim<T>(
        &self,
        view: &View,
        gvr: &GroupVersionResource,
        candidates: Vec<Arc<Cached<T>>>,
        adoptable: impl Fn(&Cached<T>) -> bool,
    ) -> Claimed<T> {
        let mut claimed = Claimed { owned: Vec::new(), actions: Vec::new(), need: None };
        let live = Read::Get { gvr: self.gvr.clone(), key: self.key.clone() };
        for object in candidates {
            let matches = self.selector.matches(&object.labels);
            match object.controller() {
                Some(owner) if owner.uid == self.uid && matches => claimed.owned.push(object),
                Some(owner) if owner.uid == self.uid => {
                    if !self.deleting {
                        claimed.actions.push(self.release(gvr, &object));
                    }
                }
                Some(_) => {}
                None if !matches || self.deleting || object.deleting || !adoptable(&object) => {}
                None => match view.read(&live) {
                    Some(result) if self.may_adopt(result) => {
                        claimed.actions.push(self.adopt(gvr, &object));
                        claimed.owned.push(object);
                    }
                    Some(_) => {}
                    None => claimed.need = Some(live.clone()),
                },
            }
        }
        claimed
    }

    fn may_adopt(&self, live: &Result<Value, Status>) -> bool {
        let Ok(object) = live else { return false };
        object["metadata"]["uid"] == self.uid && object["metadata"]["deletionTimestamp"].is_null()
    }

    fn adopt<T>(&self, gvr: &GroupVersionResource, object: &Cached<T>) -> Action {
        let mut owners = object.owners.clone();
        owners.push(self.reference());
        set_owners(gvr, object, &owners)
    }

    fn release<T>(&self, gvr: &GroupVersionResource, object: &Cached<T>) -> Action {
        let mut owners = object.owners.clone();
        owners.retain(|owner| owner.uid != self.uid);
        set_owners(gvr, object, &owners)
    }
}

/// Replaces the owner references, if the object is still as it was seen.
pub fn set_owners<T>(gvr: &GroupVersionResource, object: &Cached<T>, owners: &[OwnerReference]) -> Action {
    let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
    Action::Patch {
        gvr: gvr.clone(),
        key: object.key.clone(),
        subresource: None,
        kind: PatchType::Merge,
        patch: json!({"metadata": {
            "uid": object.uid, "resourceVersion": object.revision.to_string(), "ownerReferences": owners,
        }}),
    }
}

/// A selector field as something that matches; `None` when an operator is unknown.
pub fn selector(field: &LabelSelectorField) -> Option<LabelSelector> {
    let mut requirements: Vec<Requirement> = Vec::new();
    for (key, value) in field.match_labels.iter().flatten() {
        requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
    }
    for expression in field.match_expressions.iter().flatten() {
        let key = expression.key.clone();
        let values = expression.values.clone().unwrap_or_default();
        requirements.push(match expression.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            _ => return None,
        });
    }
    Some(LabelSelector { requirements })
}
