//! Job: runs pods until enough of them have succeeded.
//!
//! ```text
//!   own pods ──tally──▶ succeeded, failed (each counted once: a finalizer keeps a pod until it is counted)
//!      ──▶ verdict: enough succeeded │ too many failed, too late, a rule of the failure policy │ none yet
//!      ──▶ verdict: stop what runs, then Complete or Failed     none: start or stop pods
//! ```
//!
//! Counting is exactly once: a finished pod's uid is first written to `uncountedTerminatedPods`, then its finalizer is
//! removed, then the uid turns into a count.

mod failure;
mod indexes;
mod manage;
mod pod;
mod tally;
#[cfg(test)]
mod tests;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, RequestOptions};
use client::{Action, Cached, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::claim::{Claimant, selector};
use crate::pod::Pod;
use crate::workload::{event, keys_of_pod, same, update_status, whole_seconds};
use tally::Tally;
use verdict::Verdict;
pub(crate) use verdict::{is_finished, succeeded};

pub(crate) type PodRef = Arc<Cached<Pod>>;

/// Keeps a pod until its job has counted it.
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const CONTROLLER: &str = "kubernetes.io/job-controller";

pub struct JobController;

impl Controller for JobController {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<Job>(), Watch::map::<Pod>(jobs_of_pod)]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(job) = view.get::<Job>(key) else { return Plan::actions(strays(view, key, "")) };
        let Some(spec) = &job.object.spec else { return Plan::nothing() };
        if spec.managed_by.as_deref().is_some_and(|manager| manager != CONTROLLER) {
            return Plan::nothing();
        }
        let Some(labels) = spec.selector.as_ref().and_then(selector).filter(|s| !s.requirements.is_empty())
        else {
            return Plan::nothing();
        };
        let claimant = Claimant {
            gvr: Job::gvr(),
            api_version: "batch/v1",
            kind: "Job",
            key,
            uid: &job.uid,
            deleting: job.deleting,
            selector: &labels,
        };
        let claimed = claimant.claim(view, &Pod::gvr(), view.in_namespace::<Pod>(&key.namespace), |_| true);
        if let Some(read) = claimed.need {
            return Plan::Need(vec![read]);
        }
        let mut actions = claimed.actions;
        actions.extend(strays(view, key, &job.uid));
        let sync = Sync { job: &job, spec, claimant: &claimant, pods: &claimed.owned, now };
        if job.deleting || is_finished(&job.object) {
            return sync.wind_up(actions);
        }
        sync.plan(actions)
    }
}

/// The job that controls a pod or might adopt it; for a pod that is still held for a job, that job too.
fn jobs_of_pod(view: &View, pod: &Cached<Pod>) -> Vec<ObjectKey> {
    let mut keys =
        keys_of_pod::<Job>(view, pod, |job| job.spec.as_ref()?.selector.as_ref().and_then(selector));
    if is_tracked(pod)
        && let Some(name) = pod.labels.get(JOB_NAME)
    {
        keys.push(ObjectKey::new(&pod.key.namespace, name));
    }
    keys
}

pub(crate) fn is_tracked(pod: &Cached<Pod>) -> bool {
    pod.object.metadata.finalizers.iter().any(|finalizer| finalizer == TRACKING)
}

/// Lets go of pods that are held for a job of this name that is gone, or that released them.
fn strays(view: &View, key: &ObjectKey, uid: &str) -> Vec<Action> {
    let pods = view.in_namespace::<Pod>(&key.namespace).into_iter();
    let is_stray = |pod: &Arc<Cached<Pod>>| {
        is_tracked(pod)
            && match pod.controller() {
                Some(owner) => owner.kind == "Job" && owner.name == key.name && owner.uid != uid,
                // A job that is there may adopt the pod.
                None => uid.is_empty() && pod.labels.get(JOB_NAME).is_some_and(|name| *name == key.name),
            }
    };
    pods.filter(is_stray).map(|pod| pod::untrack(&pod)).collect()
}

/// Everything a plan is made from.
pub(crate) struct Sync<'a> {
    job: &'a Cached<Job>,
    spec: &'a JobSpec,
    claimant: &'a Claimant<'a>,
    pods: &'a [PodRef],
    now: Timestamp,
}

