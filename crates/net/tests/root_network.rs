//! The pod network and the service proxy with real packets, in network namespaces made for the test.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use api::ObjectKey;
use net::proxy::{Backend, Frontend, Place, Protocol, Table, Target, rules_of};
use net::{Family, Network, PodMtu, PodNet, PodNetConfig};
use serde_json::json;
use world::{Pod, ask, ask_udp, at, in_new_node, root, serve_here};

const POD_CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 24);
const CLUSTER_CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 16);
const SERVICE_CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)), 16);
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(dir: &Path, instance: &str, pod_cidr: Network) -> PodNet {
    let config = PodNetConfig {
        state_dir: dir.to_owned(),
        pod_cidrs: vec![pod_cidr],
        instance: instance.into(),
        mtu: PodMtu::default(),
    };
    PodNet::open(config).await.unwrap()
}

/// A node with three serving pods, and a machine outside the cluster.
struct Node {
    dir: tempfile::TempDir,
    net: PodNet,
    pods: Vec<(Pod, Ipv4Addr)>,
    outside: Pod,
    table: Table,
}

async fn attach(net: &PodNet, pod: &Pod) -> Ipv4Addr {
    match net.attach(&pod.id, &pod.netns).await.unwrap()[..] {
        [IpAddr::V4(address)] => address,
        ref other => panic!("one IPv4 address expected, got {other:?}"),
    }
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (net, pods, outside) = block_on(async {
            let net = open(&dir.path().join("net"), "test", POD_CIDR).await;
            let mut pods = Vec::new();
            for id in ["a", "b", "c"] {
                let pod = Pod::new(id);
                let address = attach(&net, &pod).await;
                pod.serve(8080);
                pods.push((pod, address));
            }
            // A second instance's "pod" is a neighbour of this node as far as the first one knows.
            let elsewhere =
                open(&dir.path().join("outside"), "out", (Ipv4Addr::new(192, 0, 2, 0).into(), 24)).await;
            let outside = Pod::new("outside");
            attach(&elsewhere, &outside).await;
            outside.serve(8080);
            (net, pods, outside)
        });
        let table = Table::new("podium-test", POD_CIDR, CLUSTER_CIDR, Some(SERVICE_CIDR));
        let mut node = Self { dir, net, pods, outside, table };
        node.table.apply().unwrap();
        // What the proxy does for cluster IPs: a route, so that a node without a default route can reach them.
        net::proxy::route_services("test", POD_CIDR, SERVICE_CIDR).unwrap();
        node
    }

    fn service(
        &mut self,
        name: &str,
        frontends: &[(Option<[u8; 4]>, u16)],
        pods: &[usize],
        affinity: Option<u32>,
    ) {
        let targets: Vec<Target> =
            pods.iter().map(|p| Target { address: self.pods[*p].1.into(), port: 8080 }).collect();
        let mut rules = Vec::new();
        for (address, port) in frontends {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let frontend = Frontend::new(address.map(IpAddr::from), protocol, *port);
                let backend = if targets.is_empty() {
                    Backend::Reject
                } else {
                    Backend::Targets { targets: targets.clone(), affinity_seconds: affinity, sources: vec![] }
                };
                rules.push((frontend, backend));
            }
        }
        self.table.set_service(&ObjectKey::new("ns", name), rules);
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

const VIP: [u8; 4] = [10, 96, 0, 50];

#[test]
fn pods_reach_each_other_and_the_node() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new();
        let (a, b) = (&node.pods[0], &node.pods[1]);
        let to: SocketAddr = (b.1, 8080).into();
        assert_eq!(a.0.run(move || ask(to)), Ok(("b".into(), IpAddr::V4(a.1))));
        // from the node, and to the node
        assert_eq!(ask(to), Ok(("b".into(), GATEWAY)));
        serve_here("node", 9090);
        assert_eq!(a.0.run(|| ask((GATEWAY, 9090))), Ok(("node".into(), IpAddr::V4(a.1))));
        // within the pod
        assert_eq!(a.0.run(|| ask(at([127, 0, 0, 1], 8080))).unwrap().0, "a");
        // an address nobody has
        assert!(a.0.run(|| ask(at([10, 244, 0, 200], 1))).is_err());
    });
}

