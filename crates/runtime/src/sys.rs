//! System calls that no safe crate offers. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::process::Pid;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks; `None` in the child. Only for single-threaded processes: the child goes on in ordinary Rust.
///
/// # Errors
/// When there are several threads, or the kernel's.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    fork_into(None)
}

/// The same; the child is born in a v2 control group, given by its folder.
///
/// # Errors
/// As for `fork`; also when the kernel knows no such thing or keeps the child out of the group.
pub(crate) fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork in a process with threads"));
    }
    let pid = match group {
        // SAFETY: this is the only thread, so no lock can be held by a thread that the child lacks.
        None => check(libc::c_long::from(unsafe { libc::fork() }))?,
        Some(group) => {
            /// linux/sched.h; libc's constant is too narrow.
            const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
            // SAFETY: all-zero is a valid clone_args; the kernel is told its size.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = CLONE_INTO_CGROUP;
            args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
            args.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
            // SAFETY: as above; without a stack and CLONE_VM the child goes on with a copy of everything.
            check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?
        }
    };
    Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?))
}

/// Replaces the program by the one open at `fd`; returns only on failure.
pub(crate) fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null and point into strings that live until the call returns.
    unsafe { libc::fexecve(fd.as_raw_fd(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the program; returns only on failure.
pub(crate) fn exec(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: as in `exec_fd`.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Enters namespaces given by a descriptor of `/proc/PID/ns/…` or a pidfd.
pub(crate) fn setns(fd: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kinds) })).map(drop)
}

/// Leaves namespaces for new ones. `CLONE_FILES` and `CLONE_FS` are not passed by any caller.
pub(crate) fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; callers are single-threaded.
    check(libc::c_long::from(unsafe { libc::unshare(kinds) })).map(drop)
}

/// Sets attributes and propagation of a mount tree, mount_setattr(2).
pub(crate) fn mount_setattr(
    tree: BorrowedFd<'_>,
    set: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string and `attr` has the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// A descriptor that becomes readable when one of the signals is pending; the signals are blocked.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used; the new descriptor is owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())))?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Unblocks all signals and sets all to their default, as a fresh program expects.
pub(crate) fn reset_signals() {
    // SAFETY: the set is initialised by sigemptyset; SIG_DFL is a valid disposition.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Closes every descriptor above the last of `keep` ones moved to the front, i.e. all from `first` on.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: callers own nothing at or above `first`, or never use it again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed by exec.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Sets uid, gid and supplementary groups of this (single) thread, in the order that keeps the right to do so.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is as long as is said; plain integers otherwise.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<i64> {
    // SAFETY: only options whose arguments are integers are passed.
    let result = unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0u64, 0u64) };
    check(result)
}

/// Sets effective, permitted and inheritable capabilities, capset(2).
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let low_high = |set: u64| [(set & 0xffff_ffff) as u32, (set >> 32) as u32];
    let (e, p, i) = (low_high(effective), low_high(permitted), low_high(inheritable));
    let data: [[u32; 3]; 2] = [[e[0], p[0], i[0]], [e[1], p[1], i[1]]];
    // SAFETY: header and data have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Loads a classic BPF program as this thread's seccomp filter.
pub(crate) fn seccomp(filter: &[u8]) -> io::Result<()> {
    if filter.is_empty() || !filter.len().is_multiple_of(8) {
        return Err(io::Error::other("not a filter program"));
    }
    let words: Vec<u64> = filter
        .chunks_exact(8)
        .map(|chunk| u64::from_ne_bytes(chunk.try_into().expect("chunks of eight")))
        .collect();
    let length = u16::try_from(words.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: words.as_ptr().cast_mut().cast() };
    // SAFETY: the program points to `length` instructions of eight bytes that live until the call returns.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u64, &raw const program)
    })
    .map(drop)
}

/// Sets a resource limit by number.
pub(crate) fn setrlimit(kind: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the old value isn't asked for.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, kind, &raw const limit, std::ptr::null::<libc::rlimit64>())
    };
    check(result).map(drop)
}

/// Sends a signal by number; a process or group that is gone is no error.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    match check(libc::c_long::from(unsafe { libc::kill(pid, signal) })) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Brings the loopback interface of the calling process's network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq; the kernel reads and writes only that structure.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (target, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
            *target = byte.cast_signed();
        }
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)))?;
    }
    Ok(())
}

/// Names the process in process lists (15 bytes are kept).
pub(crate) fn set_process_name(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: the string ends in null and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Takes the next signal number from a signal descriptor; `None` when there is none.
pub(crate) fn next_signal(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Ok(_) => Ok(Some(u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts `fd` on the number `target` (0..=2), whatever that was before.
pub(crate) fn replace_stdio(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    // SAFETY: standard descriptors are replaced, never closed, so their numbers stay valid for everybody.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), target) })).map(drop)
}

/// Takes ownership of a descriptor number that the program was started with or arranged itself.
pub(crate) fn take_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl only looks at the number.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    // SAFETY: the number is open; callers take each number once, before anything else could own it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A flagged copy of `fd` at exactly `target`; closed by exec.
pub(crate) fn place_fd(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    // SAFETY: in a freshly forked child nothing that owned the number is used again.
    check(libc::c_long::from(unsafe { libc::dup3(fd.as_raw_fd(), target, libc::O_CLOEXEC) })).map(drop)
}

/// Lets the kernel reap children whose fate nobody asks for.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Registers a non-blocking descriptor with the async runtime.
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor and keeps it open as long as it lives.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Arguments of bpf(2) for loading a program: the first fields of union bpf_attr, linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Arguments of bpf(2) for attaching one.
#[repr(C)]
struct BpfAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Hands the kernel a program that decides about opening devices. Takes CAP_BPF or CAP_SYS_ADMIN.
pub(crate) fn load_device_program(code: &[u64]) -> io::Result<OwnedFd> {
    const LOAD: i32 = 5;
    const CGROUP_DEVICE: u32 = 15;
    let load = BpfLoad {
        prog_type: CGROUP_DEVICE,
        insn_cnt: u32::try_from(code.len()).map_err(io::Error::other)?,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: code and license outlive the call, which is told the size of what it reads; a new descriptor is nobody's.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<BpfLoad>()))?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?))
    }
}

/// Applies such a program to a v2 group, besides those of its parents.
pub(crate) fn attach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const ATTACH: i32 = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let attach = BpfAttach {
        target_fd: group.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel is told the size of what it reads.
    check(unsafe { libc::syscall(libc::SYS_bpf, ATTACH, &raw const attach, size_of::<BpfAttach>()) })
        .map(drop)
}
