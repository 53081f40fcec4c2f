use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{ObjectKey, Status, Verb};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;
use tokio::sync::watch;

use crate::testing::MiniServer;
use crate::{Action, Controller, Kind, Plan, View, Watch};

/// For each ConfigMap keeps `wanted` Secrets that name it in a label.
struct Copier {
    wanted: usize,
    plans: Arc<AtomicUsize>,
    refusals: Arc<Mutex<Vec<String>>>,
    at_work: Arc<Mutex<Vec<ObjectKey>>>,
    overlapped: Arc<AtomicBool>,
}

impl Copier {
    fn new(wanted: usize) -> Self {
        Self {
            wanted,
            plans: Arc::default(),
            refusals: Arc::default(),
            at_work: Arc::default(),
            overlapped: Arc::default(),
        }
    }
}

impl Controller for Copier {
    fn name(&self) -> &'static str {
        "copier"
    }

    fn watches(&self) -> Vec<Watch> {
        let of = |_: &View, secret: &crate::Cached<Secret>| {
            secret.labels.get("of").map(|name| ObjectKey::new("a", name)).into_iter().collect()
        };
        vec![Watch::own::<ConfigMap>(), Watch::map::<Secret>(of)]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        self.plans.fetch_add(1, Ordering::SeqCst);
        assert_ne!(key.name, "poison", "this key breaks the plan");
        if self.at_work.lock().unwrap().contains(key) {
            self.overlapped.store(true, Ordering::SeqCst);
        }
        self.at_work.lock().unwrap().push(key.clone());
        if let Some(status) = view.refused_creation() {
            self.refusals.lock().unwrap().push(status.message.clone());
        }
        let have =
            view.list::<Secret>().iter().filter(|secret| secret.labels.get("of") == Some(&key.name)).count();
        let object = json!({"metadata": {"generateName": "copy-", "labels": {"of": key.name}}});
        let create = Action::Create { gvr: Secret::gvr(), namespace: "a".into(), object };
        self.at_work.lock().unwrap().retain(|k| k != key);
        Plan::actions(vec![create; self.wanted.saturating_sub(have)])
    }
}

fn start(server: &MiniServer, controller: Copier) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    crate::spawn(crate::runner::run(server.client(), vec![Arc::new(controller)], stopped));
    stop
}

fn add_map(server: &MiniServer, name: &str) {
    server.put(&ConfigMap::gvr(), json!({"metadata": {"name": name, "namespace": "a"}}));
}

