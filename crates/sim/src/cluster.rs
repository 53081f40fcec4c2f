//! The part that crashes: disk, store and API server, one life after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apiserver::{ApiServer, ServerConfig};
use futures_util::StreamExt as _;
use store::sim::SimDisk;
use store::{HistoryBudget, InlineStore, Options, Store, WatchItem};
use tokio::sync::{Notify, watch};

use crate::clock::SimClock;
use crate::observer::Observer;
use crate::random::Random;

/// Small, so that segments, snapshots and lost history occur within a short run.
const OPTIONS: Options = Options {
    history: HistoryBudget { events: 400, bytes: 1 << 22, age: Duration::from_secs(60) },
    segment_bytes: 60_000,
    snapshot_min_bytes: 300_000,
    relaxed_delay: Duration::from_secs(2),
};

pub(crate) struct Cluster {
    clock: SimClock,
    random: Random,
    observer: Arc<Observer>,
    /// Signs tokens that nobody asks for here.
    token_key: String,
    life: Mutex<Life>,
    /// Told when the server is gone.
    down: Notify,
    /// Number of the last life that has ended.
    ended: watch::Sender<u64>,
}

struct Life {
    disk: SimDisk,
    running: Option<(Arc<InlineStore>, Arc<ApiServer>)>,
    number: u64,
}

impl Cluster {
    pub(crate) fn new(seed: u64, clock: SimClock, observer: Arc<Observer>) -> anyhow::Result<Arc<Self>> {
        let life = Life { disk: SimDisk::new(seed), running: None, number: 0 };
        Ok(Arc::new(Self {
            clock,
            random: Random::new(seed, "cluster"),
            observer,
            token_key: rcgen::KeyPair::generate()?.serialize_pem(),
            life: Mutex::new(life),
            down: Notify::new(),
            ended: watch::Sender::new(0),
        }))
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server, if it is up.
    pub(crate) fn server(&self) -> Option<Arc<ApiServer>> {
        self.life().running.as_ref().map(|(_, server)| Arc::clone(server))
    }

    /// Completes when the present server's connections break.
    pub(crate) fn broken(&self) -> impl Future<Output = ()> + Send + 'static {
        let life = self.life().number;
        let mut ended = self.ended.subscribe();
        async move {
            if ended.wait_for(|number| *number >= life).await.is_err() {
                tracing::debug!("the cluster is gone");
            }
        }
    }

    pub(crate) fn store(&self) -> Option<Arc<InlineStore>> {
        self.life().running.as_ref().map(|(store, _)| Arc::clone(store))
    }

    /// How often the server was started.
    pub(crate) fn lives(&self) -> u64 {
        self.life().number
    }

    /// The power fails at one of the next operations of the disk, most likely within a write.
    pub(crate) fn crash_soon(&self) {
        let life = self.life();
        life.disk.power_off_at(life.disk.operations() + self.random.below(6));
    }

    /// Notices that the store has stopped because its disk did.
    pub(crate) fn look(&self) {
        let mut life = self.life();
        if life.running.as_ref().is_some_and(|(store, _)| store.has_stopped()) {
            life.running = None;
            self.down.notify_one();
        }
    }

    /// Starts the server again and again, and does what a clock does for the store. Never returns.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            match self.start().await {
                Ok(()) => self.tend().await,
                Err(error) => tracing::info!(%error, "a start failed"),
            }
            self.observer.note(&format!("{:?} down", self.clock.elapsed()));
            self.ended.send_replace(self.lives());
            let disk = self.life().disk.crash();
            self.life().disk = disk;
            tokio::time::sleep(self.random.millis(50, 4000)).await;
        }
    }

    async fn start(&self) -> Result<(), String> {
        let disk = self.life().disk.clone();
        let store = InlineStore::open(Arc::new(disk), OPTIONS).map_err(|error| error.to_string())?;
        let from = store.current_revision().await.map_err(|error| error.to_string())?;
        self.observer.begin_life(from)?;
        let watch = store.watch("/", from).map_err(|error| error.to_string())?;
        let observer = Arc::clone(&self.observer);
        client::spawn(async move {
            let mut watch = watch;
            while let Some(Ok(item)) = watch.next().await {
                if let WatchItem::Event(event) = item {
                    observer.event(&event);
                }
            }
        });
        let as_store: Arc<dyn Store> = Arc::clone(&store) as _;
        let server = ApiServer::open(as_store, config(&self.token_key)).await;
        let server = server.map_err(|error| {
            store.close();
            error.to_string()
        })?;
        let mut life = self.life();
        life.number += 1;
        life.running = Some((store, server));
        Ok(())
    }

    /// Returns when the server is gone.
    async fn tend(&self) {
        loop {
            tokio::select! {
                biased;
                () = self.down.notified() => return,
                () = tokio::time::sleep(OPTIONS.relaxed_delay) => {
                    let Some(store) = self.store() else { return };
                    store.set_time(self.clock.elapsed());
                    store.flush();
                    self.look();
                }
            }
        }
    }
}

fn config(token_key: &str) -> ServerConfig {
    ServerConfig {
        service_cidrs: vec!["10.96.0.0/16".into()],
        cluster_cidrs: vec!["10.244.0.0/16".into()],
        node_port_range: (30000, 32767),
        advertise: ([192, 0, 2, 1], 6443).into(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
        service_account_key_pem: token_key.into(),
        root_ca_pem: "simulated".into(),
        client_ca_pem: "simulated".into(),
        front_proxy: None,
        gateway: Arc::new(apiserver::NoNodes),
    }
}
