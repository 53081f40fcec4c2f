//! Random numbers from a seed (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators").

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A stream of numbers; shared by reference.
pub(crate) struct Random(Mutex<u64>);

impl Random {
    /// Streams of different names are independent of each other: one more number drawn here changes nothing there.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let named = name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
        Self(Mutex::new(named))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(*state)
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True this many times out of a thousand.
    pub(crate) fn permille(&self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_le_bytes()[0];
        }
    }
}

pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