#[test]
fn cluster_ips_balance_for_pods_and_the_node() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service("web", &[(Some(VIP), 80), (Some(VIP), 81)], &[0, 1, 2], None);
        for port in [80, 81] {
            let counts = node.pods[0].0.run(move || spread(120, || ask(at(VIP, port))));
            assert!(counts.len() == 3 && counts.values().all(|n| *n > 15), "{counts:?}");
        }
        let counts = spread(120, || ask(at(VIP, 80)));
        assert!(counts.len() == 3 && counts.values().all(|n| *n > 15), "{counts:?}");
        let counts = node.pods[0].0.run(|| spread(60, || ask_udp(at(VIP, 80), 0)));
        assert_eq!(counts.len(), 3, "{counts:?}");
        // The client's own address arrives.
        node.service("web", &[(Some(VIP), 80)], &[1], None);
        let a = node.pods[0].1;
        assert_eq!(node.pods[0].0.run(|| ask(at(VIP, 80))), Ok(("b".into(), IpAddr::V4(a))));
        assert_eq!(ask(at(VIP, 80)), Ok(("b".into(), GATEWAY)));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service("self", &[(Some(VIP), 80), (None, 30080)], &[0], None);
        assert_eq!(node.pods[0].0.run(|| ask(at(VIP, 80))), Ok(("a".into(), GATEWAY)));
        assert_eq!(node.pods[0].0.run(|| ask_udp(at(VIP, 80), 0)), Ok(("a".into(), GATEWAY)));
        assert_eq!(node.pods[0].0.run(|| ask((GATEWAY, 30080))), Ok(("a".into(), GATEWAY)));
    });
}

#[test]
fn node_ports_answer_on_every_local_address() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service("np", &[(None, 30080)], &[0, 1, 2], None);
        for address in [[127, 0, 0, 1], [127, 1, 2, 3], [10, 244, 0, 1], [192, 0, 2, 1]] {
            let counts = spread(30, || ask(at(address, 30080)));
            assert_eq!(counts.len(), 3, "{address:?} {counts:?}");
            assert!(ask_udp(at(address, 30080), 0).is_ok(), "{address:?}");
        }
        // from outside, with the client's address
        let (_, seen) = node.outside.run(|| ask(at([192, 0, 2, 1], 30080))).unwrap();
        assert_eq!(seen, IpAddr::from([192, 0, 2, 2]));
        assert!(node.pods[1].0.run(|| ask((GATEWAY, 30080))).is_ok());
        // not on addresses of others
        assert!(node.pods[1].0.run(|| ask(at([192, 0, 2, 2], 30080))).is_err());
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service("empty", &[(Some(VIP), 80), (None, 30081)], &[], None);
        let start = Instant::now();
        for _ in 0..5 {
            assert_eq!(node.pods[0].0.run(|| ask(at(VIP, 80))), Err(ErrorKind::ConnectionRefused));
            assert_eq!(ask(at(VIP, 80)), Err(ErrorKind::ConnectionRefused));
            assert_eq!(ask(at([127, 0, 0, 1], 30081)), Err(ErrorKind::ConnectionRefused));
            let refused = node.outside.run(|| ask(at([192, 0, 2, 1], 30081)));
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        }
        assert_eq!(node.pods[0].0.run(|| ask_udp(at(VIP, 80), 0)), Err(ErrorKind::ConnectionRefused));
        assert!(start.elapsed().as_millis() < 1500, "refusals must come at once: {:?}", start.elapsed());
        // neither does another port or an address without a service
        for nobody in [at(VIP, 81), at([10, 96, 7, 7], 80)] {
            assert_eq!(node.pods[0].0.run(move || ask(nobody)), Err(ErrorKind::ConnectionRefused));
            assert_eq!(ask(nobody), Err(ErrorKind::ConnectionRefused));
        }
        node.service("empty", &[(Some(VIP), 80)], &[2], None);
        assert_eq!(ask(at(VIP, 80)).unwrap().0, "c");
    });
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let web = [(Some(VIP), 80), (None, 30082)];
        node.service("sticky", &web, &[0, 1, 2], Some(3600));
        let client = Pod::new("client");
        block_on(attach(&node.net, &client));
        let counts = client.run(|| spread(30, || ask(at(VIP, 80))));
        assert_eq!(counts.len(), 1, "{counts:?}");
        let counts = client.run(|| spread(30, || ask((GATEWAY, 30082))));
        assert_eq!(counts.len(), 1, "{counts:?}");
        // The chosen one goes; the client moves, and stays where it went even when the first comes back.
        let first = client.run(|| ask(at(VIP, 80))).unwrap().0;
        let rest: Vec<usize> = (0..3).filter(|i| node.pods[*i].0.id != first).collect();
        node.service("sticky", &web, &rest, Some(3600));
        let counts = client.run(|| spread(20, || ask(at(VIP, 80))));
        assert!(counts.len() == 1 && !counts.contains_key(&first), "{first} {counts:?}");
        node.service("sticky", &web, &[0, 1, 2], Some(3600));
        assert_eq!(client.run(|| spread(20, || ask(at(VIP, 80)))).keys().next(), counts.keys().next());
        // Another client has a choice of its own: with ten of them, not all alike.
        let mut chosen = HashSet::new();
        for i in 0..10 {
            let other = Pod::new(&format!("client-{i}"));
            block_on(attach(&node.net, &other));
            chosen.insert(other.run(|| ask(at(VIP, 80))).unwrap().0);
        }
        assert!(chosen.len() > 1, "{chosen:?}");
    });
}

