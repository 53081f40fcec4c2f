//! Requests and limits: quantities, QoS classes, cgroup values.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::observed::is_sidecar;
use crate::ports::Resources;

/// CFS period.
const PERIOD_US: i64 = 100_000;

/// A quantity in thousandths of its unit, rounded up; `None` when it is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (num, den): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000 * 1_000, 1),
        "M" => (1_000 * 1_000_000, 1),
        "G" => (1_000 * 1_000_000_000, 1),
        "T" => (1_000 * 1_000_000_000_000, 1),
        "P" => (1_000 * 1_000_000_000_000_000, 1),
        "E" => (1_000 * 1_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.trim_start_matches('+').parse().ok()?;
            (1_000 * 10i128.checked_pow(power.min(18))?, 1)
        }
    };
    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(9)];
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let (top, bottom) = (digits.checked_mul(num)?, scale * den);
    Some(sign * ((top + bottom - 1) / bottom))
}

fn milli_of(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    map.and_then(|m| m.get(name)).and_then(|q| milli(&q.0)).and_then(|v| i64::try_from(v).ok())
}

/// Thousandths of a CPU.
pub fn cpu_milli(map: Option<&BTreeMap<String, Quantity>>) -> Option<i64> {
    milli_of(map, "cpu")
}

/// Whole units (bytes), rounded up.
pub fn whole(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let value = map.and_then(|m| m.get(name)).and_then(|q| milli(&q.0))?;
    i64::try_from((value + 999) / 1_000).ok()
}

/// A container's limits or requests.
pub fn limits(container: &core::Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.limits.as_ref()
}

/// A container's requests.
pub fn requests(container: &core::Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.requests.as_ref()
}

/// Amounts in thousandths, by resource.
pub type Amounts = BTreeMap<String, i128>;

fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    map.into_iter().flatten().filter_map(|(name, q)| Some((name.clone(), milli(&q.0)?))).collect()
}

/// What a pod takes of its node: containers and sidecars together, or the largest moment of its initialisation with the
/// sidecars started so far (KEP-753); amounts of the pod as a whole win (KEP-2837); overhead comes on top.
pub fn pod_requests(spec: &core::PodSpec) -> Amounts {
    let mut total = together(spec, requests);
    total.extend(amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref())));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

/// The most that containers may take together, of what any of them has a limit for.
pub fn pod_limits(spec: &core::PodSpec) -> Amounts {
    together(spec, limits)
}

fn add(total: &mut Amounts, more: &Amounts) {
    more.iter().for_each(|(name, amount)| *total.entry(name.clone()).or_default() += amount);
}

type List = BTreeMap<String, Quantity>;

fn together(spec: &core::PodSpec, of: fn(&core::Container) -> Option<&List>) -> Amounts {
    let mut total = Amounts::new();
    spec.containers.iter().for_each(|c| add(&mut total, &amounts(of(c))));
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(of(container));
        let mut moment = sidecars.clone();
        add(&mut moment, &own);
        if is_sidecar(container) {
            add(&mut sidecars, &own);
        }
        for (name, amount) in moment {
            let most = largest.entry(name).or_default();
            *most = amount.max(*most);
        }
    }
    add(&mut total, &sidecars);
    for (name, amount) in largest {
        let sum = total.entry(name).or_default();
        *sum = amount.max(*sum);
    }
    total
}

/// Bytes as a quantity: `3Mi`, `1025`.
pub fn binary(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = if bytes == 0 { 0 } else { (bytes.trailing_zeros() / 10).min(6) };
    format!("{}{}", bytes >> (10 * power), units[power as usize])
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by the rules of the documentation page "Pod Quality of Service Classes".
pub fn qos_class(spec: &core::PodSpec) -> &'static str {
    let whole = spec.resources.as_ref().filter(|r| r.limits.is_some() || r.requests.is_some());
    let each = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.resources.as_ref());
    // Amounts of the pod as a whole decide alone (KEP-2837).
    let all: Vec<_> = if whole.is_some() { vec![whole] } else { each.collect() };
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let limit = milli_of(resources.and_then(|r| r.limits.as_ref()), name).filter(|v| *v > 0);
            let request = milli_of(resources.and_then(|r| r.requests.as_ref()), name).filter(|v| *v > 0);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Relative weight of a CPU request.
pub fn cpu_shares(milli_cpu: i64) -> u64 {
    u64::try_from(milli_cpu * 1024 / 1000).unwrap_or(2).clamp(2, 262_144)
}

/// CFS quota of a CPU limit, at least 1 ms.
pub fn cpu_quota(milli_cpu: i64) -> i64 {
    (milli_cpu * PERIOD_US / 1000).max(1000)
}

/// cgroup values of one container.
pub fn container_resources(
    container: &core::Container,
    spec: &core::PodSpec,
    node_memory_bytes: i64,
) -> Resources {
    let cpu_limit = cpu_milli(limits(container)).filter(|v| *v > 0);
    let request = cpu_milli(requests(container)).or(cpu_limit).unwrap_or(0);
    Resources {
        cpu_shares: Some(cpu_shares(request)),
        cpu_quota_us: cpu_limit.map(cpu_quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: whole(limits(container), "memory").filter(|v| *v > 0),
        pids_limit: None,
        oom_score_adj: Some(oom_score_adj(container, spec, node_memory_bytes)),
    }
}

/// Guaranteed −997, best effort 1000, burstable in between by the share of memory it asked for.
pub fn oom_score_adj(container: &core::Container, spec: &core::PodSpec, node_memory_bytes: i64) -> i32 {
    if spec.priority.is_some_and(|p| p >= 2_000_000_000) {
        return -997;
    }
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request =
                whole(requests(container), "memory").or(whole(limits(container), "memory")).unwrap_or(0);
            let share = i128::from(request) * 1000 / i128::from(node_memory_bytes.max(1));
            i32::try_from(1000 - share).unwrap_or(1000).clamp(3, 999)
        }
    }
}

