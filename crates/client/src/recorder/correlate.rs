//! Which events are worth writing. Pure: time is a parameter.
//!
//! As Kubernetes' clients do it: the same event again is counted; many that differ in their message only are written as
//! one; what one source says about one object has a budget.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use super::{EventType, Note};

/// Distinct messages of a group from which on they are written as one.
const SIMILAR: usize = 10;
/// A group is forgotten when nothing was said in it for so long.
const GROUP_LIFE: Duration = Duration::from_secs(600);
/// Events about one object before its budget is used up, and the time in which it grows by one.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Keys remembered of each sort.
const REMEMBERED: usize = 4096;
const COMBINED: &str = "(combined from similar events): ";

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct About {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

/// Events that differ in their message only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    about: About,
    event_type: EventType,
    reason: String,
}

/// What makes two events the same one, repeated. A combined event has no message and no field of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    group: GroupKey,
    own: Option<(String, String)>,
}

struct Group {
    messages: BTreeSet<String>,
    last: Duration,
}

struct Budget {
    left: f64,
    at: Duration,
}

/// Remembers the newest keys.
pub(super) struct Memory<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Memory<K, V> {
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.map.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.map.remove(&oldest);
        }
    }
}

/// What one source has said.
#[derive(Default)]
pub(super) struct Correlator {
    groups: Memory<GroupKey, Group>,
    budgets: Memory<About, Budget>,
}

impl Correlator {
    /// Under which identity and with which message an event is written; `None` when it is one too many.
    pub(super) fn judge(&mut self, note: &Note, now: Duration) -> Option<(Identity, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let about = About {
            api_version: text(&note.about.api_version),
            kind: text(&note.about.kind),
            namespace: text(&note.about.namespace),
            name: text(&note.about.name),
            uid: text(&note.about.uid),
        };
        let group =
            GroupKey { about: about.clone(), event_type: note.event_type, reason: note.reason.clone() };
        let combined = self.is_one_of_many(&group, &note.message, now);
        if !self.within_budget(about, now) {
            return None;
        }
        Some(if combined {
            (Identity { group, own: None }, format!("{COMBINED}{}", note.message))
        } else {
            let own = Some((text(&note.about.field_path), note.message.clone()));
            (Identity { group, own }, note.message.clone())
        })
    }

    fn is_one_of_many(&mut self, key: &GroupKey, message: &str, now: Duration) -> bool {
        let fresh = |group: &&mut Group| now.saturating_sub(group.last) <= GROUP_LIFE;
        let Some(group) = self.groups.get(key).filter(fresh) else {
            let messages = BTreeSet::from([message.to_owned()]);
            self.groups.put(key.clone(), Group { messages, last: now });
            return false;
        };
        group.last = now;
        if group.messages.len() + 1 >= SIMILAR && !group.messages.contains(message) {
            return true;
        }
        group.messages.insert(message.to_owned());
        false
    }

    fn within_budget(&mut self, about: About, now: Duration) -> bool {
        let Some(budget) = self.budgets.get(&about) else {
            self.budgets.put(about, Budget { left: BURST - 1.0, at: now });
            return true;
        };
        let grown = now.saturating_sub(budget.at).as_secs_f64() / REFILL.as_secs_f64();
        budget.left = (budget.left + grown).min(BURST);
        budget.at = now;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn note(pod: &str, reason: &str, message: &str) -> Note {
        let about = ObjectReference { name: Some(pod.into()), ..ObjectReference::default() };
        let (reason, message) = (reason.to_owned(), message.to_owned());
        Note { about, event_type: EventType::Warning, reason, message }
    }

    #[test]
    fn many_messages_of_one_reason_become_one_event() {
        let mut correlator = Correlator::default();
        let mut judge = |message: &str, seconds| {
            let judged = correlator.judge(&note("a", "Failed", message), Duration::from_secs(seconds));
            judged.map(|(_, text)| text)
        };
        for number in 1..SIMILAR {
            assert_eq!(judge(&number.to_string(), 0), Some(number.to_string()));
        }
        assert_eq!(judge("ten", 0).unwrap(), "(combined from similar events): ten");
        assert_eq!(judge("eleven", 1).unwrap(), "(combined from similar events): eleven");
        assert_eq!(judge("3", 1).unwrap(), "3", "one that has an event of its own keeps it");
        assert_eq!(judge("late", 602).unwrap(), "late", "a group that was silent for long begins anew");
    }

    #[test]
    fn an_object_has_a_budget() {
        let mut correlator = Correlator::default();
        let mut judge = |pod: &str, seconds| {
            correlator.judge(&note(pod, "BackOff", "again"), Duration::from_secs(seconds))
        };
        let written = (0..100).filter(|_| judge("a", 0).is_some()).count();
        assert_eq!(written, 25);
        assert!(judge("b", 0).is_some(), "each object has its own");
        assert!(judge("a", 299).is_none());
        assert!(judge("a", 300).is_some());
        assert!(judge("a", 301).is_none());
    }

    #[test]
    fn only_so_much_is_remembered() {
        let mut correlator = Correlator::default();
        for number in 0..REMEMBERED + 10 {
            correlator.judge(&note(&number.to_string(), "x", "y"), Duration::ZERO);
        }
        assert_eq!(correlator.budgets.map.len(), REMEMBERED);
        assert_eq!(correlator.budgets.order.len(), REMEMBERED);
        assert_eq!(correlator.groups.map.len(), REMEMBERED);
    }
}
