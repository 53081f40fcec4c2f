//! One container, seen from its shim.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::sandbox::store;
use crate::cgroup::{Group, Hierarchies};
use crate::error::{During as _, RuntimeError};
use crate::init::{self, ContainerStart, InitMessage};
use crate::logs::{LogFile, Output, now_nanos};
use crate::spec::{ContainerPlan, ContainerRecord, ContainerState, ContainerStatus, Resources, SandboxPlan};
use crate::{sys, wire};

/// A container init that hangs must not hang the shim for good.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 * 1024;

pub(super) struct Container {
    pub(super) plan: ContainerPlan,
    pub(super) record: ContainerRecord,
    pub(super) group: Group,
    /// Until it has been reaped.
    pub(super) pid: Option<Pid>,
    /// Until it has started.
    sync: Option<UnixStream>,
    pub(super) outputs: Vec<(Output, OwnedFd)>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) console: Option<OwnedFd>,
    log: LogFile,
}

/// Both sides of the standard streams of a process.
pub(super) struct Stdio {
    pub(super) child: [OwnedFd; 3],
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Pipes where asked for, else /dev/null.
    pub(super) fn new(stdin: bool, stdout: bool, stderr: bool) -> Result<Self, RuntimeError> {
        let pipe = |wanted: bool| -> Result<(OwnedFd, Option<OwnedFd>, Option<OwnedFd>), RuntimeError> {
            let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
            if !wanted {
                return Ok((null.into(), None, None));
            }
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            Ok((null.into(), Some(read), Some(write)))
        };
        let (null_in, in_read, in_write) = pipe(stdin)?;
        let (null_out, out_read, out_write) = pipe(stdout)?;
        let (null_err, err_read, err_write) = pipe(stderr)?;
        Ok(Self {
            child: [in_read.unwrap_or(null_in), out_write.unwrap_or(null_out), err_write.unwrap_or(null_err)],
            stdin: in_write,
            stdout: out_read,
            stderr: err_read,
        })
    }
}

