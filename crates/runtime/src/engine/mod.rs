//! The agent's side: knows all sandboxes, asks shims, watches them, adopts them after a restart.
//!
//! Invariants: what [`Engine`] lists is what shims reported, or, where a shim is gone, what its records say; a
//! container whose end nobody saw is reported as 137 `ContainerStatusUnknown`. No process is forked here.

mod connect;
mod exec;
mod images;
mod sandboxes;
mod spawner;
mod watcher;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use exec::{ExecOutput, ExecStreams, TerminalSize};

use crate::error::{During as _, RuntimeError};
use crate::image::{ImageInfo, ImageStore};
use crate::logs::now_nanos;
use crate::spec::{
    ContainerPlan, ContainerRecord, ContainerSpec, ContainerState, ContainerStatus, ContainerUsage,
    ExecResult, ExecSpec, RuntimeEvent, RuntimeEventKind, SandboxPlan, SandboxStatus,
};
use crate::wire::{self, Reply, Request};
pub(crate) use images::images_in_use;

/// A killed process that has not ended after this time is stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Removed containers that are remembered: far more than can be removed while one message is on its way.
const REMEMBERED: usize = 1024;

/// Where an engine keeps its things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Images, layers, containers' files.
    pub data_dir: PathBuf,
    /// Sockets and state; kept across restarts of the agent, lost at a reboot.
    pub run_dir: PathBuf,
    /// Name of the control group above all others, e.g. `podium`.
    pub cgroup_parent: String,
    /// This program, or any that calls [`crate::dispatch`] first.
    pub exe: PathBuf,
}

impl EngineConfig {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.run_dir.join("sandboxes")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.data_dir.join("containers")
    }
}

struct Sandbox {
    plan: SandboxPlan,
    ready: bool,
    /// Its shim answers.
    alive: bool,
    /// Asked to go: its shim's end is no accident.
    leaving: bool,
}

impl Sandbox {
    fn socket(&self) -> PathBuf {
        self.plan.dir.join("shim.sock")
    }
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, ContainerRecord>,
    /// Containers removed last, the newest at the end: news of their end may still be on its way.
    removed: VecDeque<String>,
}

impl State {
    /// Forgets a container for good.
    fn remove(&mut self, id: &str) {
        self.containers.remove(id);
        if self.removed.len() == REMEMBERED {
            self.removed.pop_front();
        }
        self.removed.push_back(id.to_owned());
    }
}

/// The container engine of one machine.
pub struct Engine {
    config: EngineConfig,
    spawner: Mutex<Option<spawner::Spawner>>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<RuntimeEvent>>>,
    images: Arc<ImageStore>,
}

