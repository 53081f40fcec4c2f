//! `runtime::Engine` as the node agent's container runtime. The types have the same shapes on both sides; only the words of
//! errors and streams differ.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::stream::{Connection, ExecOptions, ExecOutput, ExecSession, TerminalSize};
use futures_util::future::BoxFuture;
use node::ports;
use runtime::Engine;
use tokio::sync::{mpsc, oneshot, watch};

use crate::registries::RegistriesFile;

/// The container engine of this machine, what its owner says of registries, and the folder of seccomp profiles.
pub(crate) struct Containers(pub(crate) Arc<Engine>, pub(crate) RegistriesFile, pub(crate) PathBuf);

type Answer<'a, T> = BoxFuture<'a, Result<T, ports::RuntimeError>>;

/// Names of the embedded runtime: that of pods without a RuntimeClass, its own, and the one that most classes name.
const HANDLERS: [&str; 3] = ["", "podium", "runc"];

impl ports::Runtime for Containers {
    fn handlers(&self) -> Vec<ports::RuntimeHandler> {
        // Whatever is mounted for reading is so with all that is mounted below it.
        let handler = |name: &str| ports::RuntimeHandler {
            name: name.to_owned(),
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        HANDLERS.map(handler).into()
    }

    fn run_pod_sandbox(&self, config: ports::SandboxConfig) -> Answer<'_, ports::SandboxStatus> {
        Box::pin(
            async move { self.0.run_sandbox(sandbox_spec(config)).await.map(sandbox_status).map_err(error) },
        )
    }

