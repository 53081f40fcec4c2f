//! The agent as a whole, over an API, a runtime and a network in memory.

use std::sync::Arc;
use std::time::Duration;

use api::stream::{ExecOptions, LogOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Client, Clock, SystemClock};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::NodeAgent;
use crate::config::NodeConfig;
use crate::fake::{FakeNetwork, FakeRuntime};
use crate::ports::ContainerState;

mod fake_api;
mod static_pods;
use fake_api::{Door, FakeApi};

struct World {
    api: Arc<FakeApi>,
    runtime: Arc<FakeRuntime>,
    network: Arc<FakeNetwork>,
    agent: Arc<NodeAgent>,
    dir: tempfile::TempDir,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn config(dir: &tempfile::TempDir) -> NodeConfig {
    let addresses = vec!["192.0.2.1".parse().unwrap()];
    NodeConfig::new("n1", dir.path().join("pods"), dir.path().join("logs"), addresses)
}

impl World {
    fn new() -> Self {
        let runtime = FakeRuntime::new(Arc::new(SystemClock::default()));
        runtime.add_image("web:1");
        Self::with(Arc::new(FakeApi::default()), runtime, Arc::default(), tempfile::tempdir().unwrap())
    }

    fn with(
        api: Arc<FakeApi>,
        runtime: Arc<FakeRuntime>,
        network: Arc<FakeNetwork>,
        dir: tempfile::TempDir,
    ) -> Self {
        let config = config(&dir);
        Self::with_config(config, api, runtime, network, dir)
    }

    fn with_config(
        config: NodeConfig,
        api: Arc<FakeApi>,
        runtime: Arc<FakeRuntime>,
        network: Arc<FakeNetwork>,
        dir: tempfile::TempDir,
    ) -> Self {
        let client = Client::new(Arc::new(Door(api.clone())), "test");
        let agent = NodeAgent::new(config, client, runtime.clone(), network.clone());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(agent.clone().run(stopped));
        Self { api, runtime, network, agent, dir, stop, task }
    }

    /// Stops the agent, does something meanwhile, and starts another on what is left.
    async fn restart(self, meanwhile: impl FnOnce(&FakeApi)) -> Self {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
        meanwhile(&self.api);
        Self::with(self.api, self.runtime, self.network, self.dir)
    }

    async fn running(&self, name: &str) -> Value {
        self.api.until("running", |api| status(api, name)["phase"] == "Running").await;
        self.api.get("pods", "default", name).unwrap()
    }
}

fn status(api: &FakeApi, name: &str) -> Value {
    api.get("pods", "default", name).map(|pod| pod["status"].clone()).unwrap_or_default()
}

fn pod(name: &str, container: Value) -> Value {
    let mut main = json!({"name": "main", "image": "web:1", "imagePullPolicy": "IfNotPresent"});
    for (field, value) in container.as_object().unwrap() {
        main[field] = value.clone();
    }
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"nodeName": "n1", "containers": [main], "terminationGracePeriodSeconds": 5},
        "status": {"phase": "Pending", "conditions": [{"type": "Foreign", "status": "True"}]},
    })
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let world = World::new();
    world.api.put("pods", pod("a", json!({})));
    let running = world.running("a").await;
    let status = &running["status"];
    assert_eq!(status["podIP"], "10.0.0.1");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["containerStatuses"][0]["ready"], true);
    assert_eq!(status["observedGeneration"], 1);
    let conditions = status["conditions"].as_array().unwrap();
    let of = |name: &str| conditions.iter().find(|c| c["type"] == name).unwrap()["status"].clone();
    for name in ["Foreign", "Ready", "Initialized", "ContainersReady", "PodReadyToStartContainers"] {
        assert_eq!(of(name), "True", "{name}");
    }
    let writes = world.api.calls().into_iter().filter(|c| c == "patch pods status").count();
    assert_eq!(writes, 1, "the way to Running has one status write");
    assert!(world.dir.path().join("pods/uid-a/hosts").exists());

    world.api.delete_pod("default", "a", None);
    world.api.until("deleted", |api| api.get("pods", "default", "a").is_none()).await;
    while !world.runtime.sandboxes().is_empty() {
        tokio::task::yield_now().await;
    }
    let calls =
        ["sandbox a", "create main", "start main", "stop main 5s", "stop-sandbox a", "remove-sandbox a"];
    assert_eq!(world.runtime.calls(), calls);
    assert!(!world.dir.path().join("pods/uid-a").exists());
}