impl Engine {
    /// Starts a spawner and adopts the sandboxes that live from before.
    ///
    /// # Errors
    /// When the directories can't be made or the spawner doesn't start.
    pub async fn open(config: EngineConfig) -> Result<Arc<Self>, RuntimeError> {
        for folder in [&config.run_dir, &config.sandboxes(), &config.data_dir, &config.containers()] {
            std::fs::create_dir_all(folder).during(|| format!("cannot make {}", folder.display()))?;
        }
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&config.run_dir, std::fs::Permissions::from_mode(0o700))?;
        let images = Arc::new(ImageStore::open(&config.images())?);
        let engine = Arc::new(Self {
            spawner: Mutex::new(Some(spawner::Spawner::start(&config.exe)?)),
            config,
            state: Mutex::default(),
            changed: watch::channel(0).0,
            subscribers: Mutex::default(),
            images,
        });
        engine.adopt().await?;
        Ok(engine)
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new subscription; nothing that happens after the call is missed.
    pub fn events(&self) -> mpsc::UnboundedReceiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    fn publish(&self, sandbox_id: &str, container_id: Option<&str>, kind: RuntimeEventKind) {
        let event = RuntimeEvent {
            sandbox_id: sandbox_id.to_owned(),
            container_id: container_id.map(str::to_owned),
            kind,
        };
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn wait_until(&self, settled: impl Fn(&State) -> bool) {
        let mut changes = self.changed.subscribe();
        while !settled(&self.state()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Folder of what a container has written to its root file system.
    pub fn writable_layer(&self, id: &str) -> PathBuf {
        self.config.containers().join(id).join("upper")
    }

    /// Containers of all sandboxes, ended ones too until they are removed.
    pub fn list_containers(&self) -> Vec<ContainerStatus> {
        self.state().containers.values().map(|record| record.status.clone()).collect()
    }

    /// What each running container has used, by its id. Read from the control groups now.
    ///
    /// # Errors
    /// When the machine's control groups can't be found.
    pub async fn container_usage(&self) -> Result<Vec<(String, ContainerUsage)>, RuntimeError> {
        let groups: Vec<(String, String)> = {
            let state = self.state();
            let running = state.containers.values().map(|record| &record.status);
            let running = running.filter(|status| status.state == ContainerState::Running);
            let group = |status: &ContainerStatus| {
                let sandbox = state.sandboxes.get(&status.sandbox_id)?;
                Some((status.id.clone(), format!("{}/{}", sandbox.plan.cgroup(), status.id)))
            };
            running.filter_map(group).collect()
        };
        blocking(move || {
            let hierarchies = crate::cgroup::Hierarchies::detect()?;
            Ok(groups.into_iter().map(|(id, group)| (id, hierarchies.group(&group).usage())).collect())
        })
        .await
    }

    /// Sandboxes until they are removed.
    pub fn list_sandboxes(&self) -> Vec<SandboxStatus> {
        self.state().sandboxes.values().map(|sandbox| sandbox.plan.status(sandbox.ready)).collect()
    }

    /// Asks the shim of a sandbox; one that doesn't answer is dealt with by its watcher.
    async fn ask(&self, sandbox_id: &str, request: Request) -> Result<Answer, RuntimeError> {
        let socket = {
            let state = self.state();
            let sandbox = state.sandboxes.get(sandbox_id);
            let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(format!("sandbox {sandbox_id}")))?;
            if !sandbox.alive {
                return Err(RuntimeError::Invalid(format!("sandbox {sandbox_id} has ended")));
            }
            sandbox.socket()
        };
        blocking(move || wire::ask(&socket, &request)).await
    }

    fn record(&self, id: &str) -> Result<ContainerRecord, RuntimeError> {
        let found = self.state().containers.get(id).cloned();
        found.ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// Makes a container that waits to be started; returns its id.
    ///
    /// # Errors
    /// `NotFound` for an unknown sandbox or image, `Invalid` for what can't be run.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        spec: ContainerSpec,
    ) -> Result<String, RuntimeError> {
        let images = Arc::clone(&self.images);
        let reference = spec.image.clone();
        let mut spec = spec;
        let (image, layers, mounted) = blocking({
            let mut mounts = std::mem::take(&mut spec.mounts);
            move || {
                let (image, layers) = images.prepare(&reference)?;
                let mut mounted = BTreeMap::new();
                for wanted in mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
                    let (image, layers) = images.prepare(wanted)?;
                    wanted.clone_from(&image.id);
                    mounted.insert(image.id, layers);
                }
                Ok((image, layers, (mounts, mounted)))
            }
        })
        .await?;
        spec.mounts = mounted.0;
        let id = new_id()?;
        let mut plan = plan_container(id.clone(), spec, image, layers, self.config.containers().join(&id))?;
        plan.mounted = mounted.1;
        let dir = plan.dir.clone();
        blocking(move || {
            for name in ["upper", "work", "rootfs"] {
                std::fs::create_dir_all(dir.join(name))?;
            }
            Ok(())
        })
        .await?;
        let dir = plan.dir.clone();
        if let Err(error) = self.ask(sandbox_id, Request::Create(Box::new(plan))).await {
            crate::error::log_failure(
                std::fs::remove_dir_all(dir),
                "cannot remove a failed container's files",
            );
            return Err(error);
        }
        self.wait_until(|state| {
            state.containers.contains_key(&id) || state.sandboxes.get(sandbox_id).is_none_or(|s| !s.alive)
        })
        .await;
        self.note(&id);
        Ok(id)
    }

    /// Logs what the machine refused.
    fn note(&self, id: &str) {
        if let Ok(record) = self.record(id) {
            for note in &record.notes {
                tracing::info!(container = id, note, "container runs with less than asked for");
            }
        }
    }

    /// Runs a container's program.
    ///
    /// # Errors
    /// `Invalid` when the program can't be run or ran before.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let sandbox_id = self.record(id)?.status.sandbox_id;
        self.ask(&sandbox_id, Request::Start { id: id.to_owned() }).await?;
        self.wait_until(|state| {
            state.containers.get(id).is_none_or(|record| record.status.state != ContainerState::Created)
        })
        .await;
        Ok(())
    }

    /// Waits for a container's end.
    ///
    /// # Errors
    /// `NotFound` when it is removed before.
    pub async fn wait_container(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.wait_until(|state| state.containers.get(id).is_none_or(|record| !crate::shim::may_live(record)))
            .await;
        Ok(self.record(id)?.status)
    }

