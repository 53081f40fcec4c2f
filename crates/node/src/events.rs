//! Events about pods.

use client::{EventRecorder, EventType};
use k8s_openapi::api::core::v1 as core;

/// Records events about pods and their containers; never blocks.
pub struct PodEvents {
    recorder: EventRecorder,
}

impl PodEvents {
    /// Events of component `kubelet`, as clients expect from a node.
    pub fn new(recorder: EventRecorder) -> Self {
        Self { recorder }
    }

    /// About the pod.
    pub fn pod(&self, pod: &core::Pod, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(&reference(pod, None), kind, reason, message);
    }

    /// About the node.
    pub fn node(&self, name: &str, kind: EventType, reason: &str, message: &str) {
        let about = core::ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.into()),
            // As the events of node agents have it.
            uid: Some(name.into()),
            ..core::ObjectReference::default()
        };
        self.recorder.event(&about, kind, reason, message);
    }

    /// About one of its containers.
    pub fn container(&self, pod: &core::Pod, name: &str, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(&reference(pod, Some(name)), kind, reason, message);
    }
}

fn reference(pod: &core::Pod, container: Option<&str>) -> core::ObjectReference {
    let init = |name: &str| crate::observed::init_containers(pod).iter().any(|c| c.name == name);
    let field_path = container.map(|name| {
        let list = if init(name) { "initContainers" } else { "containers" };
        format!("spec.{list}{{{name}}}")
    });
    core::ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}
