//! Pods that want a node: ready to be tried, backing off after an error, or waiting for a change that can help.
//! Time is a parameter; nothing here runs by itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;

use crate::cycle::Unschedulable;
use crate::hints::Hints;
use crate::pod::PodInfo;
use crate::snapshot::Effect;

/// Back-off after an error while binding: doubles from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A waiting pod is tried again after this long even without a hint, should a hint ever be missing.
const SAFETY: Duration = Duration::from_secs(300);

/// A pod and its past attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    pub pod: Arc<PodInfo>,
    /// Errors in a row.
    pub errors: u32,
    /// What its user was told last.
    pub told: String,
    /// When it came here first.
    pub arrived: Duration,
    /// How often a node was looked for, and when last.
    pub attempts: u32,
    pub begun: Duration,
}

#[derive(Debug)]
enum Place {
    Active,
    BackOff { until: Duration },
    Waiting { why: Unschedulable, until: Duration },
}

#[derive(Debug)]
struct Slot {
    queued: Queued,
    place: Place,
    /// Order of arrival, kept over attempts.
    arrival: u64,
}

/// Changes since the queue was last told, gathered so that many changes cost one pass.
#[derive(Debug, Default)]
pub struct Gathered {
    hints: Hints,
    nodes: BTreeSet<String>,
    everywhere: bool,
}

impl Gathered {
    /// Adds the effect of a delta.
    pub fn add(&mut self, effect: Effect) {
        if effect.hints.is_none() {
            return;
        }
        self.hints = self.hints.or(effect.hints);
        match effect.node {
            Some(node) => {
                self.nodes.insert(node);
            }
            None => self.everywhere = true,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    slots: BTreeMap<ObjectKey, Slot>,
    /// Highest priority first, then first come.
    active: BTreeSet<(Reverse<i32>, u64, ObjectKey)>,
    /// Pods to try again at a time.
    timers: BTreeSet<(Duration, ObjectKey)>,
    waiting: BTreeSet<ObjectKey>,
    arrivals: u64,
}

impl Queue {
    /// Takes over a new or changed pod. One whose placement changed is tried at once.
    pub fn set(&mut self, pod: &Arc<PodInfo>, now: Duration) {
        if let Some(slot) = self.slots.get_mut(&pod.key)
            && slot.queued.pod.uid == pod.uid
        {
            let same = slot.queued.pod.spec == pod.spec;
            if same {
                slot.queued.pod = Arc::clone(pod);
                return;
            }
        }
        let new = Queued {
            pod: Arc::clone(pod),
            errors: 0,
            told: String::new(),
            arrived: now,
            attempts: 0,
            begun: now,
        };
        let old = self.remove(&pod.key).filter(|old| old.pod.uid == pod.uid);
        self.activate(match old {
            Some(old) => Queued { pod: new.pod, errors: 0, ..old },
            None => new,
        });
    }

    /// Forgets a pod.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Queued> {
        let slot = self.slots.remove(key)?;
        self.leave(key, &slot);
        Some(slot.queued)
    }

    fn leave(&mut self, key: &ObjectKey, slot: &Slot) {
        match &slot.place {
            Place::Active => {
                self.active.remove(&(Reverse(slot.queued.pod.spec.priority), slot.arrival, key.clone()));
            }
            Place::BackOff { until } => {
                self.timers.remove(&(*until, key.clone()));
            }
            Place::Waiting { until, .. } => {
                self.timers.remove(&(*until, key.clone()));
                self.waiting.remove(key);
            }
        }
    }

    fn activate(&mut self, queued: Queued) {
        self.arrivals += 1;
        self.enter(queued, Place::Active, self.arrivals);
    }

    fn enter(&mut self, queued: Queued, place: Place, arrival: u64) {
        let key = queued.pod.key.clone();
        match &place {
            Place::Active => {
                self.active.insert((Reverse(queued.pod.spec.priority), arrival, key.clone()));
            }
            Place::BackOff { until } => {
                self.timers.insert((*until, key.clone()));
            }
            Place::Waiting { until, .. } => {
                self.timers.insert((*until, key.clone()));
                self.waiting.insert(key.clone());
            }
        }
        self.slots.insert(key, Slot { queued, place, arrival });
    }

    /// Takes the next pod to try. It must come back by `wait` or `back_off`, or is done.
    pub fn pop(&mut self) -> Option<Queued> {
        let (_, _, key) = self.active.pop_first()?;
        Some(self.slots.remove(&key).expect("what is active has a slot").queued)
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Pods that are tried next.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Pods that wait after an error.
    pub fn backing_off(&self) -> usize {
        self.timers.len().saturating_sub(self.waiting.len())
    }

    /// Pods that no node would take.
    pub fn unschedulable(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a pod aside that no node would take.
    pub fn wait(&mut self, queued: Queued, why: Unschedulable, now: Duration) {
        self.arrivals += 1;
        let queued = Queued { errors: 0, ..queued };
        self.enter(queued, Place::Waiting { why, until: now + SAFETY }, self.arrivals);
    }

    /// Puts a pod aside after an error, unless a newer one has taken its place.
    pub fn back_off(&mut self, mut queued: Queued, now: Duration) {
        if self.slots.contains_key(&queued.pod.key) {
            return;
        }
        let delay = BACKOFF_FIRST.saturating_mul(1 << queued.errors.min(10)).min(BACKOFF_MAX);
        queued.errors += 1;
        self.arrivals += 1;
        self.enter(queued, Place::BackOff { until: now + delay }, self.arrivals);
    }

    /// Makes waiting pods active that the changes can help; `fits` tells whether a pod passes all filters on one
    /// of the nodes.
    pub fn hint(&mut self, changes: &Gathered, fits: impl Fn(&PodInfo, &BTreeSet<String>) -> bool) {
        if changes.hints.is_none() {
            return;
        }
        let helped = |key: &&ObjectKey| {
            let slot = &self.slots[*key];
            let Place::Waiting { why, .. } = &slot.place else { return false };
            let pod = &slot.queued.pod;
            why.helped_by.meets(changes.hints)
                && (why.global || changes.everywhere || fits(pod, &changes.nodes))
        };
        let helped: Vec<ObjectKey> = self.waiting.iter().filter(helped).cloned().collect();
        for key in helped {
            self.reactivate(&key);
        }
    }

    /// Makes pods active whose time has come.
    pub fn wake(&mut self, now: Duration) {
        while let Some((_, key)) = self.timers.first().filter(|(until, _)| *until <= now).cloned() {
            self.reactivate(&key);
        }
    }

    fn reactivate(&mut self, key: &ObjectKey) {
        if let Some(slot) = self.slots.remove(key) {
            self.leave(key, &slot);
            self.enter(slot.queued, Place::Active, slot.arrival);
        }
    }

    /// When [`Queue::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.first().map(|(until, _)| *until)
    }
}
