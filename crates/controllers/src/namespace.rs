//! Emptying namespaces that are being deleted.
//!
//! Pods go first and everything else once they are gone (KEP-5080, ordered namespace deletion), then the `kubernetes`
//! finalizer. What must be empty is what discovery lists, read live: a cache might hide the last object.

use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, RequestOptions, Status, Verb};
use client::{Action, Cached, Controller, Kind, Metadata, Plan, Read, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::discovery::ApiResource;

const FINALIZER: &str = "kubernetes";
/// Unwatched contents (Events) vanish without notice: look again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub struct NamespaceController {
    pub resources: Arc<Vec<ApiResource>>,
    /// Groups that may have contents too, but nobody says (see [`crate::discovery::Discovered`]).
    pub unknown: Vec<String>,
}

impl NamespaceController {
    fn contents(&self) -> impl Iterator<Item = &ApiResource> {
        self.resources.iter().filter(|r| r.namespaced && r.can("list") && r.can("delete"))
    }
}

/// Whether changes of a resource are followed by the controllers that range over all kinds. Events have no owners,
/// are many, and nothing waits for them.
pub(crate) fn is_followed(resource: &ApiResource) -> bool {
    let events =
        resource.gvr.resource == "events" && matches!(resource.gvr.group.as_str(), "" | "events.k8s.io");
    !events && ["list", "watch", "delete"].iter().all(|verb| resource.can(verb))
}

impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn watches(&self) -> Vec<Watch> {
        let followed = self.contents().filter(|resource| is_followed(resource));
        let contents = followed.map(|resource| {
            Watch::resource::<Metadata>(resource.gvr.clone(), terminating_namespace).if_it_comes()
        });
        std::iter::once(Watch::own::<Namespace>()).chain(contents).collect()
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(namespace) = view.get::<Namespace>(key).filter(|namespace| namespace.deleting) else {
            return Plan::nothing();
        };
        let finalizers =
            namespace.object.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Plan::nothing();
        }
        let reads: Vec<Read> = self.contents().map(|resource| list_of(resource, &key.name)).collect();
        let missing: Vec<Read> = reads.iter().filter(|read| view.read(read).is_none()).cloned().collect();
        if !missing.is_empty() {
            return Plan::Need(missing);
        }
        let found =
            self.contents().zip(&reads).filter_map(|(r, read)| Some((r, Contents::of(view.read(read)?))));
        let contents: Vec<(&ApiResource, Contents)> =
            found.filter(|(_, contents)| !contents.is_empty()).collect();
        if contents.is_empty() && self.unknown.is_empty() {
            return Plan::actions(vec![finalize(key, &namespace)]);
        }
        empty(key, &namespace, &contents, &self.unknown, now)
    }
}

fn terminating_namespace(
    view: &View,
    _gvr: &GroupVersionResource,
    object: &Cached<Metadata>,
) -> Vec<ObjectKey> {
    let key = ObjectKey::new("", &object.key.namespace);
    let terminating = view.get::<Namespace>(&key).is_some_and(|namespace| namespace.deleting);
    if terminating { vec![key] } else { Vec::new() }
}

fn list_of(resource: &ApiResource, namespace: &str) -> Read {
    let options = RequestOptions::default();
    Read::List { gvr: resource.gvr.clone(), namespace: Some(namespace.to_owned()), options }
}

/// What a live list showed.
struct Contents {
    count: usize,
    /// Not yet being deleted.
    untouched: usize,
    finalizers: Vec<String>,
    error: Option<Status>,
}

