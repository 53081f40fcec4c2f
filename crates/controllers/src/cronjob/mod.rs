//! CronJob: starts jobs by the clock.
//!
//! ```text
//!   schedule + last time ──▶ a time is due ──concurrency──▶ create a Job, note the time
//!   own Jobs ──▶ status.active, history limits
//! ```
//!
//! A job's name follows from its time, so that no time starts two jobs. Schedules are followed in UTC.

mod schedule;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, RequestOptions};
use client::{Action, Cached, Controller, EventType, Kind, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde_json::{Value, json};

use crate::job::{is_finished, succeeded};
use crate::workload::{event, same, update_status};
use schedule::Schedule;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

type JobRef = Arc<Cached<Job>>;

pub struct CronJobController;

impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<CronJob>(), Watch::controller::<Job>("CronJob")]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(cron) = view.get::<CronJob>(key).filter(|cron| !cron.deleting) else {
            return Plan::nothing();
        };
        let mut jobs = view.owned_by::<Job>(&cron.uid);
        jobs.retain(|job| job.controller().is_some_and(|owner| owner.uid == cron.uid));
        jobs.sort_by_key(|job| (job.object.metadata.creation_timestamp.clone(), job.key.clone()));
        Tick { cron: &cron, jobs, view, now }.plan()
    }
}

/// Everything a plan is made from.
struct Tick<'a> {
    cron: &'a Cached<CronJob>,
    /// Oldest first.
    jobs: Vec<JobRef>,
    view: &'a View,
    now: Timestamp,
}

