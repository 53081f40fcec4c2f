//! The running DNS server: keeps the zone in step and the listeners open.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use client::{Change, Client, Informer, Scope};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use super::forward::Upstreams;
use super::server::{Service as Dns, serve_tcp, serve_udp};
use super::zone::Zone;
use crate::address::Network;
use crate::model::{EndpointSlice, Service, View};

/// What the DNS server of a node needs to know.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// `cluster.local`
    pub domain: String,
    /// UDP and TCP; normally the node's gateway address, port 53.
    pub listen: Vec<SocketAddr>,
    /// Other addresses that lead back here (the DNS service's cluster IP): never used as a resolver.
    pub own_addresses: Vec<IpAddr>,
    /// Pod and service ranges: reverse look-ups there are never forwarded.
    pub reverse_ranges: Vec<Network>,
    /// The host's resolvers, normally `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// Runs until `stop` turns true. Serves as soon as Services and EndpointSlices are known.
pub async fn run(client: Client, config: DnsConfig, mut stop: watch::Receiver<bool>) {
    let Some(zone) = Zone::new(&config.domain, config.reverse_ranges.clone()) else {
        tracing::error!(domain = config.domain, "not a domain name: no cluster DNS");
        return;
    };
    tracing::info!(domain = config.domain, listen = ?config.listen, "cluster DNS begins");
    let zone = Arc::new(RwLock::new(zone));
    let own = config.listen.iter().map(SocketAddr::ip).chain(config.own_addresses.iter().copied()).collect();
    let service = Arc::new(Dns::new(Arc::clone(&zone), Upstreams::new(&config.resolv_conf, own)));
    let services = Informer::<Service>::start(&client, Scope::default());
    let slices = Informer::<EndpointSlice>::start(&client, Scope::default());
    let (ready, when_ready) = watch::channel(false);
    let all = async {
        let listeners = config.listen.iter().map(|at| listen(*at, Arc::clone(&service), when_ready.clone()));
        tokio::join!(follow(&services, &slices, &zone, &ready), futures_util::future::join_all(listeners));
    };
    tokio::select! {
        () = all => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Applies changes to the zone.
async fn follow(
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    zone: &RwLock<Zone>,
    ready: &watch::Sender<bool>,
) {
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    services.synced().await;
    slices.synced().await;
    let mut view = View::default();
    let mut touched = BTreeSet::new();
    loop {
        while let Ok(change) = service_changes.try_recv() {
            on_service(&mut view, &mut touched, change);
        }
        while let Ok(change) = slice_changes.try_recv() {
            on_slice(&mut view, &mut touched, change);
        }
        {
            let mut zone = zone.write().expect("no writer of the zone panics");
            for key in std::mem::take(&mut touched) {
                zone.set_service(&key, view.service(&key), view.slices(&key));
            }
        }
        ready.send_replace(true);
        tokio::select! {
            change = service_changes.recv() => match change {
                Some(change) => on_service(&mut view, &mut touched, change),
                None => return,
            },
            change = slice_changes.recv() => match change {
                Some(change) => on_slice(&mut view, &mut touched, change),
                None => return,
            },
        }
    }
}

type Touched = BTreeSet<api::ObjectKey>;

fn on_service(view: &mut View, touched: &mut Touched, change: Change<Service>) {
    view.set_service(&change.key, change.new.map(|c| c.object.clone()));
    touched.insert(change.key);
}

fn on_slice(view: &mut View, touched: &mut Touched, change: Change<EndpointSlice>) {
    touched.extend(view.set_slice(&change.key, change.new.map(|c| c.object.clone())));
}

/// Serves one address; opens it again if it fails.
async fn listen(at: SocketAddr, service: Arc<Dns>, mut ready: watch::Receiver<bool>) {
    const FIRST_DELAY: Duration = Duration::from_millis(200);
    const LONGEST_DELAY: Duration = Duration::from_secs(10);
    // Before the zone is complete, existing names would be denied.
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let mut delay = FIRST_DELAY;
    loop {
        let opened =
            async { Ok::<_, std::io::Error>((UdpSocket::bind(at).await?, TcpListener::bind(at).await?)) };
        let error = match opened.await {
            Ok((udp, tcp)) => {
                delay = FIRST_DELAY;
                tokio::select! {
                    error = serve_udp(udp, Arc::clone(&service)) => error,
                    error = serve_tcp(tcp, Arc::clone(&service)) => error,
                }
            }
            Err(error) => error,
        };
        tracing::warn!(address = %at, %error, "DNS listener failed; opening it again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}