impl Contents {
    fn of(read: &Result<Value, Status>) -> Self {
        let list = match read {
            Ok(list) => list,
            Err(status) => {
                // A kind that cannot be listed any more has no objects to wait for.
                let error = Some(status.clone()).filter(|status| !status.is_not_found());
                return Self { count: 0, untouched: 0, finalizers: Vec::new(), error };
            }
        };
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let metadata = || items.iter().map(|item| &item["metadata"]);
        let names = metadata().flat_map(|m| m["finalizers"].as_array().into_iter().flatten());
        Self {
            count: items.len(),
            untouched: metadata().filter(|m| m["deletionTimestamp"].is_null()).count(),
            finalizers: names.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            error: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.error.is_none()
    }
}

fn empty(
    key: &ObjectKey,
    namespace: &Cached<Namespace>,
    contents: &[(&ApiResource, Contents)],
    unknown: &[String],
    now: Timestamp,
) -> Plan {
    let mut actions: Vec<Action> =
        update_conditions(key, namespace, contents, unknown, now).into_iter().collect();
    let is_pods = |resource: &ApiResource| resource.gvr.group.is_empty() && resource.gvr.resource == "pods";
    let pods_left = contents.iter().any(|(resource, c)| is_pods(resource) && c.count > 0);
    for (resource, found) in contents {
        if found.untouched == 0 || (pods_left && !is_pods(resource)) {
            continue;
        }
        actions.push(Action::DeleteCollection {
            gvr: resource.gvr.clone(),
            namespace: key.name.clone(),
            options: RequestOptions {
                propagation_policy: Some("Background".into()),
                ..RequestOptions::default()
            },
        });
    }
    let deletes = actions.iter().any(|action| matches!(action, Action::DeleteCollection { .. }));
    let failed = contents.iter().any(|(_, found)| found.error.is_some());
    Plan::Do { actions, requeue_after: (deletes || failed).then_some(LOOK_AGAIN) }
}

fn finalize(key: &ObjectKey, namespace: &Cached<Namespace>) -> Action {
    let mut body = whole(namespace);
    if let Some(finalizers) = body["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    Action::Call {
        verb: Verb::Update,
        gvr: Namespace::gvr(),
        key: key.clone(),
        subresource: "finalize".into(),
        body,
    }
}

fn whole(namespace: &Cached<Namespace>) -> Value {
    let mut body = json!(namespace.object);
    body["apiVersion"] = "v1".into();
    body["kind"] = "Namespace".into();
    body
}

/// Conditions that say why the namespace is still there.
fn update_conditions(
    key: &ObjectKey,
    namespace: &Cached<Namespace>,
    contents: &[(&ApiResource, Contents)],
    unknown: &[String],
    now: Timestamp,
) -> Option<Action> {
    let failures: Vec<String> =
        contents.iter().filter_map(|(_, c)| Some(c.error.as_ref()?.message.clone())).collect();
    let left = contents.iter().filter(|(_, c)| c.count > 0);
    let left: Vec<String> =
        left.map(|(r, c)| format!("{} has {} resource instances", r.gvr.group_resource(), c.count)).collect();
    let mut finalizers: Vec<String> = contents.iter().flat_map(|(_, c)| c.finalizers.clone()).collect();
    finalizers.sort();
    finalizers.dedup();
    let conditions = [
        if unknown.is_empty() {
            condition(
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered",
            )
        } else {
            let (count, list) = (unknown.len(), unknown.join(", "));
            let text = format!(
                "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {list}"
            );
            condition("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", &text)
        },
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        if failures.is_empty() {
            condition(
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            )
        } else {
            condition("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", &failures.join("; "))
        },
        if left.is_empty() {
            condition(
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed",
            )
        } else {
            let text = format!("Some resources are remaining: {}", left.join(", "));
            condition("NamespaceContentRemaining", true, "SomeResourcesRemain", &text)
        },
        if finalizers.is_empty() {
            condition(
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            )
        } else {
            let text =
                format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", "));
            condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", &text)
        },
    ];
    let mut object = whole(namespace);
    let mut list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = list.clone();
    for condition in conditions {
        set_condition(&mut list, condition, now);
    }
    if list == before {
        return None;
    }
    object["status"]["conditions"] = list.into();
    Some(Action::UpdateStatus { gvr: Namespace::gvr(), key: key.clone(), object })
}

fn condition(type_: &str, status: bool, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": if status { "True" } else { "False" }, "reason": reason, "message": message})
}

fn set_condition(list: &mut Vec<Value>, mut condition: Value, now: Timestamp) {
    let old = list.iter_mut().find(|old| old["type"] == condition["type"]);
    let same_status = old.as_ref().is_some_and(|old| old["status"] == condition["status"]);
    condition["lastTransitionTime"] = match &old {
        Some(old) if same_status => old["lastTransitionTime"].clone(),
        _ => now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
    };
    match old {
        Some(old) => *old = condition,
        None => list.push(condition),
    }
}
