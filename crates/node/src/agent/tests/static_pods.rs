//! Static pods: the file is the truth, the mirror shows it.

use super::*;

fn manifest(image: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {
        "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"}]}})
    .to_string()
}

fn world() -> (World, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    let config = NodeConfig { manifests: Some(folder.clone()), ..config(&dir) };
    let runtime = FakeRuntime::new(Arc::new(SystemClock::default()));
    runtime.add_image("web:1");
    runtime.add_image("web:2");
    let api = Arc::new(FakeApi::default());
    (World::with_config(config, api, runtime, Arc::default(), dir), folder)
}

fn mirror(api: &FakeApi) -> Option<Value> {
    api.get("pods", "default", "web-n1")
}

async fn shown(world: &World, image: &str) -> Value {
    let running = |api: &FakeApi| {
        let mirror = mirror(api).unwrap_or_default();
        mirror["status"]["phase"] == "Running" && mirror["spec"]["containers"][0]["image"] == image
    };
    world.api.until("shown", running).await;
    mirror(&world.api).unwrap()
}

#[tokio::test]
async fn a_file_runs_is_mirrored_and_ends_with_the_file() {
    let (world, folder) = world();
    std::fs::write(folder.join("web.yaml"), manifest("web:1")).unwrap();
    let first = shown(&world, "web:1").await;
    let hash = first["metadata"]["annotations"]["kubernetes.io/config.mirror"].as_str().unwrap();
    assert_eq!(first["metadata"]["annotations"]["kubernetes.io/config.hash"], hash);
    assert_eq!(first["metadata"]["ownerReferences"][0]["name"], "n1");
    assert_eq!(world.runtime.containers().iter().map(|c| c.pod_uid.as_str()).collect::<Vec<_>>(), [hash]);

    // Logs and commands of the mirror are those of the static pod.
    let options = ExecOptions { command: vec!["ls".into()], stdout: true, ..ExecOptions::default() };
    world
        .agent
        .exec("default", "web-n1", options)
        .await
        .map(drop)
        .unwrap_or_else(|s| assert_ne!(s.code, 404));
    assert!(world.agent.pod_views().await.unwrap()[0].containers.len() == 1);

    // Deletion through the API brings another mirror and stops nothing.
    world.api.delete_pod("default", "web-n1", None);
    let another = |api: &FakeApi| {
        mirror(api).is_some_and(|m| {
            m["metadata"]["uid"] != first["metadata"]["uid"] && m["status"]["phase"] == "Running"
        })
    };
    world.api.until("another mirror", another).await;
    world.api.delete_pod("default", "web-n1", Some(0));
    shown(&world, "web:1").await;
    assert!(
        !world.runtime.calls().iter().any(|call| call.starts_with("stop")),
        "{:?}",
        world.runtime.calls()
    );

    // Another content is another pod, which begins when the first has ended.
    std::fs::write(folder.join("web.yaml"), manifest("web:2")).unwrap();
    let second = shown(&world, "web:2").await;
    assert_ne!(second["metadata"]["annotations"]["kubernetes.io/config.mirror"], hash);
    let calls = world.runtime.calls();
    let at = |call: &str, nth: usize| {
        calls.iter().enumerate().filter(|(_, c)| *c == call).nth(nth).map(|(n, _)| n)
    };
    assert!(at("stop main 5s", 0).unwrap() < at("sandbox web-n1", 1).unwrap(), "{calls:?}");

    std::fs::remove_file(folder.join("web.yaml")).unwrap();
    world.api.until("gone", |api| mirror(api).is_none()).await;
    while !world.runtime.sandboxes().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_mirror_without_a_file_goes_and_what_ran_is_adopted() {
    let (world, folder) = world();
    std::fs::write(folder.join("web.yaml"), manifest("web:1")).unwrap();
    let first = shown(&world, "web:1").await;
    let (api, runtime, network) = (world.api.clone(), world.runtime.clone(), world.network.clone());
    world.stop.send(true).unwrap();
    world.task.await.unwrap();
    let mut older = first.clone();
    older["status"]["startTime"] = "2026-01-01T00:00:00Z".into();
    api.put("pods", older.clone());
    let config = NodeConfig { manifests: Some(folder.clone()), ..config(&world.dir) };
    let world = World::with_config(config.clone(), api, runtime, network, world.dir);
    // Its first look ends with a mirror that is as it should be.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = shown(&world, "web:1").await;
    assert_eq!(again["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(again["status"]["startTime"], older["status"]["startTime"]);
    let sandboxes = world.runtime.calls().iter().filter(|c| *c == "sandbox web-n1").count();
    assert_eq!(sandboxes, 1, "nothing was started anew");

    let (api, runtime, network) = (world.api.clone(), world.runtime.clone(), world.network.clone());
    world.stop.send(true).unwrap();
    world.task.await.unwrap();
    std::fs::remove_file(folder.join("web.yaml")).unwrap();
    let world = World::with_config(config, api, runtime, network, world.dir);
    world.api.until("gone", |api| mirror(api).is_none()).await;
    while !world.runtime.sandboxes().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_ordinary_pod_of_the_name_is_left_alone() {
    let (world, folder) = world();
    let mut ordinary = pod("web-n1", json!({}));
    ordinary["spec"]["nodeName"] = "elsewhere".into();
    world.api.put("pods", ordinary);
    std::fs::write(folder.join("web.yaml"), manifest("web:1")).unwrap();
    while !world.runtime.containers().iter().any(|c| c.state == ContainerState::Running) {
        tokio::task::yield_now().await;
    }
    assert_eq!(mirror(&world.api).unwrap()["metadata"]["uid"], "uid-web-n1");
}

/// No API server.
struct Nobody;

impl client::Transport for Nobody {
    fn call(
        &self,
        _: api::ApiRequest,
    ) -> futures_util::future::BoxFuture<'_, Result<api::ApiResponse, api::Status>> {
        Box::pin(std::future::ready(Err(api::Status::internal("nobody is there"))))
    }
}

#[tokio::test]
async fn a_static_pod_needs_no_api_server() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("web.yaml"), manifest("web:1")).unwrap();
    let runtime = FakeRuntime::new(Arc::new(SystemClock::default()));
    runtime.add_image("web:1");
    let config = NodeConfig { manifests: Some(folder), ..config(&dir) };
    let agent = NodeAgent::new(
        config,
        Client::new(Arc::new(Nobody), "test"),
        runtime.clone(),
        Arc::<FakeNetwork>::default(),
    );
    let (_stop, stopped) = watch::channel(false);
    let task = tokio::spawn(agent.run(stopped));
    let runs = async {
        while !runtime.containers().iter().any(|c| c.state == ContainerState::Running) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), runs).await.unwrap();
    task.abort();
}