fn copies(server: &MiniServer, of: &str) -> usize {
    server.objects("secrets").iter().filter(|secret| secret["metadata"]["labels"]["of"] == of).count()
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it should have happened by now");
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_gate_prevents_double_work_however_often_a_key_changes() {
    let server = MiniServer::new();
    let controller = Copier::new(20);
    let overlapped = controller.overlapped.clone();
    let _stop = start(&server, controller);
    for _ in 0..30 {
        add_map(&server, "one");
        add_map(&server, "two");
        tokio::task::yield_now().await;
    }
    until(|| copies(&server, "one") >= 20 && copies(&server, "two") >= 20).await;
    settle().await;
    assert_eq!((copies(&server, "one"), copies(&server, "two")), (20, 20));
    assert!(!overlapped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_tried_again_in_a_namespace_that_ends() {
    let server = MiniServer::new();
    let refusals = Arc::new(AtomicUsize::new(0));
    let count = refusals.clone();
    server.set_fault(move |request| {
        (request.verb == Verb::Create).then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            let mut status = Status::forbidden("", "secrets", "", "the namespace is being terminated");
            status.causes.push(api::Cause {
                reason: crate::NAMESPACE_TERMINATING.into(),
                message: String::new(),
                field: String::new(),
            });
            status
        })
    });
    let _stop = start(&server, Copier::new(1));
    add_map(&server, "one");
    until(|| refusals.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(refusals.load(Ordering::SeqCst), 1);
    add_map(&server, "one");
    until(|| refusals.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_does_not_catch_up_holds_its_keys_and_no_others() {
    let server = MiniServer::new();
    let blind = Arc::new(AtomicBool::new(false));
    let no_watch = blind.clone();
    server.set_fault(move |request| {
        let secrets =
            matches!(&request.target, api::Target::Resource { gvr, .. } if gvr.resource == "secrets");
        let watches = matches!(request.verb, Verb::Watch | Verb::List);
        (no_watch.load(Ordering::SeqCst) && secrets && watches).then(|| Status::unavailable("no watch"))
    });
    let controller = Copier::new(1);
    let plans = controller.plans.clone();
    let _stop = start(&server, controller);
    tokio::time::sleep(Duration::from_millis(500)).await;
    blind.store(true, Ordering::SeqCst);
    server.end_watches();
    tokio::time::sleep(Duration::from_millis(500)).await;
    add_map(&server, "one");
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(copies(&server, "one"), 1, "live reads show that the event must still come");
    assert_eq!(plans.load(Ordering::SeqCst), 1);
    blind.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(copies(&server, "one"), 1);
    assert!(plans.load(Ordering::SeqCst) > 1, "the gate has opened");
}

#[tokio::test(start_paused = true)]
async fn an_overdue_write_that_the_api_does_not_know_is_forgotten() {
    let server = MiniServer::new();
    let hidden = server.clone();
    let blind = Arc::new(AtomicBool::new(false));
    let no_watch = blind.clone();
    server.set_fault(move |request| {
        let secrets =
            matches!(&request.target, api::Target::Resource { gvr, .. } if gvr.resource == "secrets");
        (no_watch.load(Ordering::SeqCst) && secrets && request.verb == Verb::Watch)
            .then(|| Status::unavailable("no"))
    });
    let _stop = start(&server, Copier::new(1));
    tokio::time::sleep(Duration::from_millis(500)).await;
    blind.store(true, Ordering::SeqCst);
    server.end_watches();
    add_map(&server, "one");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let name = hidden.objects("secrets")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    hidden.remove(&Secret::gvr(), &ObjectKey::new("a", name));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(copies(&server, "one"), 1, "made again after the live read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_concerns_its_key_alone() {
    let server = MiniServer::new();
    let controller = Copier::new(1);
    let plans = controller.plans.clone();
    add_map(&server, "poison");
    add_map(&server, "sane");
    let _stop = start(&server, controller);
    until(|| copies(&server, "sane") == 1).await;
    until(|| plans.load(Ordering::SeqCst) > 4).await;
    assert_eq!(copies(&server, "poison"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_creation_backs_off_and_is_shown_to_the_next_plan() {
    let server = MiniServer::new();
    let allowed = Arc::new(AtomicBool::new(false));
    let (open, tries) = (allowed.clone(), Arc::new(AtomicUsize::new(0)));
    let tried = tries.clone();
    server.set_fault(move |request| {
        let creates = request.verb == Verb::Create;
        tried.fetch_add(usize::from(creates), Ordering::SeqCst);
        (creates && !open.load(Ordering::SeqCst))
            .then(|| Status::forbidden("", "secrets", "", "exceeded quota"))
    });
    let controller = Copier::new(8);
    let refusals = controller.refusals.clone();
    add_map(&server, "one");
    let _stop = start(&server, controller);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let count = tries.load(Ordering::SeqCst);
    assert!((5..12).contains(&count), "one try per plan, ever rarer: {count}");
    assert_eq!(refusals.lock().unwrap()[0], "secrets is forbidden: exceeded quota");
    allowed.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(copies(&server, "one"), 8);
}

#[tokio::test]
async fn stops_when_told() {
    let server = MiniServer::new();
    let (stop, stopped) = watch::channel(false);
    let running = crate::spawn(crate::runner::run(server.client(), vec![Arc::new(Copier::new(1))], stopped));
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
}

/// Answers each ConfigMap by a Secret, and would like to know of a kind that cannot be listed.
struct Marker;

impl Controller for Marker {
    fn name(&self) -> &'static str {
        "marker"
    }

    fn watches(&self) -> Vec<Watch> {
        let unserved = api::GroupVersionResource::new("example.com", "v1", "unserved");
        let other = Watch::resource::<crate::Metadata>(unserved, |_, _, _| Vec::new());
        vec![Watch::own::<ConfigMap>(), other.if_it_comes()]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        if view.list::<Secret>().iter().any(|secret| secret.key == *key) {
            return Plan::nothing();
        }
        let object = json!({"metadata": {"name": key.name}});
        Plan::actions(vec![Action::Create { gvr: Secret::gvr(), namespace: "a".into(), object }])
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_listed_holds_nobody_up_for_ever() {
    let server = MiniServer::new();
    server.set_fault(|request| {
        let api::Target::Resource { gvr, .. } = &request.target else { return None };
        (gvr.resource == "unserved").then(|| Status::unavailable("nobody is there"))
    });
    add_map(&server, "one");
    let (_stop, stopped) = watch::channel(false);
    crate::spawn(crate::runner::run(server.client(), vec![Arc::new(Marker)], stopped));
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(server.objects("secrets").is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.objects("secrets").len(), 1);
}
