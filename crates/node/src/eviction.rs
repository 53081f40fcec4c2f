//! Keeping the node alive when memory, disk or process ids run out: which conditions it shows, and which pod goes
//! ("Node-pressure Eviction").
//!
//! ```text
//!   measured every few seconds ─▶ thresholds met ─▶ conditions (held for a while)
//!                                      └─ hard, or soft for its grace period ─▶ images nobody uses ─▶ one pod ─▶ look again
//! ```
//!
//! Everything here is pure; [`crate::pressure`] measures and acts. How thresholds are written: [`settings`].

use std::time::Duration;

use jiff::Timestamp;

use crate::observed::{Failure, elapsed};

pub mod settings;

/// Pods from here on are never evicted for pressure.
const CRITICAL: i32 = 2_000_000_000;

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Disk,
    Inodes,
    /// Where images and containers' writable layers are.
    ImageDisk,
    ImageInodes,
    Pids,
}

impl Signal {
    const ALL: [Signal; 6] =
        [Signal::Memory, Signal::Disk, Signal::Inodes, Signal::ImageDisk, Signal::ImageInodes, Signal::Pids];

    /// As in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::Disk => "nodefs.available",
            Signal::Inodes => "nodefs.inodesFree",
            Signal::ImageDisk => "imagefs.available",
            Signal::ImageInodes => "imagefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    /// As in `status.conditions` of the Node.
    pub fn condition(self) -> &'static str {
        match self {
            Signal::Memory => "MemoryPressure",
            Signal::Disk | Signal::Inodes | Signal::ImageDisk | Signal::ImageInodes => "DiskPressure",
            Signal::Pids => "PIDPressure",
        }
    }

    /// As in messages.
    fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk | Signal::ImageDisk => "ephemeral-storage",
            Signal::Inodes | Signal::ImageInodes => "inodes",
            Signal::Pids => "pids",
        }
    }
}

/// Where it gets dangerous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes, inodes or processes.
    Amount(u64),
    /// Thousandths of what there is.
    Share(u64),
}

/// Less than this is pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threshold {
    pub signal: Signal,
    pub bound: Bound,
    /// How long a soft threshold must be met before a pod goes; `None` is a hard one.
    pub grace: Option<Duration>,
}

impl Threshold {
    /// In bytes, inodes or processes.
    pub fn amount(&self, of: Measure) -> u64 {
        match self.bound {
            Bound::Amount(amount) => amount,
            Bound::Share(thousandths) => (u128::from(of.total) * u128::from(thousandths) / 1000) as u64,
        }
    }
}

/// When the node shows pressure and when pods go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub thresholds: Vec<Threshold>,
    /// A condition stays this long after its threshold was last met, so that it does not flap.
    pub transition: Duration,
    /// Most seconds that a pod gets which goes for a soft threshold.
    pub max_pod_grace_seconds: i64,
}

/// How much of something there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    pub available: u64,
    /// 0: it cannot be measured.
    pub total: u64,
}

/// The machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub memory: Measure,
    pub disk: Measure,
    pub inodes: Measure,
    pub image_disk: Measure,
    pub image_inodes: Measure,
    pub pids: Measure,
}

impl Machine {
    fn of(&self, signal: Signal) -> Measure {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
            Signal::ImageDisk => self.image_disk,
            Signal::ImageInodes => self.image_inodes,
            Signal::Pids => self.pids,
        }
    }
}

/// A running pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    pub memory_used: u64,
    pub memory_requested: u64,
    pub disk_used: u64,
    pub disk_requested: u64,
    pub pids: u64,
}

/// What was seen of the thresholds so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Met without a pause since then.
    first: Vec<(Threshold, Timestamp)>,
    /// When a threshold of each condition was last met.
    last: std::collections::BTreeMap<&'static str, Timestamp>,
}

/// What a look at the machine says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conditions to be shown: those of thresholds met now, and of those met lately.
    pub conditions: Vec<String>,
    /// The most urgent threshold for which something must go.
    pub due: Option<Threshold>,
}

/// Thresholds that are met now, the most urgent first.
pub fn met(machine: &Machine, thresholds: &[Threshold]) -> Vec<Threshold> {
    let mut list: Vec<Threshold> = thresholds
        .iter()
        .filter(|t| {
            let measure = machine.of(t.signal);
            measure.total > 0 && measure.available < t.amount(measure)
        })
        .cloned()
        .collect();
    // Memory kills at once, the others wait.
    list.sort_by_key(|t| (t.signal, t.grace));
    list
}

/// Judges a measurement. Conditions are shown at once; a soft threshold counts after its grace period.
pub fn judge(machine: &Machine, rules: &Rules, history: &mut History, now: Timestamp) -> Verdict {
    let met = met(machine, &rules.thresholds);
    history.first.retain(|(threshold, _)| met.contains(threshold));
    for threshold in &met {
        if !history.first.iter().any(|(known, _)| known == threshold) {
            history.first.push((threshold.clone(), now));
        }
    }
    history.last.extend(met.iter().map(|t| (t.signal.condition(), now)));
    let current = |name: &str| met.iter().any(|t| t.signal.condition() == name);
    history.last.retain(|name, at| current(name) || elapsed(*at, now) < rules.transition);
    let since =
        |wanted: &Threshold| history.first.iter().find(|(known, _)| known == wanted).map(|(_, at)| *at);
    let is_due = |t: &&Threshold| {
        let grace = t.grace.unwrap_or_default();
        since(t).is_some_and(|at| elapsed(at, now) >= grace)
    };
    Verdict {
        conditions: history.last.keys().map(|name| (*name).to_owned()).collect(),
        due: met.iter().find(is_due).cloned(),
    }
}

/// The pod to be evicted for a threshold, and how it fails: one that takes more than it asked for before one that does
/// not, the less important before the more important, the largest first.
pub fn choose(
    threshold: &Threshold,
    machine: &Machine,
    rules: &Rules,
    pods: &[Candidate],
) -> Option<(String, Failure)> {
    type Amount = fn(&Candidate) -> u64;
    let (used, requested): (Amount, Amount) = match threshold.signal {
        Signal::Memory => (|p| p.memory_used, |p| p.memory_requested),
        Signal::Disk | Signal::Inodes | Signal::ImageDisk | Signal::ImageInodes => {
            (|p| p.disk_used, |p| p.disk_requested)
        }
        Signal::Pids => (|p| p.pids, |_| 0),
    };
    let over = |pod: &Candidate| used(pod).saturating_sub(requested(pod));
    let candidates = pods.iter().filter(|pod| !is_critical(pod.priority) && used(pod) > 0);
    let pod = candidates.min_by_key(|pod| {
        (over(pod) == 0, pod.priority, std::cmp::Reverse(over(pod)), std::cmp::Reverse(used(pod)), &pod.uid)
    })?;
    let (resource, measure) = (threshold.signal.resource(), machine.of(threshold.signal));
    let message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. The pod was using {}, request is {}.",
        threshold.amount(measure),
        measure.available,
        used(pod),
        requested(pod),
    );
    let soft = threshold.grace.map(|_| rules.max_pod_grace_seconds);
    let failure = evicted(message);
    Some((pod.uid.clone(), Failure { grace_seconds: soft.or(failure.grace_seconds), ..failure }))
}

/// Whether nothing but its own deletion takes the pod away.
pub fn is_critical(priority: i32) -> bool {
    priority >= CRITICAL
}

/// How an evicted pod fails.
pub fn evicted(message: String) -> Failure {
    Failure { reason: "Evicted".into(), message, grace_seconds: Some(1), disruption: true }
}

#[cfg(test)]
mod tests;
