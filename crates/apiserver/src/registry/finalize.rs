//! Namespaces as containers: nothing new enters one that is missing or terminating.
//!
//! A terminating namespace has a private key. Its absence, and the presence of the namespace, are conditions of the same
//! commit that creates an object inside: no controller can lose the race against the last creation.

use api::{Cause, GroupVersionResource, Object, ObjectKey, Status};
use bytes::Bytes;

use super::Registry;
use crate::resource::{Expect, Extension, Resource};

const TERMINATING: &str = "/podium/namespaces/terminating/";

/// Whether a row is that of namespaces.
pub(crate) fn is_namespace(resource: &Resource) -> bool {
    resource.gvr == namespaces()
}

fn namespaces() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "namespaces")
}

fn namespace_key(registry: &Registry, namespace: &str) -> Option<String> {
    let row = registry.resources.get(&namespaces())?;
    Some(row.store_key(&ObjectKey::new("", namespace)))
}

/// Adds the conditions that a namespace exists and is not terminating.
pub(crate) fn require_living(registry: &Registry, namespace: &str, extension: &mut Extension) {
    if let Some(key) = namespace_key(registry, namespace) {
        extension.expect(&key, Expect::Present);
        extension.expect(&format!("{TERMINATING}{namespace}"), Expect::Absent);
    }
}

/// The refusal when one of those conditions fails; `None` for other keys.
pub(crate) fn refusal(key: &str, resource: &Resource, object: &ObjectKey) -> Option<Status> {
    if let Some(namespace) = key.strip_prefix(TERMINATING) {
        return Some(terminating(resource, &object.name, namespace));
    }
    let namespace = key.strip_prefix("/registry/core/namespaces/")?;
    Some(Status::not_found("", "namespaces", namespace))
}

/// Why nothing is created in a terminating namespace.
pub(crate) fn terminating(resource: &Resource, name: &str, namespace: &str) -> Status {
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(&resource.gvr.group, &resource.gvr.resource, name, &why);
    status.causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    });
    status
}

/// A namespace whose deletion begins turns Terminating.
pub(crate) fn begin_deletion(resource: &Resource, object: &mut Object, extension: &mut Extension) {
    if is_namespace(resource) {
        object.set(&["status", "phase"], "Terminating");
        extension.ops.push((format!("{TERMINATING}{}", object.name()), Some(Bytes::from_static(b"{}"))));
    }
}

/// A namespace that goes away takes its private key along.
pub(crate) fn end_deletion(resource: &Resource, object: &Object, extension: &mut Extension) {
    if is_namespace(resource) {
        extension.release(&format!("{TERMINATING}{}", object.name()));
    }
}