#[test]
fn an_affinity_expires() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        node.service("sticky", &[(Some(VIP), 80)], &[0, 1, 2], Some(1));
        let mut seen = HashSet::new();
        // A choice made anew may be the same one: ten times in a row that is one in 20,000.
        for _ in 0..10 {
            seen.insert(node.pods[0].0.run(|| ask(at(VIP, 80))).unwrap().0);
            if seen.len() > 1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1300));
        }
        assert!(seen.len() > 1, "{seen:?}");
    });
}

#[test]
fn pods_reach_the_outside_as_the_node() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new();
        let (server, seen) = node.pods[0].0.run(|| ask(at([192, 0, 2, 2], 8080))).unwrap();
        assert_eq!(server, "outside");
        assert!([GATEWAY, IpAddr::from([192, 0, 2, 1])].contains(&seen), "{seen}");
        assert!(node.pods[0].0.run(|| ask_udp(at([192, 0, 2, 2], 8080), 0)).is_ok());
    });
}

#[test]
fn endpoints_come_and_go_without_a_gap() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let web = [(Some(VIP), 80)];
        for pods in [&[0usize][..], &[0, 1], &[1], &[1, 2, 0], &[2, 0], &[], &[1]] {
            node.service("web", &web, pods, None);
            let allowed: HashSet<&str> = pods.iter().map(|p| ["a", "b", "c"][*p]).collect();
            if allowed.is_empty() {
                assert_eq!(ask(at(VIP, 80)), Err(ErrorKind::ConnectionRefused));
                continue;
            }
            let counts = spread(40, || ask(at(VIP, 80)));
            assert_eq!(counts.keys().map(String::as_str).collect::<HashSet<_>>(), allowed);
        }
        // A UDP client that keeps its port is moved when its endpoint goes.
        node.service("web", &web, &[0], None);
        assert_eq!(ask_udp(at(VIP, 80), 5000).unwrap().0, "a");
        node.service("web", &web, &[1], None);
        assert_eq!(ask_udp(at(VIP, 80), 5000).unwrap().0, "b");
        // A fresh table over the old one (a restarted agent) serves the same.
        let mut again = Table::new("podium-test", POD_CIDR, CLUSTER_CIDR, Some(SERVICE_CIDR));
        for (frontend, backend) in node.table.desired().frontends {
            again.set_service(&ObjectKey::new("ns", "web"), vec![(frontend, backend)]);
        }
        again.apply().unwrap();
        assert_eq!(ask_udp(at(VIP, 80), 5000).unwrap().0, "b");
    });
}

