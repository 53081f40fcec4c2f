//! Garbage collection along owner references (Kubernetes documentation, "Garbage Collection").
//!
//! ```text
//!   key = one object:  all owners gone ──▶ delete        some gone ──▶ drop those references
//!                      deleted in the foreground ──▶ finalizer goes once no blocking dependent is left (circles don't block)
//!                      deleted as orphan-maker   ──▶ dependents lose the reference, then the finalizer goes
//! ```
//!
//! A change concerns the object, its dependents and its owners. An owner that no cache shows counts as gone only after
//! a live read.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions};
use client::{Action, Cached, Controller, Metadata, Plan, Read, View, Watch};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::claim::set_owners;
use crate::discovery::ApiResource;
use crate::namespace::is_followed;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub struct GarbageCollector {
    pub resources: Arc<Vec<ApiResource>>,
}

type Object = Arc<Cached<Metadata>>;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn watches(&self) -> Vec<Watch> {
        let followed = self.resources.iter().filter(|resource| is_followed(resource));
        let watch = |resource: &ApiResource| {
            let resources = self.resources.clone();
            Watch::resource::<Metadata>(resource.gvr.clone(), move |view, gvr, object| {
                concerned(&resources, view, gvr, object)
            })
            .if_it_comes()
        };
        followed.map(watch).collect()
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let Some((gvr, key)) = decode_key(key) else { return Plan::nothing() };
        let Some(object) = view.get_in::<Metadata>(&gvr, &key) else { return Plan::nothing() };
        let has = |finalizer: &str| object.object.metadata.finalizers.iter().any(|f| f == finalizer);
        if object.deleting && has(ORPHAN) {
            return orphan_dependents(view, &gvr, &object);
        }
        if object.deleting && has(FOREGROUND) {
            return finish_foreground(view, &gvr, &object);
        }
        if object.deleting {
            return Plan::nothing();
        }
        self.judge_owners(view, &gvr, &object)
    }
}

/// What is known about the owners of one object.
#[derive(Default)]
struct Owners<'a> {
    solid: Vec<&'a OwnerReference>,
    gone: Vec<&'a OwnerReference>,
    /// Being deleted in the foreground, and waiting for this object to go.
    waiting: Vec<&'a OwnerReference>,
    need: Vec<Read>,
}

impl GarbageCollector {
    fn judge_owners(&self, view: &View, gvr: &GroupVersionResource, object: &Object) -> Plan {
        if object.owners.is_empty() {
            return Plan::nothing();
        }
        let owners = self.classify(view, object);
        if !owners.need.is_empty() {
            return Plan::Need(owners.need);
        }
        if owners.gone.is_empty() && owners.waiting.is_empty() {
            return Plan::nothing();
        }
        if !owners.solid.is_empty() {
            let kept: Vec<OwnerReference> = owners.solid.into_iter().cloned().collect();
            return Plan::actions(vec![set_owners(gvr, object, &kept)]);
        }
        let has_dependents = !dependents(view, &object.uid).is_empty();
        let finalizers = &object.object.metadata.finalizers;
        let policy =
            if !owners.waiting.is_empty() && has_dependents || finalizers.iter().any(|f| f == FOREGROUND) {
                "Foreground"
            } else if finalizers.iter().any(|f| f == ORPHAN) {
                "Orphan"
            } else {
                "Background"
            };
        let options = RequestOptions {
            propagation_policy: Some(policy.into()),
            precondition_uid: Some(object.uid.clone()),
            precondition_resource_version: Some(object.revision.to_string()),
            ..RequestOptions::default()
        };
        Plan::actions(vec![Action::Delete { gvr: gvr.clone(), key: object.key.clone(), options }])
    }

    fn classify<'a>(&self, view: &View, object: &'a Object) -> Owners<'a> {
        let mut owners = Owners::default();
        for owner in &object.owners {
            let Some(resource) = find(&self.resources, owner) else {
                // A kind that is not served now may be served again: never a reason to delete.
                owners.solid.push(owner);
                continue;
            };
            let namespace = if resource.namespaced { object.key.namespace.as_str() } else { "" };
            if resource.namespaced && namespace.is_empty() {
                // A cluster-scoped object cannot have a namespaced owner; nothing can be said about it.
                owners.solid.push(owner);
                continue;
            }
            let key = ObjectKey::new(namespace, &owner.name);
            match view.get_in::<Metadata>(&resource.gvr, &key).filter(|cached| cached.uid == owner.uid) {
                Some(cached) => {
                    let foreground = cached.object.metadata.finalizers.iter().any(|f| f == FOREGROUND);
                    if cached.deleting && foreground {
                        owners.waiting.push(owner)
                    } else {
                        owners.solid.push(owner)
                    }
                }
                None => owners.ask(view, owner, Read::Get { gvr: resource.gvr.clone(), key }),
            }
        }
        owners
    }
}