    fn stop_pod_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.stop_sandbox(id).await.map_err(error) })
    }

    fn remove_pod_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.remove_sandbox(id).await.map_err(error) })
    }

    fn list_pod_sandboxes(&self) -> Answer<'_, Vec<ports::SandboxStatus>> {
        Box::pin(async move { Ok(self.0.list_sandboxes().into_iter().map(sandbox_status).collect()) })
    }

    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        config: ports::ContainerConfig,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            let profile = config.seccomp.clone();
            let mut spec = container_spec(config);
            let mut filters = filters(&profile, &spec, &self.2)?;
            spec.seccomp = filters.pop();
            spec.more_seccomp = filters;
            self.0.create_container(sandbox_id, spec).await.map_err(error)
        })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.start_container(id).await.map_err(error) })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        Box::pin(async move { self.0.stop_container(id, grace).await.map_err(error) })
    }

    fn update_container<'a>(&'a self, id: &'a str, r: ports::Resources) -> Answer<'a, ()> {
        Box::pin(async move { self.0.limit_container(id, resources(r)).await.map_err(error) })
    }

    fn update_sandbox<'a>(&'a self, id: &'a str, r: ports::Resources) -> Answer<'a, ()> {
        Box::pin(async move { self.0.limit_sandbox(id, resources(r)).await.map_err(error) })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.remove_container(id).await.map_err(error) })
    }

    fn usage(&self) -> Answer<'_, Vec<ports::Usage>> {
        Box::pin(async move {
            let list = self.0.usage().await.map_err(error)?.into_iter();
            let usage = list.map(|u| ports::Usage {
                pod_uid: u.pod_uid,
                memory_bytes: u.memory_bytes,
                processes: u.processes,
            });
            Ok(usage.collect())
        })
    }

    fn list_containers(&self) -> Answer<'_, Vec<ports::ContainerStatus>> {
        let status = |c: runtime::ContainerStatus| {
            let layer = self.0.writable_layer(&c.id);
            ports::ContainerStatus { layer, ..container_status(c) }
        };
        Box::pin(async move { Ok(self.0.list_containers().into_iter().map(status).collect()) })
    }

    fn exec_sync<'a>(
        &'a self,
        id: &'a str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Answer<'a, ports::ExecResult> {
        Box::pin(async move {
            let done = self.0.exec_sync(id, command, timeout).await.map_err(error)?;
            Ok(ports::ExecResult { stdout: done.stdout, stderr: done.stderr, exit_code: done.exit_code })
        })
    }

    fn exec<'a>(&'a self, id: &'a str, options: ExecOptions) -> Answer<'a, ExecSession> {
        Box::pin(async move { self.0.exec(id, exec_spec(options)).await.map(session).map_err(error) })
    }

    fn attach<'a>(&'a self, id: &'a str, options: ExecOptions) -> Answer<'a, ExecSession> {
        Box::pin(async move { self.0.attach(id, options.stdin).await.map(session).map_err(error) })
    }

    fn connect<'a>(&'a self, sandbox_id: &'a str, port: u16) -> Answer<'a, Connection> {
        Box::pin(async move {
            let stream = self.0.connect(sandbox_id, port).await.map_err(error)?;
            Ok(Box::new(stream) as Connection)
        })
    }

    fn container_usage(&self) -> Answer<'_, Vec<(String, ports::ContainerUsage)>> {
        let usage = |u: runtime::ContainerUsage| ports::ContainerUsage {
            cpu_nanos: u.cpu_nanos,
            memory_bytes: u.memory_bytes,
            working_set_bytes: u.working_set_bytes,
            rss_bytes: u.rss_bytes,
        };
        Box::pin(async move {
            let all = self.0.container_usage().await.map_err(error)?;
            Ok(all.into_iter().map(|(id, used)| (id, usage(used))).collect())
        })
    }

    fn events(&self) -> mpsc::UnboundedReceiver<ports::RuntimeEvent> {
        let mut from = self.0.events();
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(event) = from.recv().await {
                if sender.send(runtime_event(event)).is_err() {
                    return;
                }
            }
        });
        receiver
    }

    fn image_status<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ports::ImageInfo>> {
        Box::pin(async move { Ok(self.0.image_status(reference).await.map_err(error)?.map(image)) })
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<ports::Credential>,
        progress: watch::Sender<ports::PullProgress>,
    ) -> Answer<'a, ports::ImageInfo> {
        Box::pin(async move {
            let registries =
                self.1.read().map_err(|error| ports::RuntimeError::Other(format!("{error:#}")))?;
            let credentials = credentials
                .into_iter()
                .map(|one| runtime::Credential { username: one.username, password: one.password });
            let spec = runtime::PullSpec {
                reference: reference.to_owned(),
                credentials: credentials.collect(),
                registries,
            };
            let (sender, mut seen) = watch::channel(runtime::PullProgress::default());
            let mut pull = std::pin::pin!(self.0.pull_image(spec, sender));
            let pulled = loop {
                tokio::select! {
                    biased;
                    pulled = &mut pull => break pulled,
                    Ok(()) = seen.changed() => drop(progress.send_replace(pull_progress(*seen.borrow()))),
                }
            };
            pulled.map(image).map_err(error)
        })
    }

    fn list_images(&self) -> Answer<'_, Vec<ports::ImageInfo>> {
        Box::pin(async move {
            let list = self.0.list_images().await.map_err(error)?;
            Ok(list.into_iter().map(image).collect())
        })
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.remove_image(reference).await.map_err(error) })
    }
}

fn pull_progress(p: runtime::PullProgress) -> ports::PullProgress {
    let runtime::PullProgress { layers, layers_done, bytes, bytes_done } = p;
    ports::PullProgress { layers, layers_done, bytes, bytes_done }
}

fn error(error: runtime::RuntimeError) -> ports::RuntimeError {
    match error {
        runtime::RuntimeError::NotFound(_) => ports::RuntimeError::NotFound,
        runtime::RuntimeError::Invalid(why) => ports::RuntimeError::Invalid(why),
        runtime::RuntimeError::Timeout => ports::RuntimeError::Timeout,
        runtime::RuntimeError::Other(why) => ports::RuntimeError::Other(why),
    }
}

fn resources(r: ports::Resources) -> runtime::Resources {
    runtime::Resources {
        cpu_shares: r.cpu_shares,
        cpu_quota_us: r.cpu_quota_us,
        cpu_period_us: r.cpu_period_us,
        memory_limit_bytes: r.memory_limit_bytes,
        pids_limit: r.pids_limit,
        oom_score_adj: r.oom_score_adj,
    }
}

fn limits(r: runtime::Resources) -> ports::Resources {
    ports::Resources {
        cpu_shares: r.cpu_shares,
        cpu_quota_us: r.cpu_quota_us,
        cpu_period_us: r.cpu_period_us,
        memory_limit_bytes: r.memory_limit_bytes,
        pids_limit: r.pids_limit,
        oom_score_adj: r.oom_score_adj,
    }
}