#[tokio::test]
async fn the_node_s_pages_count_what_it_does() {
    let world = World::new();
    world.runtime.add_remote_image("far:1");
    let probe =
        json!({"image": "far:1", "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}});
    world.api.put("pods", pod("a", probe));
    world.running("a").await;
    let ready = |api: &FakeApi| status(api, "a")["containerStatuses"][0]["ready"] == true;
    world.api.until("ready", ready).await;
    let page = async |target: &str| {
        use futures_util::StreamExt as _;
        let mut body = world.agent.page(target).await.unwrap().body;
        let mut text = Vec::new();
        while let Some(part) = body.next().await {
            text.extend_from_slice(&part.unwrap());
        }
        api::metrics::format::parse(std::str::from_utf8(&text).unwrap()).unwrap()
    };
    let samples = page("/metrics").await;
    let value = |name: &str| samples.iter().filter(|s| s.name == name).map(|s| s.value).sum::<f64>();
    for name in [
        "kubelet_node_name",
        "kubelet_running_pods",
        "kubelet_running_containers",
        "kubelet_started_pods_total",
        "kubelet_started_containers_total",
        "kubelet_pod_start_duration_seconds_count",
        "kubelet_pod_start_sli_duration_seconds_count",
        "kubelet_image_pull_duration_seconds_count",
    ] {
        assert_eq!(value(name), 1.0, "{name}: {samples:?}");
    }
    for name in ["kubelet_pod_worker_duration_seconds_count", "rest_client_requests_total"] {
        assert!(value(name) > 1.0, "{name}: {samples:?}");
    }
    let probes = page("/metrics/probes").await;
    let successes = probes.iter().find(|s| s.labels["result"] == "successful").unwrap();
    assert!(successes.value >= 1.0 && successes.labels["pod"] == "a", "{successes:?}");
    assert_eq!(successes.labels["probe_type"], "Readiness");
    page("/metrics/resource").await;

    world.api.delete_pod("default", "a", None);
    while !page("/metrics/probes").await.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_conflict_is_resolved_and_foreign_conditions_stay() {
    let world = World::new();
    world.api.refuse_patches(2);
    world.api.put("pods", pod("a", json!({})));
    let running = world.running("a").await;
    let conditions = running["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Foreign"));
}

#[tokio::test]
async fn a_crash_restarts_the_container_and_then_backs_off() {
    let world = World::new();
    world.api.put("pods", pod("a", json!({})));
    world.running("a").await;
    for attempt in [0, 1] {
        let list = world.runtime.containers();
        let id = list.iter().find(|c| c.attempt == attempt).unwrap().id.clone();
        world.runtime.exit(&id, 3);
        world
            .api
            .until("restarted or waiting", |api| {
                let container = &status(api, "a")["containerStatuses"][0];
                let again = container["restartCount"] == attempt + 1;
                again || container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            })
            .await;
    }
    let container = status(&world.api, "a")["containerStatuses"][0].clone();
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status(&world.api, "a")["phase"], "Running");
}

#[tokio::test]
async fn a_new_agent_adopts_what_runs_and_removes_orphans() {
    let world = World::new();
    world.api.put("pods", pod("a", json!({})));
    world.api.put("pods", pod("b", json!({})));
    world.running("a").await;
    world.running("b").await;
    let before = world.runtime.containers().into_iter().find(|c| c.pod_uid == "uid-a").unwrap();
    let world = world.restart(|api| api.delete_pod("default", "b", Some(0))).await;
    while world.runtime.sandboxes().len() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let after = world.runtime.containers();
    assert_eq!(after, [before]);
    assert_eq!(status(&world.api, "a")["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test]
async fn a_missing_config_map_blocks_until_it_is_there() {
    let world = World::new();
    let env = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]});
    world.api.put("pods", pod("a", env));
    let reason =
        |api: &FakeApi| status(api, "a")["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    world.api.until("blocked", |api| reason(api) == "CreateContainerConfigError").await;
    world.api.put(
        "configmaps",
        json!({"metadata": {"name": "cm", "namespace": "default", "uid": "u"}, "data": {"k": "v"}}),
    );
    world.running("a").await;
    let id = &world.runtime.containers()[0].id;
    assert!(world.runtime.config(id).unwrap().env.contains(&("A".into(), "v".into())));
}

#[tokio::test]
async fn images_are_pulled_or_reported() {
    let world = World::new();
    world.runtime.add_remote_image("far:1");
    world.api.put("pods", pod("a", json!({"image": "far:1"})));
    world.api.put("pods", pod("b", json!({"image": "nowhere:1"})));
    world.api.put("pods", pod("c", json!({"image": "far:2", "imagePullPolicy": "Never"})));
    world.running("a").await;
    let reason = |api: &FakeApi, name: &str| {
        status(api, name)["containerStatuses"][0]["state"]["waiting"]["reason"].clone()
    };
    world.api.until("reported", |api| reason(api, "b") == "ErrImagePull").await;
    world.api.until("refused", |api| reason(api, "c") == "ErrImageNeverPull").await;
    world.api.until("backing off", |api| reason(api, "b") == "ImagePullBackOff").await;
    let refused = world.agent.logs("default", "c", LogOptions::default()).await.err().unwrap();
    assert_eq!(refused.message, "container \"main\" in pod \"c\" is waiting to start: ErrImageNeverPull");
    assert_eq!(refused.code, 400);
}

#[tokio::test]
async fn pull_secrets_reach_the_registry() {
    let world = World::new();
    world.runtime.add_remote_image("reg.example/app:1");
    let config = json!({"auths": {"reg.example": {"username": "me", "password": "p"}}}).to_string();
    world.api.put(
        "secrets",
        json!({"metadata": {"name": "pull", "namespace": "default", "uid": "u"},
            "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": STANDARD.encode(config)}}),
    );
    let mut pod = pod("a", json!({"image": "reg.example/app:1"}));
    pod["spec"]["imagePullSecrets"] = json!([{"name": "absent"}, {"name": "pull"}]);
    world.api.put("pods", pod);
    world.running("a").await;
    assert_eq!(world.runtime.pulled_as(), ["me"]);
}

#[tokio::test]
async fn probes_decide_readiness_and_restart() {
    let world = World::new();
    world.runtime.set_exec_code("main", 1);
    let probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1});
    world.api.put("pods", pod("a", json!({"readinessProbe": probe})));
    world.api.put("pods", pod("b", json!({"livenessProbe": probe})));
    let running = world.running("a").await;
    assert_eq!(running["status"]["containerStatuses"][0]["ready"], false);
    world.api.until("restarted", |api| status(api, "b")["containerStatuses"][0]["restartCount"] == 1).await;
    world.runtime.set_exec_code("main", 0);
    world.api.until("ready", |api| status(api, "a")["containerStatuses"][0]["ready"] == true).await;
    assert_eq!(status(&world.api, "a")["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test]
async fn init_containers_go_first_and_finished_pods_are_wound_down() {
    let world = World::new();
    let mut object = pod("a", json!({}));
    object["spec"]["restartPolicy"] = "Never".into();
    object["spec"]["initContainers"] =
        json!([{"name": "init", "image": "web:1", "imagePullPolicy": "IfNotPresent"}]);
    world.api.put("pods", object);
    let init_runs =
        |api: &FakeApi| !status(api, "a")["initContainerStatuses"][0]["state"]["running"].is_null();
    world.api.until("init runs", init_runs).await;
    assert_eq!(world.runtime.containers().len(), 1);
    assert_eq!(
        status(&world.api, "a")["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    world.runtime.exit(&world.runtime.containers()[0].id, 0);
    world.running("a").await;
    let main = world.runtime.containers().into_iter().find(|c| c.name == "main").unwrap();
    world.runtime.exit(&main.id, 0);
    world.api.until("succeeded", |api| status(api, "a")["phase"] == "Succeeded").await;
    while world.runtime.sandboxes()[0].ready {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&world.api, "a")["podIP"], "10.0.0.1");
    assert_eq!(world.runtime.containers().len(), 2, "finished containers stay for their logs");
}

#[tokio::test]
async fn a_forced_deletion_kills_too() {
    let world = World::new();
    world.runtime.ignore_sigterm();
    world.api.put("pods", pod("a", json!({})));
    world.running("a").await;
    world.api.delete_pod("default", "a", Some(600));
    world
        .api
        .until("terminating", |api| !api.list("pods")[0]["metadata"]["deletionTimestamp"].is_null())
        .await;
    world.api.delete_pod("default", "a", Some(1));
    let began = std::time::Instant::now();
    world.api.until("deleted", |api| api.list("pods").is_empty()).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(world.runtime.containers().iter().all(|c| c.exit_code == 137));
}

#[tokio::test]
async fn logs_follow_until_the_container_ends() {
    let world = World::new();
    world.api.put("pods", pod("a", json!({})));
    world.running("a").await;
    let container = world.runtime.containers()[0].clone();
    std::fs::create_dir_all(container.log_path.parent().unwrap()).unwrap();
    std::fs::write(&container.log_path, "2026-01-01T00:00:00.5Z stdout F one\n").unwrap();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut stream = world.agent.logs("default", "a", options).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "one\n");
    let mut file = std::fs::OpenOptions::new().append(true).open(&container.log_path).unwrap();
    std::io::Write::write_all(&mut file, b"2026-01-01T00:00:01Z stderr F two\n").unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "two\n");
    assert_eq!(container.state, ContainerState::Running);
    world.runtime.exit(&container.id, 0);
    assert!(stream.next().await.is_none());
    let unknown = LogOptions { container: "x".into(), ..LogOptions::default() };
    let error = world.agent.logs("default", "a", unknown).await.err().unwrap();
    assert_eq!(error.message, "container x is not valid for pod a");
    let error = world.agent.exec("default", "none", ExecOptions::default()).await.err().unwrap();
    assert_eq!(error.message, "pods \"none\" not found");
}

#[tokio::test]
async fn the_node_registers_and_renews_its_lease() {
    let world = World::new();
    world.api.until("lease", |api| api.get("leases", "kube-node-lease", "n1").is_some()).await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    let ready =
        node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "True");
    assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.37.0");
    let lease = world.api.get("leases", "kube-node-lease", "n1").unwrap();
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
}

