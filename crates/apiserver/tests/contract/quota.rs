//! Quotas and limits: nothing enters a namespace beyond what it is allowed, however many try at once.

use api::Verb;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::common::{At, Fixture, at};

fn quota(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec})
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn pod(name: &str, resources: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

async fn pods(f: &Fixture) -> At {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    f.create(&at("", "serviceaccounts", "default"), account).await.unwrap();
    at("", "pods", "default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_do_not_exceed_a_quota() {
    let f = Fixture::new().await;
    let (maps, quotas) = (at("", "configmaps", "default"), at("", "resourcequotas", "default"));
    f.create(&maps, map("before")).await.unwrap();
    f.create(&quotas, quota("q", json!({"hard": {"configmaps": "10", "count/configmaps": "9"}})))
        .await
        .unwrap();
    let names: Vec<String> = (0..30).map(|i| format!("m{i}")).collect();
    let made = join_all(names.iter().map(|name| f.create(&maps, map(name)))).await;
    let refused: Vec<_> = made.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!((refused.len(), refused[0].code), (22, 403));
    for status in refused {
        let name = status.message.split('"').nth(1).unwrap();
        let want = format!(
            "configmaps \"{name}\" is forbidden: exceeded quota: q, requested: count/configmaps=1, \
             used: count/configmaps=9, limited: count/configmaps=9"
        );
        assert_eq!(status.message, want);
    }
    // What goes away leaves its place to another.
    let kept = names.iter().zip(&made).filter(|(_, made)| made.is_ok()).map(|(name, _)| name);
    join_all(kept.map(|name| async { f.delete(&maps, name).await.unwrap() })).await;
    let made = join_all((0..12).map(|i| {
        let (f, maps) = (&f, &maps);
        async move { f.create(maps, map(&format!("n{i}"))).await.is_ok() }
    }))
    .await;
    assert_eq!(made.into_iter().filter(|made| *made).count(), 8);
    f.delete(&quotas, "q").await.unwrap();
    f.create(&maps, map("free")).await.unwrap();
}

#[tokio::test]
async fn pods_are_charged_by_what_they_take() {
    let f = Fixture::new().await;
    let pods = pods(&f).await;
    let quotas = at("", "resourcequotas", "default");
    let hard = json!({"pods": "2", "cpu": "1", "requests.example.com/toy": "1"});
    f.create(&quotas, quota("q", json!({"hard": hard}))).await.unwrap();
    let refused = f.create(&pods, pod("silent", json!({}))).await.unwrap_err();
    assert_eq!(refused.message, "pods \"silent\" is forbidden: failed quota: q: must specify cpu for: c");
    f.create(&pods, pod("a", json!({"requests": {"cpu": "600m"}}))).await.unwrap();
    let refused = f.create(&pods, pod("b", json!({"requests": {"cpu": "500m"}}))).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"b\" is forbidden: exceeded quota: q, requested: cpu=500m, used: cpu=600m, limited: cpu=1"
    );
    f.create(&pods, pod("b", json!({"requests": {"cpu": "400m"}}))).await.unwrap();
    let refused = f.create(&pods, pod("d", json!({"requests": {"cpu": "0"}}))).await.unwrap_err();
    assert!(refused.message.contains("requested: pods=1, used: pods=2, limited: pods=2"), "{refused}");
    // A pod that has ended takes nothing any more.
    let mut ended = f.get(&pods, "a").await.unwrap();
    ended["status"]["phase"] = "Succeeded".into();
    f.update_status(&pods, "a", &ended).await.unwrap();
    f.create(&pods, pod("d", json!({"requests": {"cpu": "600m"}}))).await.unwrap();
    // More is allowed from the moment the quota says so.
    let mut grown = f.get(&quotas, "q").await.unwrap();
    grown["spec"]["hard"]["cpu"] = "2".into();
    grown["spec"]["hard"]["pods"] = "3".into();
    f.update(&quotas, "q", &grown).await.unwrap();
    let refused = f.create(&pods, pod("e", json!({"requests": {"cpu": "1001m"}}))).await.unwrap_err();
    assert!(refused.message.contains("requested: cpu=1001m, used: cpu=1, limited: cpu=2"), "{refused}");
    f.create(&pods, pod("e", json!({"requests": {"cpu": "1"}}))).await.unwrap();
}

#[tokio::test]
async fn services_are_charged_for_their_node_ports() {
    let f = Fixture::new().await;
    let (services, quotas) = (at("", "services", "default"), at("", "resourcequotas", "default"));
    let hard = json!({"services.nodeports": "1", "services.loadbalancers": "1"});
    f.create(&quotas, quota("q", json!({"hard": hard}))).await.unwrap();
    let service = |name: &str, type_: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": type_, "ports": [{"port": 80}]}})
    };
    f.create(&services, service("plain", "ClusterIP")).await.unwrap();
    let made = f.create(&services, service("open", "NodePort")).await.unwrap();
    let refused = f.create(&services, service("wide", "LoadBalancer")).await.unwrap_err();
    assert!(
        refused.message.contains("requested: services.nodeports=1, used: services.nodeports=1"),
        "{refused}"
    );
    // A service that is closed gives its port back, one that is opened needs one.
    let mut closed = made;
    closed["spec"]["type"] = "ClusterIP".into();
    f.update(&services, "open", &closed).await.unwrap();
    f.create(&services, service("wide", "LoadBalancer")).await.unwrap();
    let mut plain = f.get(&services, "plain").await.unwrap();
    plain["spec"]["type"] = "NodePort".into();
    assert_eq!(f.update(&services, "plain", &plain).await.unwrap_err().code, 403);
}

