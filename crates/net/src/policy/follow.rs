//! The running side: follows what policies depend on and tells the proxy the rules of its node.

use std::net::IpAddr;

use api::ObjectKey;
use client::{Change, Client, Informer, Kind, Scope};
use tokio::sync::watch;

use super::{NetworkPolicy, NodeRules, Policies};
use crate::address::gateway_of;
use crate::model::{Metadata, Node, Pod, PodIp, PodSpec, PodStatus};

/// A Namespace, of which only the labels matter.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Namespace {
    metadata: Metadata,
}

impl Kind for Namespace {
    fn gvr() -> api::GroupVersionResource {
        api::GroupVersionResource::new("", "v1", "namespaces")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Namespace")
    }
}

/// Sends the rules of a node's pods whenever they change, until `stop` turns true.
pub async fn follow(
    client: Client,
    node: String,
    rules: watch::Sender<Option<NodeRules>>,
    mut stop: watch::Receiver<bool>,
) {
    let policies = Informer::<NetworkPolicy>::start(&client, Scope::default());
    let pods = Informer::<Pod>::start(&client, Scope::default());
    let namespaces = Informer::<Namespace>::start(&client, Scope::default());
    let nodes = Informer::<Node>::start(&client, Scope::default());
    let (mut policy_changes, mut pod_changes) = (policies.subscribe(), pods.subscribe());
    let (mut namespace_changes, mut node_changes) = (namespaces.subscribe(), nodes.subscribe());
    let synced = async {
        policies.synced().await;
        pods.synced().await;
        namespaces.synced().await;
        nodes.synced().await;
    };
    tokio::select! {
        () = synced => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    let mut view = Policies::default();
    loop {
        while let Ok(change) = policy_changes.try_recv() {
            on_policy(&mut view, &change);
        }
        while let Ok(change) = pod_changes.try_recv() {
            on_pod(&mut view, &change);
        }
        while let Ok(change) = namespace_changes.try_recv() {
            on_namespace(&mut view, &change);
        }
        while let Ok(change) = node_changes.try_recv() {
            on_node(&mut view, &change);
        }
        let wanted = Some(view.of_node(&node));
        rules.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
        let open = tokio::select! {
            change = policy_changes.recv() => change.map(|c| on_policy(&mut view, &c)).is_some(),
            change = pod_changes.recv() => change.map(|c| on_pod(&mut view, &c)).is_some(),
            change = namespace_changes.recv() => change.map(|c| on_namespace(&mut view, &c)).is_some(),
            change = node_changes.recv() => change.map(|c| on_node(&mut view, &c)).is_some(),
            _ = stop.wait_for(|stop| *stop) => return,
        };
        if !open {
            return;
        }
    }
}

fn on_policy(view: &mut Policies, change: &Change<NetworkPolicy>) {
    match &change.new {
        Some(new) => drop(view.policies.insert(change.key.clone(), new.object.clone())),
        None => drop(view.policies.remove(&change.key)),
    }
}

fn on_pod(view: &mut Policies, change: &Change<Pod>) {
    match &change.new {
        Some(new) => drop(view.pods.insert(change.key.clone(), new.object.clone())),
        None => drop(view.pods.remove(&change.key)),
    }
}

fn on_namespace(view: &mut Policies, change: &Change<Namespace>) {
    let name = change.key.name.to_string();
    match &change.new {
        Some(new) => drop(view.namespaces.insert(name, new.object.metadata.labels.clone())),
        None => drop(view.namespaces.remove(&name)),
    }
}

/// A node's DNS server counts as a pod, though as none of this node: nobody isolates it.
fn on_node(view: &mut Policies, change: &Change<Node>) {
    // A name with a slash, which no pod has.
    let key = ObjectKey::new("kube-system", format!("dns/{}", change.key.name));
    let servers = change.new.as_ref().map(|node| servers(&node.object)).unwrap_or_default();
    if servers.is_empty() {
        view.pods.remove(&key);
    } else {
        view.pods.insert(key, dns_pod(&servers));
    }
}

fn servers(node: &Node) -> Vec<IpAddr> {
    node.spec.networks().into_iter().map(gateway_of).collect()
}

fn dns_pod(addresses: &[IpAddr]) -> Pod {
    let labels = [("k8s-app".to_owned(), "kube-dns".to_owned())].into();
    let metadata = Metadata { namespace: "kube-system".into(), labels, ..Metadata::default() };
    let pod_ips = addresses.iter().map(|ip| PodIp { ip: ip.to_string() }).collect();
    let status = PodStatus { phase: "Running".into(), pod_ips, ..PodStatus::default() };
    Pod { metadata, spec: PodSpec::default(), status }
}
