//! Making and giving back what a sandbox holds: namespaces, control groups, shared memory, the socket.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};
use rustix::process::Pid;

use super::Shim;
use crate::cgroup::Hierarchies;
use crate::error::{During as _, RuntimeError, log_failure};
use crate::spec::SandboxPlan;
use crate::{init, sys, wire};

/// Kernel parameters that belong to a namespace of the sandbox.
const SYSCTLS: [&str; 7] = [
    "net.",
    "kernel.shm_rmid_forced",
    "kernel.shmmax",
    "kernel.shmall",
    "kernel.shmmni",
    "kernel.msg",
    "fs.mqueue.",
];

type Parts = (Shim, UnixListener, OwnedFd, UnixStream);

/// Turns a freshly forked process into the shim of a sandbox.
pub(super) fn set_up(
    plan: &SandboxPlan,
    answer: BorrowedFd<'_>,
) -> Result<Parts, (RuntimeError, UnixStream)> {
    let answer = match detach(answer) {
        Ok(answer) => answer,
        Err(_) => std::process::exit(3),
    };
    match prepare(plan) {
        Ok((shim, listener, signals)) => Ok((shim, listener, signals, answer)),
        Err(error) => Err((error, answer)),
    }
}

/// Leaves the spawner's session and closes everything that came from it but the way to answer.
fn detach(answer: BorrowedFd<'_>) -> Result<UnixStream, RuntimeError> {
    sys::reset_signals();
    rustix::process::setsid()?;
    let high = rustix::io::fcntl_dupfd_cloexec(answer, 64)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for number in 0..3 {
        sys::replace_stdio(null.as_fd(), number)?;
    }
    sys::place_fd(high.as_fd(), 3)?;
    sys::close_from(4)?;
    std::mem::forget((high, null));
    rustix::process::chdir("/")?;
    Ok(UnixStream::from(sys::take_fd(3)?))
}

fn prepare(plan: &SandboxPlan) -> Result<(Shim, UnixListener, OwnedFd), RuntimeError> {
    sys::set_process_name(c"podium-shim")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = sys::signal_fd(&[libc::SIGCHLD])?;
    let hierarchies = Hierarchies::detect()?;
    hierarchies.offer_controllers();
    let parent = hierarchies.group(&plan.cgroup_parent);
    parent.create()?;
    parent.delegate();
    if let Some(slice) = plan.slice() {
        let slice = hierarchies.group(&slice);
        slice.create()?;
        slice.delegate();
    }
    let own = hierarchies.group(&plan.shim_cgroup());
    own.create()?;
    own.enter()?;
    let group = hierarchies.group(&plan.cgroup());
    group.create()?;
    group.delegate();
    group.limit(&plan.spec.cgroup)?;
    enter_namespaces(plan)?;
    let pause = if plan.spec.share_process_namespace && !plan.spec.host_pid {
        Some(start_pause(&hierarchies, plan)?)
    } else {
        None
    };
    std::fs::create_dir_all(plan.dir.join("containers"))?;
    let listener = wire::listen(&plan.dir.join("shim.sock"))?;
    store(&plan.dir.join("sandbox.json"), plan)?;
    let shim = Shim {
        plan: plan.clone(),
        hierarchies,
        group,
        pause,
        containers: std::collections::BTreeMap::new(),
        waiters: Vec::new(),
        stopped: false,
        done: false,
    };
    Ok((shim, listener, signals))
}

fn enter_namespaces(plan: &SandboxPlan) -> Result<(), RuntimeError> {
    let spec = &plan.spec;
    let mut kinds = 0;
    if !spec.host_network {
        kinds |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        kinds |= libc::CLONE_NEWIPC;
    }
    sys::unshare(kinds).during(|| "cannot make namespaces".into())?;
    if let Some(path) = plan.netns() {
        sys::loopback_up().during(|| "cannot bring the loopback interface up".into())?;
        std::fs::write(&path, "")?;
        rustix::mount::mount_bind("/proc/self/ns/net", &path)
            .during(|| "cannot keep the network namespace".into())?;
        if !spec.hostname.is_empty() {
            rustix::system::sethostname(spec.hostname.as_bytes())
                .during(|| "cannot set the host name".into())?;
        }
    }
    for (name, value) in &spec.sysctls {
        set_sysctl(plan, name, value)?;
    }
    let shm = plan.dir.join("shm");
    std::fs::create_dir_all(&shm)?;
    if spec.host_ipc {
        return rustix::mount::mount_bind("/dev/shm", &shm)
            .during(|| "cannot share the host's memory".into());
    }
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = init::mounts::new_mount("tmpfs", &[("mode", "1777"), ("size", "64m")], attrs)
        .during(|| "cannot make shared memory".into())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", rustix::fs::CWD, &shm, flags)
        .during(|| "cannot mount shared memory".into())
}

fn set_sysctl(plan: &SandboxPlan, name: &str, value: &str) -> Result<(), RuntimeError> {
    let dotted = name.replace('/', ".");
    let known = SYSCTLS.iter().any(|prefix| dotted.starts_with(prefix)) || dotted == "kernel.sem";
    let network = dotted.starts_with("net.");
    let host = if network { plan.spec.host_network } else { plan.spec.host_ipc };
    if !known || host || dotted.contains("..") {
        return Err(RuntimeError::Invalid(format!(
            "sysctl {name:?} does not belong to a namespace of the sandbox"
        )));
    }
    let file = Path::new("/proc/sys").join(dotted.replace('.', "/"));
    std::fs::write(&file, value)
        .map_err(|error| RuntimeError::Invalid(format!("cannot set sysctl {name}: {error}")))
}

/// Starts process 1 of a shared pid namespace, and makes later children of the shim be born into that namespace.
fn start_pause(hierarchies: &Hierarchies, plan: &SandboxPlan) -> Result<Pid, RuntimeError> {
    let group = hierarchies.group(&format!("{}/pause", plan.cgroup()));
    group.create()?;
    sys::unshare(libc::CLONE_NEWPID)?;
    Ok(group.fork(|entered| pause(entered))?)
}

/// Reaps orphans until it is killed.
fn pause(entered: Result<(), RuntimeError>) -> ! {
    let prepared = entered.and_then(|()| {
        sys::set_process_name(c"pause")?;
        rustix::process::setsid()?;
        sys::close_from(3)?;
        Ok(sys::signal_fd(&[libc::SIGCHLD])?)
    });
    let Ok(signals) = prepared else { std::process::exit(1) };
    loop {
        let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
        crate::error::log_failure(rustix::event::poll(&mut fds, None), "cannot wait");
        while matches!(sys::next_signal(signals.as_fd()), Ok(Some(_))) {}
        while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}

/// Writes a file whole or not at all.
pub(crate) fn store<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let json = serde_json::to_vec(value).during(|| "cannot encode a record".into())?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, json).during(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, path).during(|| format!("cannot write {}", path.display()))
}

/// Unmounts what a sandbox has mounted on the host and removes its groups. What is gone already is fine.
pub(crate) fn give_back(plan: &SandboxPlan) {
    for name in ["netns", "shm"] {
        let path = plan.dir.join(name);
        match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "cannot unmount"),
        }
    }
    if let Ok(hierarchies) = Hierarchies::detect() {
        log_failure(hierarchies.group(&plan.cgroup()).remove(), "cannot remove the sandbox's control group");
    }
}