#[test]
fn attaching_again_repairs_and_detaching_frees() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new();
        block_on(async {
            let (a, address) = &node.pods[0];
            assert_eq!(attach(&node.net, a).await, *address);
            // the same pod in a new sandbox
            let again = Pod::new("a");
            assert_eq!(attach(&node.net, &again).await, *address);
            again.serve(8080);
            let to: SocketAddr = (*address, 8080).into();
            assert_eq!(node.pods[1].0.run(move || ask(to)).unwrap().0, "a");
            // a restarted agent knows its pods
            let restarted = open(&node.dir.path().join("net"), "test", POD_CIDR).await;
            assert_eq!(restarted.addresses("a"), [IpAddr::V4(*address)]);
            restarted.cleanup(&HashSet::from(["a".to_owned(), "b".to_owned()])).await.unwrap();
            assert_eq!(restarted.addresses("c"), [] as [IpAddr; 0]);
            restarted.detach("a").await.unwrap();
            // a pod of that name again: waits for the removal
            let next = Pod::new("a");
            assert_ne!(attach(&restarted, &next).await, *address);
            assert!(restarted.attach("x", Path::new("/nonexistent")).await.is_err());
        });
    });
}

#[test]
fn many_pods_attach_in_parallel() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let net = open(&dir.path().join("net"), "test", POD_CIDR).await;
            let pods: Vec<Pod> = (0..30).map(|i| Pod::new(&format!("p{i}"))).collect();
            let all = pods.iter().map(|p| attach(&net, p));
            let start = Instant::now();
            let addresses = futures_util::future::join_all(all).await;
            eprintln!("30 pods attached in {:?}", start.elapsed());
            assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), 30);
            let start = Instant::now();
            for pod in &pods {
                net.detach(&pod.id).await.unwrap();
                assert_eq!(net.addresses(&pod.id), [] as [IpAddr; 0]);
            }
            eprintln!("30 pods handed over for removal in {:?}", start.elapsed());
            // An attachment waits for the removal of the same pod, which is last in the queue.
            attach(&net, &Pod::new("p29")).await;
            eprintln!("and removed after {:?}", start.elapsed());
            let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert_eq!(links.lines().skip(2).count(), 3, "lo, gateway and the new pod: {links}");
        });
    });
}

#[test]
fn endpoints_on_the_node_itself() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        serve_here("host", 9091);
        let frontend =
            |address: Option<[u8; 4]>, port| Frontend::new(address.map(IpAddr::from), Protocol::Tcp, port);
        let targets = vec![Target { address: Ipv4Addr::new(192, 0, 2, 1).into(), port: 9091 }];
        let backend = Backend::to(targets);
        let rules = vec![(frontend(Some(VIP), 443), backend.clone()), (frontend(None, 30443), backend)];
        node.table.set_service(&ObjectKey::new("default", "kubernetes"), rules);
        node.table.apply().unwrap();
        let name = |answer: world::Answer| answer.unwrap().0;
        assert_eq!(name(ask(at(VIP, 443))), "host");
        assert_eq!(name(ask(at([127, 0, 0, 1], 30443))), "host");
        assert_eq!(name(node.pods[0].0.run(|| ask(at(VIP, 443)))), "host");
        assert_eq!(name(node.outside.run(|| ask(at([192, 0, 2, 1], 30443)))), "host");
    });
}