impl Container {
    /// Makes everything up to the point where only the program's exec is missing. `others`: first process of the shared
    /// pid namespace, and of the container whose namespace this one joins.
    pub(super) fn create(
        plan: ContainerPlan,
        sandbox: &SandboxPlan,
        hierarchies: &Hierarchies,
        parent: &Group,
        others: (Option<Pid>, Option<Pid>),
    ) -> Result<Self, RuntimeError> {
        let log_path = sandbox.spec.log_dir.join(&plan.spec.log_path);
        let log = LogFile::open(&log_path).during(|| format!("cannot open log {}", log_path.display()))?;
        let group = parent.child(&plan.id);
        group.create()?;
        let mut plan = plan;
        let withheld = restrict_devices(&group, &mut plan);
        let made = Self::launch(&plan, sandbox, hierarchies, &group, others);
        let (pid, sync, stdio, console, mut notes) = match made {
            Ok(parts) => parts,
            Err(error) => {
                group.kill();
                crate::error::log_failure(group.remove(), "cannot remove the group of a failed container");
                return Err(error);
            }
        };
        notes.extend(group.limit(&plan.spec.resources)?);
        notes.extend(withheld);
        let mut outputs = Vec::new();
        let streams = [(Output::Stdout, stdio.stdout), (Output::Stderr, stdio.stderr)];
        for (output, fd) in streams {
            outputs.extend(fd.map(|fd| (output, fd)));
        }
        if let Some(master) = &console {
            outputs.push((Output::Stdout, rustix::io::fcntl_dupfd_cloexec(master, 3)?));
        }
        for (_, fd) in &outputs {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let record = new_record(&plan, sandbox, log_path, pid, notes);
        store(&record_path(&sandbox.dir, &plan.id), &record)?;
        let stdin = stdio.stdin;
        Ok(Self { plan, record, group, pid: Some(pid), sync: Some(sync), outputs, stdin, console, log })
    }

    #[allow(clippy::type_complexity)]
    fn launch(
        plan: &ContainerPlan,
        sandbox: &SandboxPlan,
        hierarchies: &Hierarchies,
        group: &Group,
        (pause, target): (Option<Pid>, Option<Pid>),
    ) -> Result<(Pid, UnixStream, Stdio, Option<OwnedFd>, Vec<String>), RuntimeError> {
        let (sync, child_sync) = UnixStream::pair()?;
        let piped = !plan.spec.tty;
        let stdio = Stdio::new(plan.spec.stdin && piped, piped, piped)?;
        // With a pause process children are born into its namespace anyway.
        let own_pids = pause.is_none() && !sandbox.spec.host_pid;
        let namespace = match target {
            Some(target) if own_pids => Some(PidNamespace::Of(target)),
            _ => own_pids.then_some(PidNamespace::New),
        };
        let pid = born(namespace, group, |entered| {
            let [input, output, error] = &stdio.child;
            let fds = [input.as_fd(), output.as_fd(), error.as_fd(), child_sync.as_fd()];
            init::container(&ContainerStart { plan, sandbox, hierarchies, group, entered }, fds)
        })?;
        drop(child_sync);
        match ready(&sync) {
            Ok((notes, console)) => {
                let stdio = Stdio { child: null_stdio()?, ..stdio };
                Ok((pid, sync, stdio, console, notes))
            }
            Err(error) => {
                sys::kill(pid.as_raw_nonzero().get(), libc::SIGKILL)?;
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
                Err(error)
            }
        }
    }

    /// Lets the program run.
    pub(super) fn start(&mut self, dir: &Path) -> Result<(), RuntimeError> {
        let Some(sync) = self.sync.take() else {
            return Err(RuntimeError::Invalid(format!("container {} has been started before", self.plan.id)));
        };
        let started = go(&sync);
        match &started {
            Ok(()) => {
                self.record.status.state = ContainerState::Running;
                self.record.status.started_at_nanos = now_nanos();
            }
            Err(error) => {
                self.record.status.reason = "StartError".into();
                self.record.status.message = error.to_string();
            }
        }
        store(&record_path(dir, &self.plan.id), &self.record)?;
        started
    }

    /// Changes the limits of what runs.
    pub(super) fn limit(&mut self, resources: Resources, dir: &Path) -> Result<(), RuntimeError> {
        self.group.limit(&resources)?;
        self.record.status.resources = resources.clone();
        self.plan.spec.resources = resources;
        store(&record_path(dir, &self.plan.id), &self.record)
    }

    pub(super) fn signal(&self, signal: i32, all: bool) -> Result<(), RuntimeError> {
        if all && signal == libc::SIGKILL {
            self.kill();
        } else if let Some(pid) = self.pid {
            sys::kill(pid.as_raw_nonzero().get(), signal)?;
        }
        Ok(())
    }

    /// Kills every process of the container; the first one's death shows by SIGCHLD.
    pub(super) fn kill(&self) {
        if let Some(pid) = self.pid {
            crate::error::log_failure(sys::kill(pid.as_raw_nonzero().get(), libc::SIGKILL), "cannot kill");
            self.group.kill();
        }
    }

    /// Closes the books: log, record on disk. Output has been read before.
    pub(super) fn ended(&mut self, code: i32, dir: &Path) -> Result<(), RuntimeError> {
        let written = self.log.finish();
        self.outputs.clear();
        self.stdin = None;
        self.console = None;
        self.sync = None;
        let status = &mut self.record.status;
        status.state = ContainerState::Exited;
        status.pid = 0;
        status.exit_code = code;
        status.finished_at_nanos = now_nanos();
        if status.reason.is_empty() {
            let reason = match code {
                0 => "Completed",
                _ if self.group.oom_kills() > 0 => "OOMKilled",
                _ => "Error",
            };
            reason.clone_into(&mut status.reason);
        }
        if let Err(error) = written {
            status.message = format!("{}log incomplete: {error}", status.message);
        }
        store(&record_path(dir, &self.plan.id), &self.record)
    }

    /// Reads what is there and logs it; `None` when there is nothing now or any more.
    pub(super) fn read_output(&mut self, output: Output) -> Option<Vec<u8>> {
        let index = self.outputs.iter().position(|(kind, _)| *kind == output)?;
        let mut buffer = vec![0; READ_BYTES];
        match rustix::io::read(&self.outputs[index].1, &mut buffer) {
            Ok(0) => {
                self.outputs.remove(index);
                None
            }
            Ok(count) => {
                buffer.truncate(count);
                if let Err(error) = self.log.write(output, &buffer) {
                    self.record.status.message = format!("log incomplete: {error}");
                }
                Some(buffer)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            // A terminal whose last user left says so by an error.
            Err(_) => {
                self.outputs.remove(index);
                None
            }
        }
    }

    /// Removes its group and record; its files are the agent's.
    pub(super) fn forget(self, dir: &Path) -> Result<(), RuntimeError> {
        self.group.remove()?;
        match std::fs::remove_file(record_path(dir, &self.plan.id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Keeps a container from the machine's devices. Where the kernel has no means to, it must not make their files either.
fn restrict_devices(group: &Group, plan: &mut ContainerPlan) -> Option<String> {
    if plan.spec.privileged {
        return None;
    }
    let error = group.restrict_devices().err()?;
    let is_mknod = |name: &String| matches!(name.to_ascii_uppercase().as_str(), "MKNOD" | "CAP_MKNOD");
    plan.spec.add_capabilities.retain(|name| !is_mknod(name));
    plan.spec.drop_capabilities.push("MKNOD".into());
    Some(format!("without the capability MKNOD, as devices cannot be kept from it: {error}"))
}

pub(crate) fn record_path(dir: &Path, id: &str) -> PathBuf {
    dir.join("containers").join(format!("{id}.json"))
}

fn new_record(
    plan: &ContainerPlan,
    sandbox: &SandboxPlan,
    log_path: PathBuf,
    pid: Pid,
    notes: Vec<String>,
) -> ContainerRecord {
    let status = ContainerStatus {
        id: plan.id.clone(),
        sandbox_id: sandbox.id.clone(),
        pod_uid: sandbox.spec.pod_uid.clone(),
        name: plan.spec.name.clone(),
        attempt: plan.spec.attempt,
        image: plan.spec.image.clone(),
        image_id: plan.image_id.clone(),
        state: ContainerState::Created,
        pid: pid.as_raw_nonzero().get(),
        created_at_nanos: plan.created_at_nanos,
        log_path,
        labels: plan.spec.labels.clone(),
        resources: plan.spec.resources.clone(),
        mounted_images: plan.mounted.keys().cloned().collect(),
        ..ContainerStatus::default()
    };
    ContainerRecord { status, stop_signal: plan.stop_signal, notes }
}

fn null_stdio() -> Result<[OwnedFd; 3], RuntimeError> {
    Ok(Stdio::new(false, false, false)?.child)
}

/// Where a child's pid lives, unless where its parent's children live anyway.
pub(super) enum PidNamespace {
    New,
    Of(Pid),
}

/// Forks a child into a group and a pid namespace; the shim itself stays in its own.
pub(super) fn born(
    namespace: Option<PidNamespace>,
    group: &Group,
    child: impl FnOnce(Result<(), RuntimeError>),
) -> Result<Pid, RuntimeError> {
    let changes = namespace.is_some();
    match namespace {
        None => {}
        Some(PidNamespace::New) => sys::unshare(libc::CLONE_NEWPID)?,
        Some(PidNamespace::Of(pid)) => {
            let path = format!("/proc/{}/ns/pid", pid.as_raw_nonzero());
            let fd = std::fs::File::open(path)
                .map_err(|_| RuntimeError::Invalid("the container does not run".into()))?;
            sys::setns(fd.as_fd(), libc::CLONE_NEWPID)?;
        }
    }
    let forked = group.fork(child);
    if changes {
        let own = std::fs::File::open("/proc/self/ns/pid")?;
        sys::setns(own.as_fd(), libc::CLONE_NEWPID)?;
    }
    forked.during(|| "cannot make a process".into())
}

/// Waits until a child has prepared everything; its notes and its terminal.
pub(super) fn ready(sync: &UnixStream) -> Result<(Vec<String>, Option<OwnedFd>), RuntimeError> {
    sync.set_read_timeout(Some(INIT_TIMEOUT))?;
    match wire::receive::<InitMessage>(sync)? {
        Some((InitMessage::Ready { notes }, fds)) => Ok((notes, fds.into_iter().next())),
        Some((InitMessage::Failed(error), _)) => Err(error),
        Some((InitMessage::Go, _)) | None => Err(RuntimeError::Other("the container's init died".into())),
    }
}

/// Lets a prepared child run its program. The exec closes the child's end of the socket.
pub(super) fn go(sync: &UnixStream) -> Result<(), RuntimeError> {
    wire::send(sync, &InitMessage::Go, &[])?;
    match wire::receive::<InitMessage>(sync)? {
        None => Ok(()),
        Some((InitMessage::Failed(error), _)) => Err(error),
        Some(_) => Err(RuntimeError::Other("the container's init answered nonsense".into())),
    }
}