impl Sync<'_> {
    pub(crate) fn old_status(&self) -> JobStatus {
        self.job.object.status.clone().unwrap_or_default()
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend.unwrap_or(false)
    }

    /// Only pods that have failed are replaced, not those that are still ending.
    pub(crate) fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || (self.spec.pod_replacement_policy.is_none() && self.spec.pod_failure_policy.is_some())
    }

    fn time(&self) -> Time {
        Time(whole_seconds(self.now))
    }

    /// A job that is over or leaves: no pod is held any more; after its time to live it is deleted.
    fn wind_up(&self, mut actions: Vec<Action>) -> Plan {
        let over = |pod: &&PodRef| is_tracked(pod) && (pod.deleting || pod.object.is_terminal());
        actions.extend(self.pods.iter().filter(over).map(|pod| pod::untrack(pod)));
        let mut requeue_after = None;
        if let (Some(ttl), Some(end), false) =
            (self.spec.ttl_seconds_after_finished, verdict::finished_at(&self.job.object), self.job.deleting)
        {
            let left = end.as_second() + i64::from(ttl) - self.now.as_second();
            match u64::try_from(left) {
                Ok(left) if left > 0 => requeue_after = Some(Duration::from_secs(left)),
                _ => actions.push(Action::Delete {
                    gvr: Job::gvr(),
                    key: self.job.key.clone(),
                    options: RequestOptions {
                        precondition_uid: Some(self.job.uid.clone()),
                        precondition_resource_version: Some(self.job.revision.to_string()),
                        propagation_policy: Some("Foreground".into()),
                        ..RequestOptions::default()
                    },
                }),
            }
        }
        Plan::Do { actions, requeue_after }
    }

    fn plan(&self, mut actions: Vec<Action>) -> Plan {
        let mut status = self.old_status();
        let mut events = Vec::new();
        self.start_or_suspend(&mut status, &mut events);
        let tally = Tally::of(self);
        let active = self.pods.iter().filter(|pod| crate::pod::is_active(pod)).count();
        let verdict = self.verdict(&tally, active, &status);
        let mut requeue_after = self.deadline_in(&status);
        let work = match &verdict {
            Some(_) => self.stop_all(),
            None if self.is_suspended() => self.let_go_all(),
            None => {
                let (work, retry) = self.manage(&tally);
                requeue_after = requeue_after.into_iter().chain(retry).min();
                work
            }
        };
        self.count(&tally, &mut status);
        if let Some(verdict) = &verdict {
            self.conclude(verdict, &tally, &mut status, &mut events);
        }
        if !same(&status, &self.old_status()) {
            let mut job = self.job.object.clone();
            job.status = Some(status);
            actions.push(update_status(&self.job.key, &job));
        }
        actions.extend(tally.release.iter().map(|pod| pod::untrack(pod)));
        actions.extend(work);
        actions.extend(events);
        Plan::Do { actions, requeue_after }
    }

    /// Sets or clears the start time and the Suspended condition.
    fn start_or_suspend(&self, status: &mut JobStatus, events: &mut Vec<Action>) {
        let was = verdict::condition(status, "Suspended").is_some_and(|c| c.status == "True");
        if self.is_suspended() {
            if !was {
                self.set_condition(status, "Suspended", "True", "JobSuspended", "Job suspended");
                events.push(event(self.job, EventType::Normal, "Suspended", "Job suspended"));
                status.start_time = None;
            }
            return;
        }
        if was {
            self.set_condition(status, "Suspended", "False", "JobResumed", "Job resumed");
            events.push(event(self.job, EventType::Normal, "Resumed", "Job resumed"));
            status.start_time = None;
        }
        status.start_time.get_or_insert_with(|| self.time());
    }

    pub(crate) fn set_condition(
        &self,
        status: &mut JobStatus,
        type_: &str,
        value: &str,
        reason: &str,
        message: &str,
    ) {
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|condition| condition.type_ != type_);
        conditions.push(JobCondition {
            type_: type_.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: Some(self.time()),
            last_transition_time: Some(self.time()),
        });
    }

    /// Time until the active deadline.
    fn deadline_in(&self, status: &JobStatus) -> Option<Duration> {
        let deadline = self.spec.active_deadline_seconds?;
        let start = status.start_time.as_ref()?;
        let left = start.0.as_millisecond() + deadline.saturating_mul(1000) - self.now.as_millisecond();
        u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
    }

    /// Adds the final condition once nothing runs and all is counted, the announcing one before that.
    fn conclude(&self, verdict: &Verdict, tally: &Tally, status: &mut JobStatus, events: &mut Vec<Action>) {
        let (announced, last) =
            if verdict.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
        if verdict::condition(status, announced).is_none() {
            self.set_condition(status, announced, "True", &verdict.reason, &verdict.message);
        }
        let quiet = self.pods.iter().all(|pod| pod.object.is_terminal());
        if !quiet || !tally.is_settled() {
            return;
        }
        self.set_condition(status, last, "True", &verdict.reason, &verdict.message);
        if verdict.success {
            status.completion_time = Some(self.time());
            events.push(event(self.job, EventType::Normal, "Completed", "Job completed"));
        } else {
            events.push(event(self.job, EventType::Warning, &verdict.reason, verdict.message.clone()));
        }
    }
}
