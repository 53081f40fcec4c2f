//! Golden plans over many situations, and a property: plans never act twice on the same container.

use std::fmt::Write as _;

use expect_test::expect;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::{PodAction, PodPlan, pod_actions};
use crate::fake::situation::{NOW, Situation, container, facts};

pub(crate) fn show(plan: &PodPlan) -> String {
    let mut text = String::new();
    for action in &plan.actions {
        let line = match action {
            PodAction::StartContainer { name, kind, attempt, streak } => {
                format!("start {kind:?} {name} attempt {attempt} streak {streak}")
            }
            PodAction::KillContainer { id, grace, message, .. } => {
                format!("kill {id} {}s: {message}", grace.as_secs())
            }
            PodAction::CreateSandbox { attempt } => format!("create sandbox {attempt}"),
            PodAction::RemoveContainer { id } => format!("remove {id}"),
            PodAction::StopSandbox { id } => format!("stop {id}"),
            PodAction::RemoveSandbox { id } => format!("remove {id}"),
            other => format!("{other:?}"),
        };
        writeln!(text, "{line}").unwrap();
    }
    if let Some(wait) = plan.requeue_after {
        writeln!(text, "again in {}s", wait.as_secs()).unwrap();
    }
    text
}

fn check(situation: Situation, wanted: expect_test::Expect) {
    let now = Timestamp::from_second(NOW).unwrap();
    let plan = pod_actions(&situation.pod(), &situation.observed, &facts(), now);
    wanted.assert_eq(&show(&plan));
}

