//! The running proxy: follows Services, EndpointSlices and the node's own pods, and keeps the table in step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use api::ObjectKey;
use client::{Change, Client, Informer, Scope};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::health::HealthChecks;
use super::meter::Meter;
use super::ruleset::{Backend, Frontend, Place, host_ports, local_endpoints, rules_of};
use super::table::Table;
use crate::model::{EndpointSlice, Node, Pod, Service, View};
use crate::netlink::NetlinkError;
use crate::pod_net::{route_services, table_name};
use crate::policy::NodeRules;

/// How long services wait for network policies at the start.
const POLICIES_WAIT: Duration = Duration::from_secs(5);

/// What the proxy of a node needs to know.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// For "Local" traffic policies: endpoints say which node they are on.
    pub node_name: String,
    /// The same tag as the pod network's; names the nftables table.
    pub instance: String,
    /// This node's pods.
    pub pod_cidr: (Ipv4Addr, u8),
    /// All pods of the cluster; traffic to them keeps its source. With one node the same as `pod_cidr`.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Cluster IPs; routed to the gateway interface so that the node's own processes reach them without a
    /// default route, and refused where no service has them. `None` leaves both alone.
    pub service_cidr: Option<(Ipv4Addr, u8)>,
}

impl ProxyConfig {
    fn table(&self) -> Table {
        Table::new(&table_name(&self.instance), self.pod_cidr, self.cluster_cidr, self.service_cidr)
    }
}

