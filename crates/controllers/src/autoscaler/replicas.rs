//! How many pods a resource metric asks for: usage against requests or a wanted average (Kubernetes, "Horizontal Pod
//! Autoscaling", algorithm details).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::Quantity;
use jiff::Timestamp;
use serde_json::Value;

/// Usage of processors right after a start says nothing about the load.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// A pod that became unready so soon after its start never was ready.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim {
    /// Percent of the requests.
    Utilization(i32),
    /// Thousandths of the resource per pod.
    Average(i64),
}

/// A resource of pods, or of one container of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric<'a> {
    pub(super) resource: &'a str,
    pub(super) container: Option<&'a str>,
    pub(super) aim: Aim,
}

/// How far off the aim may be without consequences, as shares of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for, and what was measured.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) replicas: i32,
    /// Percent of the requests.
    pub(super) utilization: Option<i32>,
    /// Thousandths of the resource per pod.
    pub(super) average: i64,
}

/// Pods by what is known of them; values are thousandths of the resource.
struct Groups {
    ready: usize,
    measured: BTreeMap<String, i64>,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
}

/// The number of pods that brings the metric to its aim.
///
/// # Errors
/// Why it cannot be told: no pods, no measurements, no requests.
pub(super) fn wanted(
    current: i32,
    metric: Metric<'_>,
    tolerance: Tolerance,
    pods: &[Value],
    usage: &[Value],
    now: Timestamp,
) -> Result<Wanted, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = grouped(metric, pods, usage, now);
    if groups.measured.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match metric.aim {
        Aim::Utilization(_) => requests(metric, pods)?,
        Aim::Average(_) => BTreeMap::new(),
    };
    let (ratio, utilization) = ratio(metric.aim, &groups.measured, &requests)?;
    let found = |replicas| Wanted { replicas, utilization, average: average(&groups.measured) };
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        let steady = tolerance.holds(ratio);
        return Ok(found(if steady { current } else { times(ratio, groups.ready) }));
    }
    let mut assumed = groups.measured.clone();
    for name in &groups.missing {
        // Those that say nothing hold every change back.
        let value = match metric.aim {
            _ if ratio > 1.0 => 0,
            Aim::Utilization(aim) => {
                requests.get(name).copied().unwrap_or(0).saturating_mul(i64::from(aim.max(100))) / 100
            }
            Aim::Average(aim) => aim,
        };
        assumed.insert(name.clone(), value);
    }
    if up_with_unready {
        assumed.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let (anew, _) = self::ratio(metric.aim, &assumed, &requests)?;
    let turned = (ratio < 1.0 && anew > 1.0) || (ratio > 1.0 && anew < 1.0);
    if tolerance.holds(anew) || turned {
        return Ok(found(current));
    }
    let replicas = times(anew, assumed.len());
    let against = (anew < 1.0 && replicas > current) || (anew > 1.0 && replicas < current);
    Ok(found(if against { current } else { replicas }))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts of pods")]
fn times(ratio: f64, count: usize) -> i32 {
    (ratio * count as f64).ceil() as i32
}

fn average(values: &BTreeMap<String, i64>) -> i64 {
    let count = i64::try_from(values.len()).unwrap_or(i64::MAX).max(1);
    values.values().sum::<i64>() / count
}

/// The measured by the wanted, and the measured as percent of the requests.
#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn ratio(
    aim: Aim,
    values: &BTreeMap<String, i64>,
    requests: &BTreeMap<String, i64>,
) -> Result<(f64, Option<i32>), String> {
    match aim {
        Aim::Average(aim) => Ok((average(values) as f64 / aim.max(1) as f64, None)),
        Aim::Utilization(aim) => {
            let known = values.iter().filter_map(|(name, value)| Some((*value, *requests.get(name)?)));
            let (used, asked) =
                known.fold((0, 0), |(used, asked), (value, request)| (used + value, asked + request));
            if asked == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used.saturating_mul(100) / asked).unwrap_or(i32::MAX);
            Ok((f64::from(utilization) / f64::from(aim.max(1)), Some(utilization)))
        }
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn grouped(metric: Metric<'_>, pods: &[Value], usage: &[Value], now: Timestamp) -> Groups {
    let mut groups =
        Groups { ready: 0, measured: BTreeMap::new(), unready: BTreeSet::new(), missing: BTreeSet::new() };
    for pod in pods {
        let phase = &pod["status"]["phase"];
        if !pod["metadata"]["deletionTimestamp"].is_null() || phase == "Failed" {
            continue;
        }
        let measured = usage.iter().find(|one| one["metadata"]["name"] == pod["metadata"]["name"]);
        let value = measured.and_then(|one| used(metric, one));
        match (value, measured) {
            _ if phase == "Pending" => drop(groups.unready.insert(name(pod))),
            (Some(_), Some(measured)) if metric.resource == "cpu" && starts(pod, measured, now) => {
                groups.unready.insert(name(pod));
            }
            (Some(value), _) => {
                groups.ready += 1;
                groups.measured.insert(name(pod), value);
            }
            (None, _) => drop(groups.missing.insert(name(pod))),
        }
    }
    groups
}

/// Whether what a pod uses of processors is that of its start.
fn starts(pod: &Value, measured: &Value, now: Timestamp) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let Some(ready) = conditions.into_iter().find(|condition| condition["type"] == "Ready") else {
        return true;
    };
    let Some(start) = time(&pod["status"]["startTime"]) else { return true };
    let Some(since) = time(&ready["lastTransitionTime"]) else { return true };
    let unready = ready["status"] == "False";
    if start + CPU_INITIALIZATION > now {
        let window = measured["window"].as_str().and_then(|text| text.parse::<jiff::Span>().ok());
        let until = window.and_then(|window| since.checked_add(window).ok()).unwrap_or(since);
        return unready || time(&measured["timestamp"]).is_none_or(|taken| taken < until);
    }
    unready && start + INITIAL_READINESS > since
}

