//! The first process of a container, and commands run in one, from the fork in the shim to the exec of the program.
//!
//! ```text
//! shim ── fork (new or shared pid namespace) ─► own group, mount and cgroup namespaces, root file system
//!      ◄─ Ready { notes } or Failed ─────────── waits
//!      ── Go ─────────────────────────────────► user, capabilities, filters, exec
//!      ◄─ end of stream, or Failed ────────────
//! ```
//!
//! Invariants: the program this runs from is a sealed memory file, so nothing inside can reach the host's executable;
//! until the exec the process is not dumpable, so nothing inside can look into it; it holds no descriptor of the shim.

mod capability;
pub(crate) mod mounts;
mod process;
mod user;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

pub(crate) use capability::allowed as allowed_capabilities;

use crate::cgroup::{Group, Hierarchies};
use crate::error::{During as _, RuntimeError};
use crate::spec::{ContainerPlan, SandboxPlan};
use crate::{sys, wire};

/// Between a shim and a process it is starting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum InitMessage {
    /// Everything is in place; with a terminal its controlling side comes along.
    Ready {
        notes: Vec<String>,
    },
    Failed(RuntimeError),
    Go,
}

/// What a container's first process needs besides its descriptors.
pub(crate) struct ContainerStart<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) sandbox: &'a SandboxPlan,
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) group: &'a Group,
    pub(crate) entered: Result<(), RuntimeError>,
}

/// What a command in a container needs besides its descriptors.
pub(crate) struct ExecStart<'a> {
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) command: &'a [String],
    pub(crate) tty: bool,
    /// Whether this process is in the container's groups.
    pub(crate) entered: Result<(), RuntimeError>,
}

/// Runs the child's side of a container's start. `fds`: standard input, output, error, and the socket to the shim.
pub(crate) fn container(start: &ContainerStart<'_>, fds: [BorrowedFd<'_>; 4]) -> ! {
    let result = arrange(&fds).map_err(RuntimeError::from).and_then(|sync| {
        let outcome = prepare_container(start, &sync);
        report(&sync, outcome)
    });
    leave(result)
}

/// Runs the child's side of a command. `fds`: as for [`container`], then its mount and cgroup namespaces.
pub(crate) fn command(start: &ExecStart<'_>, fds: [BorrowedFd<'_>; 6]) -> ! {
    let result = arrange(&fds).map_err(RuntimeError::from).and_then(|sync| {
        let outcome = prepare_command(start, &sync);
        report(&sync, outcome)
    });
    leave(result)
}

fn leave(result: Result<(), RuntimeError>) -> ! {
    std::process::exit(if result.is_ok() { 0 } else { 128 })
}

fn report(sync: &UnixStream, outcome: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => wire::send(sync, &InitMessage::Failed(error.clone()), &[]).and(Err(error)),
    }
}

/// Moves the descriptors to 0, 1, 2, … and closes all others. The fourth is the socket to the shim.
fn arrange(fds: &[BorrowedFd<'_>]) -> std::io::Result<UnixStream> {
    let mut high = Vec::new();
    for fd in fds {
        high.push(rustix::io::fcntl_dupfd_cloexec(fd, 64)?);
    }
    for (target, fd) in (0..).zip(&high) {
        if target < 3 {
            sys::replace_stdio(fd.as_fd(), target)?;
        } else {
            sys::place_fd(fd.as_fd(), target)?;
        }
    }
    sys::close_from(u32::try_from(fds.len()).map_err(std::io::Error::other)?)?;
    std::mem::forget(high);
    Ok(UnixStream::from(sys::take_fd(3)?))
}

fn prepare_container(start: &ContainerStart<'_>, sync: &UnixStream) -> Result<(), RuntimeError> {
    begin()?;
    start.entered.clone()?;
    let mut notes = Vec::new();
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).during(|| "cannot make namespaces".into())?;
    mounts::enter_root(start)?;
    let console = if start.plan.spec.tty { Some(open_console(true)?) } else { None };
    mounts::finish_root(start.plan)?;
    notes.extend(process::score_for_oom(start.plan));
    let ready = process::Ready::resolve(start.plan, &start.plan.argv, start.plan.spec.tty, &mut notes)?;
    finish(ready, console, notes, sync)
}

fn prepare_command(start: &ExecStart<'_>, sync: &UnixStream) -> Result<(), RuntimeError> {
    begin()?;
    start.entered.clone()?;
    let (mounts, cgroups) = (sys::take_fd(4)?, sys::take_fd(5)?);
    sys::setns(cgroups.as_fd(), libc::CLONE_NEWCGROUP)
        .during(|| "cannot join the container's groups".into())?;
    sys::setns(mounts.as_fd(), libc::CLONE_NEWNS).during(|| "cannot join the container's mounts".into())?;
    let mut notes = Vec::from_iter(process::score_for_oom(start.plan));
    let console = if start.tty { Some(open_console(false)?) } else { None };
    let ready = process::Ready::resolve(start.plan, start.command, start.tty, &mut notes)?;
    finish(ready, console, notes, sync)
}

/// Session of its own, default signals, out of sight of others.
fn begin() -> Result<(), RuntimeError> {
    sys::reset_signals();
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn finish(
    ready: process::Ready,
    console: Option<OwnedFd>,
    notes: Vec<String>,
    sync: &UnixStream,
) -> Result<(), RuntimeError> {
    let fds: Vec<BorrowedFd<'_>> = console.iter().map(|fd| fd.as_fd()).collect();
    wire::send(sync, &InitMessage::Ready { notes }, &fds)?;
    drop(fds);
    drop(console);
    match wire::receive::<InitMessage>(sync)? {
        Some((InitMessage::Go, _)) => Err(ready.exec()),
        // The shim went away or gave the container up before it ran.
        _ => Ok(()),
    }
}

/// Makes a terminal in the container's own devpts and puts it on 0, 1, 2; returns the controlling side.
fn open_console(as_dev_console: bool) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, rustix::fs::Mode::empty())
        .during(|| "cannot make a terminal".into())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )?;
    rustix::process::ioctl_tiocsctty(&slave).during(|| "cannot take the terminal".into())?;
    for number in 0..3 {
        sys::replace_stdio(slave.as_fd(), number)?;
    }
    if as_dev_console {
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        mounts::bind_console(&name)?;
    }
    Ok(master)
}