#[test]
fn a_new_pod_gets_everything_in_one_plan() {
    check(
        Situation::new().volumes_unknown(),
        expect![[r#"
        PrepareVolumes
        create sandbox 0
        start Main main attempt 0 streak 0
    "#]],
    );
}

#[test]
fn volumes_hold_the_pod_back() {
    check(
        Situation::new().volumes_failed(NOW + 7),
        expect![[r#"
        again in 7s
    "#]],
    );
    check(
        Situation::new().volumes_failed(NOW - 1),
        expect![[r#"
        PrepareVolumes
        create sandbox 0
        start Main main attempt 0 streak 0
    "#]],
    );
}

#[test]
fn init_containers_run_in_order() {
    let spec = json!({"initContainers": [{"name": "i1"}, {"name": "i2"}]});
    check(
        Situation::new().spec(spec.clone()),
        expect![[r#"
        create sandbox 0
        start Init i1 attempt 0 streak 0
    "#]],
    );
    check(Situation::new().spec(spec.clone()).sandbox().with(container("i1").running(5)), expect![[r#""#]]);
    check(
        Situation::new().spec(spec.clone()).sandbox().with(container("i1").exited(0, 1, 2)),
        expect![[r#"
        start Init i2 attempt 0 streak 0
    "#]],
    );
    let failed = container("i1").exited(1, 1, 2);
    check(
        Situation::new().spec(spec.clone()).sandbox().with(failed.clone()),
        expect![[r#"
        start Init i1 attempt 1 streak 1
    "#]],
    );
    let mut never = spec.clone();
    never["restartPolicy"] = "Never".into();
    check(
        Situation::new().spec(never).sandbox().with(failed),
        expect![[r#"
        stop sandbox0
    "#]],
    );
    let done = Situation::new().spec(spec).sandbox();
    let done = done.with(container("i1").exited(0, 1, 2)).with(container("i2").exited(0, 1, 2));
    check(
        done,
        expect![[r#"
        start Main main attempt 0 streak 0
    "#]],
    );
}

#[test]
fn sidecars_start_before_and_stop_after() {
    let spec = json!({"initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "i"}]});
    check(
        Situation::new().spec(spec.clone()),
        expect![[r#"
        create sandbox 0
        start Sidecar side attempt 0 streak 0
    "#]],
    );
    check(
        Situation::new().spec(spec.clone()).sandbox().with(container("side").running(1)),
        expect![[r#"
        start Init i attempt 0 streak 0
    "#]],
    );
    let up = || Situation::new().spec(spec.clone()).sandbox().with(container("side").running(9));
    check(
        up().with(container("main").running(3)).deleting(30, 30),
        expect![[r#"
        kill main-0 30s: Stopping container main
    "#]],
    );
    check(
        up().with(container("main").exited(0, 3, 1)).deleting(30, 30),
        expect![[r#"
        kill side-0 30s: Stopping container side
    "#]],
    );
    let mut once = spec.clone();
    once["restartPolicy"] = "Never".into();
    let finished = Situation::new().spec(once).sandbox().with(container("side").running(9));
    check(
        finished.with(container("main").exited(0, 3, 1)),
        expect![[r#"
        kill side-0 30s: Stopping container side
    "#]],
    );
}

#[test]
fn crashes_back_off_and_long_runs_start_over() {
    let crashed = |streak: u32, ran: i64, ago: i64| {
        let dead = container("main").attempt(4).streak(streak).exited(1, ran + ago, ago);
        Situation::new().sandbox().with(dead)
    };
    check(
        crashed(0, 1, 0),
        expect![[r#"
        start Main main attempt 5 streak 1
    "#]],
    );
    check(
        crashed(1, 1, 3),
        expect![[r#"
        again in 7s
    "#]],
    );
    check(
        crashed(1, 1, 10),
        expect![[r#"
        start Main main attempt 5 streak 2
    "#]],
    );
    check(
        crashed(4, 1, 0),
        expect![[r#"
        again in 80s
    "#]],
    );
    check(
        crashed(40, 1, 0),
        expect![[r#"
        again in 300s
    "#]],
    );
    check(
        crashed(9, 700, 0),
        expect![[r#"
        start Main main attempt 5 streak 1
    "#]],
    );
}

#[test]
fn restart_policies() {
    let ended = |policy: &str, code: i32| {
        let spec = json!({"restartPolicy": policy});
        Situation::new().spec(spec).sandbox().with(container("main").exited(code, 9, 1))
    };
    check(
        ended("Always", 0),
        expect![[r#"
        start Main main attempt 1 streak 1
    "#]],
    );
    check(
        ended("OnFailure", 1),
        expect![[r#"
        start Main main attempt 1 streak 1
    "#]],
    );
    check(
        ended("OnFailure", 0),
        expect![[r#"
        stop sandbox0
    "#]],
    );
    check(
        ended("Never", 1),
        expect![[r#"
        stop sandbox0
    "#]],
    );
    check(
        ended("Never", 1).dead_sandbox(),
        expect![[r#"
        TearDown
    "#]],
    );
    check(ended("Never", 1).dead_sandbox().torn_down(), expect![[r#""#]]);
}

#[test]
fn deletion_goes_step_by_step() {
    let alive = || Situation::new().sandbox().with(container("main").running(9)).deleting(30, 30);
    check(
        alive(),
        expect![[r#"
        kill main-0 30s: Stopping container main
    "#]],
    );
    check(alive().killing("main-0", NOW + 30), expect![[r#""#]]);
    let sooner = Situation::new().sandbox().with(container("main").running(9)).deleting(2, 2);
    check(
        sooner.killing("main-0", NOW + 30),
        expect![[r#"
        kill main-0 2s: Stopping container main
    "#]],
    );
    let dead = || Situation::new().sandbox().with(container("main").exited(0, 9, 0)).deleting(30, 29);
    check(
        dead(),
        expect![[r#"
        stop sandbox0
    "#]],
    );
    check(
        dead().dead_sandbox(),
        expect![[r#"
        TearDown
    "#]],
    );
    check(
        dead().dead_sandbox().torn_down(),
        expect![[r#"
        DeletePod
    "#]],
    );
    check(
        dead().dead_sandbox().torn_down().gone(),
        expect![[r#"
        remove sandbox0
        Forget
    "#]],
    );
}

#[test]
fn a_pod_removed_by_force_is_killed() {
    let spec = json!({"terminationGracePeriodSeconds": 5});
    check(
        Situation::new().spec(spec).sandbox().with(container("main").running(9)).gone(),
        expect![[r#"
        kill main-0 5s: Stopping container main
    "#]],
    );
}

#[test]
fn a_failed_probe_and_a_changed_image_kill() {
    let alive = || Situation::new().sandbox().with(container("main").running(9));
    check(
        alive().probe_failed("main-0", Some(3)),
        expect![[r#"
        kill main-0 3s: Container main failed liveness probe, will be restarted
    "#]],
    );
    let changed = Situation::new().sandbox().with(container("main").image("old:1").running(9));
    check(
        changed,
        expect![[r#"
        kill main-0 30s: Container main definition changed, will be restarted
    "#]],
    );
    check(alive(), expect![[r#""#]]);
}

#[test]
fn a_reboot_makes_a_new_sandbox_and_counts_on() {
    let status = json!({"containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": true,
        "restartCount": 3, "containerID": "podium://x", "state": {"running": {}}}]});
    check(
        Situation::new().status(status.clone()),
        expect![[r#"
        create sandbox 0
        start Main main attempt 4 streak 0
    "#]],
    );
    let never = Situation::new().spec(json!({"restartPolicy": "Never"})).status(status);
    check(
        never,
        expect![[r#"
        TearDown
    "#]],
    );
    let lost = Situation::new().sandbox().dead_sandbox().with(container("main").exited(137, 9, 0));
    check(
        lost,
        expect![[r#"
        create sandbox 1
        start Main main attempt 1 streak 1
    "#]],
    );
}

#[test]
fn blocked_containers_wait_and_dead_attempts_are_collected() {
    check(
        Situation::new().sandbox().blocked("main", "ErrImagePull", Some(NOW + 4)),
        expect![[r#"
        again in 4s
    "#]],
    );
    check(Situation::new().sandbox().blocked("main", "ContainerCreating", None), expect![[r#""#]]);
    let mut old = Situation::new().sandbox().with(container("main").attempt(9).running(1));
    for attempt in 5..9 {
        old = old.with(container("main").attempt(attempt).exited(1, 9, 5));
    }
    check(
        old,
        expect![[r#"
            remove main-7
            remove main-6
            remove main-5
        "#]],
    );
}

#[test]
fn deadlines_end_pods() {
    let spec = json!({"activeDeadlineSeconds": 60});
    let at = |seconds: i64| Timestamp::from_second(seconds).unwrap().to_string();
    let started = |seconds: i64| {
        let status = json!({"startTime": at(seconds)});
        Situation::new().spec(spec.clone()).status(status).sandbox().with(container("main").running(9))
    };
    check(
        started(NOW - 20),
        expect![[r#"
        again in 40s
    "#]],
    );
    check(
        started(NOW - 61),
        expect![[r#"
        kill main-0 30s: Stopping container main
    "#]],
    );
}

#[test]
fn restart_rules_come_before_policies() {
    let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let c: core::Container =
        serde_json::from_value(json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rule}))
            .unwrap();
    let pod = Situation::new().pod();
    assert!(super::restarts(&pod, &c, super::ContainerKind::Main, 42));
    assert!(!super::restarts(&pod, &c, super::ContainerKind::Main, 1));
}

#[test]
fn a_container_that_was_only_made_has_neither_ended_nor_used_up_an_attempt() {
    let made = json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "web:1", "imageID": "x",
        "ready": false, "restartCount": 0, "containerID": "podium://x", "lastState": {},
        "state": {"waiting": {"reason": "ContainerCreating"}}}]});
    for policy in ["Never", "Always"] {
        check(
            Situation::new().spec(json!({"restartPolicy": policy})).status(made.clone()).sandbox(),
            expect![[r#"
                start Main main attempt 0 streak 0
            "#]],
        );
    }
}

#[test]
fn a_pod_that_the_node_gives_up_is_stopped_with_the_grace_it_is_given() {
    let running = || Situation::new().sandbox().with(container("main").running(5));
    check(
        running().failed("Evicted", Some(0)),
        expect![[r#"
        kill main-0 0s: Stopping container main
    "#]],
    );
    check(
        running().failed("Preempted", None),
        expect![[r#"
        kill main-0 30s: Stopping container main
    "#]],
    );
    check(Situation::new().failed("OutOfcpu", None), expect![["TearDown\n"]]);
}
