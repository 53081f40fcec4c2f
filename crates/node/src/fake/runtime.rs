//! The runtime's state machine without processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::stream::{Connection, ExecOptions, ExecSession};
use client::Clock;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::{mpsc, watch};

use crate::ports::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerUsage, Credential, ExecResult, ImageInfo,
    PullProgress, Resources, Runtime, RuntimeError, RuntimeEvent, RuntimeEventKind, RuntimeHandler,
    SandboxConfig, SandboxStatus, Usage,
};

#[derive(Default)]
struct State {
    next: u64,
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, ContainerStatus>,
    configs: BTreeMap<String, ContainerConfig>,
    log_dirs: BTreeMap<String, PathBuf>,
    present: BTreeMap<String, ImageInfo>,
    remote: BTreeMap<String, ImageInfo>,
    pulled_as: Vec<String>,
    exec_codes: BTreeMap<String, i32>,
    calls: Vec<String>,
    listeners: Vec<mpsc::UnboundedSender<RuntimeEvent>>,
    ignores_sigterm: bool,
}

/// A runtime in memory.
pub struct FakeRuntime {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

impl FakeRuntime {
    /// Without images; time comes from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_nanos(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// An image that is on the node.
    pub fn add_image(&self, reference: &str) {
        self.state().present.insert(reference.to_owned(), image(reference));
    }

    /// One that came from a registry.
    pub fn add_fetched_image(&self, reference: &str) {
        let digests = vec![format!("{reference}@sha256:0")];
        let fetched = ImageInfo { repo_digests: digests, ..image(reference) };
        self.state().present.insert(reference.to_owned(), fetched);
    }

    /// References of the images that are there.
    pub fn images(&self) -> Vec<String> {
        self.state().present.keys().cloned().collect()
    }

    /// User names that pulls came with.
    pub fn pulled_as(&self) -> Vec<String> {
        self.state().pulled_as.clone()
    }

    /// An image that can be pulled.
    pub fn add_remote_image(&self, reference: &str) {
        self.state().remote.insert(reference.to_owned(), image(reference));
    }

    /// Containers no longer stop before their grace period is over.
    pub fn ignore_sigterm(&self) {
        self.state().ignores_sigterm = true;
    }

    /// Exit code of commands run in containers of this name.
    pub fn set_exec_code(&self, container: &str, code: i32) {
        self.state().exec_codes.insert(container.to_owned(), code);
    }

    /// Ends a running container by itself.
    pub fn exit(&self, id: &str, code: i32) {
        let now = self.now_nanos();
        self.state().exit(id, code, now);
    }

    /// Calls that change something, in order: `start web`.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// All containers.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.state().containers.values().cloned().collect()
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.state().sandboxes.values().cloned().collect()
    }

    /// What a container was made from.
    pub fn config(&self, id: &str) -> Option<ContainerConfig> {
        self.state().configs.get(id).cloned()
    }
}

fn image(reference: &str) -> ImageInfo {
    ImageInfo {
        id: format!("sha256:{reference}"),
        repo_tags: vec![reference.to_owned()],
        size_bytes: 1000,
        ..ImageInfo::default()
    }
}

impl State {
    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{}", self.next)
    }

    fn tell(&mut self, sandbox_id: &str, container_id: Option<&str>, kind: RuntimeEventKind) {
        let event = RuntimeEvent {
            sandbox_id: sandbox_id.to_owned(),
            container_id: container_id.map(str::to_owned),
            kind,
        };
        self.listeners.retain(|listener| listener.send(event.clone()).is_ok());
    }

    fn exit(&mut self, id: &str, code: i32, now_nanos: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.state == ContainerState::Exited {
            return;
        }
        container.state = ContainerState::Exited;
        container.exit_code = code;
        container.finished_at_nanos = now_nanos;
        container.reason = if code == 0 { "Completed".into() } else { "Error".into() };
        let sandbox = container.sandbox_id.clone();
        self.tell(&sandbox, Some(id), RuntimeEventKind::Exited);
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

fn done<'a, T: Send + 'a>(result: Result<T, RuntimeError>) -> Answer<'a, T> {
    ready(result).boxed()
}

