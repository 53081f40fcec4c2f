//! What the node agent needs from the machine: a container runtime with CRI verbs and a pod network.
//! The binary plugs implementations in; tests and the simulator use [`crate::fake`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::stream::{Connection, ExecOptions, ExecSession};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

/// Why a runtime call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox, container or image.
    #[error("not found")]
    NotFound,
    /// The configuration cannot be run, now or later: the user has to change it.
    #[error("{0}")]
    Invalid(String),
    /// A command did not end within its time.
    #[error("command timed out")]
    Timeout,
    #[error("{0}")]
    Other(String),
}

/// A pod network call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetError(pub String);

/// Resource limits of a container or, for a sandbox, of the whole pod; `None` means unlimited or inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// cgroup v1 scale, 2..=262144; the runtime converts it to a v2 weight.
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
}

/// A way of running pods that the runtime offers (RuntimeClass' `handler`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// "" is the one of pods that name none.
    pub name: String,
    pub user_namespaces: bool,
    pub recursive_read_only_mounts: bool,
}

/// What a pod sandbox shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    /// 0 for the first sandbox of the pod.
    pub attempt: u32,
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Of the pod as a whole.
    pub cgroup: Resources,
    /// Group of pods that this one's control group goes into, or "".
    pub slice: String,
    /// Folder of the pod's container logs.
    pub log_dir: PathBuf,
    /// Name of the runtime handler, or "".
    pub runtime_handler: String,
}

/// A sandbox as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxStatus {
    pub id: String,
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    /// Containers can be started in it.
    pub ready: bool,
    pub created_at_nanos: i64,
    /// Path of the pod's network namespace; `None` on the host's network.
    pub netns: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    /// Limits as they are now; the default when they are not known.
    pub cgroup: Resources,
}

/// How mounts made later inside or outside are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A bind mount into a container, or the files of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub host_path: PathBuf,
    /// Id of an image on the node, to be mounted instead of a path, for reading only.
    pub image: Option<String>,
    /// Below the image's root.
    pub sub_path: String,
    pub container_path: String,
    pub readonly: bool,
    pub propagation: Propagation,
}

/// Which system calls a container may make. A runtime that can't apply a profile refuses the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// All of them.
    #[default]
    Unconfined,
    /// The runtime's own list.
    RuntimeDefault,
    /// A profile in a file of the node.
    Localhost(String),
}

/// What a container shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    pub name: String,
    /// 0 for the first container of this name in the pod; counts up with every restart.
    pub attempt: u32,
    /// Image id or reference, present on the node.
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
    pub strict_groups: bool,
    /// Id of a running container whose processes this one sees.
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
    /// Below the sandbox's `log_dir`: `<container>/<attempt>.log`, in CRI log format.
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// `SIGUSR1`; `None` means the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    pub seccomp: Seccomp,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerState {
    #[default]
    Created,
    Running,
    Exited,
}

/// A container as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox_id: String,
    pub pod_uid: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub state: ContainerState,
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
    /// Folder of what it has written to its root; "" when it is nowhere on this machine.
    pub layer: PathBuf,
    /// Limits as they are now; the default when they are not known.
    pub resources: Resources,
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

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    pub id: String,
    /// Names with a digest: `registry/name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Names with a tag.
    pub repo_tags: Vec<String>,
    pub size_bytes: u64,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    /// `uid`, `uid:gid`, a name, or "".
    pub user: String,
    pub stop_signal: Option<String>,
}

/// A user of a registry; with an empty name, a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    pub username: String,
    pub password: String,
}

/// Passwords stay out of logs.
impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a sandbox uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub pod_uid: String,
    /// Without what the kernel would give back at once.
    pub memory_bytes: u64,
    pub processes: u64,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub layers: usize,
    pub layers_done: usize,
    /// Compressed size of the layers that weren't here.
    pub bytes: u64,
    pub bytes_done: u64,
}

/// A container runtime with the verbs and semantics of CRI v1.
pub trait Runtime: Send + Sync + 'static {
    /// The ways of running pods; a sandbox with another handler is refused.
    fn handlers(&self) -> Vec<RuntimeHandler>;

    fn run_pod_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxStatus, RuntimeError>>;

    /// Kills whatever runs in the sandbox. Idempotent.
    fn stop_pod_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes the sandbox and its containers. Idempotent.
    fn remove_pod_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    fn list_pod_sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxStatus>, RuntimeError>>;

    /// Makes a container that does not run yet; returns its id.
    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<String, RuntimeError>>;

    fn start_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Sends the stop signal, then SIGKILL after `grace`; returns once the container has exited. Idempotent.
    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Changes the limits of a running container.
    fn update_container<'a>(
        &'a self,
        id: &'a str,
        resources: Resources,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Changes the limits of a sandbox as a whole.
    fn update_sandbox<'a>(
        &'a self,
        id: &'a str,
        resources: Resources,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// What the sandboxes use now.
    fn usage(&self) -> BoxFuture<'_, Result<Vec<Usage>, RuntimeError>>;

    /// Containers of all sandboxes, exited ones too until they are removed.
    fn list_containers(&self) -> BoxFuture<'_, Result<Vec<ContainerStatus>, RuntimeError>>;

    /// Runs a command to its end.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] when it does not end within `timeout`.
    fn exec_sync<'a>(
        &'a self,
        id: &'a str,
        command: Vec<String>,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<ExecResult, RuntimeError>>;

    fn exec<'a>(
        &'a self,
        id: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>>;

    fn attach<'a>(
        &'a self,
        id: &'a str,
        options: ExecOptions,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>>;

    /// Connects to a port on a sandbox's loopback interface.
    ///
    /// # Errors
    /// [`RuntimeError::Other`] when nobody listens there.
    fn connect<'a>(
        &'a self,
        sandbox_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Connection, RuntimeError>>;

    /// What each running container has used, by container id, read now.
    fn container_usage(&self) -> BoxFuture<'_, Result<Vec<(String, ContainerUsage)>, RuntimeError>>;

    /// A new subscription; nothing that happens after the call is missed.
    fn events(&self) -> mpsc::UnboundedReceiver<RuntimeEvent>;

    fn image_status<'a>(
        &'a self,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Option<ImageInfo>, RuntimeError>>;

    /// Fetches an image unless it is here as its registry has it.
    ///
    /// `credentials` are tried in their order; without any, anonymously.
    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
        progress: watch::Sender<PullProgress>,
    ) -> BoxFuture<'a, Result<ImageInfo, RuntimeError>>;

    fn list_images(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>, RuntimeError>>;

    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
}

/// Pod addresses.
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the pod's network namespace its addresses. Idempotent: a pod keeps the addresses it has.
    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetError>>;

    /// Gives the addresses back. Idempotent.
    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), NetError>>;

    /// Addresses of a pod, empty when it has none.
    fn addresses(&self, pod_uid: &str) -> Vec<IpAddr>;
}
