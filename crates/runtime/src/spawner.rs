//! The spawner: forks one shim per sandbox, so that nothing is ever forked inside the many-threaded agent.
//!
//! The agent starts it with a socket as standard input. It first re-executes itself from a sealed memory file: shims,
//! container inits and commands inherit that file as their program, so nothing in a container can reach the host's
//! executable (the hole of CVE-2019-5736). It ends with the agent; shims live on.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::error::{During as _, RuntimeError};
use crate::wire::{self, Reply, SpawnRequest};
use crate::{shim, sys};

/// First argument of a spawner, and of one that runs from its sealed copy.
pub(crate) const COMMAND: &str = "runtime-spawner";
pub(crate) const SEALED_COMMAND: &str = "runtime-spawner-sealed";

/// Goes on from a sealed copy of this program.
pub(crate) fn seal() -> ExitCode {
    let error = match sealed_copy() {
        Ok(copy) => {
            let arguments =
                [c"podium-spawner", c"runtime-spawner-sealed"].map(std::borrow::ToOwned::to_owned);
            let env: Vec<CString> = std::env::vars_os()
                .filter_map(|(name, value)| {
                    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
                })
                .collect();
            RuntimeError::from(sys::exec_fd(copy.as_fd(), &arguments, &env))
        }
        Err(error) => error,
    };
    tracing::error!(%error, "cannot start the spawner");
    ExitCode::FAILURE
}

fn sealed_copy() -> Result<OwnedFd, RuntimeError> {
    let program = std::fs::File::open("/proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create("podium", flags).during(|| "cannot make a memory file".into())?;
    let size = program.metadata()?.len();
    let mut done = 0;
    while done < size {
        let chunk = usize::try_from(size - done).unwrap_or(usize::MAX).min(1 << 30);
        let sent =
            rustix::fs::sendfile(&copy, &program, None, chunk).during(|| "cannot copy the program".into())?;
        if sent == 0 {
            return Err(RuntimeError::Other("the program shrank while it was copied".into()));
        }
        done += sent as u64;
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals).during(|| "cannot seal the copy".into())?;
    Ok(copy)
}

/// Serves until the agent goes away.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the spawner failed");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), RuntimeError> {
    sys::set_process_name(c"podium-spawner")?;
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    sys::replace_stdio(null.as_fd(), 0)?;
    rustix::process::setsid()?;
    sys::ignore_children();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    while let Some((SpawnRequest::Shim(plan), fds)) = wire::receive::<SpawnRequest>(&control)? {
        let Some(answer) = fds.into_iter().next().map(UnixStream::from) else {
            return Err(RuntimeError::Other("a request came without a way to answer".into()));
        };
        match sys::fork() {
            Ok(None) => shim::main(&plan, &answer),
            Ok(Some(_)) => {}
            Err(error) => wire::send(&answer, &Reply::Failed(error.into()), &[])?,
        }
    }
    Ok(())
}