impl<'a> Owners<'a> {
    /// Asks the API about an owner that the caches do not show.
    fn ask(&mut self, view: &View, owner: &'a OwnerReference, read: Read) {
        match view.read(&read) {
            None => self.need.push(read),
            Some(Ok(live)) if live["metadata"]["uid"] == owner.uid.as_str() => self.solid.push(owner),
            Some(Ok(_)) => self.gone.push(owner),
            Some(Err(status)) if status.is_not_found() => self.gone.push(owner),
            Some(Err(_)) => self.solid.push(owner),
        }
    }
}

fn orphan_dependents(view: &View, gvr: &GroupVersionResource, object: &Object) -> Plan {
    let mut actions: Vec<Action> = Vec::new();
    for (dependent_gvr, dependent) in dependents(view, &object.uid) {
        let kept: Vec<OwnerReference> =
            dependent.owners.iter().filter(|o| o.uid != object.uid).cloned().collect();
        actions.push(set_owners(&dependent_gvr, &dependent, &kept));
    }
    actions.push(drop_finalizer(gvr, object, ORPHAN));
    Plan::actions(actions)
}

fn finish_foreground(view: &View, gvr: &GroupVersionResource, object: &Object) -> Plan {
    let waits = |dependent: &Object| !waits_for(view, dependent, &object.uid, &mut BTreeSet::new());
    if blocking(view, &object.uid).iter().any(waits) {
        return Plan::nothing();
    }
    Plan::actions(vec![drop_finalizer(gvr, object, FOREGROUND)])
}

/// The dependents that an object's foreground deletion waits for.
fn blocking(view: &View, uid: &str) -> Vec<Object> {
    let blocks = |dependent: &Object| {
        let mut owners = dependent.owners.iter();
        owners.any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
    };
    dependents(view, uid).into_iter().map(|(_, dependent)| dependent).filter(blocks).collect()
}

/// Whether an object's own foreground deletion waits for another object, directly or not: waiting for it in turn would be a
/// circle that never ends.
fn waits_for(view: &View, object: &Object, uid: &str, seen: &mut BTreeSet<String>) -> bool {
    let foreground = object.object.metadata.finalizers.iter().any(|f| f == FOREGROUND);
    object.deleting
        && foreground
        && seen.insert(object.uid.clone())
        && blocking(view, &object.uid).iter().any(|next| next.uid == uid || waits_for(view, next, uid, seen))
}

fn drop_finalizer(gvr: &GroupVersionResource, object: &Object, finalizer: &str) -> Action {
    let kept: Vec<&String> = object.object.metadata.finalizers.iter().filter(|f| *f != finalizer).collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    Action::Patch {
        gvr: gvr.clone(),
        key: object.key.clone(),
        subresource: None,
        kind: PatchType::Merge,
        patch: json!({"metadata": {
            "uid": object.uid, "resourceVersion": object.revision.to_string(), "finalizers": kept,
        }}),
    }
}

fn dependents(view: &View, uid: &str) -> Vec<(GroupVersionResource, Object)> {
    let mut found = Vec::new();
    for gvr in view.resources::<Metadata>() {
        found.extend(view.owned_in::<Metadata>(&gvr, uid).into_iter().map(|object| (gvr.clone(), object)));
    }
    found
}

fn find<'a>(resources: &'a [ApiResource], owner: &OwnerReference) -> Option<&'a ApiResource> {
    resources.iter().find(|resource| resource.is(&owner.api_version, &owner.kind))
}

fn concerned(
    resources: &[ApiResource],
    view: &View,
    gvr: &GroupVersionResource,
    object: &Cached<Metadata>,
) -> Vec<ObjectKey> {
    let mut keys = vec![encode_key(gvr, &object.key)];
    keys.extend(dependents(view, &object.uid).iter().map(|(gvr, dependent)| encode_key(gvr, &dependent.key)));
    for owner in &object.owners {
        if let Some(resource) = find(resources, owner) {
            let namespace = if resource.namespaced { object.key.namespace.as_str() } else { "" };
            keys.push(encode_key(&resource.gvr, &ObjectKey::new(namespace, &owner.name)));
        }
    }
    keys
}

/// The collector's keys name the resource too.
fn encode_key(gvr: &GroupVersionResource, key: &ObjectKey) -> ObjectKey {
    ObjectKey::new(&key.namespace, format!("{}/{}/{}/{}", gvr.group, gvr.version, gvr.resource, key.name))
}

fn decode_key(key: &ObjectKey) -> Option<(GroupVersionResource, ObjectKey)> {
    let mut parts = key.name.splitn(4, '/');
    let (group, version, resource, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((GroupVersionResource::new(group, version, resource), ObjectKey::new(&key.namespace, name)))
}

#[cfg(test)]
pub(crate) fn key_of(gvr: &GroupVersionResource, key: &ObjectKey) -> ObjectKey {
    encode_key(gvr, key)
}