#[tokio::test]
async fn quotas_of_scopes_look_at_their_pods_only() {
    let f = Fixture::new().await;
    let pods = pods(&f).await;
    let quotas = at("", "resourcequotas", "default");
    f.create(&quotas, quota("q", json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]}))).await.unwrap();
    f.create(&pods, pod("a", json!({}))).await.unwrap();
    assert_eq!(f.create(&pods, pod("b", json!({}))).await.unwrap_err().code, 403);
    f.create(&pods, pod("b", json!({"requests": {"cpu": "1"}}))).await.unwrap();
    let dry = pods.request(Verb::Create, None, None).with_json(pod("c", json!({})).to_string());
    let mut dry = dry;
    dry.options.dry_run = true;
    assert_eq!(f.json(dry).await.unwrap_err().code, 403);
    let refused =
        f.create(&quotas, quota("w", json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}))).await;
    assert!(refused.unwrap_err().message.contains("unsupported scope applied to resource"));
}

#[tokio::test]
async fn limit_ranges_give_and_bound() {
    let f = Fixture::new().await;
    let pods = pods(&f).await;
    let limits = json!([{"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}]);
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}});
    f.create(&at("", "limitranges", "default"), range).await.unwrap();
    let made = f.create(&pods, pod("a", json!({}))).await.unwrap();
    let resources = json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}});
    assert_eq!(made["spec"]["containers"][0]["resources"], resources);
    let refused = f.create(&pods, pod("b", json!({"limits": {"cpu": "2"}}))).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"b\" is forbidden: [maximum cpu usage per Container is 500m, but limit is 2]"
            .replace(['[', ']'], "")
    );
}

/// Two servers on one store take no turns: the commits alone decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_do_not_exceed_a_quota_together() {
    let f = Fixture::new().await;
    let store = std::sync::Arc::clone(&f.store) as std::sync::Arc<dyn store::Store>;
    let other = apiserver::ApiServer::open(store, crate::common::config(&f.pki)).await.unwrap();
    let maps = at("", "configmaps", "default");
    let quotas = at("", "resourcequotas", "default");
    f.create(&quotas, quota("q", json!({"hard": {"configmaps": "5"}}))).await.unwrap();
    let made = join_all((0..40).map(|i| {
        let server = if i % 2 == 0 { &f.server } else { &other };
        let request = maps.request(Verb::Create, None, None).with_json(map(&format!("m{i}")).to_string());
        server.call(&f.admin, request)
    }))
    .await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 5);
    assert!(
        made.iter().filter_map(|made| made.as_ref().err()).all(|status| matches!(status.code, 403 | 409))
    );
    assert_eq!(
        f.list(&maps, api::RequestOptions::default()).await.unwrap()["items"].as_array().unwrap().len(),
        5
    );
}
