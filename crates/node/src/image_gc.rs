//! Which images go when nobody uses them (Kubernetes, "Garbage collection of unused containers and images").
//!
//! ```text
//!   every few minutes: images + containers ─▶ seen (first, last used) ─▶ plan (pure) ─▶ remove, the longest unused first
//! ```
//!
//! An image that was imported by hand, or packed by Podium itself, cannot be had again: it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::eviction::Measure;
use crate::observed::elapsed;
use crate::ports::RuntimeError;
use crate::worker::Shared;

/// Between looks.
const EVERY: Duration = Duration::from_secs(300);

/// When images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Percent of the disk in use from which images go.
    pub high: u64,
    /// Percent at which it is enough.
    pub low: u64,
    /// No image goes that was first seen later than this ago.
    pub minimum_age: Duration,
    /// Images unused for longer go whatever room there is; `None`: they stay.
    pub maximum_age: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { high: 85, low: 80, minimum_age: Duration::from_secs(120), maximum_age: None }
    }
}

/// An image on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    pub id: String,
    pub size: u64,
    pub used: bool,
    /// It came from a registry, where it can be had again.
    pub fetched: bool,
}

/// When each image was first seen and last used, by id.
#[derive(Clone, Debug, Default)]
pub struct Seen(BTreeMap<String, (Timestamp, Timestamp)>);

impl Seen {
    /// Takes what is there now. What was there before anybody looked is old.
    pub fn note(&mut self, images: &[StoredImage], now: Timestamp) {
        let first = if self.0.is_empty() { Timestamp::MIN } else { now };
        self.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let (_, used) = self.0.entry(image.id.clone()).or_insert((first, now));
            if image.used {
                *used = now;
            }
        }
    }
}

/// Images to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Unused for too long.
    pub old: Vec<StoredImage>,
    /// In this order until `bytes` are free.
    pub candidates: Vec<StoredImage>,
    pub bytes: u64,
}

/// Decides which images go.
pub fn plan(images: &[StoredImage], seen: &Seen, disk: Measure, policy: &Policy, now: Timestamp) -> Plan {
    let times = |image: &StoredImage| seen.0.get(&image.id).copied().unwrap_or((now, now));
    let mut unused: Vec<&StoredImage> = images.iter().filter(|i| !i.used && i.fetched).collect();
    unused.retain(|image| elapsed(times(image).0, now) >= policy.minimum_age);
    unused.sort_by_key(|image| (times(image).1, times(image).0, image.id.clone()));
    let is_old =
        |image: &StoredImage| policy.maximum_age.is_some_and(|most| elapsed(times(image).1, now) > most);
    let (old, candidates): (Vec<_>, Vec<_>) = unused.into_iter().cloned().partition(is_old);
    Plan { old, candidates, bytes: surplus(disk, policy) }
}

/// Bytes to be freed.
fn surplus(disk: Measure, policy: &Policy) -> u64 {
    let free_percent = u128::from(disk.available) * 100 / u128::from(disk.total.max(1));
    if disk.total == 0 || free_percent > u128::from(100 - policy.high.min(100)) {
        return 0;
    }
    let wanted = u128::from(disk.total) * u128::from(100 - policy.low.min(100)) / 100;
    u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(disk.available)
}

/// Works until `stop` turns true.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut seen = Seen::default();
    let mut failed_before = false;
    loop {
        let failure = look(&shared, &mut seen).await.err();
        if let Some(message) = failure.as_ref().filter(|_| failed_before) {
            shared.events.node(&shared.facts.node_name, EventType::Warning, "ImageGCFailed", message);
        }
        failed_before = failure.is_some();
        tokio::select! {
            () = shared.clock.sleep(EVERY) => {}
            () = crate::agent::stopped(&mut stop) => return,
        }
    }
}