#[tokio::test]
async fn a_token_is_renewed_while_its_pod_runs() {
    let world = World::new();
    let mut object = pod("a", json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let sources = json!([{"serviceAccountToken": {"path": "token", "expirationSeconds": 1}}]);
    object["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": sources}}]);
    world.api.put("pods", object);
    world.running("a").await;
    let tokens =
        |api: &FakeApi| api.calls().into_iter().filter(|c| c == "create serviceaccounts token").count();
    let begun = std::time::Instant::now();
    world.api.until("a second token", |api| tokens(api) == 2).await;
    assert!(begun.elapsed() > Duration::from_millis(500), "not before four fifths of its life");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(tokens(&world.api), 2, "and then not again at once");
    assert_eq!(world.runtime.containers().len(), 1);
}

/// A clock that can be set.
struct SetClock(SystemClock, std::sync::atomic::AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> jiff::Timestamp {
        let offset = jiff::SignedDuration::from_secs(self.1.load(std::sync::atomic::Ordering::Relaxed));
        self.0.now() + offset
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    /// A hundred times as fast.
    fn sleep(&self, delay: Duration) -> futures_util::future::BoxFuture<'static, ()> {
        self.0.sleep(delay / 100)
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}

#[tokio::test]
async fn a_clock_that_is_set_is_noticed() {
    let clock = Arc::new(SetClock(SystemClock::default(), Default::default()));
    let (steps, mut stepped) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(super::clock_steps(clock.clone(), steps));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stepped.try_recv().is_err(), "nothing has happened");
    for offset in [86_400, -86_400] {
        clock.1.store(offset, std::sync::atomic::Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(5), stepped.recv()).await.unwrap().unwrap();
    }
    watching.abort();
}

