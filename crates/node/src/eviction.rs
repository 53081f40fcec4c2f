//! Keeping the node alive when memory, disk or process ids run out: which conditions it shows, and which pod goes
//! ("Node-pressure Eviction").
//!
//! ```text
//!   measured every few seconds ─▶ thresholds ─▶ conditions (held for a while) ─▶ images nobody uses ─▶ one pod ─▶ look again
//! ```
//!
//! Everything here is pure; [`crate::pressure`] measures and acts.

use std::time::Duration;

use jiff::Timestamp;

use crate::observed::{Failure, elapsed};

/// A condition stays this long after its threshold was last met, so that it does not flap.
pub const HOLD: Duration = Duration::from_secs(300);
/// Pods from here on are never evicted for pressure.
const CRITICAL: i32 = 2_000_000_000;

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Signal {
    const ALL: [Signal; 4] = [Signal::Memory, Signal::Disk, Signal::Inodes, Signal::Pids];

    /// As in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::Disk => "nodefs.available",
            Signal::Inodes => "nodefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    /// As in `status.conditions` of the Node.
    pub fn condition(self) -> &'static str {
        match self {
            Signal::Memory => "MemoryPressure",
            Signal::Disk | Signal::Inodes => "DiskPressure",
            Signal::Pids => "PIDPressure",
        }
    }

    /// As in messages.
    fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk => "ephemeral-storage",
            Signal::Inodes => "inodes",
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
}

impl Threshold {
    /// `memory.available<100Mi`, `nodefs.available<5%`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no eviction threshold: write memory.available<100Mi or nodefs.available<5%")
        };
        let (name, bound) = text.split_once('<').ok_or_else(wrong)?;
        let signal = Signal::ALL.into_iter().find(|s| s.name() == name.trim()).ok_or_else(wrong)?;
        let bound = match bound.trim().strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|_| wrong())?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(wrong());
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                Bound::Share((percent * 10.0) as u64)
            }
            None => {
                let amount = crate::resources::milli(bound.trim()).ok_or_else(wrong)?;
                Bound::Amount(u64::try_from(amount / 1000).map_err(|_| wrong())?)
            }
        };
        Ok(Self { signal, bound })
    }

    /// What an ordinary machine needs to go on. Absolute amounts: a tenth of a large disk is no emergency.
    pub fn usual() -> Vec<Self> {
        let texts =
            ["memory.available<100Mi", "nodefs.available<1Gi", "nodefs.inodesFree<1%", "pid.available<2%"];
        texts.iter().map(|text| Self::parse(text).expect("thresholds of our own are right")).collect()
    }

    fn amount(&self, of: Measure) -> u64 {
        match self.bound {
            Bound::Amount(amount) => amount,
            Bound::Share(thousandths) => (u128::from(of.total) * u128::from(thousandths) / 1000) as u64,
        }
    }
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
    pub pids: Measure,
}

impl Machine {
    fn of(&self, signal: Signal) -> Measure {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
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

/// When each condition's threshold was last met.
pub type Met = std::collections::BTreeMap<&'static str, Timestamp>;

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
    list.sort_by_key(|t| t.signal);
    list
}

/// Conditions to be shown: those met now, and those met lately.
pub fn conditions(now_met: &[Threshold], met: &mut Met, now: Timestamp) -> Vec<String> {
    met.extend(now_met.iter().map(|t| (t.signal.condition(), now)));
    met.retain(|_, at| elapsed(*at, now) < HOLD);
    met.keys().map(|name| (*name).to_owned()).collect()
}

/// The pod to be evicted for a threshold, and how it fails: one that takes more than it asked for before one that does
/// not, the less important before the more important, the largest first.
pub fn choose(threshold: &Threshold, machine: &Machine, pods: &[Candidate]) -> Option<(String, Failure)> {
    type Amount = fn(&Candidate) -> u64;
    let (used, requested): (Amount, Amount) = match threshold.signal {
        Signal::Memory => (|p| p.memory_used, |p| p.memory_requested),
        Signal::Disk | Signal::Inodes => (|p| p.disk_used, |p| p.disk_requested),
        Signal::Pids => (|p| p.pids, |_| 0),
    };
    let over = |pod: &Candidate| used(pod).saturating_sub(requested(pod));
    let candidates = pods.iter().filter(|pod| pod.priority < CRITICAL && used(pod) > 0);
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
    Some((pod.uid.clone(), evicted(message)))
}

/// How an evicted pod fails.
pub fn evicted(message: String) -> Failure {
    Failure { reason: "Evicted".into(), message, grace_seconds: Some(1), disruption: true }
}

/// An image on the node, for the decision which of them go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    pub reference: String,
    pub size: u64,
    pub used: bool,
    /// It came from a registry, where it can be had again.
    pub fetched: bool,
}

