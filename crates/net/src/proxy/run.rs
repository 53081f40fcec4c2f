//! The running proxy: follows Services and EndpointSlices and keeps the table in step.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use api::ObjectKey;
use client::{Change, Client, Informer, Scope};
use tokio::sync::{mpsc, watch};

use super::ruleset::rules_of;
use super::table::Table;
use crate::model::{EndpointSlice, Service, View};
use crate::netlink::NetlinkError;
use crate::pod_net::{route_services, table_name};

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
pub async fn run(client: Client, config: ProxyConfig, mut stop: watch::Receiver<bool>) {
    let services = Informer::<Service>::start(&client, Scope::default());
    let slices = Informer::<EndpointSlice>::start(&client, Scope::default());
    let mut proxy = Proxy {
        services: services.subscribe(),
        slices: slices.subscribe(),
        view: View::default(),
        touched: BTreeSet::new(),
        table: Some(config.table()),
        unrouted: config.service_cidr,
        config,
    };
    // The first load replaces what an earlier run left, so it must be complete.
    let synced = async {
        services.synced().await;
        slices.synced().await;
    };
    tokio::select! {
        () = synced => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    proxy.follow(stop).await;
}

struct Proxy {
    config: ProxyConfig,
    services: mpsc::UnboundedReceiver<Change<Service>>,
    slices: mpsc::UnboundedReceiver<Change<EndpointSlice>>,
    view: View,
    touched: BTreeSet<ObjectKey>,
    /// cluster IPs that still need a route
    unrouted: Option<(Ipv4Addr, u8)>,
    /// away while a blocking thread works with it
    table: Option<Table>,
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
            let failed = match self.apply().await {
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
        let touched = self.view.set_slice(&change.key, change.new.map(|c| c.object.clone()));
        self.touched.extend(touched);
    }

    async fn apply(&mut self) -> Result<(), NetlinkError> {
        let mut table = self.table.take().unwrap_or_else(|| {
            // Only a panic in the blocking thread loses the table; start again with everything.
            self.touched.extend(self.view.services().map(|(key, _)| key.clone()));
            self.config.table()
        });
        for key in std::mem::take(&mut self.touched) {
            let rules = rules_of(&self.view, &key, &self.config.node_name);
            table.set_service(&key, rules);
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
