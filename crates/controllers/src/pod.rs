//! What controllers read of a Pod.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey};
use client::{Cached, Kind};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use serde::Deserialize;

/// A slim view of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: PodMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMeta {
    pub creation_timestamp: Option<Timestamp>,
    pub deletion_timestamp: Option<Timestamp>,
    pub annotations: BTreeMap<String, String>,
    pub finalizers: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub restart_policy: String,
    pub tolerations: Vec<Toleration>,
    pub affinity: Option<Affinity>,
    pub volumes: Vec<PodVolume>,
}

/// A volume that is claimed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodVolume {
    pub name: String,
    pub persistent_volume_claim: Option<ClaimSource>,
    /// Holds the template of a claim of the pod's own.
    pub ephemeral: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSource {
    pub claim_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: i32,
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    pub conditions: Vec<PodCondition>,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub container_statuses: Vec<ContainerStatus>,
    pub init_container_statuses: Vec<ContainerStatus>,
    pub reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub last_transition_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub restart_count: i32,
    pub state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i32,
    pub finished_at: Option<Timestamp>,
}

impl Kind for Pod {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "pods")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Pod")
    }
}

impl Pod {
    /// Succeeded or Failed: its containers will not run again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Names of the claims that the pod uses; its own are named after it.
    pub fn claims<'a>(&'a self, key: &'a ObjectKey) -> impl Iterator<Item = String> + 'a {
        self.spec.volumes.iter().filter_map(|volume| match &volume.persistent_volume_claim {
            Some(source) => Some(source.claim_name.clone()),
            None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", key.name, volume.name)),
        })
    }

    pub fn is_ready(&self) -> bool {
        self.ready_condition().is_some_and(|condition| condition.status == "True")
    }

    /// Since when the pod is ready.
    pub fn ready_since(&self) -> Option<Timestamp> {
        self.ready_condition().filter(|condition| condition.status == "True")?.last_transition_time
    }

    /// How long until the pod has been ready for `min_ready_seconds`: zero when it has, `None` when it is not ready.
    pub fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        if !self.is_ready() {
            return None;
        }
        if min_ready_seconds <= 0 {
            return Some(Duration::ZERO);
        }
        let since = self.ready_since()?;
        let wait = i64::from(min_ready_seconds) * 1000 - (now.as_millisecond() - since.as_millisecond());
        Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
    }

    pub fn restarts(&self) -> i32 {
        self.status.container_statuses.iter().map(|status| status.restart_count).sum()
    }

    /// All addresses, the primary one first.
    pub fn addresses(&self) -> Vec<&str> {
        if self.status.pod_ips.is_empty() {
            return Some(self.status.pod_ip.as_str()).filter(|ip| !ip.is_empty()).into_iter().collect();
        }
        self.status.pod_ips.iter().map(|ip| ip.ip.as_str()).collect()
    }

    fn ready_condition(&self) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == "Ready")
    }
}

/// A pod that counts as a replica: neither finished nor being deleted.
pub fn is_active(pod: &Cached<Pod>) -> bool {
    !pod.deleting && !pod.object.is_terminal()
}
