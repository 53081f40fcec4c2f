//! How fast a recommendation may be followed: stabilization windows and rate policies (Kubernetes, "Horizontal Pod
//! Autoscaling", configurable scaling behavior).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// The stabilization window of a scale-down when nothing is said.
const DOWN_WINDOW: i32 = 300;
/// The longest window and period that can be asked for, in seconds: older history is of no use.
const LONGEST: Duration = Duration::from_secs(3600);

/// What was recommended and done before. It is lost with the process, as Kubernetes' own is: then the next recommendation
/// counts alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    recommended: Vec<(Timestamp, i32)>,
    /// Changes of the number of pods.
    changed: Vec<(Timestamp, i32)>,
}

/// A type, status, reason and message.
pub(super) type Finding = (&'static str, bool, &'static str, &'static str);

/// What to do with a recommendation.
#[derive(Debug, PartialEq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    pub(super) able: Finding,
    pub(super) limited: Finding,
}

/// Least and most pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: i32,
    pub(super) max: i32,
}

/// Rules with everything filled in.
struct Rules {
    window: Duration,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(Clone, Copy, PartialEq)]
enum Select {
    Most,
    Least,
    Never,
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

impl Rules {
    fn of(rules: Option<&HPAScalingRules>, usual: &[(&str, i32)], window: i32) -> Self {
        let policy = |(type_, value): &(&str, i32)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: 15,
        };
        let given = rules.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
        let select = match rules.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Min") => Select::Least,
            Some("Disabled") => Select::Never,
            _ => Select::Most,
        };
        Self {
            window: seconds(rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(window)),
            select,
            policies: given.unwrap_or_else(|| usual.iter().map(policy).collect()),
        }
    }
}

impl History {
    /// Notes a change of the number of pods.
    pub(super) fn note_change(&mut self, by: i32, now: Timestamp) {
        self.changed.push((now, by));
    }

    fn forget(&mut self, now: Timestamp) {
        let fresh = |at: Timestamp| at + LONGEST > now;
        self.recommended.retain(|(at, _)| fresh(*at));
        self.changed.retain(|(at, _)| fresh(*at));
    }

    /// Pods added and taken away within a time.
    fn changes(&self, within: Duration, now: Timestamp) -> (i32, i32) {
        let recent = self.changed.iter().filter(|(at, _)| *at + within > now);
        recent.fold((0, 0), |(up, down), (_, by)| (up + by.max(&0), down - by.min(&0)))
    }
}

/// Follows a recommendation as far as windows, rates and bounds allow.
pub(super) fn decide(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: Bounds,
    current: i32,
    recommended: i32,
    history: &mut History,
    now: Timestamp,
) -> Decision {
    let usual = [("Pods", 4), ("Percent", 100)];
    let up = Rules::of(behavior.and_then(|b| b.scale_up.as_ref()), &usual, 0);
    let down = Rules::of(behavior.and_then(|b| b.scale_down.as_ref()), &usual[1..], DOWN_WINDOW);
    history.forget(now);
    let stable = stabilized(&up, &down, current, recommended, history, now);
    history.recommended.push((now, recommended));
    let able = match stable {
        same if same == recommended => {
            ("AbleToScale", true, "ReadyForNewScale", "recommended size matches current size")
        }
        more if more > recommended => (
            "AbleToScale",
            true,
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        ),
        _ => (
            "AbleToScale",
            true,
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        ),
    };
    let (replicas, limited) = limited(&up, &down, bounds, current, stable, history, now);
    Decision { replicas, able, limited }
}

/// The lowest recent recommendation holds growth back, the highest one shrinking.
fn stabilized(
    up: &Rules,
    down: &Rules,
    current: i32,
    recommended: i32,
    history: &History,
    now: Timestamp,
) -> i32 {
    let within = |window: Duration| {
        let recent = history.recommended.iter().filter(move |(at, _)| *at + window > now);
        recent.map(|(_, replicas)| *replicas).chain([recommended])
    };
    let lowest = within(up.window).min().unwrap_or(recommended);
    let highest = within(down.window).max().unwrap_or(recommended);
    current.max(lowest).min(highest)
}

fn limited(
    up: &Rules,
    down: &Rules,
    bounds: Bounds,
    current: i32,
    wanted: i32,
    history: &History,
    now: Timestamp,
) -> (i32, Finding) {
    let within =
        ("ScalingLimited", false, "DesiredWithinRange", "the desired count is within the acceptable range");
    if wanted > current {
        let rate = highest(up, current, history, now).max(current);
        let (most, finding) = if bounds.max > rate {
            (
                rate,
                (
                    "ScaleUpLimit",
                    "the desired replica count is increasing faster than the maximum scale rate",
                ),
            )
        } else {
            (
                bounds.max,
                ("TooManyReplicas", "the desired replica count is more than the maximum replica count"),
            )
        };
        if wanted > most {
            return (most, ("ScalingLimited", true, finding.0, finding.1));
        }
    } else {
        let rate = lowest(down, current, history, now).min(current);
        let (least, finding) = if bounds.min < rate {
            (
                rate,
                (
                    "ScaleDownLimit",
                    "the desired replica count is decreasing faster than the maximum scale rate",
                ),
            )
        } else {
            (
                bounds.min,
                ("TooFewReplicas", "the desired replica count is less than the minimum replica count"),
            )
        };
        if wanted < least {
            return (least, ("ScalingLimited", true, finding.0, finding.1));
        }
    }
    (wanted, within)
}

