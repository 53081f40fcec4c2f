//! How many replicas each ReplicaSet shall have: pure arithmetic on counts.

use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What the arithmetic needs to know of one ReplicaSet. Old ones are kept in order of age, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// `spec.replicas`
    pub(crate) replicas: i32,
    /// `status.availableReplicas`
    pub(crate) available: i32,
    /// Largest total size of the Deployment when this set was last sized (annotation).
    pub(crate) max_replicas: Option<i32>,
}

/// Bounds of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) rolling: bool,
}

impl Bounds {
    /// Reads a spec. Percentages of surge round up, those of unavailability round down; both zero would never move.
    pub(crate) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        let rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate");
        if !rolling {
            return Self { replicas, max_surge: 0, max_unavailable: 0, rolling };
        }
        let rolling_update = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = rolling_update.and_then(|r| r.max_surge.as_ref());
        let unavailable = rolling_update.and_then(|r| r.max_unavailable.as_ref());
        let max_surge = resolve(surge, replicas, true);
        let mut max_unavailable = resolve(unavailable, replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas), rolling }
    }

    pub(crate) fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }

    /// Annotation `max-replicas`.
    pub(crate) fn max_total(&self) -> i32 {
        self.replicas + self.max_surge
    }
}

fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(number)) => (*number).max(0),
        Some(IntOrString::String(text)) => percent(text, total, round_up),
        None => percent("25%", total, round_up),
    }
}

fn percent(text: &str, total: i32, round_up: bool) -> i32 {
    let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
    let hundredths = percent.max(0) * i64::from(total);
    let whole = if round_up { (hundredths + 99) / 100 } else { hundredths / 100 };
    i32::try_from(whole).unwrap_or(i32::MAX)
}

fn total(sizes: &[Size]) -> i32 {
    sizes.iter().map(|size| size.replicas).sum()
}

/// Size of the new set, as large as the bounds allow.
pub(crate) fn new_size(bounds: &Bounds, new: i32, old: &[Size]) -> i32 {
    if !bounds.rolling || new >= bounds.replicas {
        return bounds.replicas;
    }
    let room = (bounds.max_total() - total(old) - new).max(0);
    new + room.min(bounds.replicas - new)
}

/// Sizes of the old sets, as small as the bounds allow. Pods that are not available go first: they serve nobody.
pub(crate) fn old_sizes(bounds: &Bounds, new: &Size, old: &[Size]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|size| size.replicas).collect();
    let new_unavailable = (new.replicas - new.available).max(0);
    let all = total(old) + new.replicas;
    let may_go = all - bounds.min_available() - new_unavailable;
    if may_go <= 0 {
        return sizes;
    }
    let mut cleaned = 0;
    for (size, set) in sizes.iter_mut().zip(old) {
        let unhealthy = (set.replicas - set.available).max(0).min(may_go - cleaned);
        *size -= unhealthy;
        cleaned += unhealthy;
    }
    let available: i32 = old.iter().map(|set| set.available.min(set.replicas)).sum::<i32>() + new.available;
    let mut spare = (available - bounds.min_available()).max(0);
    for size in &mut sizes {
        let less = (*size).min(spare);
        *size -= less;
        spare -= less;
    }
    sizes
}

/// Sizes after the Deployment itself was resized in the middle of a rollout: the difference is shared out in
/// proportion, the rest goes to the largest set. `sets` are the active ones, the oldest first.
pub(crate) fn proportional(bounds: &Bounds, sets: &[Size], status_replicas: i32) -> Vec<i32> {
    let mut sizes: Vec<i32> = sets.iter().map(|set| set.replicas).collect();
    let allowed = if bounds.replicas > 0 { bounds.max_total() } else { 0 };
    let to_add = allowed - total(sets);
    if to_add == 0 {
        return sizes;
    }
    // Larger sets first; of equals the newer one grows and the older one shrinks.
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|&i| {
        let age = if to_add > 0 { sets.len() - i } else { i };
        (-sets[i].replicas, age)
    });
    let mut added = 0;
    for &i in &order {
        let share = share(bounds, &sets[i], status_replicas);
        let left = to_add - added;
        let share = if sets[i].replicas == 0 {
            0
        } else if to_add > 0 {
            share.min(left).max(0)
        } else {
            share.max(left).min(0)
        };
        sizes[i] += share;
        added += share;
    }
    if let Some(&largest) = order.first() {
        sizes[largest] = (sizes[largest] + to_add - added).max(0);
    }
    sizes
}

fn share(bounds: &Bounds, set: &Size, status_replicas: i32) -> i32 {
    if bounds.replicas == 0 {
        return -set.replicas;
    }
    let before = set.max_replicas.filter(|max| *max > 0).unwrap_or(status_replicas);
    if before <= 0 {
        return 0;
    }
    let scaled = f64::from(set.replicas) * f64::from(bounds.max_total()) / f64::from(before);
    #[expect(clippy::cast_possible_truncation, reason = "a count of replicas, rounded")]
    let scaled = scaled.round() as i32;
    scaled - set.replicas
}
