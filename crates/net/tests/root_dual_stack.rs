//! IPv6 beside IPv4 with real packets: the twin of the pod network and of the service proxy's table.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use api::ObjectKey;
use net::policy::{NodeRules, PodRules, Ports, Range};
use net::proxy::{Backend, Frontend, Protocol, Table, Target};
use net::{Family, Network, PodMtu, PodNet, PodNetConfig, parse_cidr};
use world::{Pod, ask, ask_udp, in_new_node, root, serve_here};

fn network(text: &str) -> Network {
    parse_cidr(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

const GATEWAY: &str = "fd00:10:244::1";
const VIP: &str = "fd00:10:96::50";
/// What a machine outside the cluster has, and this node on the way to it.
const OUTSIDE: &str = "2001:db8::2";
const TOWARDS_OUTSIDE: &str = "2001:db8::1";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(dir: &Path, instance: &str, cidrs: [&str; 2]) -> PodNet {
    let config = PodNetConfig {
        state_dir: dir.to_owned(),
        pod_cidrs: cidrs.map(network).into(),
        instance: instance.into(),
        mtu: PodMtu::default(),
    };
    PodNet::open(config).await.unwrap()
}

const CIDRS: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];

/// A node with three serving pods, and a machine outside the cluster.
struct Node {
    dir: tempfile::TempDir,
    net: PodNet,
    pods: Vec<(Pod, IpAddr)>,
    outside: Pod,
    table: Table,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (net, pods, outside) = block_on(async {
            let net = open(&dir.path().join("net"), "test", CIDRS).await;
            let mut pods = Vec::new();
            for id in ["a", "b", "c"] {
                let pod = Pod::new(id);
                let addresses = net.attach(id, &pod.netns).await.unwrap();
                assert_eq!(addresses.len(), 2, "{addresses:?}");
                pod.serve(8080);
                pods.push((pod, addresses[1]));
            }
            // A second instance's "pod" is a neighbour of this node as far as the first one knows.
            let elsewhere = open(&dir.path().join("outside"), "out", ["192.0.2.0/24", "2001:db8::/64"]).await;
            let outside = Pod::new("outside");
            elsewhere.attach(&outside.id, &outside.netns).await.unwrap();
            outside.serve(8080);
            (net, pods, outside)
        });
        let services = network("fd00:10:96::/112");
        let pod_cidr = network(CIDRS[1]);
        let mut table = Table::new("podium-test", pod_cidr, network("fd00:10:244::/56"), Some(services));
        table.apply().unwrap();
        net::proxy::route_services("test", pod_cidr, services).unwrap();
        Self { dir, net, pods, outside, table }
    }

    fn service(&mut self, frontends: &[(Option<&str>, u16)], pods: &[usize], affinity: Option<u32>) {
        let target = |p: &usize| Target { address: self.pods[*p].1, port: 8080 };
        let targets: Vec<Target> = pods.iter().map(target).collect();
        let backend = match targets.is_empty() {
            true => Backend::Reject,
            false => Backend::Targets { targets, affinity_seconds: affinity, sources: vec![] },
        };
        let frontend = |(address, port): &(Option<&str>, u16), protocol| {
            (Frontend::new(address.map(ip), protocol, *port), backend.clone())
        };
        let both = [Protocol::Tcp, Protocol::Udp].into_iter();
        let rules = both.flat_map(|protocol| frontends.iter().map(move |f| (f, protocol)));
        let rules = rules.map(|(f, protocol)| frontend(f, protocol)).collect();
        self.table.set_service(&ObjectKey::new("ns", "web"), rules);
        self.table.apply().unwrap();
    }
}

/// How often each server answered.
fn spread(count: usize, ask: impl Fn() -> world::Answer) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for _ in 0..count {
        *out.entry(ask().unwrap().0).or_default() += 1;
    }
    out
}

#[test]
fn pods_reach_each_other_the_node_and_the_outside() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new();
        let (a, b) = (&node.pods[0], &node.pods[1]);
        let to_b = SocketAddr::new(b.1, 8080);
        assert_eq!(a.0.run(move || ask(to_b)), Ok(("b".into(), a.1)));
        assert_eq!(a.0.run(move || ask_udp(to_b, 0)), Ok(("b".into(), a.1)));
        assert_eq!(ask(to_b), Ok(("b".into(), ip(GATEWAY))));
        serve_here("node", 9090);
        assert_eq!(a.0.run(|| ask(to(GATEWAY, 9090))), Ok(("node".into(), a.1)));
        assert_eq!(a.0.run(|| ask(to("::1", 8080))).unwrap().0, "a");
        assert!(a.0.run(|| ask(to("fd00:10:244::200", 1))).is_err(), "an address that nobody has");
        // outside they look like the node
        let (server, seen) = a.0.run(|| ask(to(OUTSIDE, 8080))).unwrap();
        assert!(server == "outside" && [GATEWAY, TOWARDS_OUTSIDE].map(ip).contains(&seen), "{seen}");
        // and IPv4 is as it was
        assert_eq!(a.0.run(|| ask(to("10.244.0.3", 8080))).unwrap().0, "b");
    });
}

