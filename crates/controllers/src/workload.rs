//! What the controllers of workloads share: pods from templates, names, events, statuses, keys of pods.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, LabelSelector, ObjectKey, RequestOptions};
use client::{Action, Cached, EventType, Kind, View};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use crate::pod::Pod;

/// Letters and digits that spell no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name made of a base and five characters that depend on the owner, the time and an index.
pub(crate) fn suffixed_name(base: &str, uid: &str, now: Timestamp, index: usize) -> String {
    /// A pod's name is its host name, of 63 characters at most.
    const LONGEST_BASE: usize = 57;
    let base: String = base.chars().take(LONGEST_BASE).collect();
    let mut hasher = std::hash::DefaultHasher::new();
    (uid, now.as_nanosecond(), index).hash(&mut hasher);
    let mut rest = hasher.finish();
    let mut suffix = String::new();
    for _ in 0..5 {
        let (quotient, digit) = (rest / ALPHABET.len() as u64, rest % ALPHABET.len() as u64);
        suffix.push(char::from(ALPHABET[usize::try_from(digit).unwrap_or(0)]));
        rest = quotient;
    }
    format!("{base}-{suffix}")
}

/// Short stable hash of bytes in an alphabet that spells no words.
pub(crate) fn short_hash(bytes: &[u8], collisions: Option<i32>) -> String {
    let salt = collisions.map(i32::to_le_bytes);
    let all = bytes.iter().chain(salt.iter().flatten());
    let fnv = all.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    fnv.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// A pod as its template says, without a name.
pub(crate) fn pod_of_template(template: &PodTemplateSpec, namespace: &str, owner: &OwnerReference) -> Value {
    let mut metadata = json!({"namespace": namespace, "ownerReferences": [owner]});
    if let Some(meta) = &template.metadata {
        if let Some(labels) = &meta.labels {
            metadata["labels"] = json!(labels);
        }
        if let Some(annotations) = &meta.annotations {
            metadata["annotations"] = json!(annotations);
        }
        if let Some(finalizers) = &meta.finalizers {
            metadata["finalizers"] = json!(finalizers);
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec})
}

/// Deletes a pod, if it is still the one that was seen.
pub(crate) fn delete_pod(pod: &Cached<Pod>) -> Action {
    delete(Pod::gvr(), pod)
}

/// Deletes an object, if it is still the one that was seen.
pub(crate) fn delete<T>(gvr: GroupVersionResource, object: &Cached<T>) -> Action {
    let options = RequestOptions { precondition_uid: Some(object.uid.clone()), ..RequestOptions::default() };
    Action::Delete { gvr, key: object.key.clone(), options }
}

/// An Event about an object.
pub(crate) fn event<T: Kind>(
    about: &Cached<T>,
    event_type: EventType,
    reason: &str,
    message: impl Into<String>,
) -> Action {
    let (api_version, kind) = T::api_version_kind();
    Action::Event {
        about: ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind.into()),
            namespace: Some(about.key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(about.key.name.clone()),
            uid: Some(about.uid.clone()),
            resource_version: Some(about.revision.to_string()),
            field_path: None,
        },
        event_type,
        reason: reason.into(),
        message: message.into(),
    }
}

/// The whole object as JSON with its type.
pub(crate) fn whole<T: Kind + Serialize>(object: &T) -> Value {
    let (api_version, kind) = T::api_version_kind();
    let mut value = json!(object);
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    value
}

/// Writes an object's status.
pub(crate) fn update_status<T: Kind + Serialize>(key: &ObjectKey, object: &T) -> Action {
    Action::UpdateStatus { gvr: T::gvr(), key: key.clone(), object: whole(object) }
}

/// Now, in whole seconds, as the API writes times.
pub(crate) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// Equal, where what is absent means zero, false or empty.
pub(crate) fn same<T: Serialize>(a: &T, b: &T) -> bool {
    settled(json!(a)) == settled(json!(b))
}

fn settled(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().map(|(name, value)| (name, settled(value)));
            let kept: serde_json::Map<String, Value> = kept.filter(|(_, value)| !value.is_null()).collect();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.into_iter().map(settled).collect(),
        Value::Number(number) if number.as_i64() == Some(0) => Value::Null,
        Value::Bool(false) => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        other => other,
    }
}

/// The workload of type `T` that controls a pod; for an orphan, every one that might adopt it.
pub(crate) fn keys_of_pod<T: Kind>(
    view: &View,
    pod: &Cached<Pod>,
    selector: impl Fn(&T) -> Option<LabelSelector>,
) -> Vec<ObjectKey> {
    let (_, kind) = T::api_version_kind();
    if let Some(owner) = pod.controller() {
        let key = ObjectKey::new(&pod.key.namespace, &owner.name);
        return if owner.kind == kind { vec![key] } else { Vec::new() };
    }
    let workloads = view.in_namespace::<T>(&pod.key.namespace).into_iter();
    let matching = workloads.filter(|workload| {
        let labels = selector(&workload.object);
        labels.is_some_and(|labels| !labels.requirements.is_empty() && labels.matches(&pod.labels))
    });
    matching.map(|workload| workload.key.clone()).collect()
}

/// When the next ready pod becomes available.
pub(crate) fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Cached<Pod>>>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    let waits = pods.into_iter().filter_map(|pod| pod.object.available_in(min_ready_seconds, now));
    waits.filter(|wait| !wait.is_zero()).min()
}

/// A number, or a share of `total`.
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.max(0) * i64::from(total);
            let whole = if round_up { (hundredths + 99) / 100 } else { hundredths / 100 };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// A count as the API's number.
pub(crate) fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
