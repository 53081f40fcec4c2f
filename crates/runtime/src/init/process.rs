//! The last steps before the program runs: user, capabilities, limits, filters, exec.

use std::ffi::CString;
use std::os::fd::AsFd as _;

use super::{capability, user};
use crate::error::{During as _, RuntimeError};
use crate::spec::ContainerPlan;
use crate::sys;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process of which everything that can be refused has been looked at.
pub(super) struct Ready {
    identity: user::Identity,
    capabilities: u64,
    no_new_privileges: bool,
    /// In the order of loading.
    seccomp: Vec<Vec<u8>>,
    cwd: String,
    argv: Vec<CString>,
    env: Vec<CString>,
    path: String,
}

/// Sets the OOM score; returns a note when the machine refuses (lowering it needs CAP_SYS_RESOURCE).
pub(super) fn score_for_oom(plan: &ContainerPlan) -> Option<String> {
    let score = plan.spec.resources.oom_score_adj?;
    let written = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    written.err().map(|error| format!("oom_score_adj {score} not set: {error}"))
}

impl Ready {
    /// Called inside the container's root.
    pub(super) fn resolve(
        plan: &ContainerPlan,
        command: &[String],
        tty: bool,
        notes: &mut Vec<String>,
    ) -> Result<Self, RuntimeError> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let identity = user::resolve(plan, &read("/etc/passwd"), &read("/etc/group"))?;
        let wanted = capability::allowed(&plan.spec)?;
        let held = held_capabilities()?;
        if wanted & !held != 0
            && (!plan.spec.privileged
                && plan.spec.add_capabilities.iter().all(|c| !c.eq_ignore_ascii_case("ALL")))
        {
            notes.push(format!("capabilities {:#x} not granted: the machine withholds them", wanted & !held));
        }
        let mut env = plan.env.clone();
        let path = match env.iter().rev().find(|(name, _)| name == "PATH") {
            Some((_, path)) => path.clone(),
            None => {
                env.push(("PATH".into(), DEFAULT_PATH.into()));
                DEFAULT_PATH.into()
            }
        };
        if !env.iter().any(|(name, _)| name == "HOME") {
            env.push(("HOME".into(), identity.home.clone()));
        }
        if tty && !env.iter().any(|(name, _)| name == "TERM") {
            env.push(("TERM".into(), "xterm".into()));
        }
        for limit in &plan.spec.rlimits {
            // Raising a hard limit takes CAP_SYS_RESOURCE, which even root may lack.
            if let Err(error) = sys::setrlimit(rlimit_number(&limit.kind)?, limit.soft, limit.hard) {
                notes.push(format!("{} {}:{} not set: {error}", limit.kind, limit.soft, limit.hard));
            }
        }
        let argv: Vec<CString> = command.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?;
        if argv.is_empty() {
            return Err(RuntimeError::Invalid(
                "no command: neither the image nor the container names one".into(),
            ));
        }
        Ok(Self {
            identity,
            capabilities: wanted & held,
            no_new_privileges: !plan.spec.allow_privilege_escalation && !plan.spec.privileged,
            seccomp: plan.spec.more_seccomp.iter().chain(&plan.spec.seccomp).cloned().collect(),
            cwd: if plan.cwd.is_empty() { "/".into() } else { plan.cwd.clone() },
            argv,
            env: env
                .iter()
                .map(|(name, value)| c_string(&format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            path,
        })
    }

    /// Returns only when the program can't be run.
    pub(super) fn exec(self) -> RuntimeError {
        match self.drop_rights() {
            Ok(()) => self.run(),
            Err(error) => error,
        }
    }

    fn drop_rights(&self) -> Result<(), RuntimeError> {
        own_stdio(self.identity.uid);
        for filter in self.seccomp.iter().filter(|_| !self.no_new_privileges) {
            // Without no_new_privs loading a filter takes CAP_SYS_ADMIN, which is about to go.
            sys::seccomp(filter).during(|| "cannot load the seccomp filter".into())?;
        }
        sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
        let mut number = 0;
        while number <= capability::LAST || sys::prctl(libc::PR_CAPBSET_READ, number, 0).is_ok() {
            let keep = number <= capability::LAST && self.capabilities & (1 << number) != 0;
            if !keep && sys::prctl(libc::PR_CAPBSET_READ, number, 0).is_ok_and(|set| set == 1) {
                sys::prctl(libc::PR_CAPBSET_DROP, number, 0).during(|| "cannot drop capabilities".into())?;
            }
            number += 1;
        }
        sys::become_user(self.identity.uid, self.identity.gid, &self.identity.groups)
            .during(|| "cannot become the user".into())?;
        let effective = if self.identity.uid == 0 { self.capabilities } else { 0 };
        sys::capset(effective, effective, 0).during(|| "cannot set capabilities".into())?;
        if self.no_new_privileges {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
            for filter in &self.seccomp {
                sys::seccomp(filter).during(|| "cannot load the seccomp filter".into())?;
            }
        }
        rustix::process::chdir(&self.cwd).map_err(|error| {
            RuntimeError::Invalid(format!("cannot enter working directory {}: {error}", self.cwd))
        })
    }

    fn run(self) -> RuntimeError {
        let name = self.argv[0].to_string_lossy().into_owned();
        if let Err(error) = sys::cloexec_from(3) {
            return error.into();
        }
        let candidates: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            self.path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{name}")).collect()
        };
        let mut denied = None;
        for candidate in candidates {
            let Ok(path) = c_string(&candidate) else { continue };
            let error = sys::exec(&path, &self.argv, &self.env);
            if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) {
                denied = Some(error);
            }
        }
        RuntimeError::Invalid(match denied {
            Some(error) => format!("cannot run {name:?}: {error}"),
            None if name.contains('/') => format!("cannot run {name:?}: no such file or directory"),
            None => format!("cannot run {name:?}: executable file not found in $PATH"),
        })
    }
}

/// Lets the user reopen its own pipes through /dev/stdout and the like.
fn own_stdio(uid: u32) {
    for fd in
        [rustix::stdio::stdin().as_fd(), rustix::stdio::stdout().as_fd(), rustix::stdio::stderr().as_fd()]
    {
        let is_null = rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_rdev == rustix::fs::makedev(1, 3));
        if uid != 0 && !is_null {
            crate::error::log_failure(
                rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None),
                "cannot own stdio",
            );
        }
    }
}

fn held_capabilities() -> Result<u64, RuntimeError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.ok_or_else(|| RuntimeError::Other("cannot read own capabilities".into()))
}

fn rlimit_number(kind: &str) -> Result<u32, RuntimeError> {
    Ok(match kind.strip_prefix("RLIMIT_").unwrap_or(kind).to_ascii_uppercase().as_str() {
        "CPU" => libc::RLIMIT_CPU,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "DATA" => libc::RLIMIT_DATA,
        "STACK" => libc::RLIMIT_STACK,
        "CORE" => libc::RLIMIT_CORE,
        "RSS" => libc::RLIMIT_RSS,
        "NPROC" => libc::RLIMIT_NPROC,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "AS" => libc::RLIMIT_AS,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        _ => return Err(RuntimeError::Invalid(format!("unknown resource limit {kind:?}"))),
    })
}

fn c_string(text: &str) -> Result<CString, RuntimeError> {
    CString::new(text).map_err(|_| RuntimeError::Invalid(format!("{text:?} holds a null character")))
}
