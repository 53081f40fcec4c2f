//! Static pods: those that files of the machine ask for, whether or not there is an API server (Kubernetes, "Create static
//! Pods").
//!
//! ```text
//!   folder ──inotify──▶ manifest (pure) ──pods──▶ roster (pure) ──▶ PodWorker ──▶ containers
//!                                                                      │
//!                                                                      └─ mirror (pure) ─▶ mirror pod in the API
//! ```
//!
//! The file is the truth. The mirror pod only shows it: deleting the mirror brings another, and its status is the static
//! pod's. A static pod's uid is the hash of its file, so a changed file is another pod, which begins when the former one has
//! ended.

use k8s_openapi::api::core::v1 as core;

pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod mirror;
pub(crate) mod roster;

const SOURCE: &str = "kubernetes.io/config.source";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The uid of the static pod that a pod of the API mirrors.
pub fn mirrored(pod: &core::Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// Under what uid the runtime has a pod of the API.
pub fn runtime_uid(pod: &core::Pod) -> &str {
    mirrored(pod).or(pod.metadata.uid.as_deref()).unwrap_or_default()
}
