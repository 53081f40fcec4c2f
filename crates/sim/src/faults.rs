//! What goes wrong between a client and the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::{ApiRequest, ApiResponse, ResponseBody, Status, Target, Verb};
use apiserver::UserInfo;
use client::{Client, Transport};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;

use crate::clock::SimClock;
use crate::cluster::Cluster;
use crate::observer::Observer;
use crate::random::Random;

/// Chances out of a thousand requests.
const LOST_REQUEST: u64 = 15;
const LOST_ANSWER: u64 = 15;
const CONFLICT: u64 = 30;
const SLOW: u64 = 30;
const CUT_WATCH: u64 = 500;

/// A network that fails as long as it is told to.
pub(crate) struct Network {
    cluster: Arc<Cluster>,
    clock: SimClock,
    observer: Arc<Observer>,
    random: Random,
    faulty: AtomicBool,
}

impl Network {
    pub(crate) fn new(
        seed: u64,
        cluster: Arc<Cluster>,
        clock: SimClock,
        observer: Arc<Observer>,
    ) -> Arc<Self> {
        let random = Random::new(seed, "network");
        Arc::new(Self { cluster, clock, observer, random, faulty: AtomicBool::new(true) })
    }

    /// From now on everything arrives.
    pub(crate) fn heal(&self) {
        self.faulty.store(false, Ordering::Relaxed);
    }

    fn chance(&self, permille: u64) -> bool {
        self.faulty.load(Ordering::Relaxed) && self.random.permille(permille)
    }

    /// A client with an identity, on the virtual clock.
    pub(crate) fn client(self: &Arc<Self>, user: &str, groups: &[&str]) -> Client {
        let groups =
            groups.iter().chain(&["system:authenticated"]).map(|group| (*group).to_owned()).collect();
        let user = UserInfo { name: user.to_owned(), groups, ..UserInfo::default() };
        let agent = user.name.clone();
        let clock = Arc::new(self.clock.clone());
        Client::with_clock(Arc::new(Faulty { network: Arc::clone(self), user }), &agent, clock)
    }
}

struct Faulty {
    network: Arc<Network>,
    user: UserInfo,
}

impl Transport for Faulty {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>> {
        Box::pin(async move {
            let what = describe(&request);
            let result = self.perform(request).await;
            let code = result.as_ref().map_or_else(|status| status.code, |response| response.code);
            let network = &self.network;
            network.observer.note(&format!("{:?} {} {what} {code}", network.clock.elapsed(), self.user.name));
            result
        })
    }
}

impl Faulty {
    async fn perform(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        let network = &self.network;
        let slowest = if network.chance(SLOW) { 3000 } else { 5 };
        tokio::time::sleep(network.random.millis(0, slowest)).await;
        if network.chance(LOST_REQUEST) {
            return Err(Status::unavailable("simulated: the request was lost"));
        }
        if matches!(request.verb, Verb::Update | Verb::Patch) && network.chance(CONFLICT) {
            return Err(Status::conflict("", "things", "some", "simulated: somebody was faster"));
        }
        let Some(server) = network.cluster.server() else {
            return Err(Status::unavailable("simulated: the server is down"));
        };
        let watch = request.verb == Verb::Watch;
        let mut broken = Box::pin(network.cluster.broken());
        let result = tokio::select! {
            biased;
            result = server.call(&self.user, request) => result,
            () = &mut broken => Err(Status::unavailable("simulated: the connection broke")),
        };
        drop(server);
        network.cluster.look();
        if !watch && network.chance(LOST_ANSWER) {
            return Err(Status::unavailable("simulated: the answer was lost"));
        }
        let mut response = result?;
        if let ResponseBody::Watch(stream) = response.body {
            let cut = network.chance(CUT_WATCH);
            let after = if cut { network.random.millis(10, 20_000) } else { Duration::from_secs(1 << 30) };
            let end = futures_util::future::select(Box::pin(tokio::time::sleep(after)), broken);
            response.body = ResponseBody::Watch(Box::pin(stream.take_until(end)));
        }
        Ok(response)
    }
}

fn describe(request: &ApiRequest) -> String {
    let target = match &request.target {
        Target::Path(path) => path.clone(),
        Target::Resource { gvr, namespace, name, subresource } => {
            let parts = [namespace, name, subresource].map(|part| part.as_deref().unwrap_or("-"));
            format!("{}/{}", gvr.resource, parts.join("/"))
        }
    };
    format!("{} {target}", request.verb.as_str())
}
