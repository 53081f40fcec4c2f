//! Flags of a node's housekeeping: when pods are evicted and images removed. They have the names and the syntax of the
//! kubelet's.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use node::eviction::settings::{self, Thresholds};
use node::eviction::{Rules, Signal};
use node::image_gc::Policy;

use crate::cli::Period;

#[derive(Args, Clone)]
pub(crate) struct HousekeepingArgs {
    /// Where pods are evicted at once, as memory.available<100Mi,nodefs.available<5%; replaces the usual thresholds
    #[arg(long, value_name = "THRESHOLDS")]
    eviction_hard: Option<Thresholds>,
    /// Where pods are evicted after a grace period
    #[arg(long, value_name = "THRESHOLDS", default_value = "", hide_default_value = true)]
    eviction_soft: Thresholds,
    /// Those grace periods, as memory.available=1m30s
    #[arg(long, value_name = "SIGNAL=TIME,…", default_value = "", hide_default_value = true)]
    eviction_soft_grace_period: Graces,
    /// Most seconds that a pod gets to stop at a soft threshold
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    eviction_max_pod_grace_period: u32,
    /// How long the node shows pressure after it has passed
    #[arg(long, value_name = "TIME", default_value = "5m")]
    eviction_pressure_transition_period: Period,
    /// Percent of the disk in use from which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u64).range(0..=100))]
    image_gc_high_threshold: u64,
    /// Percent at which no more are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=100))]
    image_gc_low_threshold: u64,
    /// How long an image stays at least
    #[arg(long, value_name = "TIME", default_value = "2m")]
    minimum_image_ttl_duration: Period,
    /// How long an unused image stays at most; 0s is for ever
    #[arg(long, value_name = "TIME", default_value = "0s")]
    image_maximum_gc_age: Period,
}

/// `memory.available=1m30s,nodefs.available=2m`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Graces(Vec<(Signal, Duration)>);

impl FromStr for Graces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (name, time) = part.split_once('=').ok_or(format!("{part:?} is no SIGNAL=TIME"))?;
            let signal = settings::signal(name).map_err(|_| format!("{name:?} is no eviction signal"))?;
            Ok((signal, time.trim().parse::<Period>()?.0))
        };
        text.split(',').filter(|_| !text.is_empty()).map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl HousekeepingArgs {
    /// Finds what is wrong before anything is started.
    ///
    /// # Errors
    /// As [`Self::eviction`] and [`Self::image_gc`].
    pub(crate) fn check(&self) -> Result<()> {
        self.eviction().and(self.image_gc()).map(drop)
    }

    /// When the node shows pressure and evicts.
    ///
    /// # Errors
    /// A soft threshold without a grace period, or the other way round.
    pub(crate) fn eviction(&self) -> Result<Rules> {
        let usual = Rules::usual();
        let mut thresholds = self.eviction_hard.clone().map_or(usual.thresholds, |hard| hard.0);
        let soft = settings::soft(self.eviction_soft.clone(), &self.eviction_soft_grace_period.0);
        thresholds.extend(soft.context("--eviction-soft-grace-period")?);
        Ok(Rules {
            thresholds,
            transition: self.eviction_pressure_transition_period.0,
            max_pod_grace_seconds: self.eviction_max_pod_grace_period.into(),
        })
    }

    /// When images go.
    ///
    /// # Errors
    /// Bounds that contradict each other.
    pub(crate) fn image_gc(&self) -> Result<Policy> {
        ensure!(
            self.image_gc_low_threshold < self.image_gc_high_threshold,
            "--image-gc-low-threshold must be less than --image-gc-high-threshold"
        );
        let maximum_age = Some(self.image_maximum_gc_age.0).filter(|age| !age.is_zero());
        let minimum_age = self.minimum_image_ttl_duration.0;
        ensure!(
            maximum_age.is_none_or(|most| most > minimum_age),
            "--image-maximum-gc-age must be more than --minimum-image-ttl-duration"
        );
        Ok(Policy {
            high: self.image_gc_high_threshold,
            low: self.image_gc_low_threshold,
            minimum_age,
            maximum_age,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        housekeeping: HousekeepingArgs,
    }

    fn parse(flags: &[&str]) -> Result<(Rules, Policy), String> {
        let flags = Flags::try_parse_from(["podium"].iter().chain(flags)).map_err(|e| e.to_string())?;
        let all = flags.housekeeping.eviction().and_then(|e| Ok((e, flags.housekeeping.image_gc()?)));
        all.map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn flags_have_the_kubelets_syntax() {
        assert_eq!(parse(&[]).unwrap(), (Rules::usual(), Policy::default()));
        let (rules, images) = parse(&[
            "--eviction-hard=memory.available<200Mi",
            "--eviction-soft=nodefs.available<10%,pid.available<5%",
            "--eviction-soft-grace-period=nodefs.available=1m30s,pid.available=5s",
            "--eviction-max-pod-grace-period=60",
            "--eviction-pressure-transition-period=30s",
            "--image-maximum-gc-age=12h",
        ])
        .unwrap();
        let graces = rules.thresholds.iter().map(|t| (t.signal.name(), t.grace.map(|g| g.as_secs())));
        assert_eq!(
            graces.collect::<Vec<_>>(),
            [("memory.available", None), ("nodefs.available", Some(90)), ("pid.available", Some(5))]
        );
        assert_eq!((rules.transition.as_secs(), rules.max_pod_grace_seconds), (30, 60));
        assert_eq!(images.maximum_age, Some(Duration::from_secs(12 * 3600)));
        assert_eq!(parse(&["--eviction-hard="]).unwrap().0.thresholds, []);
    }

    #[test]
    fn bad_values_name_their_flag() {
        let table: [&[&str]; 9] = [
            &["--eviction-hard=memory.available"],
            &["--eviction-soft=memory<1"],
            &["--eviction-soft-grace-period=memory.available=x"],
            &["--eviction-soft-grace-period=memory.available=1s"],
            &["--eviction-max-pod-grace-period=-1"],
            &["--eviction-pressure-transition-period=5"],
            &["--image-gc-high-threshold=101"],
            &["--image-gc-low-threshold=90"],
            &["--image-maximum-gc-age=1m"],
        ];
        for flags in table {
            let name = flags[0].split('=').next().unwrap();
            let error = parse(flags).unwrap_err();
            assert!(error.contains(name), "{flags:?}: {error}");
        }
        let error = parse(&["--eviction-soft=memory.available<1Gi"]).unwrap_err();
        assert!(error.contains("--eviction-soft-grace-period"), "{error}");
    }
}
