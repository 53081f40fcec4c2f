//! Stories over all controllers.

use std::time::Duration;

use api::ObjectKey;
use client::{Kind, Metadata, Plan, Read, View};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::scenario::{Cluster, controllers, deployment, gvr, resources};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn is_rolled_out(cluster: &Cluster, name: &str, replicas: i64) -> bool {
    let status = &cluster.one("deployments", name)["status"];
    let wanted = |field: &str| status[field].as_i64() == Some(replicas);
    let generation = cluster.one("deployments", name)["metadata"]["generation"].clone();
    ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"].into_iter().all(wanted)
        && status["observedGeneration"] == generation
}

fn revision(cluster: &Cluster, name: &str) -> Value {
    cluster.one("deployments", name)["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_scales_updates_and_goes_back() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("deployments", deployment("web", 3, "one")).await;
    cluster.until("three pods", |c| is_rolled_out(c, "web", 3)).await;
    cluster.until("revision 1", |c| revision(c, "web") == "1").await;
    let conditions = cluster.one("deployments", "web")["status"]["conditions"].clone();
    let text: Vec<String> = conditions
        .as_array()
        .unwrap()
        .iter()
        .map(|c| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
        .collect();
    assert_eq!(text, ["Available=True MinimumReplicasAvailable", "Progressing=True NewReplicaSetAvailable"]);

    cluster.patch("deployments", &key("web"), json!({"spec": {"replicas": 20}})).await;
    cluster.until("twenty pods", |c| is_rolled_out(c, "web", 20)).await;
    assert_eq!(cluster.all("pods").len(), 20);

    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
    cluster.patch("deployments", &key("web"), image("two")).await;
    cluster.until("the second image", |c| is_rolled_out(c, "web", 20) && revision(c, "web") == "2").await;
    cluster
        .until("only new pods", |c| {
            c.all("pods").len() == 20
                && c.all("pods").iter().all(|pod| pod["spec"]["containers"][0]["image"] == "two")
        })
        .await;

    cluster.patch("deployments", &key("web"), image("one")).await;
    cluster
        .until("the first image again", |c| is_rolled_out(c, "web", 20) && revision(c, "web") == "3")
        .await;
    assert_eq!(cluster.all("replicasets").len(), 2, "going back uses the old ReplicaSet");

    cluster.patch("deployments", &key("web"), json!({"spec": {"replicas": 1}})).await;
    cluster.until("one pod", |c| is_rolled_out(c, "web", 1) && c.all("pods").len() == 1).await;
    all_plans_are_empty(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_never_mixes_old_and_new() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    let mut object = deployment("db", 3, "one");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create("deployments", object).await;
    cluster.until("three pods", |c| is_rolled_out(c, "db", 3)).await;
    let template = json!({"spec": {"containers": [{"name": "main", "image": "two"}]}});
    cluster.patch("deployments", &key("db"), json!({"spec": {"template": template}})).await;
    cluster
        .until("the second image", |c| {
            let images: std::collections::BTreeSet<String> =
                c.all("pods").iter().map(|pod| pod["spec"]["containers"][0]["image"].to_string()).collect();
            assert!(images.len() < 2, "mixed: {images:?}");
            is_rolled_out(c, "db", 3) && images.contains("\"two\"")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_replaced_and_the_service_follows() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("services", json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]},
    }))
    .await;
    cluster.create("deployments", deployment("web", 2, "one")).await;
    let addresses = |c: &Cluster| -> Vec<String> {
        let slices = c.all("endpointslices");
        let endpoints =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
    };
    cluster.until("two endpoints", |c| addresses(c).len() == 2).await;
    let before = addresses(&cluster);
    let name = cluster.all("pods")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.delete("pods", &key(&name), "Background").await;
    cluster
        .until("a replacement", |c| {
            let now = addresses(c);
            now.len() == 2 && now != before && is_rolled_out(c, "web", 2)
        })
        .await;
    cluster.until("one slice", |c| c.all("endpointslices").len() == 1).await;
    all_plans_are_empty(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_deletion_takes_all_dependents() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("deployments", deployment("web", 3, "one")).await;
    cluster.until("three pods", |c| is_rolled_out(c, "web", 3)).await;
    cluster.delete("deployments", &key("web"), "Background").await;
    cluster.until("nothing left", |c| c.all("replicasets").is_empty() && c.all("pods").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_takes_the_owner_last() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("deployments", deployment("web", 3, "one")).await;
    cluster.until("three pods", |c| is_rolled_out(c, "web", 3)).await;
    cluster.delete("deployments", &key("web"), "Foreground").await;
    cluster
        .until("nothing left", |c| {
            let (owners, pods) = (c.all("deployments").len(), c.all("pods").len());
            owners + pods == 0 && c.all("replicasets").is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_owners_is_deleted() {
    let cluster = Cluster::start().await;
    let names = ["a", "b", "c"];
    for name in names {
        cluster.create("configmaps", json!({"metadata": {"name": name, "namespace": "default"}})).await;
    }
    let uid = |name: &str| {
        let all = cluster.all("configmaps");
        let found = all.iter().find(|object| object["metadata"]["name"] == name).expect("created above");
        found["metadata"]["uid"].as_str().expect("a uid").to_owned()
    };
    for (name, owner) in names.into_iter().zip(["c", "a", "b"]) {
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid(owner),
            "controller": true, "blockOwnerDeletion": true});
        cluster.patch("configmaps", &key(name), json!({"metadata": {"ownerReferences": [reference]}})).await;
    }
    cluster.delete("configmaps", &key("a"), "Foreground").await;
    let left = |c: &Cluster| {
        c.all("configmaps").iter().any(|object| names.iter().any(|name| object["metadata"]["name"] == *name))
    };
    cluster.until("none of the circle left", |c| !left(c)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_dependents_stay_and_can_be_adopted() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("deployments", deployment("web", 2, "one")).await;
    cluster.until("two pods", |c| is_rolled_out(c, "web", 2)).await;
    let set = cluster.all("replicasets")[0]["metadata"]["name"].clone();
    cluster.delete("deployments", &key("web"), "Orphan").await;
    cluster.until("the owner gone", |c| c.all("deployments").is_empty()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((cluster.all("replicasets").len(), cluster.all("pods").len()), (1, 2));
    assert!(cluster.all("replicasets")[0]["metadata"]["ownerReferences"].is_null());
    cluster.create("deployments", deployment("web", 2, "one")).await;
    cluster.until("adopted", |c| is_rolled_out(c, "web", 2)).await;
    let sets = cluster.all("replicasets");
    assert_eq!((sets.len(), &sets[0]["metadata"]["name"]), (1, &set));
    assert!(sets[0]["metadata"]["ownerReferences"][0]["uid"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_pods_first() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    cluster.create("deployments", deployment("web", 3, "one")).await;
    cluster.create("configmaps", json!({"metadata": {"name": "c", "namespace": "default"}})).await;
    cluster.until("three pods", |c| is_rolled_out(c, "web", 3)).await;
    // The real server refuses creations in a terminating namespace.
    let server = cluster.server.clone();
    cluster.server.set_fault(move |request| {
        let creates = request.verb == api::Verb::Create;
        let _keep = &server;
        creates.then(|| api::Status::forbidden("", "x", "", "namespace is being terminated"))
    });
    cluster.delete("namespaces", &ObjectKey::new("", "default"), "Background").await;
    cluster.until("the namespace gone", |c| c.all("namespaces").is_empty()).await;
    for resource in resources() {
        assert!(cluster.all(&resource.gvr.resource).is_empty(), "{} left", resource.gvr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_has_its_account_and_certificates_repaired_when_changed() {
    let cluster = Cluster::start().await;
    let has = |c: &Cluster| !c.all("serviceaccounts").is_empty() && !c.all("configmaps").is_empty();
    cluster.until("both", has).await;
    let ca = key("kube-root-ca.crt");
    cluster.patch("configmaps", &ca, json!({"data": {"ca.crt": "forged", "more": "x"}})).await;
    cluster.until("repaired", |c| c.all("configmaps")[0]["data"] == json!({"ca.crt": "PEM"})).await;
    cluster.delete("serviceaccounts", &key("default"), "Background").await;
    cluster.until("made again", |c| !c.all("serviceaccounts").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pod_becomes_a_condition_that_goes_away() {
    let cluster = Cluster::start().await;
    cluster.start_nodes();
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let refuse = full.clone();
    cluster.server.set_fault(move |request| {
        let pods = matches!(&request.target, api::Target::Resource { gvr, .. } if gvr.resource == "pods");
        let refused =
            refuse.load(std::sync::atomic::Ordering::SeqCst) && pods && request.verb == api::Verb::Create;
        refused.then(|| api::Status::forbidden("", "pods", "", "exceeded quota"))
    });
    cluster.create("deployments", deployment("web", 2, "one")).await;
    let failure = |c: &Cluster| -> Option<String> {
        let conditions = c.one("deployments", "web")["status"]["conditions"].as_array()?.clone();
        let failure = conditions.into_iter().find(|condition| condition["type"] == "ReplicaFailure")?;
        Some(failure["message"].as_str()?.to_owned())
    };
    cluster
        .until("a condition", |c| failure(c).as_deref() == Some("pods is forbidden: exceeded quota"))
        .await;
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    cluster.until("rolled out", |c| is_rolled_out(c, "web", 2) && failure(c).is_none()).await;
}

/// The generic test of all controllers: on a converged world every plan is empty.
async fn all_plans_are_empty(cluster: &Cluster) {
    let mut last = String::new();
    for _ in 0..200 {
        last = plans(cluster);
        if last.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the world is at rest, yet there are plans:\n{last}");
}

fn plans(cluster: &Cluster) -> String {
    let mut view = View::default()
        .with_objects::<Deployment>(&cluster.all("deployments"))
        .with_objects::<ReplicaSet>(&cluster.all("replicasets"))
        .with_objects::<Pod>(&cluster.all("pods"))
        .with_objects::<Service>(&cluster.all("services"))
        .with_objects::<EndpointSlice>(&cluster.all("endpointslices"))
        .with_objects::<Namespace>(&cluster.all("namespaces"))
        .with_objects::<ServiceAccount>(&cluster.all("serviceaccounts"))
        .with_objects::<crate::root_ca::TrustBundle>(&cluster.all("configmaps"));
    for resource in resources() {
        view = view.with_resource::<Metadata>(resource.gvr.clone(), &cluster.all(&resource.gvr.resource));
    }
    let mut text = String::new();
    for controller in controllers() {
        for resource in resources() {
            for object in cluster.all(&resource.gvr.resource) {
                let own = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
                let own = ObjectKey::new(own("namespace"), own("name"));
                for key in [crate::garbage_collector::key_of(&resource.gvr, &own), own] {
                    match controller.plan(&key, &view, jiff::Timestamp::now()) {
                        Plan::Do { actions, .. } if actions.is_empty() => {}
                        plan => text.push_str(&format!("{} {key}: {plan:?}\n", controller.name())),
                    }
                }
            }
        }
    }
    text
}

#[test]
fn an_absent_owner_is_read_live_before_its_dependents_go() {
    let dependent = json!({"metadata": {"name": "d", "namespace": "default", "uid": "d", "resourceVersion": "7",
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "o"}]}});
    let collector =
        crate::garbage_collector::GarbageCollector { resources: std::sync::Arc::new(resources()) };
    let view = View::default()
        .with_resource::<Metadata>(gvr("pods"), &[dependent])
        .with_resource::<Metadata>(gvr("configmaps"), &[]);
    let gc_key = crate::garbage_collector::key_of(&gvr("pods"), &key("d"));
    let plan = |view: &View| client::Controller::plan(&collector, &gc_key, view, jiff::Timestamp::UNIX_EPOCH);
    let read = Read::Get { gvr: gvr("configmaps"), key: key("o") };
    assert_eq!(plan(&view), Plan::Need(vec![read.clone()]));
    let alive = view.clone().with_read(read.clone(), Ok(json!({"metadata": {"uid": "o"}})));
    assert_eq!(plan(&alive), Plan::nothing());
    let other = view.clone().with_read(read.clone(), Ok(json!({"metadata": {"uid": "another"}})));
    assert!(
        matches!(plan(&other), Plan::Do { actions, .. } if matches!(&actions[..], [client::Action::Delete { .. }]))
    );
    let unknown = view.clone().with_read(read.clone(), Err(api::Status::unavailable("down")));
    assert_eq!(plan(&unknown), Plan::nothing());
    let gone = view.with_read(read, Err(api::Status::not_found("", "configmaps", "o")));
    assert!(
        matches!(plan(&gone), Plan::Do { actions, .. } if matches!(&actions[..], [client::Action::Delete { .. }]))
    );
    assert_eq!(Pod::gvr(), gvr("pods"));
}

#[test]
fn a_namespace_stays_while_nobody_can_look_into_a_group() {
    let namespace = json!({"metadata": {"name": "ns", "uid": "n", "resourceVersion": "3",
        "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"finalizers": ["kubernetes"]}});
    let view = View::default().with_objects::<Namespace>(&[namespace]);
    let plan = |unknown: &[&str]| {
        let unknown = unknown.iter().map(|text| (*text).to_owned()).collect();
        let controller = crate::namespace::NamespaceController { resources: Default::default(), unknown };
        let plan = client::Controller::plan(
            &controller,
            &ObjectKey::new("", "ns"),
            &view,
            jiff::Timestamp::UNIX_EPOCH,
        );
        let Plan::Do { actions, .. } = plan else { panic!("reads of nothing") };
        actions
    };
    assert!(
        matches!(&plan(&[])[..], [client::Action::Call { subresource, .. }] if subresource == "finalize")
    );
    let actions = plan(&["g.example/v1: service unavailable"]);
    let [client::Action::UpdateStatus { object, .. }] = &actions[..] else { panic!("{actions:?}") };
    let condition = &object["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("DiscoveryFailed")));
    assert!(condition["message"].as_str().unwrap().contains("1 failing"), "{condition}");
}

/// Serves `/api/v1` and two groups, one of which does not answer.
struct HalfDown;

impl client::Transport for HalfDown {
    fn call(
        &self,
        request: api::ApiRequest,
    ) -> futures_util::future::BoxFuture<'_, Result<api::ApiResponse, api::Status>> {
        let api::Target::Path(path) = request.target else { panic!("only documents are read") };
        let group = |name: &str| json!({"name": name, "versions": [{"version": "v1"}]});
        let thing = json!({"name": "things", "kind": "Thing", "namespaced": true, "verbs": ["list"]});
        let value = match path.as_str() {
            "/apis" => json!({"groups": [group("down"), group("up")]}),
            "/apis/down/v1" => {
                return Box::pin(async { Err(api::Status::unavailable("service unavailable")) });
            }
            _ => json!({"resources": [thing]}),
        };
        Box::pin(async move { Ok(api::ApiResponse::json(200, value.to_string())) })
    }
}

#[tokio::test]
async fn a_group_that_does_not_answer_hides_no_other() {
    let client = client::Client::new(std::sync::Arc::new(HalfDown), "test");
    let found = crate::discovery::read(&client).await.unwrap();
    let groups: Vec<&str> = found.resources.iter().map(|resource| resource.gvr.group.as_str()).collect();
    assert_eq!((groups, found.unknown), (vec!["", "up"], vec!["down/v1: service unavailable".to_owned()]));
}
