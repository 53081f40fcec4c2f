//! Time, randomness and task spawning: the only place where they come in, so that a simulator can drive them.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

/// Source of time and of the randomness of back-off.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock, for timestamps in objects.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never goes back. For delays.
    fn monotonic(&self) -> Duration;
    /// Completes after `delay`.
    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()>;
    /// A random number, not for secrets.
    fn random(&self) -> u64;
}

/// The machine's clock.
pub struct SystemClock {
    start: Instant,
    seed: RandomState,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now(), seed: RandomState::new() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(delay).boxed()
    }

    fn random(&self) -> u64 {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u128(self.start.elapsed().as_nanos());
        hasher.finish()
    }
}

/// Exponential back-off with jitter: each delay lies between half and the whole of its step.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Doubles from `first` up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The next delay.
    pub fn next(&mut self, clock: &dyn Clock) -> Duration {
        let step = self.first.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        let share = u32::try_from(clock.random() % 1000).unwrap_or(0);
        half + half * share / 1000
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Starts a background task. All tasks of this crate and of its users' controllers start here.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
