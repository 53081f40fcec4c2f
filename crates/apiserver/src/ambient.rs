//! Wall time and random numbers of the server: the machine's, unless a simulator has put its own in their place.
//!
//! Everything that ends up in objects comes through here, so that a simulated cluster can be replayed.

use std::sync::OnceLock;

use jiff::Timestamp;
use ring::error::Unspecified;
use ring::rand::{SecureRandom as _, SystemRandom};

/// What a simulator puts in the machine's place.
pub trait Ambient: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
    /// Not for secrets.
    fn fill(&self, bytes: &mut [u8]);
}

static INSTALLED: OnceLock<Box<dyn Ambient>> = OnceLock::new();

/// Replaces time and random numbers of all servers of this process; false when that was done before.
pub fn install(ambient: Box<dyn Ambient>) -> bool {
    INSTALLED.set(ambient).is_ok()
}

/// Wall time.
pub(crate) fn now() -> Timestamp {
    INSTALLED.get().map_or_else(Timestamp::now, |ambient| ambient.now())
}

/// Fills with random bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Unspecified> {
    match INSTALLED.get() {
        Some(ambient) => {
            ambient.fill(bytes);
            Ok(())
        }
        None => SystemRandom::new().fill(bytes),
    }
}
