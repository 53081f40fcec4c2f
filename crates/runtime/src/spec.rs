//! What callers ask for and what they are told: sandboxes, containers, commands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Resource limits of a container or of a whole sandbox; `None` means unlimited or inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 scale, 2..=262144; converted to a weight on v2.
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    /// Of containers only. Where the machine refuses it, the container runs with the inherited value and a note.
    pub oom_score_adj: Option<i32>,
}

/// What a sandbox shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    /// "" keeps the host's name (always so on the host's network).
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Of the sandbox as a whole.
    pub cgroup: Resources,
    /// Name of a group between the engine's and the sandbox's, or "". It weighs what its sandboxes weigh together.
    #[serde(default)]
    pub slice: String,
    /// Folder of the containers' logs.
    pub log_dir: PathBuf,
}

/// A sandbox as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub id: String,
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    /// Containers can be started in it.
    pub ready: bool,
    pub created_at_nanos: i64,
    /// Path of the network namespace; `None` on the host's network.
    pub netns: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    /// Limits as they are now.
    #[serde(default)]
    pub cgroup: Resources,
}

/// How mounts made later inside or outside are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A bind mount into a container, or the files of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    /// Id or reference of an image to be mounted instead of a path, for reading only and not for execution.
    #[serde(default)]
    pub image: Option<String>,
    /// Below the image's root.
    #[serde(default)]
    pub sub_path: String,
    pub container_path: String,
    pub readonly: bool,
    pub propagation: Propagation,
}

/// A limit of setrlimit(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// What a container shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    pub attempt: u32,
    /// Image id or reference, present on this machine.
    pub image: String,
    /// Replaces the image's entrypoint unless empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments unless empty; an explicit command drops the image's arguments.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// "" means the image's.
    pub working_dir: String,
    /// `None` means the image's.
    pub user: Option<i64>,
    pub group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    /// Groups that the image gives the user do not count.
    #[serde(default)]
    pub strict_groups: bool,
    /// Id of a running container of the sandbox whose processes it sees and shares.
    #[serde(default)]
    pub process_namespace_of: Option<String>,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub allow_privilege_escalation: bool,
    pub readonly_rootfs: bool,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Below the sandbox's `log_dir`.
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// `SIGUSR1`; `None` means the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Limits the machine refuses are left as inherited, with a note.
    pub rlimits: Vec<Rlimit>,
    /// A compiled seccomp filter: classic BPF instructions of 8 bytes. A filter that can't be applied refuses the container.
    pub seccomp: Option<Vec<u8>>,
    /// Further filters, loaded before that one; the kernel takes the strictest answer.
    #[serde(default)]
    pub more_seccomp: Vec<Vec<u8>>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    #[default]
    Created,
    Running,
    Exited,
}

/// A container as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox_id: String,
    pub pod_uid: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub state: ContainerState,
    /// Process id of its first process as this machine sees it; 0 unless it lives.
    pub pid: i32,
    pub created_at_nanos: i64,
    /// 0 before it started.
    pub started_at_nanos: i64,
    /// 0 while it runs.
    pub finished_at_nanos: i64,
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`; "" while it runs.
    pub reason: String,
    pub message: String,
    /// Absolute path of the log file.
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// Limits as they are now.
    #[serde(default)]
    pub resources: Resources,
    /// Ids of images that are mounted in it.
    #[serde(default)]
    pub mounted_images: Vec<String>,
}

/// What a sandbox uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub sandbox_id: String,
    pub pod_uid: String,
    /// Without what the kernel would give back at once.
    pub memory_bytes: u64,
    pub processes: u64,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// One terminal for all three; output then comes as stdout.
    pub tty: bool,
}

/// What the processes of a container have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Since the container was made.
    pub cpu_nanos: u64,
    /// Now, with the page cache.
    pub memory_bytes: u64,
    /// Without what the kernel can take back at once.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
}

/// Outcome of a command run to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecResult {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// What happened in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeEventKind {
    Started,
    Exited,
    SandboxStopped,
}

/// A hint to look again; the truth is in the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub sandbox_id: String,
    pub container_id: Option<String>,
    pub kind: RuntimeEventKind,
}

/// Everything a shim needs to make a container: the specification with the image's part filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) id: String,
    pub(crate) spec: ContainerSpec,
    pub(crate) image_id: String,
    /// Unpacked layers, the lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// Unpacked layers of the images that are mounted, by id.
    #[serde(default)]
    pub(crate) mounted: BTreeMap<String, Vec<PathBuf>>,
    /// Folder of the container's own files: `upper`, `work`, `rootfs`.
    pub(crate) dir: PathBuf,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    /// `uid`, `uid:gid`, names, or ""; from the image, used where the specification has no number.
    pub(crate) image_user: String,
    pub(crate) stop_signal: i32,
    pub(crate) created_at_nanos: i64,
}

/// What the shim keeps and tells about a container; also the exit record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) status: ContainerStatus,
    pub(crate) stop_signal: i32,
    /// What the machine refused without stopping the container.
    pub(crate) notes: Vec<String>,
}

/// What a shim is started with; also kept in `sandbox.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxPlan {
    pub(crate) id: String,
    pub(crate) spec: SandboxSpec,
    /// Folder of the sandbox below run_dir.
    pub(crate) dir: PathBuf,
    pub(crate) cgroup_parent: String,
    /// Below the parent; "" is the id (sandboxes of earlier versions).
    #[serde(default)]
    pub(crate) cgroup_name: String,
    pub(crate) created_at_nanos: i64,
}

impl SandboxPlan {
    pub(crate) fn netns(&self) -> Option<PathBuf> {
        (!self.spec.host_network).then(|| self.dir.join("netns"))
    }

    pub(crate) fn cgroup(&self) -> String {
        let name = if self.cgroup_name.is_empty() { &self.id } else { &self.cgroup_name };
        format!("{}/{name}", self.cgroup_parent)
    }

    /// Where a new sandbox's group goes: `slice/pod<uid>-<id>`, so that people and tools find a pod by its uid.
    pub(crate) fn name_cgroup(id: &str, spec: &SandboxSpec) -> String {
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let pod = if plain(&spec.pod_uid) { format!("pod{}-{id}", spec.pod_uid) } else { id.to_owned() };
        if spec.slice.is_empty() || !plain(&spec.slice) { pod } else { format!("{}/{pod}", spec.slice) }
    }

    /// The groups between the engine's and the sandbox's.
    pub(crate) fn slice(&self) -> Option<String> {
        let (slice, _) = self.cgroup_name.rsplit_once('/')?;
        Some(format!("{}/{slice}", self.cgroup_parent))
    }

    /// The shim's own group stands beside the sandbox's, so that the sandbox's limits don't hit the shim.
    pub(crate) fn shim_cgroup(&self) -> String {
        format!("{}/shim-{}", self.cgroup_parent, self.id)
    }

    pub(crate) fn status(&self, ready: bool) -> SandboxStatus {
        SandboxStatus {
            id: self.id.clone(),
            pod_uid: self.spec.pod_uid.clone(),
            namespace: self.spec.namespace.clone(),
            name: self.spec.name.clone(),
            attempt: self.spec.attempt,
            ready,
            created_at_nanos: self.created_at_nanos,
            netns: self.netns(),
            labels: self.spec.labels.clone(),
            cgroup: self.spec.cgroup.clone(),
        }
    }
}
