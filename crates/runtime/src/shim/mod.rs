//! The shim: one small single-threaded process per sandbox that outlives agent and spawner.
//!
//! ```text
//! agent ──socket──► shim (in the sandbox's net, ipc, uts namespaces; own control group)
//!                     ├─ container init (own mnt, cgroup and pid namespaces)   ── pipes ─► log file
//!                     └─ commands in containers
//! ```
//!
//! Invariants: it is the parent of everything it starts and reaps it; a container's record on disk says Exited before
//! anybody is told so; the log is complete before that. It never logs to the agent: failures go into replies.

mod container;
mod exec;
mod sandbox;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::cgroup::{Group, Hierarchies};
use crate::error::{RuntimeError, log_failure};
use crate::logs::Output;
use crate::spec::{ContainerRecord, ContainerState, SandboxPlan};
use crate::sys;
use crate::wire::{self, Reply, Request};

use container::Container;

pub(crate) use container::record_path;
pub(crate) use sandbox::{give_back, store};

/// An agent that stops in the middle of a message must not stop the shim.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Killed processes die quickly unless the kernel holds them.
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);

/// A connection that waits for the end of a command or container.
struct Waiter {
    connection: UnixStream,
    purpose: Purpose,
}

enum Purpose {
    Watch,
    Exec { pid: Pid },
    Attach { id: String, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
}

struct Shim {
    plan: SandboxPlan,
    hierarchies: Hierarchies,
    group: Group,
    /// First process of the shared pid namespace.
    pause: Option<Pid>,
    containers: BTreeMap<String, Container>,
    waiters: Vec<Waiter>,
    stopped: bool,
    /// Set by the last request.
    done: bool,
}

/// What became ready.
enum Ready {
    Signal,
    Connection,
    Waiter(usize),
    Output(String, Output),
}

/// Runs a shim in a process freshly forked by the spawner.
pub(crate) fn main(plan: &SandboxPlan, answer: &UnixStream) -> ! {
    let outcome = sandbox::set_up(plan, answer.as_fd());
    let (mut shim, listener, signals, answer) = match outcome {
        Ok(parts) => parts,
        Err((error, answer)) => {
            sandbox::give_back(plan);
            let sent = wire::send(&answer, &Reply::Failed(error), &[]);
            std::process::exit(if sent.is_ok() { 1 } else { 2 });
        }
    };
    let told = wire::send(&answer, &Reply::Done, &[]);
    drop(answer);
    let ended = told.and_then(|()| shim.serve(&listener, signals.as_fd()));
    std::process::exit(i32::from(ended.is_err()))
}

impl Shim {
    fn serve(&mut self, listener: &UnixListener, signals: BorrowedFd<'_>) -> Result<(), RuntimeError> {
        while !self.done {
            let mut ready = self.wait(listener, signals)?;
            // Output before exits, so that logs are whole; waiters from the back, so that indexes stay right.
            ready.sort_by_key(|event| match event {
                Ready::Output(..) => 0,
                Ready::Waiter(index) => usize::MAX / 2 - index,
                Ready::Signal => usize::MAX - 1,
                Ready::Connection => usize::MAX,
            });
            for event in ready {
                match event {
                    Ready::Output(id, output) => self.copy_output(&id, output),
                    // One failing container or peer must not take the others down.
                    Ready::Waiter(index) => log_failure(self.waiter_left(index), "cannot end a command"),
                    Ready::Signal => {
                        while sys::next_signal(signals)?.is_some() {}
                        log_failure(self.reap(), "cannot reap");
                    }
                    Ready::Connection => log_failure(self.accept(listener), "cannot answer"),
                }
            }
        }
        Ok(())
    }

