//! The running proxy: follows Services, EndpointSlices and the node's own pods, and keeps the table in step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::ObjectKey;
use client::{Change, Client, Informer, Scope};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::health::HealthChecks;
use super::meter::Meter;
use super::ruleset::{Place, host_ports, local_endpoints, rules_of};
use super::table::Table;
use crate::address::{Family, Network, network_in};
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
    /// This node's pods, one network a family.
    pub pod_cidrs: Vec<Network>,
    /// All pods of the cluster; traffic to them keeps its source. With one node the same as `pod_cidrs`.
    pub cluster_cidrs: Vec<Network>,
    /// Cluster IPs; routed to the gateway interface so that the node's own processes reach them without a
    /// default route, and refused where no service has them. Where a family has none both are left alone.
    pub service_cidrs: Vec<Network>,
}

impl ProxyConfig {
    /// A table for each family of pods.
    fn tables(&self) -> Vec<Table> {
        let name = table_name(&self.instance);
        let table = |pods: &Network| {
            let family = Family::of(pods.0);
            let cluster = network_in(family, &self.cluster_cidrs).unwrap_or(*pods);
            Table::new(&name, *pods, cluster, network_in(family, &self.service_cidrs))
        };
        self.pod_cidrs.iter().map(table).collect()
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
        tables: Some(config.tables()),
        routed: false,
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
    host_ports: BTreeMap<ObjectKey, Pod>,
    touched_pods: BTreeSet<ObjectKey>,
    /// Cluster IPs have their routes.
    routed: bool,
    /// away while a blocking thread works with them
    tables: Option<Vec<Table>>,
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
        let has_ports =
            |pod: &Pod| pod.serving_containers().flat_map(|c| &c.ports).any(|port| port.host_port != 0);
        let new = change.new.as_ref().map(|cached| &cached.object).filter(|pod| has_ports(pod));
        let before = match new {
            Some(pod) => self.host_ports.insert(change.key.clone(), pod.clone()),
            None => self.host_ports.remove(&change.key),
        };
        if new.is_some() || before.is_some() {
            self.touched_pods.insert(change.key.clone());
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
        let mut tables = match self.tables.take() {
            Some(tables) => tables,
            None => {
                // Only a panic in the blocking thread loses the tables; start again with everything.
                self.touch_all();
                self.config.tables()
            }
        };
        for key in std::mem::take(&mut self.touched) {
            for table in &mut tables {
                table.set_service(&key, rules_of(&self.view, &key, &self.place, table.family()));
            }
            let port = self.view.service(&key).map_or(0, |s| s.spec.health_check_node_port);
            self.health.set(&key, port, local_endpoints(&self.view, &key, &self.place.node));
        }
        if let Some(rules) = self.policies.borrow_and_update().as_ref() {
            tables.iter_mut().for_each(|table| table.set_policies(rules));
        }
        for key in std::mem::take(&mut self.touched_pods) {
            for table in &mut tables {
                let ports = self.host_ports.get(&key).map(|pod| host_ports(pod, table.family()));
                table.set_service(&claimant(&key), ports.unwrap_or_default());
            }
        }
        let config = (!self.routed).then(|| self.config.clone());
        let done = tokio::task::spawn_blocking(move || {
            let routed = config.map_or(Ok(()), |config| route_all(&config));
            // One family must not wait for what is wrong with another.
            let applied: Vec<_> = tables.iter_mut().map(Table::apply).collect();
            (tables, routed, applied)
        });
        let (tables, routed, applied) = done.await.map_err(|_| NetlinkError::NoAnswer)?;
        self.tables = Some(tables);
        applied.into_iter().collect::<Result<(), _>>()?;
        routed?;
        self.routed = true;
        Ok(())
    }
}

/// Routes the cluster IPs of every family.
fn route_all(config: &ProxyConfig) -> Result<(), NetlinkError> {
    config.pod_cidrs.iter().try_for_each(|pods| {
        let services = network_in(Family::of(pods.0), &config.service_cidrs);
        services.map_or(Ok(()), |services| route_services(&config.instance, *pods, services))
    })
}
