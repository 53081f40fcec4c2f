//! Golden statuses over many situations.

use std::fmt::Write as _;

use expect_test::expect;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::pod_status;
use crate::fake::situation::{NOW, Situation, container, facts};

fn state(state: Option<&core::ContainerState>) -> String {
    let Some(state) = state else { return "-".into() };
    if let Some(w) = &state.waiting {
        let text = w.message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
        return format!("waiting {}{text}", w.reason.as_deref().unwrap_or("-"));
    }
    if let Some(t) = &state.terminated {
        let text = t.message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
        return format!("terminated {} {}{text}", t.exit_code, t.reason.as_deref().unwrap_or("-"));
    }
    if state.running.is_some() { "running".into() } else { "-".into() }
}

fn check(situation: Situation, wanted: expect_test::Expect) {
    let now = Timestamp::from_second(NOW).unwrap();
    let status = pod_status(&situation.pod(), &situation.observed, &facts(), now);
    let mut text = format!(
        "{} {} {}\n",
        status.phase.as_deref().unwrap_or("-"),
        status.pod_ip.as_deref().unwrap_or("-"),
        status.reason.as_deref().unwrap_or("")
    );
    let lists = [&status.init_container_statuses, &status.container_statuses];
    for s in lists.into_iter().flatten().flatten() {
        let (ready, started) = (s.ready, s.started == Some(true));
        let last = state(s.last_state.as_ref());
        let now = state(s.state.as_ref());
        writeln!(
            text,
            "{}: {now} last {last} restarts {} ready {ready} started {started}",
            s.name, s.restart_count
        )
        .unwrap();
    }
    for c in status.conditions.iter().flatten().filter(|c| c.status != "True") {
        let why = [c.reason.as_deref().unwrap_or(""), c.message.as_deref().unwrap_or("")].join(" ");
        writeln!(text, "not {}: {}", c.type_, why.trim_end()).unwrap();
    }
    let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
    wanted.assert_eq(&(trimmed.join("\n") + "\n"));
}