fn sandbox_spec(c: ports::SandboxConfig) -> runtime::SandboxSpec {
    runtime::SandboxSpec {
        pod_uid: c.pod_uid,
        namespace: c.namespace,
        name: c.name,
        attempt: c.attempt,
        hostname: c.hostname,
        host_network: c.host_network,
        host_pid: c.host_pid,
        host_ipc: c.host_ipc,
        share_process_namespace: c.share_process_namespace,
        sysctls: c.sysctls,
        labels: c.labels,
        cgroup: resources(c.cgroup),
        slice: c.slice,
        log_dir: c.log_dir,
    }
}

fn sandbox_status(s: runtime::SandboxStatus) -> ports::SandboxStatus {
    ports::SandboxStatus {
        id: s.id,
        pod_uid: s.pod_uid,
        namespace: s.namespace,
        name: s.name,
        attempt: s.attempt,
        ready: s.ready,
        created_at_nanos: s.created_at_nanos,
        netns: s.netns,
        labels: s.labels,
        cgroup: limits(s.cgroup),
    }
}

fn container_spec(c: ports::ContainerConfig) -> runtime::ContainerSpec {
    runtime::ContainerSpec {
        name: c.name,
        attempt: c.attempt,
        image: c.image,
        command: c.command,
        args: c.args,
        env: c.env,
        working_dir: c.working_dir,
        user: c.user,
        group: c.group,
        supplemental_groups: c.supplemental_groups,
        strict_groups: c.strict_groups,
        process_namespace_of: c.process_namespace_of,
        mounts: c.mounts.into_iter().map(mount).collect(),
        resources: resources(c.resources),
        privileged: c.privileged,
        add_capabilities: c.add_capabilities,
        drop_capabilities: c.drop_capabilities,
        allow_privilege_escalation: c.allow_privilege_escalation,
        readonly_rootfs: c.readonly_rootfs,
        tty: c.tty,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        log_path: c.log_path,
        labels: c.labels,
        stop_signal: c.stop_signal,
        rlimits: Vec::new(),
        seccomp: None,
        more_seccomp: Vec::new(),
    }
}

/// The filters of a profile, the one to be loaded last at the end. Profiles in files are below `folder`.
///
/// # Errors
/// Invalid for a profile that can't be applied.
fn filters(
    profile: &ports::Seccomp,
    spec: &runtime::ContainerSpec,
    folder: &Path,
) -> Result<Vec<Vec<u8>>, ports::RuntimeError> {
    match profile {
        ports::Seccomp::Unconfined => Ok(Vec::new()),
        ports::Seccomp::RuntimeDefault => runtime::default_seccomp(spec).map(|one| vec![one]).map_err(error),
        ports::Seccomp::Localhost(file) => {
            let refused = |why: &dyn std::fmt::Display| {
                ports::RuntimeError::Invalid(format!("seccomp profile {file:?}: {why}"))
            };
            let inside = Path::new(file).components().all(|c| matches!(c, std::path::Component::Normal(_)));
            if file.is_empty() || !inside {
                return Err(refused(&"it must be a path below the node's folder of profiles"));
            }
            let json = std::fs::read(folder.join(file)).map_err(|e| refused(&e))?;
            runtime::profile_seccomp(&json).map_err(|e| refused(&e))
        }
    }
}

fn mount(m: ports::Mount) -> runtime::Mount {
    let propagation = match m.propagation {
        ports::Propagation::Private => runtime::Propagation::Private,
        ports::Propagation::HostToContainer => runtime::Propagation::HostToContainer,
        ports::Propagation::Bidirectional => runtime::Propagation::Bidirectional,
    };
    runtime::Mount {
        host_path: m.host_path,
        image: m.image,
        sub_path: m.sub_path,
        container_path: m.container_path,
        readonly: m.readonly,
        propagation,
    }
}

