//! Replacing pods of old templates.

use super::{Daemons, Place, PodRef};
use crate::workload::{number, scaled};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

impl Daemons<'_> {
    /// Pods that may exist above the wanted number during an update.
    pub(super) fn max_surge(&self) -> i32 {
        self.bound(|rolling| rolling.max_surge.as_ref(), 0)
    }

    fn max_unavailable(&self) -> i32 {
        self.bound(|rolling| rolling.max_unavailable.as_ref(), 1)
    }

    fn bound(
        &self,
        field: impl Fn(&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet) -> Option<&IntOrString>,
        default: i32,
    ) -> i32 {
        let strategy = self.set.object.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return 0;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let desired = number(self.places.iter().filter(|place| place.should_run).count());
        rolling.and_then(field).map_or(default, |value| scaled(value, desired, true))
    }

    /// Old pods that go, and nodes that get a new pod beside the old one. `leaving` are pods deleted by this plan.
    pub(super) fn roll<'p>(&'p self, leaving: &[PodRef]) -> (Vec<PodRef>, Vec<&'p str>) {
        let strategy = self.set.object.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return (Vec::new(), Vec::new());
        }
        let goes = |pod: &&PodRef| pod.deleting || leaving.iter().any(|other| other.uid == pod.uid);
        let places = self.places.iter().filter(|place| place.may_stay).map(|place| {
            let mut old = None;
            let mut new = None;
            for pod in place.pods.iter().filter(|pod| !goes(pod)) {
                if self.is_new(pod) { new = Some(pod) } else { old = Some(pod) }
            }
            (place, new, old)
        });
        let places: Vec<_> = places.collect();
        if self.max_surge() > 0 {
            self.roll_surging(&places)
        } else {
            (self.roll_in_place(&places), Vec::new())
        }
    }

    /// Deletes old pods: those that do not work at once, others within `maxUnavailable`.
    fn roll_in_place(&self, places: &[(&Place, Option<&PodRef>, Option<&PodRef>)]) -> Vec<PodRef> {
        let mut unavailable = 0;
        let mut broken = Vec::new();
        let mut candidates = Vec::new();
        for (place, new, old) in places {
            match (new, old) {
                (None, Some(old)) if self.is_available(old) => candidates.push((*old).clone()),
                (None, Some(old)) => {
                    unavailable += 1;
                    broken.push((*old).clone());
                }
                (Some(new), None) if self.is_available(new) => {}
                (None, None) if !place.should_run => {}
                _ => unavailable += 1,
            }
        }
        let room = usize::try_from(self.max_unavailable() - unavailable).unwrap_or(0);
        candidates.truncate(room);
        broken.extend(candidates);
        broken
    }

    /// Starts new pods within `maxSurge`; an old pod goes when the new one works or it does not work itself.
    fn roll_surging<'p>(
        &'p self,
        places: &[(&'p Place, Option<&PodRef>, Option<&PodRef>)],
    ) -> (Vec<PodRef>, Vec<&'p str>) {
        let mut surging = 0;
        let (mut gone, mut forced, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
        for (place, new, old) in places {
            match (new, old) {
                (Some(new), Some(old)) => {
                    surging += 1;
                    if self.is_available(new) || !self.is_available(old) {
                        gone.push((*old).clone());
                    }
                }
                (None, Some(_)) if !place.should_run => {}
                (None, Some(old)) if self.is_available(old) => candidates.push(place.node.as_str()),
                (None, Some(_)) => forced.push(place.node.as_str()),
                _ => {}
            }
        }
        let room = usize::try_from(self.max_surge() - surging).unwrap_or(0);
        candidates.truncate(room);
        forced.extend(candidates);
        (gone, forced)
    }
}
