//! Containers and images on one machine, without any other program's help.
//!
//! ```text
//! agent (Engine, tokio) ─► spawner (single-threaded, runs from a sealed memory file) ─fork─► shim, one per sandbox
//!        └────────────── unix socket, frames + descriptors ────────────────────────────────► │
//!                                                                       container init, commands, logs
//! ```
//!
//! Invariants:
//! - Nothing is forked inside the many-threaded agent; spawner and shims have one thread.
//! - A shim outlives agent and spawner, is the parent of all processes it makes, and writes each end to disk first.
//! - What nobody saw end is 137 `ContainerStatusUnknown`, never success.
//! - Root file systems are mounted in the containers' own mount namespaces; on the host there are only the sandbox's
//!   network namespace and shared memory, below `run_dir`, which [`down`] finds without any agent.

mod cgroup;
mod down;
mod engine;
mod error;
mod image;
mod init;
mod logs;
mod seccomp;
mod shim;
mod spawner;
mod spec;
mod sys;
mod wire;

use std::process::ExitCode;

pub use down::{Report, down};
pub use engine::{Engine, EngineConfig, ExecOutput, ExecStreams, TerminalSize};
pub use error::RuntimeError;
pub use image::{
    Credential, HostConfig, ImageInfo, Layout, Mirror, PullProgress, PullSpec, Registries, TlsConfig,
    import_image, list_images, pull_image, remove_image,
};
pub use seccomp::{default_seccomp, profile_seccomp};
pub use spec::{
    ContainerSpec, ContainerState, ContainerStatus, ContainerUsage, ExecResult, ExecSpec, Mount, Propagation,
    Resources, Rlimit, RuntimeEvent, RuntimeEventKind, SandboxSpec, SandboxStatus, Usage,
};

/// Runs this crate's hidden sub-commands when the program was started as one; called first in `main`, before any
/// thread starts. `None`: the program is something else.
pub fn dispatch() -> Option<ExitCode> {
    match std::env::args_os().nth(1)?.to_str()? {
        spawner::COMMAND => Some(spawner::seal()),
        spawner::SEALED_COMMAND => Some(spawner::run()),
        _ => None,
    }
}
