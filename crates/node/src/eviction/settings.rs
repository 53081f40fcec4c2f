//! How thresholds are written: in the syntax of the kubelet's flags ("Node-pressure Eviction").

use std::str::FromStr;
use std::time::Duration;

use super::{Bound, Rules, Signal, Threshold};

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("{0:?} is no eviction threshold: write memory.available<100Mi or nodefs.available<5%")]
    Threshold(String),
    #[error("duplicate eviction threshold specified for {0}")]
    Duplicate(&'static str),
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGrace(&'static str),
    #[error("grace period specified for {0}, which has no soft eviction threshold")]
    NoThreshold(&'static str),
}

/// `memory.available<100Mi,nodefs.available<5%`; "" is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thresholds(pub Vec<Threshold>);

/// The signal of a name.
///
/// # Errors
/// A name that is none.
pub fn signal(name: &str) -> Result<Signal, SettingError> {
    let found = Signal::ALL.into_iter().find(|signal| signal.name() == name.trim());
    found.ok_or_else(|| SettingError::Threshold(name.into()))
}

impl FromStr for Thresholds {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let mut list: Vec<Threshold> = Vec::new();
        for part in text.split(',').filter(|_| !text.trim().is_empty()) {
            let threshold = threshold(part)?;
            if list.iter().any(|other| other.signal == threshold.signal) {
                return Err(SettingError::Duplicate(threshold.signal.name()));
            }
            list.push(threshold);
        }
        // All or nothing of something is no bound.
        list.retain(|t| !matches!(t.bound, Bound::Share(0 | 1000)));
        Ok(Self(list))
    }
}

fn threshold(text: &str) -> Result<Threshold, SettingError> {
    let wrong = || SettingError::Threshold(text.into());
    let (name, bound) = text.split_once('<').ok_or_else(wrong)?;
    let signal = signal(name).map_err(|_| wrong())?;
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
            Bound::Amount(u64::try_from(amount / 1000).ok().filter(|amount| *amount > 0).ok_or_else(wrong)?)
        }
    };
    Ok(Threshold { signal, bound, grace: None })
}

/// Soft thresholds with their grace periods.
///
/// # Errors
/// A threshold without a grace period, or the other way round.
pub fn soft(thresholds: Thresholds, graces: &[(Signal, Duration)]) -> Result<Vec<Threshold>, SettingError> {
    let lonely = graces.iter().find(|(signal, _)| !thresholds.0.iter().any(|t| t.signal == *signal));
    if let Some((signal, _)) = lonely {
        return Err(SettingError::NoThreshold(signal.name()));
    }
    let with_grace = |threshold: Threshold| {
        let grace = graces.iter().find(|(signal, _)| *signal == threshold.signal).map(|(_, grace)| *grace);
        let grace = Some(grace.ok_or(SettingError::NoGrace(threshold.signal.name()))?);
        Ok(Threshold { grace, ..threshold })
    };
    thresholds.0.into_iter().map(with_grace).collect()
}

impl Rules {
    /// What an ordinary machine needs to go on. Absolute amounts: a tenth of a large disk is no emergency.
    pub fn usual() -> Self {
        let hard = "memory.available<100Mi,nodefs.available<1Gi,nodefs.inodesFree<1%,imagefs.available<1Gi,\
                    imagefs.inodesFree<1%,pid.available<2%";
        let hard: Thresholds = hard.parse().expect("thresholds of our own are right");
        Self { thresholds: hard.0, transition: Duration::from_secs(300), max_pod_grace_seconds: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read() {
        let read = |text: &str| text.parse::<Thresholds>().map(|list| list.0);
        let memory = Threshold { signal: Signal::Memory, bound: Bound::Amount(100 << 20), grace: None };
        assert_eq!(read("memory.available<100Mi"), Ok(vec![memory.clone()]));
        let disk = Threshold { signal: Signal::Disk, bound: Bound::Share(75), grace: None };
        assert_eq!(read("memory.available < 100Mi,nodefs.available < 7.5%"), Ok(vec![memory.clone(), disk]));
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("pid.available<0%,imagefs.available<100%"), Ok(vec![]));
        for bad in [
            "memory.available",
            "other<1",
            "containerfs.available<1Gi",
            "memory.available<x",
            "memory.available<0",
            "nodefs.available<101%",
            "pid.available<-1",
            "pid.available<5%,",
        ] {
            assert!(matches!(read(bad), Err(SettingError::Threshold(_))), "{bad}");
        }
        assert_eq!(read("pid.available<5%,pid.available<6%"), Err(SettingError::Duplicate("pid.available")));
        let minute = Duration::from_secs(60);
        let list = || Thresholds(vec![memory.clone()]);
        let graced = Threshold { grace: Some(minute), ..memory.clone() };
        assert_eq!(soft(list(), &[(Signal::Memory, minute)]), Ok(vec![graced]));
        assert_eq!(soft(list(), &[]), Err(SettingError::NoGrace("memory.available")));
        let other = soft(list(), &[(Signal::Memory, minute), (Signal::Pids, minute)]);
        assert_eq!(other, Err(SettingError::NoThreshold("pid.available")));
    }
}
