//! Starting and stopping pods of an undecided job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::{Action, Cached, EventType, Kind};
use jiff::Timestamp;

use super::failure::{Consequence, consequence};
use super::pod::{failures_before, index_of, untrack};
use super::tally::{Tally, has_failed};
use super::{PodRef, Sync, is_tracked};
use crate::pod::{Pod, is_active};
use crate::workload::{delete_pod, event, number};

/// Delay before a failed pod is replaced; it doubles with each failure in a row.
const BACKOFF: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Creations in one plan.
const BURST: usize = 500;

impl Sync<'_> {
    fn active(&self) -> Vec<&PodRef> {
        self.pods.iter().filter(|pod| is_active(pod)).collect()
    }

    /// Ends all pods of a decided job. They are still counted.
    pub(crate) fn stop_all(&self) -> Vec<Action> {
        self.active().into_iter().flat_map(|pod| [delete_pod(pod), self.deleted(pod)]).collect()
    }

    /// Ends all pods without counting them.
    pub(crate) fn let_go_all(&self) -> Vec<Action> {
        self.active().into_iter().flat_map(|pod| self.let_go(pod)).collect()
    }

    fn let_go(&self, pod: &PodRef) -> Vec<Action> {
        let untrack = is_tracked(pod).then(|| untrack(pod));
        untrack.into_iter().chain([delete_pod(pod), self.deleted(pod)]).collect()
    }

    fn deleted(&self, pod: &Cached<Pod>) -> Action {
        let text = format!("Deleted pod: {}", pod.key.name);
        event(self.job, EventType::Normal, "SuccessfulDelete", text)
    }

    /// Brings the number of running pods to what is wanted; also the time until a delayed start.
    pub(crate) fn manage(&self, tally: &Tally) -> (Vec<Action>, Option<Duration>) {
        let (kept, mut surplus) = self.duplicates();
        let active = number(kept.len());
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let succeeded = tally.succeeded(self);
        let wanted = match self.spec.completions {
            Some(completions) => {
                (completions - succeeded - number(tally.failed_indexes.len())).min(parallelism).max(0)
            }
            None if succeeded > 0 => active.min(parallelism),
            None => parallelism,
        };
        if active > wanted {
            let mut kept = kept;
            // The least useful go first: not ready, then young.
            kept.sort_by_key(|pod| {
                (pod.object.is_ready(), std::cmp::Reverse(pod.object.metadata.creation_timestamp))
            });
            surplus.extend(kept.into_iter().take(usize::try_from(active - wanted).unwrap_or(0)));
        }
        let mut actions: Vec<Action> = surplus.iter().flat_map(|pod| self.let_go(pod)).collect();
        let ending = self.pods.iter().filter(|pod| pod.deleting && !pod.object.is_terminal());
        let ending = if self.replaces_failed_only() { number(ending.count()) } else { 0 };
        let missing = usize::try_from(wanted - active - ending).unwrap_or(0).min(BURST);
        if missing == 0 || !surplus.is_empty() {
            return (actions, None);
        }
        let (starts, retry) =
            if self.is_indexed() { self.next_indexes(tally, missing) } else { self.next_plain(missing) };
        let pods: Vec<_> = starts
            .into_iter()
            .enumerate()
            .map(|(nth, (index, failures))| self.new_pod(nth, index, failures))
            .collect();
        let namespace = &self.job.key.namespace;
        actions.extend(pods.iter().map(|(_, pod)| Action::Create {
            gvr: Pod::gvr(),
            namespace: namespace.clone(),
            object: pod.clone(),
        }));
        actions.extend(pods.iter().map(|(name, _)| {
            event(self.job, EventType::Normal, "SuccessfulCreate", format!("Created pod: {name}"))
        }));
        (actions, retry)
    }

    /// Active pods that count, and those whose index another one has or that is none.
    fn duplicates(&self) -> (Vec<&PodRef>, Vec<&PodRef>) {
        let mut seen = BTreeSet::new();
        let completions = self.spec.completions.unwrap_or(i32::MAX);
        let mut active = self.active();
        active.sort_by_key(|pod| (pod.object.metadata.creation_timestamp, pod.key.clone()));
        active.into_iter().partition(|pod| {
            !self.is_indexed()
                || index_of(&pod.object).is_some_and(|index| index < completions && seen.insert(index))
        })
    }

    fn next_plain(&self, missing: usize) -> (Vec<(Option<i32>, Option<i32>)>, Option<Duration>) {
        let all: Vec<&PodRef> = self.pods.iter().collect();
        match self.backoff(&all) {
            Some(wait) => (Vec::new(), Some(wait)),
            None => (vec![(None, None); missing], None),
        }
    }

    /// The lowest indexes without a pod or a result.
    fn next_indexes(
        &self,
        tally: &Tally,
        missing: usize,
    ) -> (Vec<(Option<i32>, Option<i32>)>, Option<Duration>) {
        let mut by_index: BTreeMap<i32, Vec<&PodRef>> = BTreeMap::new();
        for pod in self.pods {
            if let Some(index) = index_of(&pod.object) {
                by_index.entry(index).or_default().push(pod);
            }
        }
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let of_all = if per_index { None } else { self.backoff(&self.pods.iter().collect::<Vec<_>>()) };
        if of_all.is_some() {
            return (Vec::new(), of_all);
        }
        let (mut starts, mut retry) = (Vec::new(), None::<Duration>);
        for index in 0..self.spec.completions.unwrap_or(0) {
            if starts.len() == missing {
                break;
            }
            let pods = by_index.get(&index).map(Vec::as_slice).unwrap_or_default();
            let taken = pods.iter().any(|pod| {
                is_active(pod) || (self.replaces_failed_only() && pod.deleting && !pod.object.is_terminal())
            });
            if taken || tally.completed.contains(&index) || tally.failed_indexes.contains(&index) {
                continue;
            }
            if !per_index {
                starts.push((Some(index), None));
            } else if let Some(wait) = self.backoff(pods) {
                retry = Some(retry.map_or(wait, |other| other.min(wait)));
            } else {
                starts.push((Some(index), Some(self.failures_of(pods))));
            }
        }
        (starts, retry)
    }

    /// Failures of an index that count against its limit.
    fn failures_of(&self, pods: &[&PodRef]) -> i32 {
        let after = |pod: &&PodRef| {
            let counts = has_failed(self, pod)
                && consequence(self.spec.pod_failure_policy.as_ref(), pod) != Consequence::Ignore;
            failures_before(&pod.object) + i32::from(counts)
        };
        pods.iter().map(after).max().unwrap_or(0)
    }

    /// Time until a pod may be started after failures in a row; `None` when at once.
    fn backoff(&self, pods: &[&PodRef]) -> Option<Duration> {
        let ends = |test: &dyn Fn(&Cached<Pod>) -> bool| -> Vec<Timestamp> {
            pods.iter().filter(|pod| test(pod)).filter_map(|pod| ended_at(&pod.object)).collect()
        };
        let success = ends(&|pod| pod.object.status.phase == "Succeeded").into_iter().max();
        let mut failures = ends(&|pod| pod.object.status.phase == "Failed");
        failures.retain(|end| success.is_none_or(|success| *end > success));
        let last = failures.iter().max()?;
        let doubled = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
        let delay = BACKOFF.saturating_mul(1 << doubled).min(BACKOFF_MAX);
        let since = u64::try_from(self.now.as_millisecond() - last.as_millisecond()).unwrap_or(0);
        Some(delay.saturating_sub(Duration::from_millis(since))).filter(|wait| !wait.is_zero())
    }
}

/// When a pod's last container ended.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let ends = pod.status.container_statuses.iter().filter_map(|s| s.state.terminated.as_ref()?.finished_at);
    let ready = pod.status.conditions.iter().filter(|condition| condition.type_ == "Ready");
    ends.max().or_else(|| ready.filter_map(|condition| condition.last_transition_time).max())
}
