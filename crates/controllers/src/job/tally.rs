//! Counting finished pods, each once.

use std::collections::{BTreeMap, BTreeSet};

use client::Cached;
use k8s_openapi::api::batch::v1::{JobStatus, UncountedTerminatedPods};

use super::failure::{Consequence, consequence};
use super::indexes::{self, Indexes};
use super::pod::{failures_before, index_of};
use super::{PodRef, Sync, is_tracked};
use crate::pod::{Pod, is_active};
use crate::workload::number;

/// Counts as they are to be written, and what is still on the way to them.
#[derive(Default)]
pub(crate) struct Tally {
    counted_succeeded: i32,
    counted_failed: i32,
    uncounted_succeeded: BTreeSet<String>,
    uncounted_failed: BTreeSet<String>,
    pub(crate) completed: Indexes,
    pub(crate) failed_indexes: Indexes,
    /// Pods whose finalizer goes once the status is written.
    pub(crate) release: Vec<PodRef>,
    /// Why a rule of the failure policy fails the job.
    pub(crate) fatal: Option<String>,
}

impl Tally {
    pub(crate) fn of(sync: &Sync<'_>) -> Self {
        let status = sync.old_status();
        let completions = sync.spec.completions.unwrap_or(i32::MAX);
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        let list = |text: Option<String>| indexes::parse(&text.unwrap_or_default(), completions);
        let mut tally = Tally {
            counted_succeeded: status.succeeded.unwrap_or(0),
            counted_failed: status.failed.unwrap_or(0),
            uncounted_succeeded: uncounted.succeeded.into_iter().flatten().collect(),
            uncounted_failed: uncounted.failed.into_iter().flatten().collect(),
            ..Tally::default()
        };
        if sync.is_indexed() {
            tally.completed = list(status.completed_indexes);
            tally.failed_indexes = list(status.failed_indexes);
        }
        let held: BTreeMap<&str, &PodRef> =
            sync.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| (pod.uid.as_str(), pod)).collect();
        let mut settle = |uids: &mut BTreeSet<String>, count: &mut i32| {
            uids.retain(|uid| match held.get(uid.as_str()) {
                Some(pod) => {
                    tally.release.push((*pod).clone());
                    true
                }
                None => {
                    *count += 1;
                    false
                }
            });
        };
        settle(&mut tally.uncounted_succeeded, &mut tally.counted_succeeded);
        settle(&mut tally.uncounted_failed, &mut tally.counted_failed);
        for pod in sync.pods {
            let known =
                tally.uncounted_succeeded.contains(&pod.uid) || tally.uncounted_failed.contains(&pod.uid);
            if is_tracked(pod) && !known {
                tally.add(sync, pod);
            }
        }
        tally
    }

    /// Notes a pod if it has just finished.
    fn add(&mut self, sync: &Sync<'_>, pod: &PodRef) {
        let index = index_of(&pod.object).filter(|_| sync.is_indexed());
        if pod.object.status.phase == "Succeeded" {
            match index {
                Some(index) if index < sync.spec.completions.unwrap_or(0) => {
                    self.completed.insert(index);
                }
                None if !sync.is_indexed() => {
                    self.uncounted_succeeded.insert(pod.uid.clone());
                }
                _ => {}
            }
        } else if has_failed(sync, pod) {
            match consequence(sync.spec.pod_failure_policy.as_ref(), pod) {
                Consequence::Ignore => {}
                Consequence::Count => self.fail(sync, pod, index, false),
                Consequence::FailIndex => self.fail(sync, pod, index, true),
                Consequence::FailJob(why) => {
                    self.fatal.get_or_insert(why);
                    self.fail(sync, pod, index, false);
                }
            }
        } else {
            return;
        }
        self.release.push(pod.clone());
    }

    fn fail(&mut self, sync: &Sync<'_>, pod: &PodRef, index: Option<i32>, whole_index: bool) {
        self.uncounted_failed.insert(pod.uid.clone());
        if let (Some(index), Some(limit)) = (index, sync.spec.backoff_limit_per_index)
            && (whole_index || failures_before(&pod.object) >= limit)
        {
            self.failed_indexes.insert(index);
        }
    }

    pub(crate) fn succeeded(&self, sync: &Sync<'_>) -> i32 {
        if sync.is_indexed() {
            return number(self.completed.len());
        }
        self.counted_succeeded + number(self.uncounted_succeeded.len())
    }

    pub(crate) fn failed(&self) -> i32 {
        self.counted_failed + number(self.uncounted_failed.len())
    }

    /// Nothing is on its way to being counted.
    pub(crate) fn is_settled(&self) -> bool {
        self.uncounted_succeeded.is_empty() && self.uncounted_failed.is_empty() && self.release.is_empty()
    }
}

/// Failed; unless only failed pods are replaced, a pod that is being deleted is as good as failed.
pub(crate) fn has_failed(sync: &Sync<'_>, pod: &Cached<Pod>) -> bool {
    let phase = pod.object.status.phase.as_str();
    phase == "Failed" || (pod.deleting && phase != "Succeeded" && !sync.replaces_failed_only())
}

impl Sync<'_> {
    /// Writes the counts into a status.
    pub(crate) fn count(&self, tally: &Tally, status: &mut JobStatus) {
        let active: Vec<&PodRef> = self.pods.iter().filter(|pod| is_active(pod)).collect();
        status.active = Some(number(active.len()));
        status.ready = Some(number(active.iter().filter(|pod| pod.object.is_ready()).count()));
        let ending = self.pods.iter().filter(|pod| pod.deleting && !pod.object.is_terminal());
        status.terminating = Some(number(ending.count()));
        status.failed = Some(tally.counted_failed);
        status.succeeded = Some(tally.counted_succeeded);
        if self.is_indexed() {
            status.succeeded = Some(tally.succeeded(self));
            status.completed_indexes = Some(indexes::format(&tally.completed));
            if self.spec.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(indexes::format(&tally.failed_indexes));
            }
        }
        let list = |uids: &BTreeSet<String>| {
            Some(uids.iter().cloned().collect::<Vec<_>>()).filter(|uids| !uids.is_empty())
        };
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(&tally.uncounted_succeeded),
            failed: list(&tally.uncounted_failed),
        });
    }
}