#[test]
fn services_balance_and_node_ports_answer() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service(&[(Some(VIP), 80), (None, 30080)], &[0, 1, 2], None);
        let from_pod = node.pods[0].0.run(|| spread(90, || ask(to(VIP, 80))));
        assert!(from_pod.len() == 3 && from_pod.values().all(|n| *n > 10), "{from_pod:?}");
        assert_eq!(spread(60, || ask(to(VIP, 80))).len(), 3);
        assert_eq!(node.pods[0].0.run(|| spread(60, || ask_udp(to(VIP, 80), 0))).len(), 3);
        for address in [GATEWAY, TOWARDS_OUTSIDE] {
            assert_eq!(spread(40, || ask(to(address, 30080))).len(), 3, "{address}");
        }
        assert_eq!(ask(to("::1", 30080)), Err(ErrorKind::ConnectionRefused), "left to the node");
        let (_, seen) = node.outside.run(|| ask(to(TOWARDS_OUTSIDE, 30080))).unwrap();
        assert_eq!(seen, ip(OUTSIDE), "the client's own address arrives");
        assert!(node.pods[1].0.run(|| ask(to(GATEWAY, 30080))).is_ok());
        // a pod that reaches itself
        node.service(&[(Some(VIP), 80)], &[0], None);
        assert_eq!(node.pods[0].0.run(|| ask(to(VIP, 80))), Ok(("a".into(), ip(GATEWAY))));
        // nothing behind it, and nobody at all
        node.service(&[(Some(VIP), 80)], &[], None);
        for nobody in [to(VIP, 80), to(VIP, 81), to("fd00:10:96::77", 80)] {
            assert_eq!(ask(nobody), Err(ErrorKind::ConnectionRefused), "{nobody}");
            let from_pod = node.pods[0].0.run(move || ask(nobody));
            assert_eq!(from_pod, Err(ErrorKind::ConnectionRefused), "{nobody}");
        }
        // The kernel keeps count of such messages and may leave the first ones out.
        let refused = |_| node.pods[0].0.run(|| ask_udp(to(VIP, 80), 0)) == Err(ErrorKind::ConnectionRefused);
        assert!((0..4).any(refused), "nobody says that there is nobody");
    });
}

#[test]
fn clients_stay_with_their_endpoint_and_udp_flows_move_when_it_is_gone() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let web = [(Some(VIP), 80), (None, 30080)];
        node.service(&web, &[0, 1, 2], Some(3600));
        let client = Pod::new("client");
        block_on(node.net.attach("client", &client.netns)).unwrap();
        for at in [to(VIP, 80), to(GATEWAY, 30080)] {
            assert_eq!(client.run(move || spread(30, || ask(at))).len(), 1, "{at}");
        }
        let first = client.run(|| ask(to(VIP, 80))).unwrap().0;
        let rest: Vec<usize> = (0..3).filter(|i| node.pods[*i].0.id != first).collect();
        node.service(&web, &rest, Some(3600));
        let moved = client.run(|| spread(20, || ask(to(VIP, 80))));
        assert!(moved.len() == 1 && !moved.contains_key(&first), "{first} {moved:?}");
        node.service(&web, &[0, 1, 2], Some(3600));
        assert_eq!(client.run(|| spread(20, || ask(to(VIP, 80)))), moved);
        let mut chosen = HashSet::new();
        for i in 0..10 {
            let other = Pod::new(&format!("client-{i}"));
            block_on(node.net.attach(&other.id, &other.netns)).unwrap();
            chosen.insert(other.run(|| ask(to(VIP, 80))).unwrap().0);
        }
        assert!(chosen.len() > 1, "{chosen:?}");
        node.service(&web, &[0], None);
        assert_eq!(ask_udp(to(VIP, 80), 5000).unwrap().0, "a");
        node.service(&web, &[1], None);
        assert_eq!(ask_udp(to(VIP, 80), 5000).unwrap().0, "b");
    });
}