impl Tick<'_> {
    fn plan(&self) -> Plan {
        let old = self.cron.object.status.clone().unwrap_or_default();
        let mut status = self.observe(&old);
        let mut actions = self.forget_old_jobs();
        let mut events = Vec::new();
        let mut requeue_after = None;
        let spec = &self.cron.object.spec;
        if !spec.suspend.unwrap_or(false) {
            let zone = spec.time_zone.as_deref().unwrap_or("UTC");
            match Schedule::parse(&spec.schedule) {
                _ if !matches!(zone, "UTC" | "Etc/UTC") => {
                    let text = format!("invalid timeZone: {zone:?}: only UTC is known");
                    events.push(event(self.cron, EventType::Warning, "UnknownTimeZone", text));
                }
                Ok(schedule) => {
                    requeue_after = schedule.next(self.now).map(|next| until(self.now, next));
                    actions.extend(self.start_due(&schedule, &mut status, &mut events));
                }
                Err(why) => {
                    let text = format!("unparseable schedule: {:?} : {why}", spec.schedule);
                    events.push(event(self.cron, EventType::Warning, "UnparseableSchedule", text));
                }
            }
        }
        if !same(&status, &old) {
            let mut cron = self.cron.object.clone();
            cron.status = Some(status);
            actions.push(update_status(&self.cron.key, &cron));
        }
        actions.extend(events);
        Plan::Do { actions, requeue_after }
    }

    /// The job of the last time that is due, if it may start.
    fn start_due(
        &self,
        schedule: &Schedule,
        status: &mut CronJobStatus,
        events: &mut Vec<Action>,
    ) -> Vec<Action> {
        let spec = &self.cron.object.spec;
        let created = self.cron.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let mut earliest =
            status.last_schedule_time.as_ref().map(|time| time.0).or(created).unwrap_or(self.now);
        let deadline = spec.starting_deadline_seconds.filter(|deadline| *deadline > 0);
        if let Some(bound) = deadline.and_then(|d| Timestamp::from_second(self.now.as_second() - d).ok()) {
            earliest = earliest.max(bound);
        }
        let Some((time, many)) = schedule.last(earliest, self.now) else { return Vec::new() };
        if many {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            events.push(event(self.cron, EventType::Warning, "TooManyMissedTimes", text));
        }
        let running: Vec<&JobRef> = self.jobs.iter().filter(|job| !is_finished(&job.object)).collect();
        let policy = spec.concurrency_policy.as_deref().unwrap_or("Allow");
        let name = format!("{}-{}", self.cron.key.name, time.as_second() / 60);
        let key = ObjectKey::new(&self.cron.key.namespace, &name);
        let refused = self.view.refused_creation().filter(|status| status.is_already_exists());
        if self.view.get::<Job>(&key).is_some() || refused.is_some_and(|status| status.name == name) {
            status.last_schedule_time = Some(Time(time));
            return Vec::new();
        }
        if policy == "Forbid" && !running.is_empty() {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            events.push(event(self.cron, EventType::Normal, "JobAlreadyActive", text));
            return Vec::new();
        }
        let mut actions = Vec::new();
        if policy == "Replace" {
            actions.extend(running.iter().map(|job| delete_job(job)));
            for job in running {
                let text = format!("Deleted job {}", job.key.name);
                events.push(event(self.cron, EventType::Normal, "SuccessfulDelete", text));
            }
        }
        actions.push(Action::Create {
            gvr: Job::gvr(),
            namespace: self.cron.key.namespace.clone(),
            object: self.job(&name, time),
        });
        status.last_schedule_time = Some(Time(time));
        events.push(event(self.cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}")));
        actions
    }

    fn job(&self, name: &str, time: Timestamp) -> Value {
        let template = self.cron.object.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.insert(SCHEDULED.into(), time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let owner = OwnerReference {
            api_version: "batch/v1".into(),
            kind: "CronJob".into(),
            name: self.cron.key.name.clone(),
            uid: self.cron.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        let mut job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": name, "namespace": self.cron.key.namespace, "annotations": annotations,
                "ownerReferences": [owner],
            },
            "spec": template.spec,
        });
        if let Some(labels) = meta.labels {
            job["metadata"]["labels"] = json!(labels);
        }
        job
    }

    fn observe(&self, old: &CronJobStatus) -> CronJobStatus {
        let mut status = old.clone();
        let running = self.jobs.iter().filter(|job| !is_finished(&job.object));
        let reference = |job: &JobRef| {
            let known = old.active.iter().flatten();
            let mut known = known.filter(|reference| reference.uid.as_deref() == Some(job.uid.as_str()));
            known.next().cloned().unwrap_or_else(|| ObjectReference {
                api_version: Some("batch/v1".into()),
                kind: Some("Job".into()),
                namespace: Some(job.key.namespace.clone()),
                name: Some(job.key.name.clone()),
                uid: Some(job.uid.clone()),
                resource_version: Some(job.revision.to_string()),
                field_path: None,
            })
        };
        status.active = Some(running.map(reference).collect());
        let ends = self.jobs.iter().filter(|job| succeeded(&job.object));
        let ends = ends.filter_map(|job| Some(job.object.status.as_ref()?.completion_time.as_ref()?.0));
        let known = old.last_successful_time.as_ref().map(|time| time.0);
        status.last_successful_time = ends.chain(known).max().map(Time);
        status
    }

    /// Deletes finished jobs above the history limits, the oldest first.
    fn forget_old_jobs(&self) -> Vec<Action> {
        let spec = &self.cron.object.spec;
        let surplus = |limit: Option<i32>, success: bool| {
            let finished = self.jobs.iter().filter(move |job| {
                is_finished(&job.object) && succeeded(&job.object) == success && !job.deleting
            });
            let finished: Vec<&JobRef> = finished.collect();
            let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0));
            let surplus = finished.len().saturating_sub(limit);
            finished[..surplus].iter().map(|job| delete_job(job)).collect::<Vec<_>>()
        };
        let mut actions = surplus(spec.successful_jobs_history_limit, true);
        actions.extend(surplus(spec.failed_jobs_history_limit, false));
        actions
    }
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(then.as_millisecond() - now.as_millisecond()).unwrap_or(0))
}

fn delete_job(job: &Cached<Job>) -> Action {
    let options = RequestOptions {
        precondition_uid: Some(job.uid.clone()),
        propagation_policy: Some("Background".into()),
        ..RequestOptions::default()
    };
    Action::Delete { gvr: Job::gvr(), key: job.key.clone(), options }
}