fn milli(value: &Value) -> Option<i64> {
    Quantity::parse(value.as_str()?).ok().map(|quantity| quantity.milli())
}

/// What a pod uses; nothing unless all of its containers say.
fn used(metric: Metric<'_>, measured: &Value) -> Option<i64> {
    let containers = measured["containers"].as_array()?.iter();
    let mut wanted = containers.filter(|c| metric.container.is_none_or(|name| c["name"] == name)).peekable();
    wanted.peek()?;
    wanted.map(|container| milli(&container["usage"][metric.resource])).sum()
}

/// What pods ask for.
fn requests(metric: Metric<'_>, pods: &[Value]) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let restartable = |c: &&Value| c["restartPolicy"] == "Always";
        let list = |field: &str| pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
        let containers = list("containers").iter().chain(list("initContainers").iter().filter(restartable));
        let mut sum = 0;
        for container in containers.filter(|c| metric.container.is_none_or(|name| c["name"] == name)) {
            sum += milli(&container["resources"]["requests"][metric.resource]).ok_or_else(|| {
                let container = container["name"].as_str().unwrap_or_default();
                format!(
                    "missing request for {} in container {container} of Pod {}",
                    metric.resource,
                    name(pod)
                )
            })?;
        }
        all.insert(name(pod), sum);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(name: &str, more: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}]},
        });
        for (field, value) in more.as_object().unwrap() {
            pod[field] = value.clone();
        }
        pod
    }

    fn usage(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name}, "timestamp": NOW, "window": "15s",
            "containers": [{"name": "c", "usage": {"cpu": cpu}}]})
    }

    fn of(aim: Aim, pods: &[Value], used: &[Value]) -> Result<Wanted, String> {
        let metric = Metric { resource: "cpu", container: None, aim };
        let tolerance = Tolerance { up: 0.1, down: 0.1 };
        let current = i32::try_from(pods.len()).unwrap();
        wanted(current, metric, tolerance, pods, used, NOW.parse().unwrap())
    }

    fn replicas(aim: Aim, pods: &[Value], used: &[&str]) -> i32 {
        let used: Vec<Value> =
            used.iter().enumerate().map(|(index, cpu)| usage(&format!("p{index}"), cpu)).collect();
        of(aim, pods, &used).unwrap().replicas
    }

    fn pods(count: usize) -> Vec<Value> {
        (0..count).map(|index| pod(&format!("p{index}"), json!({}))).collect()
    }

    #[test]
    fn the_ratio_decides_outside_the_tolerance() {
        let half = Aim::Utilization(50);
        for (used, want) in [
            (["1", "1"], 4),
            (["500m", "500m"], 2),
            (["540m", "540m"], 2),
            (["560m", "560m"], 3),
            (["460m", "460m"], 2),
            (["100m", "100m"], 1),
            (["0", "0"], 0),
        ] {
            assert_eq!(replicas(half, &pods(2), &used), want, "{used:?}");
        }
        assert_eq!(replicas(Aim::Average(250), &pods(2), &["500m", "250m"]), 3);
        let found = of(half, &pods(1), &[usage("p0", "123456789n")]).unwrap();
        assert_eq!((found.utilization, found.average), (Some(12), 124));
    }

    #[test]
    fn what_is_not_known_holds_back() {
        let half = Aim::Utilization(50);
        // Two of three are far above; the third says nothing and counts as idle.
        assert_eq!(replicas(half, &pods(3), &["1", "1"]), 4);
        // Two are idle; the third counts as busy.
        assert_eq!(replicas(half, &pods(3), &["100m", "100m"]), 3);
        let mut fresh = pods(3);
        fresh[2]["status"]["startTime"] = "2026-01-01T00:59:50Z".into();
        fresh[2]["status"]["conditions"][0] =
            json!({"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:59:50Z"});
        // A starting pod counts as idle when there is too little of them, and not at all otherwise.
        assert_eq!(replicas(half, &fresh, &["1", "1", "1"]), 4);
        assert_eq!(replicas(half, &fresh, &["100m", "100m", "1"]), 1);
        let mut gone = pods(2);
        gone[1]["status"]["phase"] = "Failed".into();
        assert_eq!(replicas(half, &gone, &["1", "9"]), 2);
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let half = Aim::Utilization(50);
        let said = |pods: &[Value], used: &[Value]| of(half, pods, used).unwrap_err();
        assert_eq!(said(&[], &[]), "no pods returned by selector while calculating replica count");
        assert_eq!(said(&pods(1), &[]), "did not receive metrics for targeted pods (pods might be unready)");
        let bare = [pod("p0", json!({"spec": {"containers": [{"name": "c"}]}}))];
        assert_eq!(said(&bare, &[usage("p0", "1")]), "missing request for cpu in container c of Pod p0");
        assert!(of(Aim::Average(500), &bare, &[usage("p0", "1")]).is_ok());
    }
}