#[test]
fn the_way_to_running() {
    check(
        Situation::new().volumes_unknown(),
        expect![[r#"
        Pending -
        main: waiting ContainerCreating last - restarts 0 ready false started false
        not PodReadyToStartContainers:
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        Situation::new().sandbox().blocked("main", "ErrImagePull", Some(NOW + 9)),
        expect![[r#"
        Pending 10.0.0.1
        main: waiting ErrImagePull (because) last - restarts 0 ready false started false
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        Situation::new().sandbox().with(container("main").running(1)),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready true started true
    "#]],
    );
}

#[test]
fn init_containers() {
    let spec = json!({"initContainers": [{"name": "i"}]});
    let up = || Situation::new().spec(spec.clone()).sandbox();
    check(
        up().with(container("i").running(1)),
        expect![[r#"
        Pending 10.0.0.1
        i: running last - restarts 0 ready false started true
        main: waiting PodInitializing last - restarts 0 ready false started false
        not Initialized: ContainersNotInitialized containers with incomplete status: [i]
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        up().with(container("i").streak(1).exited(1, 2, 1)),
        expect![[r#"
        Pending 10.0.0.1
        i: waiting CrashLoopBackOff (back-off 10s restarting failed container=i pod=p_ns(u)) last terminated 1 Error restarts 0 ready false started false
        main: waiting PodInitializing last - restarts 0 ready false started false
        not Initialized: ContainersNotInitialized containers with incomplete status: [i]
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        up().with(container("i").exited(0, 2, 1)).with(container("main").running(1)),
        expect![[r#"
        Running 10.0.0.1
        i: terminated 0 Completed last - restarts 0 ready true started false
        main: running last - restarts 0 ready true started true
    "#]],
    );
}

#[test]
fn crashes() {
    let first = container("main").exited(1, 3, 1);
    check(
        Situation::new().sandbox().with(first.clone()),
        expect![[r#"
        Running 10.0.0.1
        main: terminated 1 Error last - restarts 0 ready false started false
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    let second = container("main").attempt(1).streak(1).exited(2, 2, 1);
    let both = Situation::new().sandbox().with(first.clone()).with(second);
    check(
        both.message("main-1", "left behind"),
        expect![[r#"
        Running 10.0.0.1
        main: waiting CrashLoopBackOff (back-off 10s restarting failed container=main pod=p_ns(u)) last terminated 2 Error (left behind) restarts 1 ready false started false
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    let again =
        Situation::new().sandbox().with(first).with(container("main").attempt(1).streak(1).running(0));
    check(
        again,
        expect![[r#"
        Running 10.0.0.1
        main: running last terminated 1 Error restarts 1 ready true started true
    "#]],
    );
    let mut killed = container("main").streak(1).exited(137, 3, 1);
    killed.reason = "OOMKilled".into();
    check(
        Situation::new().sandbox().with(killed),
        expect![[r#"
        Running 10.0.0.1
        main: waiting CrashLoopBackOff (back-off 10s restarting failed container=main pod=p_ns(u)) last terminated 137 OOMKilled restarts 0 ready false started false
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
}

#[test]
fn endings() {
    let once = |code: i32| {
        let spec = json!({"restartPolicy": "Never"});
        Situation::new().spec(spec).sandbox().with(container("main").exited(code, 9, 1))
    };
    check(
        once(0),
        expect![[r#"
        Succeeded 10.0.0.1
        main: terminated 0 Completed last - restarts 0 ready false started false
        not Ready: PodCompleted
        not ContainersReady: PodCompleted
    "#]],
    );
    check(
        once(3),
        expect![[r#"
        Failed 10.0.0.1
        main: terminated 3 Error last - restarts 0 ready false started false
        not Ready: PodFailed
        not ContainersReady: PodFailed
    "#]],
    );
    check(
        Situation::new().sandbox().with(container("main").exited(143, 9, 1)).deleting(30, 20),
        expect![[r#"
            Failed 10.0.0.1
            main: terminated 143 Error last - restarts 0 ready false started false
            not Ready: PodFailed
            not ContainersReady: PodFailed
        "#]],
    );
    let status = json!({"startTime": "2020-01-01T00:00:00Z"});
    let late = || Situation::new().spec(json!({"activeDeadlineSeconds": 5})).status(status.clone());
    check(
        late().sandbox().with(container("main").running(9)),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready true started true
    "#]],
    );
    check(
        late().sandbox().with(container("main").exited(143, 9, 1)),
        expect![[r#"
        Failed 10.0.0.1 DeadlineExceeded
        main: terminated 143 Error last - restarts 0 ready false started false
        not Ready: PodFailed
        not ContainersReady: PodFailed
    "#]],
    );
}

#[test]
fn readiness() {
    let probed = json!({"containers": [{"name": "main", "readinessProbe": {"exec": {}}}]});
    let up = || Situation::new().spec(probed.clone()).sandbox().with(container("main").running(1));
    check(
        up(),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready false started true
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        up().ready("main-0", true),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready true started true
    "#]],
    );
    let starting = json!({"containers": [{"name": "main", "startupProbe": {"exec": {}}}]});
    check(
        Situation::new().spec(starting).sandbox().with(container("main").running(1)),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready false started false
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    let gated = json!({"readinessGates": [{"conditionType": "x/y"}]});
    check(
        Situation::new().spec(gated).sandbox().with(container("main").running(1)),
        expect![[r#"
        Running 10.0.0.1
        main: running last - restarts 0 ready true started true
        not Ready: ReadinessGatesNotReady corresponding condition of pod readiness gate "x/y" does not exist.
    "#]],
    );
}

#[test]
fn a_container_lost_in_a_reboot_is_not_claimed_to_have_succeeded() {
    let status = json!({"phase": "Running", "containerStatuses": [{"name": "main", "image": "", "imageID": "",
        "ready": true, "restartCount": 3, "containerID": "podium://x", "state": {"running": {}}}]});
    check(
        Situation::new().status(status.clone()),
        expect![[r#"
        Running -
        main: waiting ContainerCreating last terminated 137 ContainerStatusUnknown (The container could not be located when the pod was terminated) restarts 3 ready false started false
        not PodReadyToStartContainers:
        not Ready: ContainersNotReady containers with unready status: [main]
        not ContainersReady: ContainersNotReady containers with unready status: [main]
    "#]],
    );
    check(
        Situation::new().spec(json!({"restartPolicy": "Never"})).status(status),
        expect![[r#"
        Failed -
        main: terminated 137 ContainerStatusUnknown (The container could not be located when the pod was terminated) last - restarts 3 ready false started false
        not PodReadyToStartContainers:
        not Ready: PodFailed
        not ContainersReady: PodFailed
    "#]],
    );
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let old = json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]});
    let situation = Situation::new().status(old).sandbox().with(container("main").running(1));
    let now = Timestamp::from_second(NOW).unwrap();
    let status = pod_status(&situation.pod(), &situation.observed, &facts(), now);
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.last_transition_time.as_ref().unwrap().0.to_string(), "2020-01-01T00:00:00Z");
    assert_eq!(ready.observed_generation, Some(2));
    let mut next = situation.pod();
    next.status = Some(status.clone());
    assert_eq!(pod_status(&next, &situation.observed, &facts(), now), status, "a status is stable");
}

#[test]
fn a_pod_that_the_node_gives_up_fails_once_nothing_runs() {
    check(
        Situation::new().failed("OutOfcpu", None),
        expect![[r#"
        Failed - OutOfcpu
        not PodReadyToStartContainers:
        not Ready: PodFailed
        not ContainersReady: PodFailed
    "#]],
    );
    let evicted = |main| Situation::new().sandbox().with(main).failed("Evicted", Some(0));
    check(
        evicted(container("main").running(5)),
        expect![[r#"
            Running 10.0.0.1
            main: running last - restarts 0 ready true started true
        "#]],
    );
    check(
        evicted(container("main").exited(137, 5, 0)),
        expect![[r#"
        Failed 10.0.0.1 Evicted
        main: terminated 137 Error last - restarts 0 ready false started false
        not Ready: PodFailed
        not ContainersReady: PodFailed
    "#]],
    );
}