/// Runs until `stop` turns true; nothing is under way in the kernel when it returns. The rules stay in the kernel, so that services work while the agent restarts;
/// [`crate::down`] removes them.
/// `policies` tells what isolated pods may do; nothing is known while it is `None`.
pub async fn run(
    client: Client,
    policies: watch::Receiver<Option<NodeRules>>,
    config: ProxyConfig,
    mut stop: watch::Receiver<bool>,
) {
    let services = Informer::<Service>::start(&client, Scope::default());
    let slices = Informer::<EndpointSlice>::start(&client, Scope::default());
    let only = |field: &str| {
        let selector = Some(format!("{field}={}", config.node_name));
        Scope { field_selector: selector, ..Scope::default() }
    };
    let pods = Informer::<Pod>::start(&client, only("spec.nodeName"));
    let nodes = Informer::<Node>::start(&client, only("metadata.name"));
    let mut proxy = Proxy {
        services: services.subscribe(),
        slices: slices.subscribe(),
        pods: pods.subscribe(),
        nodes: nodes.subscribe(),
        policies,
        place: Place { node: config.node_name.clone(), zone: String::new() },
        health: HealthChecks::default(),
        view: View::default(),
        touched: BTreeSet::new(),
        host_ports: BTreeMap::new(),
        touched_pods: BTreeSet::new(),
        table: Some(config.table()),
        unrouted: config.service_cidr,
        meter: Meter::new(&client),
        config,
    };
    // The first load replaces what an earlier run left, so it must be complete.
    let synced = async {
        services.synced().await;
        slices.synced().await;
        pods.synced().await;
        nodes.synced().await;
    };
    let known = async {
        synced.await;
        // Isolated pods must not be open for a moment because the agent starts again.
        let policies = proxy.policies.wait_for(Option::is_some);
        if !matches!(tokio::time::timeout(POLICIES_WAIT, policies).await, Ok(Ok(_))) {
            tracing::warn!("network policies are not known: they are not enforced until they are");
        }
    };
    tokio::select! {
        () = known => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    tracing::info!(services = proxy.services.len(), "service proxy begins");
    proxy.follow(stop).await;
}

/// Returns when there are other rules; never if nobody tells any more.
async fn news(policies: &mut watch::Receiver<Option<NodeRules>>) {
    if policies.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The name under which a pod claims its host ports; no namespace contains a slash, so no service has it.
fn claimant(pod: &ObjectKey) -> ObjectKey {
    ObjectKey::new(format!("pod/{}", pod.namespace), &*pod.name)
}

struct Proxy {
    config: ProxyConfig,
    services: mpsc::UnboundedReceiver<Change<Service>>,
    slices: mpsc::UnboundedReceiver<Change<EndpointSlice>>,
    pods: mpsc::UnboundedReceiver<Change<Pod>>,
    nodes: mpsc::UnboundedReceiver<Change<Node>>,
    policies: watch::Receiver<Option<NodeRules>>,
    place: Place,
    health: HealthChecks,
    view: View,
    touched: BTreeSet<ObjectKey>,
    /// of the pods on this node that have any
    host_ports: BTreeMap<ObjectKey, Vec<(Frontend, Backend)>>,
    touched_pods: BTreeSet<ObjectKey>,
    /// cluster IPs that still need a route
    unrouted: Option<(Ipv4Addr, u8)>,
    /// away while a blocking thread works with it
    table: Option<Table>,
    meter: Meter,
}

impl Proxy {
    async fn follow(&mut self, mut stop: watch::Receiver<bool>) {
        const FIRST_DELAY: Duration = Duration::from_millis(200);
        const LONGEST_DELAY: Duration = Duration::from_secs(30);
        let mut delay = FIRST_DELAY;
        loop {
            // Whatever arrived while the kernel was busy goes into one transaction.
            while let Ok(change) = self.services.try_recv() {
                self.on_service(change);
            }
            while let Ok(change) = self.slices.try_recv() {
                self.on_slice(change);
            }
            while let Ok(change) = self.pods.try_recv() {
                self.on_pod(&change);
            }
            while let Ok(change) = self.nodes.try_recv() {
                self.on_node(change);
            }
            let begun = Instant::now();
            let applied = self.apply().await;
            self.meter.synced(begun, &applied);
            let failed = match applied {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "packet rules for services could not be loaded; trying again");
                    true
                }
            };
            let retry = async {
                if failed {
                    tokio::time::sleep(delay).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            let open = tokio::select! {
                change = self.services.recv() => change.map(|c| self.on_service(c)).is_some(),
                change = self.slices.recv() => change.map(|c| self.on_slice(c)).is_some(),
                change = self.pods.recv() => change.map(|c| self.on_pod(&c)).is_some(),
                change = self.nodes.recv() => change.map(|c| self.on_node(c)).is_some(),
                () = news(&mut self.policies) => true,
                () = retry => true,
                // Only here, so that the next run of the proxy never meets a change of this one.
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if !open {
                tracing::error!("the informers ended: services are no longer followed");
                return;
            }
            delay = if failed { (delay * 2).min(LONGEST_DELAY) } else { FIRST_DELAY };
        }
    }

    fn on_service(&mut self, change: Change<Service>) {
        self.view.set_service(&change.key, change.new.map(|c| c.object.clone()));
        self.touched.insert(change.key);
    }

    fn on_slice(&mut self, change: Change<EndpointSlice>) {
        self.meter.changed();
        let touched = self.view.set_slice(&change.key, change.new.map(|c| c.object.clone()));
        self.touched.extend(touched);
    }

    fn on_pod(&mut self, change: &Change<Pod>) {
        let ports = change.new.as_ref().map(|pod| host_ports(&pod.object)).unwrap_or_default();
        if ports.is_empty() && !self.host_ports.contains_key(&change.key) {
            return;
        }
        self.touched_pods.insert(change.key.clone());
        if ports.is_empty() {
            self.host_ports.remove(&change.key);
        } else {
            self.host_ports.insert(change.key.clone(), ports);
        }
    }

    fn on_node(&mut self, change: Change<Node>) {
        const ZONE: &str = "topology.kubernetes.io/zone";
        let Some(node) = change.new else { return };
        let zone = node.object.metadata.labels.get(ZONE).cloned().unwrap_or_default();
        if zone != self.place.zone {
            self.place.zone = zone;
            self.touch_all();
        }
    }

    fn touch_all(&mut self) {
        self.touched.extend(self.view.services().map(|(key, _)| key.clone()));
        self.touched_pods.extend(self.host_ports.keys().cloned());
    }

    async fn apply(&mut self) -> Result<(), NetlinkError> {
        let mut table = match self.table.take() {
            Some(table) => table,
            None => {
                // Only a panic in the blocking thread loses the table; start again with everything.
                self.touch_all();
                self.config.table()
            }
        };
        for key in std::mem::take(&mut self.touched) {
            let rules = rules_of(&self.view, &key, &self.place);
            table.set_service(&key, rules);
            let port = self.view.service(&key).map_or(0, |s| s.spec.health_check_node_port);
            self.health.set(&key, port, local_endpoints(&self.view, &key, &self.place.node));
        }
        if let Some(rules) = self.policies.borrow_and_update().clone() {
            table.set_policies(rules);
        }
        for key in std::mem::take(&mut self.touched_pods) {
            table.set_service(&claimant(&key), self.host_ports.get(&key).cloned().unwrap_or_default());
        }
        let (instance, pod_cidr) = (self.config.instance.clone(), self.config.pod_cidr);
        let unrouted = self.unrouted;
        let done = tokio::task::spawn_blocking(move || {
            let routed = unrouted.map_or(Ok(()), |services| route_services(&instance, pod_cidr, services));
            let applied = table.apply();
            (table, routed, applied)
        });
        let (table, routed, applied) = done.await.map_err(|_| NetlinkError::NoAnswer)?;
        self.table = Some(table);
        applied?;
        routed?;
        self.unrouted = None;
        Ok(())
    }
}
