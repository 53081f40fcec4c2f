//! The newest events, within a budget of number, bytes and age. Watchers read them by position, so that
//! nothing is copied or queued per watcher.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Event, Revision};

/// Bounds of the history; whichever is reached first wins.
#[derive(Clone, Copy, Debug)]
pub struct HistoryBudget {
    pub events: usize,
    /// Bytes of keys and of values that are no longer current.
    pub bytes: usize,
    pub age: Duration,
}

pub(crate) struct History {
    budget: HistoryBudget,
    events: VecDeque<Arc<Event>>,
    /// When batches were added: (time, last revision).
    stamps: VecDeque<(Duration, Revision)>,
    bytes: usize,
    /// The oldest revision whose state can be restored and after which all events are here.
    floor: Revision,
    /// The newest revision that was compacted on request or for its age, not for want of room.
    compacted: Revision,
}

impl History {
    pub(crate) fn new(budget: HistoryBudget, floor: Revision) -> Self {
        Self { budget, events: VecDeque::new(), stamps: VecDeque::new(), bytes: 0, floor, compacted: floor }
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Forgets everything; the history begins anew at `floor`.
    pub(crate) fn reset(&mut self, floor: Revision) {
        *self = Self::new(self.budget, floor);
    }

    pub(crate) fn push(&mut self, events: impl IntoIterator<Item = Arc<Event>>, now: Duration) {
        let before = self.events.len();
        for event in events {
            self.bytes += cost(&event);
            self.events.push_back(event);
        }
        if let Some(last) = self.events.back().filter(|_| self.events.len() > before) {
            self.stamps.push_back((now, last.revision));
        }
        while self.events.len() > self.budget.events || self.bytes > self.budget.bytes {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= cost(&dropped);
            self.floor = dropped.revision;
        }
        while let Some((time, revision)) = self.stamps.front().copied() {
            let expired = time + self.budget.age < now;
            if !expired && revision > self.floor {
                break;
            }
            self.stamps.pop_front();
            if expired {
                self.compact(revision);
            }
        }
    }

    /// Makes `before` the floor, unless the floor is higher already.
    pub(crate) fn compact(&mut self, before: Revision) {
        while self.events.front().is_some_and(|e| e.revision <= before) {
            let dropped = self.events.pop_front().expect("the front was just looked at");
            self.bytes -= cost(&dropped);
        }
        self.floor = self.floor.max(before);
        self.compacted = self.compacted.max(before);
    }

    /// Events with a revision above `after`, in order.
    pub(crate) fn after(&self, after: Revision) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let start = self.events.partition_point(|e| e.revision <= after);
        self.events.range(start..)
    }
}

fn cost(event: &Event) -> usize {
    const OVERHEAD: usize = 160;
    OVERHEAD + event.key.len() + event.previous.as_ref().map_or(0, |p| p.value.len())
}