/// The number that growth may reach now.
fn highest(rules: &Rules, current: i32, history: &History, now: Timestamp) -> i32 {
    let proposed = rules.policies.iter().map(|policy| {
        let (added, taken) = history.changes(seconds(policy.period_seconds), now);
        let start = current - added + taken;
        match policy.type_.as_str() {
            "Pods" => start.saturating_add(policy.value),
            _ => percent(start, 100 + i64::from(policy.value), true),
        }
    });
    match rules.select {
        Select::Never => current,
        Select::Least => proposed.min().unwrap_or(current),
        Select::Most => proposed.max().unwrap_or(current),
    }
}

/// The number that shrinking may reach now.
fn lowest(rules: &Rules, current: i32, history: &History, now: Timestamp) -> i32 {
    let proposed = rules.policies.iter().map(|policy| {
        let (added, taken) = history.changes(seconds(policy.period_seconds), now);
        let start = current - added + taken;
        match policy.type_.as_str() {
            "Pods" => start.saturating_sub(policy.value),
            _ => percent(start, 100 - i64::from(policy.value), false),
        }
    });
    match rules.select {
        Select::Never => current,
        Select::Least => proposed.max().unwrap_or(current),
        Select::Most => proposed.min().unwrap_or(current),
    }
}

fn percent(start: i32, percent: i64, up: bool) -> i32 {
    let product = i64::from(start).saturating_mul(percent);
    let whole = if up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
    i32::try_from(whole).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// Follows recommendations at times; the number of pods after each, with the reasons of the conditions.
    fn follow(behavior: Value, start: i32, recommended: &[(i64, i32)]) -> Vec<String> {
        let behavior: HorizontalPodAutoscalerBehavior = serde_json::from_value(behavior).unwrap();
        let (mut history, mut current) = (History::default(), start);
        let bounds = Bounds { min: 1, max: 20 };
        let mut shown = Vec::new();
        for (second, wanted) in recommended {
            let decision = decide(Some(&behavior), bounds, current, *wanted, &mut history, at(*second));
            if decision.replicas != current {
                history.note_change(decision.replicas - current, at(*second));
            }
            current = decision.replicas;
            shown.push(format!("{current} {} {}", decision.able.2, decision.limited.2));
        }
        shown
    }

    #[test]
    fn growth_is_quick_and_shrinking_waits() {
        assert_eq!(
            follow(
                json!({}),
                1,
                &[(0, 20), (5, 20), (15, 20), (30, 20), (45, 30), (60, 2), (340, 2), (345, 0), (661, 0)]
            ),
            [
                "5 ReadyForNewScale ScaleUpLimit",
                "5 ReadyForNewScale ScaleUpLimit",
                "10 ReadyForNewScale ScaleUpLimit",
                "20 ReadyForNewScale DesiredWithinRange",
                "20 ReadyForNewScale TooManyReplicas",
                "20 ScaleDownStabilized DesiredWithinRange",
                "20 ScaleDownStabilized DesiredWithinRange",
                "2 ScaleDownStabilized DesiredWithinRange",
                "1 ReadyForNewScale TooFewReplicas",
            ]
        );
    }

    #[test]
    fn rules_say_how_fast() {
        let slow = json!({
            "scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                {"type": "Percent", "value": 50, "periodSeconds": 60}, {"type": "Pods", "value": 2, "periodSeconds": 60}]},
        });
        assert_eq!(
            follow(slow, 4, &[(0, 4), (30, 9), (61, 9), (75, 9), (92, 9), (120, 1), (150, 1), (181, 1)]),
            [
                "4 ReadyForNewScale DesiredWithinRange",
                "4 ScaleUpStabilized DesiredWithinRange",
                "5 ReadyForNewScale ScaleUpLimit",
                "5 ReadyForNewScale ScaleUpLimit",
                "6 ReadyForNewScale ScaleUpLimit",
                // What came within the period counts as not there at its start.
                "2 ReadyForNewScale ScaleDownLimit",
                "2 ReadyForNewScale ScaleDownLimit",
                "1 ReadyForNewScale DesiredWithinRange",
            ]
        );
        let never = json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}});
        assert_eq!(follow(never, 4, &[(0, 1)]), ["4 ReadyForNewScale ScaleDownLimit"]);
    }
}