/// Rules for a load balancer's address 10.96.200.7 with endpoints (pod, its node).
fn balancer(node: &mut Node, spec: &serde_json::Value, endpoints: &[(usize, &str)]) {
    let mut spec = spec.clone();
    spec["type"] = "LoadBalancer".into();
    spec["clusterIP"] = "10.96.0.60".into();
    spec["ports"] = json!([{"port": 80}]);
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(pod, at)| json!({"addresses": [node.pods[*pod].1.to_string()], "nodeName": at}))
        .collect();
    let service: net::model::Service = serde_json::from_value(json!({
        "metadata": {"name": "lb", "namespace": "ns"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": "10.96.200.7"}]}}}))
    .unwrap();
    let slice: net::model::EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "lb", "namespace": "ns", "labels": {"kubernetes.io/service-name": "lb"}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints}))
    .unwrap();
    let (key, mut view) = (ObjectKey::new("ns", "lb"), net::model::View::default());
    view.set_service(&key, Some(service));
    view.set_slice(&key, Some(slice));
    let here = Place { node: "here".into(), zone: String::new() };
    node.table.set_service(&key, rules_of(&view, &key, &here, Family::V4));
    node.table.apply().unwrap();
}

#[test]
fn outside_clients_reach_local_endpoints_alone_if_the_policy_says_so() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let vip = || ask(at([10, 96, 200, 7], 80));
        let from_outside = Ok(("a".to_owned(), IpAddr::from([192, 0, 2, 2])));
        for affinity in ["None", "ClientIP"] {
            let spec = json!({"externalTrafficPolicy": "Local", "sessionAffinity": affinity});
            balancer(&mut node, &spec, &[(0, "here"), (1, "there")]);
            for _ in 0..20 {
                assert_eq!(node.outside.run(vip), from_outside);
            }
            balancer(&mut node, &spec, &[(1, "there")]);
            assert_eq!(node.outside.run(vip), Err(ErrorKind::TimedOut));
            assert_eq!(node.pods[2].0.run(vip).unwrap().0, "b");
            assert_eq!(vip().unwrap().0, "b");
            balancer(&mut node, &spec, &[]);
            assert_eq!(node.outside.run(vip), Err(ErrorKind::ConnectionRefused));
        }
    });
}

#[test]
fn a_load_balancer_address_can_be_kept_to_some_networks() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let vip = || ask(at([10, 96, 200, 7], 80));
        let ranges = |ranges: &[&str]| json!({"loadBalancerSourceRanges": ranges});
        balancer(&mut node, &ranges(&["203.0.113.0/24", "192.0.2.2/32", "192.0.2.0/30"]), &[(0, "here")]);
        assert_eq!(node.outside.run(vip).unwrap().0, "a");
        assert_eq!(node.pods[1].0.run(vip), Err(ErrorKind::TimedOut));
        balancer(&mut node, &ranges(&["10.244.0.0/24"]), &[(0, "here")]);
        assert_eq!(node.outside.run(vip), Err(ErrorKind::TimedOut));
        assert_eq!(node.pods[1].0.run(vip).unwrap().0, "a");
        // other addresses of the service are not meant
        assert_eq!(node.outside.run(|| ask(at([10, 96, 0, 60], 80))).unwrap().0, "a");
        balancer(&mut node, &json!({}), &[(0, "here")]);
        assert_eq!(node.outside.run(vip).unwrap().0, "a");
    });
}