    fn wait(&self, listener: &UnixListener, signals: BorrowedFd<'_>) -> Result<Vec<Ready>, RuntimeError> {
        let mut sources = vec![(signals, Ready::Signal), (listener.as_fd(), Ready::Connection)];
        for (index, waiter) in self.waiters.iter().enumerate() {
            sources.push((waiter.connection.as_fd(), Ready::Waiter(index)));
        }
        for (id, container) in &self.containers {
            for (output, fd) in &container.outputs {
                sources.push((fd.as_fd(), Ready::Output(id.clone(), *output)));
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let hot: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(sources.into_iter().zip(hot).filter(|(_, hot)| *hot).map(|((_, event), _)| event).collect())
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<(), RuntimeError> {
        let (connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(PEER_TIMEOUT))?;
        connection.set_write_timeout(Some(PEER_TIMEOUT))?;
        // A connection that breaks concerns only its peer.
        let Ok(Some((request, _))) = wire::receive::<Request>(&connection) else { return Ok(()) };
        let answered = match self.handle(request, &connection) {
            Ok(Some(purpose)) => {
                self.waiters.push(Waiter { connection, purpose });
                return Ok(());
            }
            Ok(None) => wire::send(&connection, &Reply::Done, &[]),
            Err(error) => wire::send(&connection, &Reply::Failed(error), &[]),
        };
        drop(answered);
        Ok(())
    }

    /// Carries a request out. With a purpose the reply has been sent already and the connection stays.
    fn handle(&mut self, request: Request, connection: &UnixStream) -> Result<Option<Purpose>, RuntimeError> {
        match request {
            Request::Watch => {
                let records = self.containers.values().map(|container| container.record.clone()).collect();
                wire::send(connection, &Reply::Snapshot(records), &[])?;
                return Ok(Some(Purpose::Watch));
            }
            Request::Create(plan) => {
                if self.stopped {
                    return Err(RuntimeError::Invalid("the sandbox is stopped".into()));
                }
                let target = match &plan.spec.process_namespace_of {
                    Some(id) => Some(self.process_of(id)?),
                    None => None,
                };
                let (hierarchies, group) = (&self.hierarchies, &self.group);
                let container =
                    Container::create(*plan, &self.plan, hierarchies, group, (self.pause, target))?;
                let record = container.record.clone();
                self.containers.insert(record.status.id.clone(), container);
                self.tell(&record);
            }
            Request::Start { id } => {
                let dir = self.plan.dir.clone();
                let container = self.container(&id)?;
                let started = container.start(&dir);
                let record = container.record.clone();
                self.tell(&record);
                started?;
            }
            Request::Signal { id, signal, all } => self.container(&id)?.signal(signal, all)?,
            Request::Limit { id: None, resources } => {
                self.group.limit(&resources)?;
                self.plan.spec.cgroup = resources;
                store(&self.plan.dir.join("sandbox.json"), &self.plan)?;
            }
            Request::Limit { id: Some(id), resources } => {
                let dir = self.plan.dir.clone();
                let container = self.container(&id)?;
                container.limit(resources, &dir)?;
                let record = container.record.clone();
                self.tell(&record);
            }
            Request::Remove { id } => self.remove(&id)?,
            Request::Exec { id, spec } => {
                let pause = self.pause;
                let (pid, streams, fds) = exec::start(self.container(&id)?, &spec, pause)?;
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
                wire::send(connection, &Reply::Streams(streams), &borrowed)?;
                return Ok(Some(Purpose::Exec { pid }));
            }
            Request::Attach { id, stdin } => {
                return exec::attach(self.container(&id)?, &id, stdin, connection).map(Some);
            }
            Request::Socket { ipv6 } => {
                let socket = self.socket(ipv6)?;
                wire::send(connection, &Reply::Socket, &[socket.as_fd()])?;
            }
            Request::StopSandbox => self.stop()?,
            Request::Shutdown => {
                self.stop()?;
                let ids: Vec<String> = self.containers.keys().cloned().collect();
                ids.iter().try_for_each(|id| self.remove(id))?;
                sandbox::give_back(&self.plan);
                self.done = true;
            }
        }
        Ok(None)
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, RuntimeError> {
        self.containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// A socket belongs to the network namespace of the process that makes it, wherever it is used.
    fn socket(&self, ipv6: bool) -> Result<OwnedFd, RuntimeError> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
        if self.stopped {
            return Err(RuntimeError::Invalid("the sandbox is stopped".into()));
        }
        let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?)
    }

    fn process_of(&self, id: &str) -> Result<Pid, RuntimeError> {
        let running = self.containers.get(id).filter(|c| c.record.status.state == ContainerState::Running);
        running
            .and_then(|container| container.pid)
            .ok_or_else(|| RuntimeError::Invalid(format!("the target container {id} does not run")))
    }

    fn stop(&mut self) -> Result<(), RuntimeError> {
        for container in self.containers.values_mut() {
            container.kill();
        }
        if let Some(pause) = self.pause {
            sys::kill(pause.as_raw_nonzero().get(), libc::SIGKILL)?;
        }
        self.group.kill();
        while self.pause.is_some() || self.containers.values().any(|container| container.pid.is_some()) {
            self.reap_one(WaitOptions::empty())?;
        }
        self.stopped = true;
        std::fs::write(self.plan.dir.join("stopped"), "")?;
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), RuntimeError> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        container.kill();
        while self.containers.get(id).is_some_and(|container| container.pid.is_some()) {
            self.reap_one(WaitOptions::empty())?;
        }
        if let Some(container) = self.containers.remove(id) {
            container.forget(&self.plan.dir)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), RuntimeError> {
        while self.reap_one(WaitOptions::NOHANG)? {}
        Ok(())
    }

    /// Reaps one child; false when none is ready.
    fn reap_one(&mut self, options: WaitOptions) -> Result<bool, RuntimeError> {
        let (pid, status) = match rustix::process::wait(options) {
            Ok(Some(ended)) => ended,
            Ok(None) => return Ok(false),
            Err(rustix::io::Errno::CHILD) => {
                // Nobody is left, whatever the books say.
                self.pause = None;
                self.containers.values_mut().for_each(|container| container.pid = None);
                return Ok(false);
            }
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let code = exit_code(status);
        if self.pause == Some(pid) {
            self.pause = None;
        }
        let ended = self
            .containers
            .iter()
            .find(|(_, container)| container.pid == Some(pid))
            .map(|(id, _)| id.clone());
        if let Some(id) = ended {
            self.container_ended(&id, code)?;
        }
        self.finish_waiters(code, |purpose| matches!(purpose, Purpose::Exec { pid: p } if *p == pid));
        Ok(true)
    }

    fn container_ended(&mut self, id: &str, code: i32) -> Result<(), RuntimeError> {
        let shared = self.pause.is_some() || self.plan.spec.host_pid;
        let container = self.container(id)?;
        let shared = shared || container.plan.spec.process_namespace_of.is_some();
        container.group.kill();
        // Without a pid namespace of its own a container's other processes outlive its first one.
        if shared && !container.group.wait_empty(ORPHAN_LIMIT) {
            tracing::error!(container = id, "processes of an ended container do not die");
        }
        for output in [Output::Stdout, Output::Stderr] {
            while self.copy_once(id, output) {}
        }
        let dir = self.plan.dir.clone();
        let container = self.container(id)?;
        container.pid = None;
        if let Err(error) = container.ended(code, &dir) {
            container.record.status.message = format!("record not written: {error}");
        }
        let record = container.record.clone();
        self.tell(&record);
        self.finish_waiters(
            code,
            |purpose| matches!(purpose, Purpose::Attach { id: other, .. } if other == id),
        );
        Ok(())
    }

    /// Sends the exit code to those who wait for it and lets them go.
    fn finish_waiters(&mut self, code: i32, concerned: impl Fn(&Purpose) -> bool) {
        self.waiters.retain(|waiter| {
            let leaves = concerned(&waiter.purpose);
            if leaves {
                // A peer that is gone needs no answer.
                drop(wire::send(&waiter.connection, &Reply::Exit(code), &[]));
            }
            !leaves
        });
    }

    /// Tells every watcher; one that doesn't take it is dropped and will look again.
    fn tell(&mut self, record: &ContainerRecord) {
        let Ok(bytes) = wire::encode(&Reply::Changed(Box::new(record.clone()))) else { return };
        self.waiters.retain(|waiter| {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            !matches!(waiter.purpose, Purpose::Watch)
                || rustix::net::send(&waiter.connection, &bytes, flags) == Ok(bytes.len())
        });
    }

    fn waiter_left(&mut self, index: usize) -> Result<(), RuntimeError> {
        if index >= self.waiters.len() {
            return Ok(());
        }
        match self.waiters.swap_remove(index).purpose {
            // Input that is given once went along with its client.
            Purpose::Watch | Purpose::Attach { .. } => Ok(()),
            // The command has its own session: all of it goes.
            Purpose::Exec { pid } => {
                sys::kill(-pid.as_raw_nonzero().get(), libc::SIGKILL)?;
                sys::kill(pid.as_raw_nonzero().get(), libc::SIGKILL)
            }
            .map_err(RuntimeError::from),
        }
    }

    fn copy_output(&mut self, id: &str, output: Output) {
        self.copy_once(id, output);
    }

    /// Copies what can be read now to the log and to whoever is attached; false when there was nothing.
    fn copy_once(&mut self, id: &str, output: Output) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let Some(bytes) = container.read_output(output) else { return false };
        for waiter in &self.waiters {
            if let Purpose::Attach { id: attached, stdout, stderr } = &waiter.purpose
                && attached == id
                && let Some(fd) = (if output == Output::Stdout { stdout } else { stderr }).as_ref()
            {
                // The log has everything; somebody attached who doesn't read loses what a full pipe can't take.
                log_failure(rustix::io::write(fd, &bytes), "somebody attached misses output");
            }
        }
        true
    }
}

fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(9))
}

/// Whether a record describes a process that may live.
pub(crate) fn may_live(record: &ContainerRecord) -> bool {
    record.status.state != ContainerState::Exited
}
