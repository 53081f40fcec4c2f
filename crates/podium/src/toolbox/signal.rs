//! Ending at a signal, also as process 1.
#![allow(unsafe_code)]

/// Waits on a thread for SIGTERM or SIGINT and ends the process with the exit code that `code` gives for it.
///
/// Call it before other threads start: they inherit the blocked signals.
pub(super) fn exit_on_termination(code: fn(u8) -> u8) {
    let set = block();
    std::thread::spawn(move || {
        let signal = wait(&set);
        std::process::exit(i32::from(code(signal)));
    });
}

/// Blocks until SIGTERM or SIGINT comes.
pub(super) fn wait_for_termination() {
    let set = block();
    wait(&set);
}

fn block() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before use, and all pointers are to live locals.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    }
}

fn wait(set: &libc::sigset_t) -> u8 {
    let mut signal = 0;
    // SAFETY: both pointers are to live values.
    while unsafe { libc::sigwait(set, &raw mut signal) } != 0 {}
    u8::try_from(signal).unwrap_or(0)
}
