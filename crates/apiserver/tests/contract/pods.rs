//! What admission and the special subresources make of pods; the objects every cluster starts with.

use api::{ResponseBody, Verb};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::common::{Fixture, at};

async fn setup() -> Fixture {
    let f = Fixture::new().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
        "imagePullSecrets": [{"name": "pull"}]});
    f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    f
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "image": "i"}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn admission_completes_pods() {
    let f = setup().await;
    let pods = at("", "pods", "default");
    let made = f.create(&pods, pod("p", json!({}))).await.unwrap();
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
    let system =
        f.create(&pods, pod("s", json!({"priorityClassName": "system-node-critical"}))).await.unwrap();
    assert_eq!(system["spec"]["priority"], 2_000_001_000);
    let refused = f.create(&pods, pod("x", json!({"serviceAccountName": "nobody"}))).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"x\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
    );
    let refused = f.create(&pods, pod("x", json!({"priorityClassName": "nothing"}))).await.unwrap_err();
    assert!(
        refused.code == 403 && refused.message.contains("no PriorityClass with name nothing"),
        "{refused}"
    );
}

#[tokio::test]
async fn evictions_delete() {
    let f = setup().await;
    let pods = at("", "pods", "default");
    f.create(&pods, pod("p", json!({}))).await.unwrap();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let request = pods.request(Verb::Create, Some("p"), Some("eviction")).with_json(eviction.to_string());
    assert_eq!(f.json(request).await.unwrap()["status"], "Success");
    assert!(f.get(&pods, "p").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_evicted_pod_says_so() {
    let f = setup().await;
    let pods = at("", "pods", "default");
    f.create(&pods, pod("p", json!({"nodeName": "n"}))).await.unwrap();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let request = pods.request(Verb::Create, Some("p"), Some("eviction")).with_json(eviction.to_string());
    f.json(request).await.unwrap();
    let evicted = f.get(&pods, "p").await.unwrap();
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    let condition = &evicted["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("DisruptionTarget"), &json!("EvictionByEvictionAPI"))
    );
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let f = setup().await;
    let pods = at("", "pods", "default");
    f.create(&pods, pod("p", json!({"nodeName": "n1"}))).await.unwrap();
    let request = || {
        let mut request = pods.request(Verb::Get, Some("p"), Some("log"));
        request.options.extra.push(("tailLines".into(), "5".into()));
        request
    };
    let refused = f.send(&f.admin, request()).await.err().unwrap();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (400, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating")
    );
    let mut running = f.get(&pods, "p").await.unwrap();
    running["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": true,
        "restartCount": 0, "state": {"running": {}}}]);
    f.update_status(&pods, "p", &running).await.unwrap();
    let ResponseBody::Stream(mut stream) = f.send(&f.admin, request()).await.unwrap().body else {
        panic!("no stream")
    };
    let text = stream.next().await.unwrap().unwrap();
    assert_eq!(text, "n1 p c tail=Some(5)\n");
    let mut exec = pods.request(Verb::Get, Some("p"), Some("exec"));
    exec.options.extra = vec![("command".into(), "x".into()), ("stdout".into(), "true".into())];
    assert_eq!(f.json(exec).await.unwrap_err().message, "Upgrade request required");
}

#[tokio::test]
async fn a_new_cluster_has_what_every_cluster_has() {
    let f = Fixture::new().await;
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        assert_eq!(f.get(&at("", "namespaces", ""), namespace).await.unwrap()["status"]["phase"], "Active");
    }
    let service = f.get(&at("", "services", "default"), "kubernetes").await.unwrap();
    assert_eq!(
        (&service["spec"]["clusterIP"], &service["spec"]["ports"][0]["targetPort"]),
        (&json!("10.96.0.1"), &json!(6443))
    );
    let slice = f.get(&at("discovery.k8s.io", "endpointslices", "default"), "kubernetes").await.unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    assert_eq!(
        f.get(&at("scheduling.k8s.io", "priorityclasses", ""), "system-cluster-critical").await.unwrap()["value"],
        2_000_000_000
    );
    let network = f.get(&at("networking.k8s.io", "servicecidrs", ""), "kubernetes").await.unwrap();
    assert_eq!(network["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    assert_eq!(network["status"]["conditions"][0]["type"], "Ready");
}

#[tokio::test]
async fn a_new_start_changes_nothing() {
    use store::Store;
    let f = Fixture::new().await;
    let before = f.store.current_revision().await.unwrap();
    let store = std::sync::Arc::clone(&f.store) as std::sync::Arc<dyn store::Store>;
    apiserver::ApiServer::open(store, crate::common::config(&f.pki)).await.unwrap();
    assert_eq!(f.store.current_revision().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_the_account_of_a_new_namespace() {
    let f = Fixture::new().await;
    let pods = at("", "pods", "default");
    let account = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    };
    let (made, ()) = tokio::join!(f.create(&pods, pod("early", json!({}))), account);
    assert_eq!(made.unwrap()["spec"]["serviceAccountName"], "default");
    let nowhere = f.create(&at("", "pods", "nowhere"), pod("p", json!({}))).await.unwrap_err();
    assert_eq!((nowhere.code, nowhere.message.as_str()), (404, "namespaces \"nowhere\" not found"));
}

#[tokio::test]
async fn a_node_says_at_once_what_it_has() {
    let f = Fixture::new().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"capacity": {"cpu": "4"}}});
    let made = f.create(&at("", "nodes", ""), node).await.unwrap();
    assert_eq!(made["status"]["capacity"]["cpu"], "4");
}

#[tokio::test]
async fn namespaces_are_deleted_one_by_one() {
    let f = Fixture::new().await;
    let all = f.json(at("", "namespaces", "").request(Verb::DeleteCollection, None, None)).await;
    assert_eq!(all.unwrap_err().code, 405);
}
