//! Gives memory back to the machine when there is nothing to do.
//!
//! The C library's allocator keeps what was freed, spread over one arena for many threads each: after a busy hour that is more
//! than what lives.

#![allow(unsafe_code)]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(15);
/// Processor time within [`EVERY`] below which the process is idle, and above which there may be something to give back.
const IDLE: Duration = Duration::from_millis(750);
const WORK: Duration = Duration::from_secs(1);

/// As many arenas as processors instead of eight times as many. To be called before threads exist.
pub(crate) fn settle() {
    let processors = std::thread::available_parallelism().map_or(2, usize::from).max(2);
    #[cfg(target_env = "gnu")]
    // SAFETY: plain integers; no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, libc::c_int::try_from(processors).unwrap_or(libc::c_int::MAX))
    };
}

/// After work, at the first idle moment, memory goes back. Until `stop` turns true.
pub(crate) async fn give_back(mut stop: watch::Receiver<bool>) {
    let (mut before, mut work) = (used(), Duration::ZERO);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = used();
        let lately = now.saturating_sub(before);
        before = now;
        work += lately;
        if lately < IDLE && work >= WORK {
            work = Duration::ZERO;
            if let Err(error) = tokio::task::spawn_blocking(trim).await {
                tracing::debug!(%error, "memory was not given back");
            }
        }
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Processor time of all threads.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}