#[test]
fn policies_isolate_addresses() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service(&[(Some(VIP), 80)], &[0], None);
        let (a, b, c) = (&node.pods[0], &node.pods[1], &node.pods[2]);
        let to_a = SocketAddr::new(a.1, 8080);
        let number = |address: IpAddr| match address {
            IpAddr::V6(address) => u128::from(address),
            IpAddr::V4(_) => panic!("{address}"),
        };
        let ports = Ports { protocol: Some(Protocol::Tcp.number()), first: 8000, last: 8100 };
        let from_b = Range { first: number(b.1), last: number(b.1), ports };
        let rules = PodRules { ingress: Some(vec![from_b]), egress: None };
        node.table.set_policies(&NodeRules::from([(a.1, rules)]));
        node.table.apply().unwrap();
        assert_eq!(b.0.run(move || ask(to_a)).unwrap().0, "a");
        assert_eq!(b.0.run(move || ask(to(VIP, 80))).unwrap().0, "a");
        assert!(b.0.run(move || ask_udp(to_a, 0)).is_err(), "TCP alone");
        assert!(c.0.run(move || ask(to_a)).is_err() && c.0.run(move || ask(to(VIP, 80))).is_err());
        assert!(ask(to_a).is_ok(), "the node itself may always");
        // what it sends
        let rules = PodRules { ingress: None, egress: Some(Vec::new()) };
        node.table.set_policies(&NodeRules::from([(c.1, rules)]));
        node.table.apply().unwrap();
        serve_here("node", 9090);
        assert!(c.0.run(move || ask(to_a)).is_err() && c.0.run(|| ask(to(GATEWAY, 9090))).is_err());
        assert!(b.0.run(|| ask(to(GATEWAY, 9090))).is_ok());
        // no other address of the pod leads around that
        let link_local = c.0.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
        assert!(!link_local.contains("fe80"), "{link_local}");
        node.table.set_policies(&NodeRules::new());
        node.table.apply().unwrap();
        assert!(c.0.run(move || ask(to_a)).is_ok());
    });
}

#[test]
fn down_leaves_nothing_and_routers_are_listened_to_meanwhile() {
    if !root() {
        return;
    }
    in_new_node(|| {
        // A fresh namespace shows its own settings only through a fresh mount of /proc/sys.
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap();
        let before = (read("all/forwarding"), read("lo/accept_ra"));
        assert_eq!(before.0.trim(), "0");
        let mut node = Node::new();
        node.service(&[(None, 30080)], &[0], None);
        assert_eq!((read("all/forwarding").trim(), read("lo/accept_ra").trim()), ("1", "2"));
        let (net_dir, out_dir) = (node.dir.path().join("net"), node.dir.path().join("outside"));
        block_on(async {
            net::down(&net_dir, "test").await.unwrap();
            assert_eq!(read("all/forwarding").trim(), "1", "the other instance needs it");
            net::down(&out_dir, "out").await.unwrap();
            net::down(&net_dir, "test").await.unwrap();
        });
        assert_eq!(read("all/forwarding"), before.0);
        assert!(!net_dir.exists());
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
        assert!(!routes.contains("fd0000100244") && !routes.contains("fd0000100096"), "{routes}");
        assert!(ask(to("127.0.0.1", 30080)).is_err());
        assert_eq!(node.net.gateway(Family::V6), Some(ip(GATEWAY)));
    });
}

#[test]
fn a_node_that_gains_a_family_gives_it_to_its_pods() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let single = PodNetConfig {
                state_dir: dir.path().join("net"),
                pod_cidrs: vec![network(CIDRS[0])],
                instance: "test".into(),
                mtu: PodMtu::default(),
            };
            let pod = Pod::new("a");
            let before = PodNet::open(single).await.unwrap();
            assert_eq!(before.attach("a", &pod.netns).await.unwrap(), [ip("10.244.0.2")]);
            let net = open(&dir.path().join("net"), "test", CIDRS).await;
            assert_eq!(net.addresses("a"), [ip("10.244.0.2")]);
            let both = [ip("10.244.0.2"), ip("fd00:10:244::2")];
            assert_eq!(net.attach("a", &pod.netns).await.unwrap(), both);
            pod.serve(8080);
            assert_eq!(ask(to("fd00:10:244::2", 8080)).unwrap().0, "a");
            net.detach("a").await.unwrap();
            assert_eq!(net.addresses("a"), [] as [IpAddr; 0]);
        });
    });
}
