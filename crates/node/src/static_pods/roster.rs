//! Which static pods there should be and which have a worker: at most one of a name at a time.

use std::collections::BTreeMap;

use api::ObjectKey;
use k8s_openapi::api::core::v1 as core;

use crate::worker::key_of;

#[derive(Debug, Default)]
struct Slot {
    wanted: Option<core::Pod>,
    /// Uid of the pod that has a worker.
    working: Option<String>,
}

/// The static pods of the node.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    slots: BTreeMap<ObjectKey, Slot>,
}

fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl Roster {
    /// Takes what the files say now; the answer is the uids of pods that end.
    pub(crate) fn replace(&mut self, pods: Vec<core::Pod>) -> Vec<String> {
        self.slots.values_mut().for_each(|slot| slot.wanted = None);
        for pod in pods {
            let key = key_of(&pod);
            self.slots.entry(key).or_default().wanted = Some(pod);
        }
        self.slots.retain(|_, slot| slot.wanted.is_some() || slot.working.is_some());
        let changed = self.slots.values().filter(|s| s.wanted.as_ref().map(uid) != s.working.as_deref());
        changed.filter_map(|slot| slot.working.clone()).collect()
    }

    /// Pods that can begin, because nobody works on an earlier one of their name. They count as begun.
    pub(crate) fn begin(&mut self) -> Vec<core::Pod> {
        let free = self.slots.values_mut().filter(|slot| slot.working.is_none());
        free.filter_map(|slot| {
            slot.working = slot.wanted.as_ref().map(|pod| uid(pod).to_owned());
            slot.wanted.clone()
        })
        .collect()
    }

    /// A worker has ended.
    pub(crate) fn ended(&mut self, uid: &str) {
        let own = self.slots.values_mut().find(|slot| slot.working.as_deref() == Some(uid));
        if let Some(slot) = own {
            slot.working = None;
        }
        self.slots.retain(|_, slot| slot.wanted.is_some() || slot.working.is_some());
    }

    /// Uid of the pod of a name that has a worker.
    pub(crate) fn working(&self, key: &ObjectKey) -> Option<&str> {
        self.slots.get(key)?.working.as_deref()
    }

    /// Whether there is, or soon will be, a pod of this name.
    pub(crate) fn knows(&self, key: &ObjectKey) -> bool {
        self.slots.contains_key(key)
    }

    /// Of all pods that should be there.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &str> {
        self.slots.values().filter_map(|slot| slot.wanted.as_ref().map(uid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name, "uid": uid}})).unwrap()
    }

    #[test]
    fn a_changed_pod_waits_for_the_end_of_the_former_one() {
        let mut roster = Roster::default();
        let begun =
            |roster: &mut Roster| roster.begin().iter().map(|p| uid(p).to_owned()).collect::<Vec<_>>();
        assert!(roster.replace(vec![pod("a", "1"), pod("b", "2")]).is_empty());
        assert_eq!(begun(&mut roster), ["1", "2"]);
        assert!(begun(&mut roster).is_empty(), "once");
        assert_eq!(roster.replace(vec![pod("a", "3")]), ["1", "2"], "one changed, one gone");
        assert!(begun(&mut roster).is_empty());
        assert_eq!(roster.working(&ObjectKey::new("ns", "a")), Some("1"));
        roster.ended("1");
        assert_eq!(begun(&mut roster), ["3"]);
        roster.ended("2");
        assert!(!roster.knows(&ObjectKey::new("ns", "b")));
        // A worker that failed gets a successor.
        roster.ended("3");
        assert_eq!(begun(&mut roster), ["3"]);
        assert_eq!(roster.uids().collect::<Vec<_>>(), ["3"]);
    }
}
