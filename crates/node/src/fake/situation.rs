//! Situations of a pod, for the tests of the deciders.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use crate::observed::{
    Blocked, Failure, IMAGE_LABEL, NodeFacts, Observed, ProbeFailure, STREAK_LABEL, VolumeState,
};
use crate::ports::{ContainerState, ContainerStatus, SandboxStatus};

/// The time of all situations, in seconds.
pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn facts() -> NodeFacts {
    NodeFacts { node_name: "n1".into(), node_ips: vec!["192.0.2.1".parse().unwrap()], ..NodeFacts::default() }
}

pub(crate) struct Situation {
    pod: Value,
    pub(crate) observed: Observed,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

impl Situation {
    /// A pod with one container; its volumes are ready and nothing else exists.
    pub(crate) fn new() -> Self {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 2},
            "spec": {"containers": [{"name": "main", "image": "web:1"}]},
        });
        Self { pod, observed: Observed { volumes: VolumeState::Ready, ..Observed::default() } }
    }

    pub(crate) fn pod(&self) -> core::Pod {
        serde_json::from_value(self.pod.clone()).unwrap()
    }

    pub(crate) fn spec(mut self, fields: Value) -> Self {
        for (name, value) in fields.as_object().unwrap() {
            self.pod["spec"][name] = value.clone();
        }
        self
    }

    pub(crate) fn status(mut self, status: Value) -> Self {
        self.pod["status"] = status;
        self
    }

    pub(crate) fn volumes_unknown(mut self) -> Self {
        self.observed.volumes = VolumeState::Unknown;
        self
    }

    pub(crate) fn volumes_failed(mut self, retry_at: i64) -> Self {
        self.observed.volumes = VolumeState::Failed(block("FailedMount", Some(retry_at)));
        self
    }

    /// A ready sandbox with an address.
    pub(crate) fn sandbox(mut self) -> Self {
        let sandbox = SandboxStatus {
            id: "sandbox0".into(),
            pod_uid: "u".into(),
            ready: true,
            ..SandboxStatus::default()
        };
        self.observed.sandboxes.insert(0, sandbox);
        self.observed.addresses = vec!["10.0.0.1".parse().unwrap()];
        self
    }

    pub(crate) fn dead_sandbox(mut self) -> Self {
        self.observed.sandboxes[0].ready = false;
        self
    }

    pub(crate) fn with(mut self, container: ContainerStatus) -> Self {
        self.observed.containers.push(container);
        self
    }

    /// Deletion with a grace period of which `left` seconds are left.
    pub(crate) fn deleting(mut self, grace: i64, left: i64) -> Self {
        self.pod["metadata"]["deletionTimestamp"] = at(NOW + left).to_string().into();
        self.pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self
    }

    pub(crate) fn failed(mut self, reason: &str, grace_seconds: Option<i64>) -> Self {
        let (reason, message) = (reason.into(), "because".into());
        self.observed.failure = Some(Failure { reason, message, grace_seconds, disruption: true });
        self
    }

    pub(crate) fn gone(mut self) -> Self {
        self.observed.gone_from_api = true;
        self
    }

    pub(crate) fn torn_down(mut self) -> Self {
        self.observed.torn_down = true;
        self.observed.addresses.clear();
        self
    }

    pub(crate) fn killing(mut self, id: &str, due: i64) -> Self {
        self.observed.killing.insert(id.into(), at(due));
        self
    }

    pub(crate) fn blocked(mut self, name: &str, reason: &str, retry_at: Option<i64>) -> Self {
        self.observed.blocked.insert(name.into(), block(reason, retry_at));
        self
    }

    pub(crate) fn probe_failed(mut self, id: &str, grace_seconds: Option<i64>) -> Self {
        let failure = ProbeFailure { probe: "liveness".into(), grace_seconds };
        self.observed.probes.entry(id.into()).or_default().failed = Some(failure);
        self
    }

    pub(crate) fn ready(mut self, id: &str, ready: bool) -> Self {
        self.observed.probes.entry(id.into()).or_default().ready = Some(ready);
        self
    }

    pub(crate) fn message(mut self, id: &str, text: &str) -> Self {
        self.observed.termination_messages.insert(id.into(), text.into());
        self
    }
}

fn block(reason: &str, retry_at: Option<i64>) -> Blocked {
    Blocked {
        reason: reason.into(),
        message: "because".into(),
        since: at(NOW),
        retry_at: retry_at.map(at),
        failures: 1,
    }
}

/// A created container; its id is `<name>-<attempt>`.
pub(crate) fn container(name: &str) -> ContainerStatus {
    let container = ContainerStatus {
        sandbox_id: "sandbox0".into(),
        pod_uid: "u".into(),
        name: name.into(),
        image_id: "sha256:1".into(),
        ..ContainerStatus::default()
    };
    container.attempt(0)
}

impl ContainerStatus {
    pub(crate) fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self.id = format!("{}-{attempt}", self.name);
        self
    }

    pub(crate) fn streak(mut self, streak: u32) -> Self {
        self.labels.insert(STREAK_LABEL.into(), streak.to_string());
        self
    }

    pub(crate) fn image(mut self, image: &str) -> Self {
        self.labels.insert(IMAGE_LABEL.into(), image.into());
        self
    }

    pub(crate) fn running(mut self, seconds_ago: i64) -> Self {
        self.state = ContainerState::Running;
        self.started_at_nanos = (NOW - seconds_ago) * 1_000_000_000;
        self
    }

    pub(crate) fn exited(self, code: i32, started_ago: i64, finished_ago: i64) -> Self {
        let mut status = self.running(started_ago);
        status.state = ContainerState::Exited;
        status.exit_code = code;
        status.finished_at_nanos = (NOW - finished_ago) * 1_000_000_000;
        status
    }
}
