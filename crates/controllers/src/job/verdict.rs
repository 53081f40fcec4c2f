//! Whether a job is decided.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};

use super::tally::Tally;
use super::{Sync, indexes};
use crate::pod::is_active;
use crate::workload::number;

/// How a job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) success: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

pub(crate) fn condition<'s>(status: &'s JobStatus, type_: &str) -> Option<&'s JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn end(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    let mut ends = ["Complete", "Failed"].into_iter().filter_map(|type_| condition(status, type_));
    ends.find(|condition| condition.status == "True")
}

/// Complete or Failed.
pub(crate) fn is_finished(job: &Job) -> bool {
    end(job).is_some()
}

pub(crate) fn succeeded(job: &Job) -> bool {
    end(job).is_some_and(|condition| condition.type_ == "Complete")
}

pub(crate) fn finished_at(job: &Job) -> Option<Timestamp> {
    end(job)?.last_transition_time.as_ref().map(|time| time.0)
}

fn failure(reason: &str, message: &str) -> Option<Verdict> {
    Some(Verdict { success: false, reason: reason.into(), message: message.into() })
}

fn success(reason: &str, message: &str) -> Option<Verdict> {
    Some(Verdict { success: true, reason: reason.into(), message: message.into() })
}

impl Sync<'_> {
    /// The verdict, if there is one. A verdict once announced stands.
    pub(crate) fn verdict(&self, tally: &Tally, active: usize, status: &JobStatus) -> Option<Verdict> {
        for (type_, success) in [("FailureTarget", false), ("SuccessCriteriaMet", true)] {
            if let Some(announced) = condition(status, type_) {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (reason, message) = (text(&announced.reason), text(&announced.message));
                return Some(Verdict { success, reason, message });
            }
        }
        if let Some(why) = &tally.fatal {
            return failure("PodFailurePolicy", why);
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if tally.failed() > limit || self.restarted_too_often(limit) {
            return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if let (Some(deadline), Some(start), false) =
            (self.spec.active_deadline_seconds, &status.start_time, self.is_suspended())
            && self.now.as_second() - start.0.as_second() >= deadline
        {
            return failure("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        self.verdict_of_indexes(tally).or_else(|| {
            if self.is_suspended() {
                return None;
            }
            let succeeded = tally.succeeded(self);
            let enough = match self.spec.completions {
                Some(completions) => succeeded >= completions,
                None => succeeded > 0 && active == 0,
            };
            // A job of no completions has nothing to wait for either.
            enough
                .then(|| success("CompletionsReached", "Reached expected number of succeeded pods"))
                .flatten()
        })
    }

    fn verdict_of_indexes(&self, tally: &Tally) -> Option<Verdict> {
        if !self.is_indexed() {
            return None;
        }
        let failed = number(tally.failed_indexes.len());
        if self.spec.max_failed_indexes.is_some_and(|limit| failed > limit) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return failure("MaxFailedIndexesExceeded", message);
        }
        let completions = self.spec.completions.unwrap_or(0);
        let rules = self.spec.success_policy.iter().flat_map(|policy| &policy.rules);
        for (position, rule) in rules.enumerate() {
            let wanted = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text, completions));
            let met = match &wanted {
                Some(wanted) => tally.completed.intersection(wanted).count(),
                None => tally.completed.len(),
            };
            let needed = match (rule.succeeded_count, &wanted) {
                (Some(count), _) => usize::try_from(count).unwrap_or(0),
                (None, Some(wanted)) => wanted.len(),
                (None, None) => usize::MAX,
            };
            if met >= needed {
                return success("SuccessPolicy", &format!("Matched rules at index {position}"));
            }
        }
        if self.spec.backoff_limit_per_index.is_some()
            && failed > 0
            && failed + number(tally.completed.len()) >= completions
        {
            return failure("FailedIndexes", "Job has failed indexes");
        }
        None
    }

    /// With `restartPolicy: OnFailure` the restarts of living pods count against the limit.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let living = self.pods.iter().filter(|pod| is_active(pod));
        let restarts: i32 = living
            .map(|pod| {
                let init = pod.object.status.init_container_statuses.iter();
                pod.object.restarts() + init.map(|status| status.restart_count).sum::<i32>()
            })
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }
}
