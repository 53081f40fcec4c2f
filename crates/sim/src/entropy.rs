//! The process's random numbers, from the seed. The standard library takes the seeds of its hash maps from the C library's
//! `getrandom`, by a weak symbol that a program may define itself, and tokio takes its own from there.

#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::random::mix;

static STATE: AtomicU64 = AtomicU64::new(0);

/// Begins anew from a seed. Threads that have a hash map already keep their old seeds: call it first, from `main`.
pub fn begin(seed: u64) {
    STATE.store(mix(seed), Ordering::SeqCst);
}

/// In place of getrandom(2).
///
/// # Safety
/// As for the system call: `buffer` must be good for writing `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        let state = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        let byte = mix(state).to_le_bytes()[0];
        // SAFETY: the caller's promise; `at` is below the length.
        unsafe { buffer.cast::<u8>().add(at).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