#[test]
fn rules_of_others_that_drop_traffic_of_pods_are_found() {
    if !root() {
        return;
    }
    if std::process::Command::new("nft").arg("-v").output().is_err() {
        eprintln!("skipped: needs `nft` to make rules like a host firewall's");
        return;
    }
    in_new_node(|| {
        let node = Node::new();
        let nft = |commands: &str| {
            let done = std::process::Command::new("nft").arg(commands).status().unwrap();
            assert!(done.success(), "{commands}");
        };
        let check = || block_on(net::foreign::check(&node.net, "podium-")).unwrap();
        assert_eq!(check(), net::foreign::Report::default());
        // a firewall that knows of pods is none of our business
        nft(
            "add table ip host; add chain ip host passing { type filter hook forward priority 0; policy drop; }; add rule ip host passing ip saddr 10.244.0.0/16 accept",
        );
        let harmless = check();
        assert!(!harmless.is_blocked() && harmless.chains.len() == 1, "{harmless:?}");
        nft("flush chain ip host passing");
        let report = check();
        assert!(report.between_pods && !report.to_node, "{report:?}");
        let text = "packet rules on this machine drop traffic between pods; look at `nft list chain ip host passing` (policy drop)";
        assert_eq!(report.to_string(), text);
        nft(
            "delete table ip host; add table inet wall; add chain inet wall arriving { type filter hook input priority 0; policy accept; }; add rule inet wall arriving ip protocol udp drop",
        );
        let report = check();
        assert!(!report.between_pods && report.to_node, "{report:?}");
    });
}

#[test]
fn down_leaves_nothing() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        let forwarding = read("/proc/sys/net/ipv4/ip_forward");
        let mut node = Node::new();
        node.service("np", &[(None, 30080)], &[0], None);
        assert_eq!(read("/proc/sys/net/ipv4/ip_forward").trim(), "1");
        let (net_dir, out_dir) = (node.dir.path().join("net"), node.dir.path().join("outside"));
        block_on(async {
            net::down(&net_dir, "test").await.unwrap();
            assert_eq!(read("/proc/sys/net/ipv4/ip_forward").trim(), "1", "the other instance needs it");
            net::down(&out_dir, "out").await.unwrap();
            // once more is fine
            net::down(&net_dir, "test").await.unwrap();
        });
        assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), forwarding);
        assert!(!net_dir.exists());
        let links = read("/proc/thread-self/net/dev");
        assert_eq!(
            links.lines().skip(2).map(|l| l.trim().split(':').next().unwrap()).collect::<Vec<_>>(),
            ["lo"]
        );
        assert_eq!(read("/proc/thread-self/net/route").lines().count(), 1);
        // The table is gone: a new one of that name starts empty and can be deleted again.
        assert!(ask(at([127, 0, 0, 1], 30080)).is_err());
    });
}

#[test]
fn ten_thousand_services_load_at_once_and_change_quickly() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new();
        let key = |i: u32| ObjectKey::new("ns", format!("s{i}"));
        let rules = |i: u32, first: u8| {
            let address = Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + i).into());
            let frontend = Frontend::new(address, Protocol::Tcp, 80);
            let target = |n| Target { address: Ipv4Addr::new(10, 245, (i >> 8) as u8, n).into(), port: 8080 };
            let targets = vec![target(first), target(200)];
            vec![(frontend, Backend::to(targets))]
        };
        let mut table = Table::new("podium-test", POD_CIDR, CLUSTER_CIDR, Some(SERVICE_CIDR));
        for i in 0..10_000 {
            table.set_service(&key(i), rules(i, 1));
        }
        let start = Instant::now();
        table.apply().unwrap();
        let load = start.elapsed();
        let mut changes: Vec<_> = (0..20)
            .map(|i| {
                // Apart, as the kernel frees the elements of one change before it takes the next.
                std::thread::sleep(std::time::Duration::from_millis(50));
                let start = Instant::now();
                table.set_service(&key(i), rules(i, 2));
                table.apply().unwrap();
                start.elapsed()
            })
            .collect();
        changes.sort();
        eprintln!("10,000 services loaded in {load:?}, one endpoint changed in {:?} (median)", changes[10]);
        assert!(load.as_secs() < 20 && changes[10].as_millis() < 20, "{load:?} {changes:?}");
        // and traffic still flows beside them
        node.table = table;
        node.service("web", &[(Some(VIP), 80)], &[1], None);
        assert_eq!(ask(at(VIP, 80)).unwrap().0, "b");
    });
}