/// cgroup values of the pod: sums of the containers; a limit only where every container has one.
pub fn pod_resources(spec: &core::PodSpec, pids_limit: Option<i64>) -> Resources {
    let kept = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).chain(&spec.containers);
    let kept: Vec<&core::Container> = kept.collect();
    let once: Vec<&core::Container> =
        spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)).collect();
    let total = |value: &dyn Fn(&core::Container) -> Option<i64>| -> Option<i64> {
        let sum = kept.iter().map(|c| value(c)).sum::<Option<i64>>()?;
        once.iter().map(|c| value(c)).try_fold(sum, |most, v| v.map(|v| most.max(v)))
    };
    let of_pod = |kind: fn(&core::ResourceRequirements) -> Option<&BTreeMap<String, Quantity>>| {
        spec.resources.as_ref().and_then(kind)
    };
    let (top, bottom) = (of_pod(|r| r.limits.as_ref()), of_pod(|r| r.requests.as_ref()));
    let cpu_limit = cpu_milli(top).or_else(|| total(&|c| cpu_milli(limits(c)).filter(|v| *v > 0)));
    let memory = whole(top, "memory").or_else(|| total(&|c| whole(limits(c), "memory").filter(|v| *v > 0)));
    let sum = || total(&|c| Some(cpu_milli(requests(c)).or(cpu_milli(limits(c))).unwrap_or(0)));
    let request = cpu_milli(bottom).or(cpu_milli(top)).or_else(sum).unwrap_or(0);
    // What the sandbox itself takes comes on top (KEP-688).
    let (extra_cpu, extra_memory) = (
        cpu_milli(spec.overhead.as_ref()).unwrap_or(0),
        whole(spec.overhead.as_ref(), "memory").unwrap_or(0),
    );
    let (request, cpu_limit) = (request + extra_cpu, cpu_limit.map(|limit| limit + extra_cpu));
    let memory = memory.map(|limit| limit.saturating_add(extra_memory));
    Resources {
        cpu_shares: Some(cpu_shares(request)),
        cpu_quota_us: cpu_limit.map(cpu_quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US.unsigned_abs()),
        memory_limit_bytes: memory,
        pids_limit,
        oom_score_adj: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::{Value, json};

    use super::{container_resources, milli, pod_resources, qos_class};

    #[test]
    fn quantities() {
        let table = [
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("2k", Some(2_000_000)),
            ("1e3", Some(1_000_000)),
            ("1n", Some(1)),
            ("", None),
            ("x", None),
            ("1Q", None),
        ];
        for (text, value) in table {
            assert_eq!(milli(text), value, "{text}");
        }
    }

    fn spec(resources: Value) -> core::PodSpec {
        serde_json::from_value(json!({"containers": [{"name": "c", "resources": resources}]})).unwrap()
    }

    #[test]
    fn classes_and_cgroup_values() {
        let both = json!({"cpu": "500m", "memory": "1Gi"});
        // (resources, class, oom score on a node of 4 GiB, shares, quota)
        let table = [
            (json!({}), "BestEffort", 1000, 2, None),
            (json!({"limits": both}), "Guaranteed", -997, 512, Some(50_000)),
            (json!({"requests": both}), "Burstable", 750, 512, None),
            (json!({"requests": {"cpu": "1m"}, "limits": {"cpu": "1m"}}), "Burstable", 999, 2, Some(1000)),
        ];
        for (resources, class, oom, shares, quota) in table {
            let spec = spec(resources.clone());
            assert_eq!(qos_class(&spec), class, "{resources}");
            let found = container_resources(&spec.containers[0], &spec, 4 << 30);
            assert_eq!((found.oom_score_adj, found.cpu_shares), (Some(oom), Some(shares)), "{resources}");
            assert_eq!(found.cpu_quota_us, quota, "{resources}");
            assert_eq!(pod_resources(&spec, None).cpu_quota_us, quota, "{resources}");
        }
    }

    #[test]
    fn overhead_is_the_pods_own() {
        let mut pod = spec(json!({"limits": {"cpu": "1", "memory": "100Mi"}}));
        pod.overhead = serde_json::from_value(json!({"cpu": "250m", "memory": "20Mi"})).unwrap();
        let found = pod_resources(&pod, None);
        assert_eq!((found.cpu_shares, found.cpu_quota_us), (Some(1280), Some(125_000)));
        assert_eq!(found.memory_limit_bytes, Some(120 << 20));
        assert_eq!(container_resources(&pod.containers[0], &pod, 1).memory_limit_bytes, Some(100 << 20));
        pod.containers[0].resources = None;
        let found = pod_resources(&pod, None);
        assert_eq!((found.cpu_shares, found.memory_limit_bytes), (Some(256), None));
    }
}