    /// Sends the stop signal, then kills everything after `grace`; returns once the container has ended. Idempotent.
    ///
    /// # Errors
    /// When the container can't be signalled or doesn't die.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let record = match self.record(id) {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        if !crate::shim::may_live(&record) {
            return Ok(());
        }
        let sandbox_id = record.status.sandbox_id;
        if record.status.state == ContainerState::Running && !grace.is_zero() {
            let request = Request::Signal { id: id.to_owned(), signal: record.stop_signal, all: false };
            self.ask(&sandbox_id, request).await?;
            if tokio::time::timeout(grace, self.wait_container(id)).await.is_ok() {
                return Ok(());
            }
        }
        let request = Request::Signal { id: id.to_owned(), signal: libc::SIGKILL, all: true };
        self.ask(&sandbox_id, request).await?;
        match tokio::time::timeout(KILL_LIMIT, self.wait_container(id)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::Other(format!("container {id} does not die"))),
        }
    }

    /// Kills and forgets a container and deletes its files. Idempotent.
    ///
    /// # Errors
    /// When something of it can't be removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let record = match self.record(id) {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let sandbox_id = record.status.sandbox_id;
        let alive = self.state().sandboxes.get(&sandbox_id).is_some_and(|sandbox| sandbox.alive);
        if alive {
            self.ask(&sandbox_id, Request::Remove { id: id.to_owned() }).await?;
        } else {
            self.forget_dead(&sandbox_id, id).await?;
        }
        self.state().remove(id);
        self.bump();
        let dir = self.config.containers().join(id);
        blocking(move || remove_dir(&dir)).await
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// `Timeout` when it doesn't end in time; it is killed then.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        let spec = ExecSpec { command, stdout: true, stderr: true, ..ExecSpec::default() };
        let collected = async { exec::collect(self.exec(id, spec).await?).await };
        tokio::time::timeout(timeout, collected).await.unwrap_or(Err(RuntimeError::Timeout))
    }

    /// Starts a command; it is killed when the streams are dropped.
    ///
    /// # Errors
    /// `Invalid` when the container doesn't run or has no such program.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<ExecStreams, RuntimeError> {
        let sandbox_id = self.record(id)?.status.sandbox_id;
        let answer = self.ask(&sandbox_id, Request::Exec { id: id.to_owned(), spec }).await?;
        exec::streams(answer)
    }

    /// Joins the streams of a container's first process: its output from now on, its input if it has one and `stdin` says so.
    ///
    /// # Errors
    /// `Invalid` when the container doesn't run.
    pub async fn attach(&self, id: &str, stdin: bool) -> Result<ExecStreams, RuntimeError> {
        let sandbox_id = self.record(id)?.status.sandbox_id;
        let answer = self.ask(&sandbox_id, Request::Attach { id: id.to_owned(), stdin }).await?;
        exec::streams(answer)
    }
}

type Answer = (std::os::unix::net::UnixStream, Reply, Vec<std::os::fd::OwnedFd>);

/// Runs file and socket work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RuntimeError::Other(error.to_string())))
}

/// 128 random bits in hexadecimal.
fn new_id() -> Result<String, RuntimeError> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0u8; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).during(|| "no random numbers".into())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn remove_dir(dir: &Path) -> Result<(), RuntimeError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).during(|| format!("cannot delete {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Fills in what the image says where the specification is silent.
fn plan_container(
    id: String,
    spec: ContainerSpec,
    image: ImageInfo,
    layers: Vec<PathBuf>,
    dir: PathBuf,
) -> Result<ContainerPlan, RuntimeError> {
    let mut argv = if spec.command.is_empty() { image.entrypoint } else { spec.command.clone() };
    match (spec.args.is_empty(), spec.command.is_empty()) {
        (false, _) => argv.extend(spec.args.iter().cloned()),
        (true, true) => argv.extend(image.cmd),
        (true, false) => {}
    }
    let mut env = image.env;
    for (name, value) in &spec.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let cwd = if spec.working_dir.is_empty() { image.working_dir } else { spec.working_dir.clone() };
    let stop = spec.stop_signal.clone().or(image.stop_signal);
    let stop_signal = stop.map_or(Ok(libc::SIGTERM), |name| signal_number(&name))?;
    let log_outside = spec.log_path.components().any(|part| !matches!(part, std::path::Component::Normal(_)));
    if log_outside || spec.log_path.as_os_str().is_empty() {
        return Err(RuntimeError::Invalid(format!(
            "log path {} is not below the log folder",
            spec.log_path.display()
        )));
    }
    Ok(ContainerPlan {
        id,
        image_id: image.id,
        image_user: image.user,
        layers,
        mounted: BTreeMap::new(),
        dir,
        argv,
        env,
        cwd,
        stop_signal,
        created_at_nanos: now_nanos(),
        spec,
    })
}

/// `SIGTERM`, `TERM` or `15`.
fn signal_number(name: &str) -> Result<i32, RuntimeError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name =
        NAMES.iter().position(|known| *known == short).and_then(|index| i32::try_from(index + 1).ok());
    let offset =
        |from: &str| short.strip_prefix(from).map(|rest| rest.trim_start_matches('+').parse().unwrap_or(0));
    let real_time = offset("RTMIN").map(|n: i32| 34 + n);
    let number = by_name.or(real_time).or_else(|| short.parse().ok()).filter(|n| (1..=64).contains(n));
    number.ok_or_else(|| RuntimeError::Invalid(format!("unknown signal {name:?}")))
}

#[cfg(test)]
mod tests;