fn container_status(c: runtime::ContainerStatus) -> ports::ContainerStatus {
    let state = match c.state {
        runtime::ContainerState::Created => ports::ContainerState::Created,
        runtime::ContainerState::Running => ports::ContainerState::Running,
        runtime::ContainerState::Exited => ports::ContainerState::Exited,
    };
    ports::ContainerStatus {
        id: c.id,
        sandbox_id: c.sandbox_id,
        pod_uid: c.pod_uid,
        name: c.name,
        attempt: c.attempt,
        image: c.image,
        image_id: c.image_id,
        state,
        created_at_nanos: c.created_at_nanos,
        started_at_nanos: c.started_at_nanos,
        finished_at_nanos: c.finished_at_nanos,
        exit_code: c.exit_code,
        reason: c.reason,
        message: c.message,
        log_path: c.log_path,
        labels: c.labels,
        layer: PathBuf::new(),
        resources: limits(c.resources),
    }
}

fn runtime_event(event: runtime::RuntimeEvent) -> ports::RuntimeEvent {
    let kind = match event.kind {
        runtime::RuntimeEventKind::Started => ports::RuntimeEventKind::Started,
        runtime::RuntimeEventKind::Exited => ports::RuntimeEventKind::Exited,
        runtime::RuntimeEventKind::SandboxStopped => ports::RuntimeEventKind::SandboxStopped,
    };
    ports::RuntimeEvent { sandbox_id: event.sandbox_id, container_id: event.container_id, kind }
}

fn exec_spec(o: ExecOptions) -> runtime::ExecSpec {
    runtime::ExecSpec { command: o.command, stdin: o.stdin, stdout: o.stdout, stderr: o.stderr, tty: o.tty }
}

fn image(i: runtime::ImageInfo) -> ports::ImageInfo {
    ports::ImageInfo {
        id: i.id,
        repo_digests: i.repo_digests,
        repo_tags: i.repo_tags,
        size_bytes: i.size_bytes,
        entrypoint: i.entrypoint,
        cmd: i.cmd,
        env: i.env,
        working_dir: i.working_dir,
        user: i.user,
        stop_signal: i.stop_signal,
    }
}

/// Both sides speak through channels; only the words differ, and a task carries them over.
fn session(streams: runtime::ExecStreams) -> ExecSession {
    let runtime::ExecStreams { stdin, output: mut from, resize: to_resize, exit: from_exit } = streams;
    let (output_sender, output) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(part) = from.recv().await {
            let part = match part {
                runtime::ExecOutput::Stdout(bytes) => ExecOutput::Stdout(bytes),
                runtime::ExecOutput::Stderr(bytes) => ExecOutput::Stderr(bytes),
            };
            if output_sender.send(part).await.is_err() {
                return;
            }
        }
    });
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(4);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            let size = runtime::TerminalSize { width: size.width, height: size.height };
            if to_resize.send(size).await.is_err() {
                return;
            }
        }
    });
    let (mut exit_sender, exit) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            // the far side went away: dropping its end ends the command
            () = exit_sender.closed() => {}
            ended = from_exit => {
                let outcome = ended.unwrap_or_else(|_| Err(runtime::RuntimeError::Other("the stream broke".into())));
                if exit_sender.send(outcome.map_err(Status::internal)).is_err() {
                    tracing::debug!("nobody waits for the exit code");
                }
            }
        }
    });
    ExecSession { stdin, output, resize, exit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_applied_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = runtime::ContainerSpec::default();
        let of = |profile: ports::Seccomp| filters(&profile, &spec, folder.path());
        assert_eq!(of(ports::Seccomp::Unconfined), Ok(Vec::new()));
        let default = of(ports::Seccomp::RuntimeDefault).unwrap();
        assert!(default.len() == 1 && !default[0].is_empty());
        let own = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
        std::fs::write(folder.path().join("own.json"), own).unwrap();
        std::fs::write(folder.path().join("bad.json"), "{}").unwrap();
        assert_eq!(of(ports::Seccomp::Localhost("own.json".into())).unwrap().len(), 1);
        for file in ["gone.json", "bad.json", "../own.json", "/own.json", ""] {
            let refused = of(ports::Seccomp::Localhost(file.into()));
            assert!(
                matches!(refused, Err(ports::RuntimeError::Invalid(why)) if why.contains(file)),
                "{file}"
            );
        }
    }
}