#[tokio::test]
async fn volumes_follow_their_sources() {
    let world = World::new();
    let map = |value: &str| json!({"metadata": {"name": "cm", "namespace": "default", "uid": "u"}, "data": {"k": value}});
    let mut object = pod("a", json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let sources = json!([{"configMap": {"name": "cm"}}, {"serviceAccountToken": {"path": "token"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
    object["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": sources}}]);
    world.api.put("pods", object);
    let asked = |api: &FakeApi| api.calls().iter().any(|c| c == "watch configmaps");
    world.api.until("reading", asked).await;
    assert!(world.runtime.containers().is_empty(), "no container without its volumes");
    world.api.put("configmaps", map("one"));
    world.running("a").await;
    let dir = world.dir.path().join("pods/uid-a/volumes/v");
    assert_eq!(std::fs::read_to_string(dir.join("k")).unwrap(), "one");
    assert_eq!(std::fs::read_to_string(dir.join("token")).unwrap(), "the-token");
    let reads = |file: &str, text: &str| std::fs::read_to_string(dir.join(file)).unwrap() == text;
    world.api.put("configmaps", map("two"));
    let mut labelled = world.api.get("pods", "default", "a").unwrap();
    labelled["metadata"]["labels"] = json!({"x": "y"});
    world.api.put("pods", labelled);
    let updated = async {
        while !reads("k", "two") || !reads("labels", "x=\"y\"") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), updated).await.unwrap();
    let tokens = world.api.calls().into_iter().filter(|c| c == "create serviceaccounts token").count();
    assert_eq!(tokens, 1, "a token is kept until it is due");
    assert_eq!(world.runtime.containers().len(), 1);
    let mounts = world.runtime.config(&world.runtime.containers()[0].id).unwrap().mounts;
    assert!(mounts.iter().any(|m| m.container_path == "/v" && m.readonly && m.host_path == dir));
    assert!(mounts.iter().any(|m| m.container_path == "/etc/resolv.conf"));
}

fn calls_of(world: &World, words: &[&str]) -> Vec<String> {
    let calls = world.runtime.calls().into_iter();
    calls.filter(|call| words.iter().any(|word| call.starts_with(word))).collect()
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let world = World::new();
    let hook = |word: &str| json!({"exec": {"command": ["hook", word]}});
    let lifecycle = json!({"lifecycle": {"postStart": hook("started"), "preStop": hook("stopping")}});
    world.api.put("pods", pod("a", lifecycle));
    world.running("a").await;
    world.api.until("ready", |api| status(api, "a")["containerStatuses"][0]["ready"] == true).await;
    world.api.delete_pod("default", "a", None);
    world.api.until("deleted", |api| api.get("pods", "default", "a").is_none()).await;
    let want = ["start main", "exec main hook started", "exec main hook stopping", "stop main"];
    let got = calls_of(&world, &["start ", "exec ", "stop "]);
    assert_eq!(got.len(), want.len(), "{got:?}");
    assert!(got.iter().zip(want).all(|(call, want)| call.starts_with(want)), "{got:?}");
}

#[tokio::test]
async fn a_container_whose_post_start_hook_fails_is_killed() {
    let world = World::new();
    world.runtime.set_exec_code("main", 3);
    let lifecycle = json!({"lifecycle": {"postStart": {"exec": {"command": ["hook"]}}}});
    let mut wanted = pod("a", lifecycle);
    wanted["spec"]["restartPolicy"] = "Never".into();
    world.api.put("pods", wanted);
    world.api.until("failed", |api| status(api, "a")["phase"] == "Failed").await;
    assert_eq!(calls_of(&world, &["exec ", "stop "]), ["exec main hook", "stop main 5s"]);
}

#[tokio::test]
async fn the_stop_gets_what_its_hook_leaves_of_the_grace_period() {
    let world = World::new();
    let sleeping = |seconds: i64| json!({"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}});
    world.api.put("pods", pod("a", sleeping(1)));
    world.running("a").await;
    world.api.delete_pod("default", "a", None);
    world.api.until("deleted", |api| api.get("pods", "default", "a").is_none()).await;
    assert_eq!(calls_of(&world, &["stop "]), ["stop main 3s"]);
}

#[tokio::test]
async fn folders_of_pods_deleted_meanwhile_are_removed() {
    let world = World::new();
    world.api.put("pods", pod("stays", json!({})));
    world.running("stays").await;
    let folder = |path: &str| world.dir.path().join(path);
    let gone = [folder("pods/uid-gone/volumes/data"), folder("logs/default_gone_uid-gone/main")];
    gone.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    let stays = [folder("pods/uid-stays"), folder("logs/default_stays_uid-stays"), folder("logs/not-a-pod")];
    std::fs::create_dir_all(&stays[2]).unwrap();
    let world = world.restart(|_| {}).await;
    let left = || gone.iter().any(|path| path.parent().is_some_and(std::path::Path::exists));
    while left() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(stays.iter().all(|path| path.exists()));
    assert_eq!(world.runtime.sandboxes().len(), 1);
}

#[tokio::test]
async fn a_pod_that_clashes_with_another_is_rejected() {
    let world = World::new();
    let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
    world.api.put("pods", pod("a", json!({"ports": ports})));
    world.running("a").await;
    world.api.put("pods", pod("b", json!({"ports": ports})));
    world.api.until("rejected", |api| status(api, "b")["phase"] == "Failed").await;
    let rejected = status(&world.api, "b");
    assert_eq!(rejected["reason"], "NodePorts");
    assert_eq!(rejected["containerStatuses"], Value::Null);
    assert_eq!(world.runtime.sandboxes().len(), 1);
    // Its place is free once the first has gone.
    world.api.delete_pod("default", "a", None);
    world.api.until("deleted", |api| api.get("pods", "default", "a").is_none()).await;
    world.api.put("pods", pod("c", json!({"ports": ports})));
    world.running("c").await;
}

#[tokio::test]
async fn a_running_pod_is_resized_or_told_to_wait() {
    let world = World::new();
    let with = |cpu: &str| json!({"requests": {"cpu": cpu}});
    world.api.put("pods", pod("a", json!({"resources": with("100m")})));
    let running = world.running("a").await;
    assert_eq!(running["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "100m");
    let resize = |cpu: &str| {
        let mut pod = world.api.get("pods", "default", "a").unwrap();
        pod["spec"]["containers"][0]["resources"] = with(cpu);
        world.api.put("pods", pod);
    };
    let given =
        |api: &FakeApi| status(api, "a")["containerStatuses"][0]["resources"]["requests"]["cpu"].clone();
    resize("200m");
    world.api.until("resized", |api| given(api) == "200m").await;
    let resized: Vec<String> =
        world.runtime.calls().into_iter().filter(|c| c.starts_with("update")).collect();
    assert_eq!(resized, ["update-sandbox a", "update main"]);
    assert_eq!(world.runtime.containers().len(), 1, "nothing was restarted");
    let pending = |api: &FakeApi| {
        let conditions = status(api, "a")["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "PodResizePending").map(|c| c["reason"].clone())
    };
    resize("5000");
    world.api.until("refused", |api| pending(api) == Some("Infeasible".into())).await;
    assert_eq!(given(&world.api), "200m");
    resize("300m");
    world.api.until("resized", |api| given(api) == "300m" && pending(api).is_none()).await;
}

#[tokio::test]
async fn under_pressure_a_pod_is_evicted_and_new_ones_stay_away() {
    let runtime = FakeRuntime::new(Arc::new(SystemClock::default()));
    runtime.add_image("web:1");
    let dir = tempfile::tempdir().unwrap();
    let pressed = "memory.available<99.9%".parse::<crate::eviction::settings::Thresholds>().unwrap().0;
    let eviction = crate::eviction::Rules { thresholds: pressed, ..crate::eviction::Rules::usual() };
    let config = NodeConfig { eviction, ..config(&dir) };
    let (api, network) = (Arc::new(FakeApi::default()), Arc::default());
    let mut bound = pod("a", json!({}));
    // Running before: a new one would be turned away.
    bound["status"]["startTime"] = "2026-01-01T00:00:00Z".into();
    api.put("pods", bound);
    let sandbox = crate::ports::SandboxConfig {
        pod_uid: "uid-a".into(),
        namespace: "default".into(),
        name: "a".into(),
        ..Default::default()
    };
    crate::ports::Runtime::run_pod_sandbox(&*runtime, sandbox).await.unwrap();
    let world = World::with_config(config, api, runtime, network, dir);
    world.api.until("evicted", |api| status(api, "a")["phase"] == "Failed").await;
    let evicted = status(&world.api, "a");
    assert_eq!(evicted["reason"], "Evicted");
    let conditions = evicted["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True"));
    let pressure = |api: &FakeApi| {
        let node = api.get("nodes", "", "n1").unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "MemoryPressure" && c["status"] == "True")
    };
    world.api.until("shown", pressure).await;
    world.api.put("pods", pod("b", json!({})));
    world.api.until("rejected", |api| status(api, "b")["phase"] == "Failed").await;
    assert_eq!(status(&world.api, "b")["reason"], "Evicted");
}

#[tokio::test]
async fn a_runtime_class_names_a_way_of_running_that_the_node_must_have() {
    let world = World::new();
    let class = |handler: &str| json!({"metadata": {"name": "c"}, "handler": handler});
    world.api.put("runtimeclasses", class("other"));
    let mut pod = pod("a", json!({}));
    pod["spec"]["runtimeClassName"] = "c".into();
    world.api.put("pods", pod);
    let refused = |api: &FakeApi| {
        let why = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"other\" is configured";
        api.list("events").iter().any(|e| e["reason"] == "FailedCreatePodSandBox" && e["message"] == why)
    };
    world.api.until("refused", refused).await;
    let waiting =
        |api: &FakeApi| status(api, "a")["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    world.api.until("shown", |api| waiting(api) == "ContainerCreating").await;
    world.api.put("runtimeclasses", class("podium"));
    world.running("a").await;
    let handlers =
        |api: &FakeApi| api.get("nodes", "", "n1").unwrap_or_default()["status"]["runtimeHandlers"].clone();
    world.api.until("the node says so", |api| handlers(api)[1]["name"] == "podium").await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert_eq!(node["status"]["features"]["supplementalGroupsPolicy"], true);
}

#[tokio::test]
async fn unused_images_go_when_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new(Arc::new(SystemClock::default()));
    runtime.add_fetched_image("old:1");
    runtime.add_image("imported:1");
    // Any use of the disk is too much, and all of it is to be freed.
    let image_gc = crate::image_gc::Policy { high: 0, low: 0, ..crate::image_gc::Policy::default() };
    let config = NodeConfig { image_gc, ..config(&dir) };
    let world = World::with_config(config, Arc::default(), runtime, Arc::default(), dir);
    let told = |api: &FakeApi| {
        let failed =
            |e: &Value| e["reason"] == "FreeDiskSpaceFailed" && e["involvedObject"]["kind"] == "Node";
        api.list("events").iter().any(failed)
    };
    world.api.until("the node says that it was not enough", told).await;
    assert_eq!(world.runtime.images(), ["imported:1"]);
}