async fn look(shared: &Shared, seen: &mut Seen) -> Result<(), String> {
    let images = images(shared).await.map_err(|error| error.to_string())?;
    let now = shared.clock.now();
    seen.note(&images, now);
    let (disk, _) = crate::pressure::disk(&shared.config.image_dir);
    let plan = plan(&images, seen, disk, &shared.config.image_gc, now);
    let mut freed = 0;
    for image in &plan.old {
        freed += remove(shared, image).await;
    }
    for image in &plan.candidates {
        if freed >= plan.bytes {
            break;
        }
        freed += remove(shared, image).await;
    }
    if freed >= plan.bytes {
        return Ok(());
    }
    let message = format!(
        "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {freed} bytes \
         eligible to free.",
        plan.bytes
    );
    tracing::warn!("{message}");
    shared.events.node(&shared.facts.node_name, EventType::Warning, "FreeDiskSpaceFailed", &message);
    Err(message)
}

async fn images(shared: &Shared) -> Result<Vec<StoredImage>, RuntimeError> {
    let images = shared.runtime.list_images().await?;
    let containers = shared.runtime.list_containers().await?;
    let used: BTreeSet<&str> = containers.iter().map(|c| c.image_id.as_str()).collect();
    let stored = images.iter().map(|image| StoredImage {
        used: used.contains(image.id.as_str()),
        fetched: !image.repo_digests.is_empty(),
        id: image.id.clone(),
        size: image.size_bytes,
    });
    Ok(stored.collect())
}

/// Bytes that were freed.
async fn remove(shared: &Shared, image: &StoredImage) -> u64 {
    match shared.runtime.remove_image(&image.id).await {
        Ok(()) => {
            tracing::info!(image = %image.id, bytes = image.size, "removed an unused image");
            image.size
        }
        // A container may have begun to use it, or it is mounted.
        Err(error) => {
            tracing::info!(image = %image.id, %error, "an unused image stays");
            0
        }
    }
}

/// Removes all images that no container uses and that can be had again; returns how many bytes went.
pub(crate) async fn remove_unused(shared: &Shared) -> u64 {
    let mut freed = 0;
    for image in images(shared).await.unwrap_or_default().iter().filter(|i| !i.used && i.fetched) {
        freed += remove(shared, image).await;
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, used: bool, fetched: bool) -> StoredImage {
        StoredImage { id: id.into(), size: 10, used, fetched }
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap()
    }

    #[test]
    fn the_longest_unused_goes_first_and_only_when_room_is_short() {
        let disk = |used: u64| Measure { available: 1000 - used, total: 1000 };
        let mut seen = Seen::default();
        seen.note(&[image("a", true, true), image("b", false, true), image("hand", false, false)], at(0));
        let later = [
            image("a", false, true),
            image("b", false, true),
            image("c", true, true),
            image("hand", false, false),
            image("new", false, true),
        ];
        seen.note(&later[..4], at(5));
        seen.note(
            &[image("b", true, true)]
                .into_iter()
                .chain(later[2..4].to_vec())
                .chain([image("a", false, true)])
                .collect::<Vec<_>>(),
            at(10),
        );
        seen.note(&later, at(15));
        let planned = |used: u64, policy: &Policy| {
            let plan = plan(&later, &seen, disk(used), policy, at(16));
            let ids = |list: &[StoredImage]| list.iter().map(|i| i.id.clone()).collect::<Vec<_>>().join(" ");
            (ids(&plan.old), ids(&plan.candidates), plan.bytes)
        };
        let usual = Policy::default();
        assert_eq!(planned(839, &usual), (String::new(), "a b".into(), 0));
        assert_eq!(planned(850, &usual), (String::new(), "a b".into(), 50));
        let quick = Policy { maximum_age: Some(Duration::from_secs(600)), ..usual };
        assert_eq!(planned(900, &quick), ("a".into(), "b".into(), 100), "a was last used at 0, b at 10");
        assert_eq!(plan(&later, &seen, Measure::default(), &Policy::default(), at(16)).bytes, 0);
    }
}
