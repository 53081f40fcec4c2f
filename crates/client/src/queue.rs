//! The work queue: which key to work on next. A plain data structure; the runner drives it and owns the time.
//!
//! Invariants: a key waits at most once; a key is given out to one worker at a time, and an addition during the
//! work makes it wait again afterwards; lanes (controllers) take turns.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::meter::QueueMeter;

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Keys to work on, in lanes that take turns. Times are monotonic, from any fixed moment.
#[derive(Debug)]
pub struct WorkQueue<K> {
    lanes: Vec<Lane<K>>,
    next_lane: usize,
    delayed: BTreeMap<Duration, BTreeSet<(usize, K)>>,
    due: HashMap<(usize, K), Duration>,
}

#[derive(Debug)]
struct Lane<K> {
    /// with the time since when they wait, if it is measured
    ready: VecDeque<(K, Duration)>,
    waiting: BTreeSet<K>,
    /// with the time at which the work began, if it is measured
    working: BTreeMap<K, Duration>,
    again: BTreeSet<K>,
    failures: HashMap<K, u32>,
    meter: Option<QueueMeter>,
}

impl<K: Clone + Ord + Hash> WorkQueue<K> {
    /// A queue with a number of lanes.
    pub fn new(lanes: usize) -> Self {
        Self::with_meters((0..lanes).map(|_| None))
    }

    /// A queue whose lanes are measured, each by its own meter.
    pub fn metered(meters: impl IntoIterator<Item = QueueMeter>) -> Self {
        Self::with_meters(meters.into_iter().map(Some))
    }

    fn with_meters(meters: impl Iterator<Item = Option<QueueMeter>>) -> Self {
        let lane = |meter| Lane {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            working: BTreeMap::new(),
            again: BTreeSet::new(),
            failures: HashMap::new(),
            meter,
        };
        Self {
            lanes: meters.map(lane).collect(),
            next_lane: 0,
            delayed: BTreeMap::new(),
            due: HashMap::new(),
        }
    }

    /// The key shall be worked on as soon as possible.
    pub fn add(&mut self, lane: usize, key: K) {
        let lane = &mut self.lanes[lane];
        if lane.working.contains_key(&key) {
            lane.again.insert(key);
        } else if lane.waiting.insert(key.clone()) {
            let since = lane.meter.as_ref().map(QueueMeter::added).unwrap_or_default();
            lane.ready.push_back((key, since));
        }
    }

    /// The key shall be worked on at `at`; the earliest of several moments counts.
    pub fn add_at(&mut self, lane: usize, key: K, at: Duration) {
        let entry = (lane, key);
        if let Some(old) = self.due.get(&entry).copied() {
            if old <= at {
                return;
            }
            self.forget_delay(&entry, old);
        }
        self.due.insert(entry.clone(), at);
        self.delayed.entry(at).or_default().insert(entry);
    }

    /// After a failure: again after a delay that doubles with each failure of the key.
    pub fn add_failed(&mut self, lane: usize, key: K, now: Duration) -> Duration {
        if let Some(meter) = &self.lanes[lane].meter {
            meter.failed();
        }
        let failures = self.lanes[lane].failures.entry(key.clone()).or_insert(0);
        let delay = BACKOFF_FIRST.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MAX);
        *failures += 1;
        self.add_at(lane, key, now + delay);
        delay
    }

    /// After a success: the next failure starts with the smallest delay.
    pub fn succeeded(&mut self, lane: usize, key: &K) {
        self.lanes[lane].failures.remove(key);
    }

    /// The next key, if any is ready in a lane for which `open` holds.
    pub fn pop(&mut self, now: Duration, open: impl Fn(usize) -> bool) -> Option<(usize, K)> {
        self.release_due(now);
        for step in 0..self.lanes.len() {
            let index = (self.next_lane + step) % self.lanes.len();
            if !open(index) {
                continue;
            }
            let lane = &mut self.lanes[index];
            if let Some((key, since)) = lane.ready.pop_front() {
                lane.waiting.remove(&key);
                let begun = lane.meter.as_ref().map(|meter| meter.begun(since)).unwrap_or_default();
                lane.working.insert(key.clone(), begun);
                self.next_lane = index + 1;
                return Some((index, key));
            }
        }
        None
    }

    /// The work on a key has ended.
    pub fn done(&mut self, lane: usize, key: &K) {
        let state = &mut self.lanes[lane];
        if let (Some(begun), Some(meter)) = (state.working.remove(key), &state.meter) {
            meter.ended(begun);
        }
        if state.again.remove(key) {
            self.add(lane, key.clone());
        }
    }

    /// When the next delayed key becomes ready.
    pub fn next_due(&self) -> Option<Duration> {
        self.delayed.keys().next().copied()
    }

    fn release_due(&mut self, now: Duration) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| *entry.key() <= now) {
            for (lane, key) in entry.remove() {
                self.due.remove(&(lane, key.clone()));
                self.add(lane, key);
            }
        }
    }

    fn forget_delay(&mut self, entry: &(usize, K), at: Duration) {
        if let Some(set) = self.delayed.get_mut(&at) {
            set.remove(entry);
            if set.is_empty() {
                self.delayed.remove(&at);
            }
        }
    }
}