/// References of images to remove, the largest first.
pub fn unused_images(images: &[StoredImage]) -> Vec<String> {
    let mut unused: Vec<&StoredImage> = images.iter().filter(|i| !i.used && i.fetched).collect();
    unused.sort_by_key(|i| (std::cmp::Reverse(i.size), i.reference.clone()));
    unused.into_iter().map(|i| i.reference.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let measure = |available, total| Measure { available, total };
        Machine {
            memory: measure(4 << 30, 8 << 30),
            disk: measure(50 << 30, 100 << 30),
            inodes: measure(1000, 2000),
            pids: measure(30_000, 32_768),
        }
    }

    #[test]
    fn thresholds_are_read_and_met() {
        let memory = Threshold::parse("memory.available<100Mi").unwrap();
        assert_eq!(memory, Threshold { signal: Signal::Memory, bound: Bound::Amount(100 << 20) });
        assert_eq!(Threshold::parse("nodefs.available < 7.5%").unwrap().bound, Bound::Share(75));
        for bad in
            ["memory.available", "other<1", "memory.available<x", "nodefs.available<101%", "pid.available<-1"]
        {
            assert!(Threshold::parse(bad).is_err(), "{bad}");
        }
        assert!(met(&machine(), &Threshold::usual()).is_empty());
        let mut low = machine();
        low.memory.available = 99 << 20;
        low.inodes.available = 19;
        let names: Vec<_> = met(&low, &Threshold::usual()).iter().map(|t| t.signal.name()).collect();
        assert_eq!(names, ["memory.available", "nodefs.inodesFree"]);
        low.memory.total = 0;
        assert_eq!(met(&low, &Threshold::usual()).len(), 1, "what cannot be measured is no pressure");
    }

    #[test]
    fn conditions_stay_for_a_while() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let memory = Threshold::usual().swap_remove(0);
        let mut history = Met::new();
        assert_eq!(conditions(&[memory], &mut history, at(0)), ["MemoryPressure"]);
        assert_eq!(conditions(&[], &mut history, at(299)), ["MemoryPressure"]);
        assert!(conditions(&[], &mut history, at(300)).is_empty());
    }

    #[test]
    fn the_pod_that_goes() {
        let pod = |uid: &str, priority, used: u64, requested: u64| Candidate {
            uid: uid.into(),
            priority,
            memory_used: used,
            memory_requested: requested,
            pids: used,
            ..Candidate::default()
        };
        let memory = Threshold::parse("memory.available<100Mi").unwrap();
        let pids = Threshold::parse("pid.available<1").unwrap();
        // (pods, threshold, who goes)
        let table: [(Vec<Candidate>, &Threshold, Option<&str>); 6] = [
            (vec![], &memory, None),
            (vec![pod("within", 0, 5, 9), pod("over", 100, 9, 5)], &memory, Some("over")),
            (vec![pod("dear", 100, 90, 5), pod("cheap", 0, 9, 5)], &memory, Some("cheap")),
            (vec![pod("small", 0, 6, 5), pod("large", 0, 60, 50)], &memory, Some("large")),
            (vec![pod("system", 2_000_001_000, 60, 0), pod("idle", 0, 0, 0)], &memory, None),
            (vec![pod("few", 0, 3, 0), pod("many", 0, 30, 0)], &pids, Some("many")),
        ];
        for (pods, threshold, want) in table {
            let found = choose(threshold, &machine(), &pods);
            assert_eq!(found.as_ref().map(|(uid, _)| uid.as_str()), want, "{pods:?}");
        }
        let (_, failure) = choose(&memory, &machine(), &[pod("a", 0, 9, 5)]).unwrap();
        let want = "The node was low on resource: memory. Threshold quantity: 104857600, available: 4294967296. \
                    The pod was using 9, request is 5.";
        assert_eq!(
            (failure.reason.as_str(), failure.message.as_str(), failure.disruption),
            ("Evicted", want, true)
        );
    }

    #[test]
    fn images_that_go_can_be_had_again() {
        let image = |reference: &str, size, used, fetched| StoredImage {
            reference: reference.into(),
            size,
            used,
            fetched,
        };
        let images = [
            image("used", 9, true, true),
            image("imported", 9, false, false),
            image("small", 1, false, true),
            image("large", 5, false, true),
        ];
        assert_eq!(unused_images(&images), ["large", "small"]);
    }
}
