//! Schedules by table, and golden plans of single situations.

use client::{Controller, View};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::CronJobController;
use super::schedule::Schedule;
use crate::text::brief;

#[test]
fn schedules_are_followed() {
    // 2026-01-01 is a Thursday.
    for (schedule, after, wanted) in [
        ("* * * * *", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"),
        ("*/15 * * * *", "2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"),
        ("5/20 3 * * ?", "2026-01-01T03:25:00Z", "2026-01-01T03:45:00Z"),
        ("0 9-17/4 * * mon-fri", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
        ("0 0 29 Feb *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 13 * 5", "2026-01-03T00:00:00Z", "2026-01-09T00:00:00Z"),
        ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
        ("@monthly", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
        ("@hourly", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
        ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
    ] {
        let next = Schedule::parse(schedule).unwrap().next(after.parse().unwrap());
        assert_eq!(next.map(|next| next.to_string()).as_deref(), Some(wanted), "{schedule}");
    }
    assert_eq!(Schedule::parse("0 0 30 2 *").unwrap().next(Timestamp::UNIX_EPOCH), None);
    for wrong in
        ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "@never"]
    {
        assert!(Schedule::parse(wrong).is_err(), "{wrong}");
    }
}

fn cron(policy: &str) -> Value {
    json!({
        "metadata": {"name": "tick", "namespace": "default", "uid": "c", "resourceVersion": "5", "creationTimestamp": "2026-01-01T00:00:10Z"},
        "spec": {
            "schedule": "* * * * *", "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}},
        },
    })
}

fn job(name: &str, end: Option<&str>) -> Value {
    let conditions: Vec<Value> = end.into_iter().map(|end| json!({"type": end, "status": "True"})).collect();
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "6", "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "c", "controller": true}],
        },
        "status": {"conditions": conditions},
    })
}

fn check(cron: &Value, jobs: &[Value], now: &str, expected: Expect) {
    let view = View::default().with_objects::<CronJob>(std::slice::from_ref(cron)).with_objects::<Job>(jobs);
    let plan = CronJobController.plan(&api::ObjectKey::new("default", "tick"), &view, now.parse().unwrap());
    expected.assert_eq(&brief(&plan));
}

#[test]
fn a_job_starts_at_its_time_and_once() {
    check(
        &cron("Allow"),
        &[],
        "2026-01-01T00:00:40Z",
        expect![[r#"
        again after 20s
    "#]],
    );
    check(
        &cron("Allow"),
        &[],
        "2026-01-01T00:02:01Z",
        expect![[r#"
        create jobs "tick-29453762"
        status cronjobs default/tick {"active":[],"lastScheduleTime":"2026-01-01T00:02:00Z"}
        again after 59s
    "#]],
    );
    check(
        &cron("Allow"),
        &[job("tick-29453762", None)],
        "2026-01-01T00:02:01Z",
        expect![[r#"
        status cronjobs default/tick {"active":[{"apiVersion":"batch/v1","kind":"Job","name":"tick-29453762","namespace":"default","resourceVersion":"6","uid":"tick-29453762"}],"lastScheduleTime":"2026-01-01T00:02:00Z"}
        again after 59s
    "#]],
    );
}

#[test]
fn the_policy_decides_about_running_jobs() {
    let running = [job("tick-1", None)];
    check(
        &cron("Allow"),
        &running,
        "2026-01-01T00:02:01Z",
        expect![[r#"
        create jobs "tick-29453762"
        status cronjobs default/tick {"active":[{"apiVersion":"batch/v1","kind":"Job","name":"tick-1","namespace":"default","resourceVersion":"6","uid":"tick-1"}],"lastScheduleTime":"2026-01-01T00:02:00Z"}
        again after 59s
    "#]],
    );
    check(
        &cron("Forbid"),
        &running,
        "2026-01-01T00:02:01Z",
        expect![[r#"
        status cronjobs default/tick {"active":[{"apiVersion":"batch/v1","kind":"Job","name":"tick-1","namespace":"default","resourceVersion":"6","uid":"tick-1"}]}
        again after 59s
    "#]],
    );
    check(
        &cron("Replace"),
        &running,
        "2026-01-01T00:02:01Z",
        expect![[r#"
        delete jobs default/tick-1 Background
        create jobs "tick-29453762"
        status cronjobs default/tick {"active":[{"apiVersion":"batch/v1","kind":"Job","name":"tick-1","namespace":"default","resourceVersion":"6","uid":"tick-1"}],"lastScheduleTime":"2026-01-01T00:02:00Z"}
        again after 59s
    "#]],
    );
}

#[test]
fn a_suspended_cron_job_only_tidies_up() {
    let mut cron = cron("Allow");
    cron["spec"]["suspend"] = true.into();
    let jobs = [
        job("a", Some("Complete")),
        job("b", Some("Complete")),
        job("x", Some("Failed")),
        job("y", Some("Failed")),
    ];
    check(
        &cron,
        &jobs,
        "2026-01-01T00:02:01Z",
        expect![[r#"
        delete jobs default/a Background
        delete jobs default/x Background
    "#]],
    );
}
