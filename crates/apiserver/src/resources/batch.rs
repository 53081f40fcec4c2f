//! `batch/v1`: Job, CronJob.

mod rules;

use api::Object;
use jiff::Timestamp;
use serde_json::Value;

use super::row::{Row, col, wide};
use crate::printing::{cells, duration};

fn completions(o: &Object, _: Timestamp) -> Value {
    let succeeded = cells::count(o, &["status", "succeeded"]);
    if let Some(wanted) = o.i64(&["spec", "completions"]) {
        return format!("{succeeded}/{wanted}").into();
    }
    match o.i64(&["spec", "parallelism"]).unwrap_or(0) {
        n if n > 1 => format!("{succeeded}/1 of {n}").into(),
        _ => format!("{succeeded}/1").into(),
    }
}

fn job_duration(o: &Object, now: Timestamp) -> Value {
    let time = |name: &str| o.str(&["status", name]).parse::<Timestamp>().ok();
    match (time("startTime"), time("completionTime")) {
        (None, _) => "".into(),
        (Some(start), end) => duration::since(start, end.unwrap_or(now)).into(),
    }
}

fn job_status(o: &Object, _: Timestamp) -> Value {
    let holds = |type_: &str| cells::condition(o, type_) == "True";
    let text = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if o.is_deleting() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    text.into()
}

fn last_schedule(o: &Object, now: Timestamp) -> Value {
    match o.str(&["status", "lastScheduleTime"]) {
        "" => "<none>".into(),
        then => cells::since(then, now).into(),
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("cronjobs", "CronJob").short(&["cj"]).in_all().status().strategy(rules::CRON_JOB).columns(
            vec![
                col("Schedule", "string", "When jobs start, in Cron format.", |o, _| {
                    o.str(&["spec", "schedule"]).into()
                }),
                col("Timezone", "string", "Time zone of the schedule.", |o, _| {
                    cells::or_none(o.str(&["spec", "timeZone"])).into()
                }),
                col("Suspend", "boolean", "Whether no further jobs start.", |o, _| {
                    let suspend = o.get(&["spec", "suspend"]).and_then(Value::as_bool).unwrap_or(false);
                    if suspend { "True".into() } else { "False".into() }
                }),
                col("Active", "integer", "Number of running jobs.", |o, _| {
                    cells::size(o, &["status", "active"]).into()
                }),
                col("Last Schedule", "string", "When a job was last started.", last_schedule),
            ],
            vec![
                wide(
                    "Containers",
                    "string",
                    "Names of the template's containers.",
                    cells::job_template_containers,
                ),
                wide("Images", "string", "Images of the template's containers.", cells::job_template_images),
                wide("Selector", "string", "Which pods belong to the jobs.", |o, _| {
                    cells::selector(o.get(&["spec", "jobTemplate", "spec", "selector"])).into()
                }),
            ],
        ),
        Row::new("jobs", "Job").in_all().status().strategy(rules::JOB).columns(
            vec![
                col("Status", "string", "How the job stands.", job_status),
                col("Completions", "string", "Succeeded pods of wanted ones.", completions),
                col("Duration", "string", "Time from start to completion.", job_duration),
            ],
            super::apps::template_columns(),
        ),
    ]
}