impl Runtime for FakeRuntime {
    fn handlers(&self) -> Vec<RuntimeHandler> {
        ["", "podium"].map(|name| RuntimeHandler { name: name.into(), ..RuntimeHandler::default() }).into()
    }

    fn run_pod_sandbox(&self, config: SandboxConfig) -> Answer<'_, SandboxStatus> {
        let created_at_nanos = self.now_nanos();
        let mut state = self.state();
        let id = state.id("sandbox");
        state.calls.push(format!("sandbox {}", config.name));
        let status = SandboxStatus {
            id: id.clone(),
            pod_uid: config.pod_uid,
            namespace: config.namespace,
            name: config.name,
            attempt: config.attempt,
            ready: true,
            created_at_nanos,
            netns: (!config.host_network).then(|| PathBuf::from("/proc/self/ns/net")),
            labels: config.labels,
            cgroup: config.cgroup,
        };
        state.log_dirs.insert(id.clone(), config.log_dir);
        state.sandboxes.insert(id, status.clone());
        done(Ok(status))
    }

    fn stop_pod_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let now = self.now_nanos();
        let mut state = self.state();
        let running: Vec<String> =
            state.containers.values().filter(|c| c.sandbox_id == id).map(|c| c.id.clone()).collect();
        running.iter().for_each(|container| state.exit(container, 137, now));
        if let Some(sandbox) = state.sandboxes.get_mut(id).filter(|s| s.ready) {
            sandbox.ready = false;
            let call = format!("stop-sandbox {}", sandbox.name);
            state.calls.push(call);
            state.tell(id, None, RuntimeEventKind::SandboxStopped);
        }
        done(Ok(()))
    }

    fn remove_pod_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut state = self.state();
        state.containers.retain(|_, c| c.sandbox_id != id);
        if let Some(sandbox) = state.sandboxes.remove(id) {
            state.calls.push(format!("remove-sandbox {}", sandbox.name));
        }
        done(Ok(()))
    }

    fn list_pod_sandboxes(&self) -> Answer<'_, Vec<SandboxStatus>> {
        done(Ok(self.sandboxes()))
    }

    fn create_container<'a>(&'a self, sandbox_id: &'a str, config: ContainerConfig) -> Answer<'a, String> {
        let created_at_nanos = self.now_nanos();
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.get(sandbox_id).filter(|s| s.ready).cloned() else {
            return done(Err(RuntimeError::NotFound));
        };
        let id = state.id("container");
        state.calls.push(format!("create {}", config.name));
        let log_dir = state.log_dirs.get(sandbox_id).cloned().unwrap_or_default();
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            pod_uid: sandbox.pod_uid,
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: config.image.clone(),
            created_at_nanos,
            log_path: log_dir.join(&config.log_path),
            labels: config.labels.clone(),
            resources: config.resources.clone(),
            ..ContainerStatus::default()
        };
        state.containers.insert(id.clone(), status);
        state.configs.insert(id.clone(), config);
        done(Ok(id))
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let now = self.now_nanos();
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(id) else { return done(Err(RuntimeError::NotFound)) };
        container.state = ContainerState::Running;
        container.started_at_nanos = now;
        let (name, sandbox) = (container.name.clone(), container.sandbox_id.clone());
        state.calls.push(format!("start {name}"));
        state.tell(&sandbox, Some(id), RuntimeEventKind::Started);
        done(Ok(()))
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        let name = self.state().containers.get(id).map(|c| c.name.clone());
        let Some(name) = name else { return done(Err(RuntimeError::NotFound)) };
        self.state().calls.push(format!("stop {name} {}s", grace.as_secs()));
        async move {
            let waits = self.state().ignores_sigterm;
            if waits {
                self.clock.sleep(grace).await;
            }
            let now = self.now_nanos();
            self.state().exit(id, if waits { 137 } else { 143 }, now);
            Ok(())
        }
        .boxed()
    }

    fn update_container<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()> {
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(id) else { return done(Err(RuntimeError::NotFound)) };
        container.resources = resources;
        let call = format!("update {}", container.name);
        state.calls.push(call);
        done(Ok(()))
    }

    fn update_sandbox<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()> {
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.get_mut(id) else { return done(Err(RuntimeError::NotFound)) };
        sandbox.cgroup = resources;
        let call = format!("update-sandbox {}", sandbox.name);
        state.calls.push(call);
        done(Ok(()))
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.state().containers.remove(id);
        done(Ok(()))
    }

    fn usage(&self) -> Answer<'_, Vec<Usage>> {
        let usage = |s: SandboxStatus| Usage { pod_uid: s.pod_uid, memory_bytes: 1 << 20, processes: 1 };
        done(Ok(self.sandboxes().into_iter().filter(|s| s.ready).map(usage).collect()))
    }

    fn list_containers(&self) -> Answer<'_, Vec<ContainerStatus>> {
        done(Ok(self.containers()))
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: Vec<String>, _: Duration) -> Answer<'a, ExecResult> {
        let mut state = self.state();
        let name = state.containers.get(id).map(|c| c.name.clone()).unwrap_or_default();
        state.calls.push(format!("exec {name} {}", command.join(" ")));
        let result = match state.containers.get(id).filter(|c| c.state == ContainerState::Running) {
            Some(c) => {
                let exit_code = state.exec_codes.get(&c.name).copied().unwrap_or(0);
                Ok(ExecResult { exit_code, ..ExecResult::default() })
            }
            None => Err(RuntimeError::NotFound),
        };
        done(result)
    }

    fn exec<'a>(&'a self, _: &'a str, _: ExecOptions) -> Answer<'a, ExecSession> {
        done(Err(RuntimeError::Invalid("there is no process to run a command in".into())))
    }

    fn attach<'a>(&'a self, _: &'a str, _: ExecOptions) -> Answer<'a, ExecSession> {
        done(Err(RuntimeError::Invalid("there is no process to attach to".into())))
    }

    /// Every running container has used a second and a mebibyte.
    fn container_usage(&self) -> Answer<'_, Vec<(String, ContainerUsage)>> {
        let usage = ContainerUsage {
            cpu_nanos: 1_000_000_000,
            memory_bytes: 2 << 20,
            working_set_bytes: 1 << 20,
            rss_bytes: 1 << 19,
        };
        let running = self.containers().into_iter().filter(|c| c.state == ContainerState::Running);
        done(Ok(running.map(|c| (c.id, usage)).collect()))
    }

    fn events(&self) -> mpsc::UnboundedReceiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().listeners.push(sender);
        receiver
    }

    fn connect<'a>(&'a self, _: &'a str, port: u16) -> Answer<'a, Connection> {
        done(Err(RuntimeError::Other(format!("nobody listens on port {port}"))))
    }

    fn image_status<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>> {
        done(Ok(self.state().present.get(reference).cloned()))
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
        _: watch::Sender<PullProgress>,
    ) -> Answer<'a, ImageInfo> {
        let mut state = self.state();
        state.pulled_as.extend(credentials.into_iter().map(|one| one.username));
        let found = state.remote.get(reference).or_else(|| state.present.get(reference)).cloned();
        let Some(info) = found else { return done(Err(RuntimeError::NotFound)) };
        state.present.insert(reference.to_owned(), info.clone());
        done(Ok(info))
    }

    fn list_images(&self) -> Answer<'_, Vec<ImageInfo>> {
        done(Ok(self.state().present.values().cloned().collect()))
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, ()> {
        self.state().present.retain(|name, image| name != reference && image.id != reference);
        done(Ok(()))
    }
}
