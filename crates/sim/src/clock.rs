//! Virtual time for objects and delays.

use std::sync::Arc;
use std::time::Duration;

use apiserver::ambient::Ambient;
use client::Clock;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::random::Random;

/// Every simulated cluster begins at this time: 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;

/// Tokio's clock, which is paused, as wall time and as monotonic time.
#[derive(Clone)]
pub(crate) struct SimClock {
    start: Instant,
    random: Arc<Random>,
}

impl SimClock {
    /// Must be made inside the runtime.
    pub(crate) fn new(random: Random) -> Self {
        Self { start: Instant::now(), random: Arc::new(random) }
    }

    /// Time since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let since = jiff::SignedDuration::try_from(self.elapsed()).unwrap_or_default();
        let epoch = Timestamp::from_second(EPOCH_SECONDS).unwrap_or_default();
        epoch.checked_add(since).unwrap_or(epoch)
    }

    fn monotonic(&self) -> Duration {
        self.elapsed()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(delay).boxed()
    }

    fn random(&self) -> u64 {
        self.random.next()
    }
}

impl Ambient for SimClock {
    fn now(&self) -> Timestamp {
        Clock::now(self)
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.fill(bytes);
    }
}
