//! How much processor time and memory the node and its containers use. Read when somebody asks, never otherwise.
//!
//! ```text
//!   ask ─▶ a sample 1 s to 60 s old is kept? ── no ─▶ sample, wait 1 s ─┐
//!                     └── yes ────────────────────────────────────────┴─▶ sample ─▶ rates between the two
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client::Clock;
use jiff::{SignedDuration, Timestamp};

use crate::ports::{ContainerUsage as Usage, Runtime, RuntimeError};

/// Between two samples, at least.
const SHORTEST: Duration = Duration::from_secs(1);
/// An older sample says too little about now.
const LONGEST: Duration = Duration::from_secs(60);

/// What was read at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub time: Timestamp,
    pub node: Usage,
    /// By container id.
    pub containers: BTreeMap<String, Usage>,
}

/// A sample, and processor use per second since the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    pub sample: Sample,
    pub window: Duration,
    /// Nanoseconds of processor time a second: 1,000,000,000 is one processor.
    pub node_cpu: u64,
    pub container_cpu: BTreeMap<String, u64>,
}

/// Keeps the newest sample.
#[derive(Default)]
pub struct Meter(Mutex<Option<Sample>>);

impl Meter {
    /// Samples, at most twice.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn read(&self, runtime: &dyn Runtime, clock: &dyn Clock) -> Result<Rates, RuntimeError> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = clock.now();
        let fits = |before: &Sample| {
            let age = Duration::try_from(now.duration_since(before.time)).unwrap_or_default();
            (SHORTEST..=LONGEST).contains(&age)
        };
        let before = match kept.filter(fits) {
            Some(before) => before,
            None => {
                let first = sample(runtime, now).await?;
                clock.sleep(SHORTEST).await;
                first
            }
        };
        let after = sample(runtime, clock.now()).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(after.clone());
        Ok(rates(&before, after))
    }
}

async fn sample(runtime: &dyn Runtime, time: Timestamp) -> Result<Sample, RuntimeError> {
    let containers = runtime.container_usage().await?.into_iter().collect();
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let node = machine(&text("/proc/stat"), &text("/proc/meminfo"));
    Ok(Sample { time, node, containers })
}

/// The machine's usage, from proc_stat(5) and proc_meminfo(5).
fn machine(stat: &str, meminfo: &str) -> Usage {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
    // user, nice, system, then idle and waiting, then interrupts and what a hypervisor took; a tick is 10 ms
    let busy: u64 = ticks.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4 | 8..)).map(|(_, t)| t).sum();
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let total = kib("MemTotal") * 1024;
    Usage {
        cpu_nanos: busy * 10_000_000,
        memory_bytes: total.saturating_sub(kib("MemFree") * 1024),
        working_set_bytes: total.saturating_sub(kib("MemAvailable") * 1024),
        rss_bytes: kib("AnonPages") * 1024,
    }
}

fn rates(before: &Sample, after: Sample) -> Rates {
    let elapsed: SignedDuration = after.time.duration_since(before.time);
    let window = Duration::try_from(elapsed).unwrap_or_default().max(Duration::from_millis(1));
    let rate = |old: u64, new: u64| {
        let nanos = u128::from(new.saturating_sub(old)) * 1_000_000_000 / window.as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    };
    let container = |(id, now): (&String, &Usage)| {
        // A container that was not there before began with nothing.
        let old = before.containers.get(id).map_or(0, |usage| usage.cpu_nanos);
        (id.clone(), rate(old, now.cpu_nanos))
    };
    Rates {
        node_cpu: rate(before.node.cpu_nanos, after.node.cpu_nanos),
        container_cpu: after.containers.iter().map(container).collect(),
        window,
        sample: after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        let usage = |cpu_nanos| Usage { cpu_nanos, ..Usage::default() };
        let at = |second: i64, node, container: &[(&str, u64)]| Sample {
            time: Timestamp::from_second(second).unwrap(),
            node: usage(node),
            containers: container.iter().map(|(id, nanos)| ((*id).to_owned(), usage(*nanos))).collect(),
        };
        let before = at(10, 1_000, &[("a", 500)]);
        let rates = rates(&before, at(12, 5_000, &[("a", 2_500), ("new", 40)]));
        assert_eq!((rates.node_cpu, rates.window), (2_000, Duration::from_secs(2)));
        assert_eq!(rates.container_cpu, [("a".to_owned(), 1_000), ("new".to_owned(), 20)].into());
    }

    #[test]
    fn the_machine_is_read() {
        let stat = "cpu  100 1 20 5000 300 3 4 7 50 60\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let meminfo = "MemTotal: 1000 kB\nMemFree: 200 kB\nMemAvailable: 600 kB\nAnonPages: 50 kB\n";
        let usage = machine(stat, meminfo);
        assert_eq!(usage.cpu_nanos, (100 + 1 + 20 + 3 + 4 + 7) * 10_000_000);
        assert_eq!((usage.memory_bytes, usage.working_set_bytes), (800 * 1024, 400 * 1024));
    }
}
