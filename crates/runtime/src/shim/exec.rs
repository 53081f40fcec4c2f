//! Commands in running containers, and attaching to their first process.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::Purpose;
use super::container::{Container, PidNamespace, Stdio, born, go, ready};
use crate::error::{During as _, RuntimeError};
use crate::init::{self, ExecStart};
use crate::logs::Output;
use crate::spec::{ContainerState, ExecSpec};
use crate::wire::{self, Reply, Streams};

/// Starts a command; returns its process and the streams for the asker, in the order of [`Streams`].
pub(super) fn start(
    container: &Container,
    spec: &ExecSpec,
    pause: Option<Pid>,
) -> Result<(Pid, Streams, Vec<OwnedFd>), RuntimeError> {
    let target = match container.pid {
        Some(pid) if container.record.status.state == ContainerState::Running => pid,
        _ => return Err(RuntimeError::Invalid(format!("container {} does not run", container.plan.id))),
    };
    let open = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", target.as_raw_nonzero());
        std::fs::File::open(&path).during(|| format!("cannot open {path}"))
    };
    let (mounts, cgroups) = (open("mnt")?, open("cgroup")?);
    let (sync, child_sync) = UnixStream::pair()?;
    let piped = !spec.tty;
    let stdio = Stdio::new(spec.stdin && piped, spec.stdout && piped, spec.stderr && piped)?;
    let namespace = pause.is_none().then_some(PidNamespace::Of(target));
    let pid = born(namespace, &container.group, |entered| {
        let [input, output, error] = &stdio.child;
        let fds = [
            input.as_fd(),
            output.as_fd(),
            error.as_fd(),
            child_sync.as_fd(),
            mounts.as_fd(),
            cgroups.as_fd(),
        ];
        let start = ExecStart { plan: &container.plan, command: &spec.command, tty: spec.tty, entered };
        init::command(&start, fds)
    })?;
    drop(child_sync);
    let started = ready(&sync).and_then(|(_, console)| go(&sync).map(|()| console));
    let console = match started {
        Ok(console) => console,
        Err(error) => {
            crate::sys::kill(pid.as_raw_nonzero().get(), libc::SIGKILL)?;
            return Err(error);
        }
    };
    let streams = Streams {
        stdin: stdio.stdin.is_some(),
        stdout: stdio.stdout.is_some(),
        stderr: stdio.stderr.is_some(),
        console: console.is_some(),
    };
    Ok((pid, streams, [stdio.stdin, stdio.stdout, stdio.stderr, console].into_iter().flatten().collect()))
}

/// Gives out the first process's input and a copy of its output from now on. Sends the reply itself. An input that is
/// meant for one asker alone is given away: it ends when that one closes it.
pub(super) fn attach(
    container: &mut Container,
    id: &str,
    stdin: bool,
    connection: &UnixStream,
) -> Result<Purpose, RuntimeError> {
    if container.record.status.state != ContainerState::Running {
        return Err(RuntimeError::Invalid(format!("container {id} does not run")));
    }
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let stdin = match stdin {
        false => None,
        true if container.plan.spec.stdin_once => container.stdin.take(),
        true => container.stdin.as_ref().map(copy).transpose()?,
    };
    let console = container.console.as_ref().map(copy).transpose()?;
    let pipe = |output: Output| -> Result<(Option<OwnedFd>, Option<OwnedFd>), RuntimeError> {
        if !container.outputs.iter().any(|(kind, _)| *kind == output) {
            return Ok((None, None));
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        Ok((Some(read), Some(write)))
    };
    let ((out_read, stdout), (err_read, stderr)) = (pipe(Output::Stdout)?, pipe(Output::Stderr)?);
    let streams = Streams {
        stdin: stdin.is_some(),
        stdout: out_read.is_some(),
        stderr: err_read.is_some(),
        console: console.is_some(),
    };
    let fds: Vec<OwnedFd> = [stdin, out_read, err_read, console].into_iter().flatten().collect();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    wire::send(connection, &Reply::Streams(streams), &borrowed)?;
    Ok(Purpose::Attach { id: id.to_owned(), stdout, stderr })
}
