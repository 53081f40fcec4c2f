//! The running proxy and DNS server, fed by an API in memory, with real packets in network namespaces.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use net::dns::DnsConfig;
use net::proxy::ProxyConfig;
use net::{Network, PodMtu, PodNet, PodNetConfig};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use world::cluster::Cluster;
use world::{Pod, ask, ask_udp, at, in_new_node, root};

const POD_CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 24);
const SERVICE_CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)), 16);
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));
const DNS: [u8; 4] = [10, 96, 0, 10];
const VIP: [u8; 4] = [10, 96, 0, 50];

struct Node {
    runtime: Runtime,
    cluster: Cluster,
    pods: Vec<(Pod, IpAddr)>,
    dir: tempfile::TempDir,
    stop: watch::Sender<bool>,
    proxy: Option<tokio::task::JoinHandle<()>>,
    _net: PodNet,
}

impl Node {
    /// A node with two pods, proxy and DNS; the DNS service exists.
    fn new(resolv_conf: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = PodNetConfig {
            state_dir: dir.path().join("net"),
            pod_cidrs: vec![POD_CIDR],
            instance: "svc".into(),
            mtu: PodMtu::default(),
        };
        let (net, pods) = runtime.block_on(async {
            let net = PodNet::open(config).await.unwrap();
            let mut pods = Vec::new();
            for id in ["a", "b"] {
                let pod = Pod::new(id);
                let address = net.attach(id, &pod.netns).await.unwrap()[0];
                pod.serve(8080);
                pods.push((pod, address));
            }
            (net, pods)
        });
        let cluster = Cluster::default();
        let ports = json!([{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "port": 53}]);
        cluster.service("dns", json!({"clusterIP": Ipv4Addr::from(DNS).to_string(), "ports": ports}));
        cluster.endpoints("dns", ports, json!([{"addresses": [GATEWAY.to_string()]}]));

        let resolv = dir.path().join("resolv.conf");
        std::fs::write(&resolv, resolv_conf).unwrap();
        let (stop, stopped) = watch::channel(false);
        let proxy = ProxyConfig {
            node_name: "here".into(),
            instance: "svc".into(),
            pod_cidrs: vec![POD_CIDR],
            cluster_cidrs: vec![POD_CIDR],
            service_cidrs: vec![SERVICE_CIDR],
        };
        let dns = DnsConfig {
            domain: "cluster.local".into(),
            listen: vec![SocketAddr::new(GATEWAY, 53)],
            own_addresses: vec![IpAddr::from(DNS)],
            reverse_ranges: vec![POD_CIDR, SERVICE_CIDR],
            resolv_conf: resolv,
        };
        let (rules, policies) = watch::channel(None);
        let follow = net::policy::follow(cluster.client(), "here".into(), rules, stopped.clone());
        runtime.spawn(follow);
        let proxy = Some(runtime.spawn(net::proxy::run(cluster.client(), policies, proxy, stopped.clone())));
        runtime.spawn(net::dns::run(cluster.client(), dns, stopped));
        Self { runtime, cluster, pods, dir, stop, proxy, _net: net }
    }

    fn backends(&self, service: &str, pods: &[usize]) {
        let endpoints: Vec<_> =
            pods.iter().map(|p| json!({"addresses": [self.pods[*p].1.to_string()]})).collect();
        self.cluster.endpoints(service, json!([{"name": "", "port": 8080}]), json!(endpoints));
    }
}

/// Asks again until the answer is right; rules follow the API within milliseconds, not at once.
fn eventually<T: std::fmt::Debug>(mut ask: impl FnMut() -> T, right: impl Fn(&T) -> bool) {
    let start = Instant::now();
    loop {
        let got = ask();
        if right(&got) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "still {got:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn over_udp(message: &Message) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.connect(at(DNS, 53)).ok()?;
    socket.send(&message.to_vec().unwrap()).ok()?;
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).ok()?;
    Some(Message::from_vec(&buffer[..n]).unwrap())
}

fn over_tcp(message: &Message) -> Message {
    let mut stream = TcpStream::connect(at(DNS, 53)).unwrap();
    tcp_exchange(&mut stream, message)
}

fn tcp_exchange(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    Message::from_vec(&reply).unwrap()
}

fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

/// A resolver that knows one answer to everything, over UDP and TCP, on 127.0.0.53.
fn resolver() {
    let answer = |bytes: &[u8]| {
        let request = Message::from_vec(bytes).unwrap();
        let mut reply = Message::response(request.metadata.id, OpCode::Query);
        reply.add_queries(request.queries.clone());
        let name = request.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 80)))));
        reply.to_vec().unwrap()
    };
    let udp = UdpSocket::bind("127.0.0.53:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, client)) = udp.recv_from(&mut buffer) {
            udp.send_to(&answer(&buffer[..n]), client).unwrap();
        }
    });
    let tcp = TcpListener::bind("127.0.0.53:53").unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).unwrap();
            let reply = answer(&bytes);
            stream.write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    });
}

#[test]
fn rules_follow_the_api() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let mut node = Node::new("nameserver 127.0.0.53\n");
        let earlier = node.proxy.take().unwrap();
        let cluster = &node.cluster;
        cluster.service(
            "web",
            json!({"clusterIP": "10.96.0.50", "type": "NodePort",
            "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let refused = Err(ErrorKind::ConnectionRefused);
        eventually(|| ask(at(VIP, 80)), |a| *a == refused);
        node.backends("web", &[0]);
        eventually(|| ask(at(VIP, 80)), |a| a.as_ref().is_ok_and(|a| a.0 == "a"));
        assert_eq!(ask(at([127, 0, 0, 1], 30080)).unwrap().0, "a");
        node.backends("web", &[1]);
        let from_a = || node.pods[0].0.run(|| ask(at(VIP, 80)));
        eventually(from_a, |a| a.as_ref().is_ok_and(|a| a.0 == "b"));
        cluster.delete("endpointslices", "web");
        eventually(from_a, |a| *a == refused);
        cluster.delete("services", "web");
        eventually(|| ask(at([127, 0, 0, 1], 30080)), |a| a.is_err());

        // A restarted proxy takes over; what changed meanwhile is put right.
        node.stop.send_replace(true);
        node.runtime.block_on(earlier).unwrap();
        node.backends("web", &[0, 1]);
        cluster.service("web", json!({"clusterIP": "10.96.0.51", "ports": [{"port": 80}]}));
        let config = ProxyConfig {
            node_name: "here".into(),
            instance: "svc".into(),
            pod_cidrs: vec![POD_CIDR],
            cluster_cidrs: vec![POD_CIDR],
            service_cidrs: Vec::new(),
        };
        let (_stop, stopped) = watch::channel(false);
        let (_rules, policies) = watch::channel(Some(net::policy::NodeRules::new()));
        node.runtime.spawn(net::proxy::run(cluster.client(), policies, config, stopped));
        eventually(|| ask(at([10, 96, 0, 51], 80)), Result::is_ok);
        let seen: HashSet<_> = (0..30).map(|_| ask(at([10, 96, 0, 51], 80)).unwrap().0).collect();
        assert_eq!(seen.len(), 2);
    });
}

#[test]
fn pods_resolve_names() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new("nameserver 10.96.0.10\nnameserver 127.0.0.53\n");
        resolver();
        let cluster = &node.cluster;
        cluster.service("web", json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}));
        cluster.service("out", json!({"type": "ExternalName", "externalName": "www.example.com"}));
        let many: Vec<_> = (1..=60).map(|i| json!({"addresses": [format!("10.244.7.{i}")]})).collect();
        cluster.service("many", json!({"clusterIP": "None"}));
        cluster.endpoints("many", json!([]), json!(many));
        let resolved = |name: &'static str, kind| {
            node.pods[0]
                .0
                .run(move || over_udp(&question(name, kind)))
                .map(|m| (m.metadata.response_code, texts(&m)))
        };
        let ok = |addresses: &[&str]| {
            Some((ResponseCode::NoError, addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()))
        };
        let web = "web.ns.svc.cluster.local.";
        eventually(|| resolved(web, RecordType::A), |m| *m == ok(&["10.96.0.50"]));
        assert_eq!(
            resolved("gone.ns.svc.cluster.local.", RecordType::A),
            Some((ResponseCode::NXDomain, vec![]))
        );
        assert_eq!(resolved("50.0.96.10.in-addr.arpa.", RecordType::PTR), ok(&[web]));
        // from the host's resolver: other names, and what is behind an alias
        assert_eq!(resolved("www.example.com.", RecordType::A), ok(&["192.0.2.80"]));
        let behind = resolved("out.ns.svc.cluster.local.", RecordType::A);
        assert_eq!(behind, ok(&["www.example.com.", "192.0.2.80"]));
        let by_tcp = node.pods[1].0.run(|| texts(&over_tcp(&question("www.example.com.", RecordType::A))));
        assert_eq!(by_tcp, ["192.0.2.80"]);
        // the node itself uses the same service address
        assert_eq!(texts(&over_udp(&question(web, RecordType::A)).unwrap()), ["10.96.0.50"]);

        // A reply that is too long says so; it fits with EDNS and over TCP, where several queries may follow.
        let mut long = question("many.ns.svc.cluster.local.", RecordType::A);
        let cut = over_udp(&long).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let mut stream = TcpStream::connect(at(DNS, 53)).unwrap();
        for _ in 0..2 {
            assert_eq!(tcp_exchange(&mut stream, &long).answers.len(), 60);
        }
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        long.set_edns(edns);
        let whole = over_udp(&long).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 60);

        // No resolver left but ourselves: a failure, not silence and not a loop.
        std::fs::write(node.dir.path().join("resolv.conf"), "nameserver 10.96.0.10\nnameserver 10.244.0.1\n")
            .unwrap();
        let failed = resolved("www.example.com.", RecordType::A);
        assert_eq!(failed, Some((ResponseCode::ServFail, vec![])));
        // Garbage does not stop it.
        let noise = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for bytes in [&b"x"[..], b"", &[0xff; 40], &[0; 11], &[0; 12]] {
            noise.send_to(bytes, (GATEWAY, 53)).unwrap();
        }
        assert_eq!(resolved(web, RecordType::A), ok(&["10.96.0.50"]));
        cluster.delete("services", "web");
        eventually(|| resolved(web, RecordType::A), |m| *m == Some((ResponseCode::NXDomain, vec![])));
    });
}

#[test]
fn host_ports_follow_the_pods_of_the_node() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new("nameserver 127.0.0.53\n");
        let (a, b) = (&node.pods[0], &node.pods[1]);
        let port = |host: u16, ip: &str, protocol: &str| json!({"containerPort": 8080, "hostPort": host, "hostIP": ip, "protocol": protocol});
        let gateway = GATEWAY.to_string();
        let ports =
            json!([port(9000, "", "TCP"), port(9001, "127.0.0.1", "TCP"), port(9002, &gateway, "UDP")]);
        node.cluster.pod("a", ports, a.1);
        // another pod may have the same port on another address, or of another protocol
        let others = json!([port(9001, &gateway, "TCP"), port(9002, &gateway, "TCP")]);
        node.cluster.pod("b", others, b.1);
        let name = |answer: world::Answer| answer.map(|a| a.0);
        let says = |who: &str| Ok(who.to_owned());
        eventually(|| name(ask(at([127, 0, 0, 1], 9000))), |a| *a == says("a"));
        eventually(|| name(ask((GATEWAY, 9001))), |a| *a == says("b"));
        assert_eq!(name(ask((GATEWAY, 9000))), says("a"));
        assert_eq!(name(ask(at([127, 0, 0, 1], 9001))), says("a"));
        assert_eq!(name(ask_udp((GATEWAY, 9002), 0)), says("a"));
        assert_eq!(name(ask((GATEWAY, 9002))), says("b"));
        assert!(ask(at([127, 0, 0, 1], 9002)).is_err());
        for pod in [a, b] {
            assert_eq!(name(pod.0.run(|| ask((GATEWAY, 9000)))), says("a"), "{}", pod.0.id);
        }
        node.cluster.delete("pods", "a");
        eventually(|| ask(at([127, 0, 0, 1], 9000)), Result::is_err);
        assert_eq!(name(ask((GATEWAY, 9001))), says("b"));
    });
}

/// A measurement: from the change of an EndpointSlice in the API until packets follow it, beside 10,000 services.
/// `cargo test -p net --test root_services -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn how_long_a_change_takes_at_ten_thousand_services() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new("nameserver 127.0.0.53\n");
        let cluster = &node.cluster;
        for i in 0..10_000u32 {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + i).to_string();
            cluster.service(&format!("s{i}"), json!({"clusterIP": address, "ports": [{"port": 80}]}));
            let ends = json!([{"addresses": ["10.245.0.1"]}, {"addresses": ["10.245.0.2"]}]);
            cluster.endpoints(&format!("s{i}"), json!([{"port": 8080}]), ends);
        }
        cluster.service("web", json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}));
        node.backends("web", &[1]);
        let answers = |who: &str| ask(at(VIP, 80)).is_ok_and(|a| a.0 == who);
        let start = Instant::now();
        while !answers("b") {
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        let mut took: Vec<Duration> = (0..100)
            .map(|round| {
                let start = Instant::now();
                node.backends("web", &[round % 2]);
                while !answers(["a", "b"][round % 2]) {}
                start.elapsed()
            })
            .collect();
        took.sort();
        eprintln!("packets follow a change after {:?} (median), {:?} (longest of 100)", took[50], took[99]);
    });
}

#[test]
fn policies_isolate_pods() {
    if !root() {
        return;
    }
    in_new_node(|| {
        let node = Node::new("nameserver 127.0.0.53\n");
        let cluster = &node.cluster;
        let (a, b) = (&node.pods[0], &node.pods[1]);
        cluster.labelled("namespaces", "ns", json!({"team": "x"}));
        cluster.pod("a", json!([{"name": "web", "containerPort": 8080}]), a.1);
        cluster.pod("b", json!([]), b.1);
        cluster.service("web", json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}));
        node.backends("web", &[0]);
        let (to_a, to_b) = (SocketAddr::new(a.1, 8080), SocketAddr::new(b.1, 8080));
        let from_b = move || b.0.run(move || ask(at(VIP, 80))).is_ok();
        let policy = |name: &str, spec: serde_json::Value| cluster.policy(name, spec);
        eventually(from_b, |ok| *ok);
        // default deny; the node itself may always, and so may the pod
        policy("deny", json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]}));
        eventually(from_b, |ok| !ok);
        assert!(b.0.run(move || ask_udp(to_a, 0)).is_err());
        assert!(ask(to_a).is_ok() && a.0.run(move || ask(at(VIP, 80))).is_ok());
        assert!(a.0.run(move || ask(to_b)).is_ok(), "not isolated for what it sends");
        // a named port for pods of a namespace with a label
        let from = json!([{"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
        let spec = json!({"podSelector": {}, "ingress": [{"from": from, "ports": [{"port": "web"}]}]});
        policy("allow", spec.clone());
        eventually(from_b, |ok| *ok);
        assert!(b.0.run(move || ask_udp(to_a, 0)).is_err(), "TCP alone");
        cluster.labelled("namespaces", "ns", json!({"team": "y"}));
        eventually(from_b, |ok| !ok);
        // a block with a hole, and a range of ports
        let block = |except: serde_json::Value| {
            let peer = json!([{"ipBlock": {"cidr": "10.244.0.0/24", "except": except}}]);
            json!({"podSelector": {}, "ingress": [{"from": peer, "ports": [{"port": 8000, "endPort": 8100}]}]})
        };
        policy("allow", block(json!(null)));
        eventually(from_b, |ok| *ok);
        policy("allow", block(json!([format!("{}/32", b.1)])));
        eventually(from_b, |ok| !ok);
        cluster.delete("networkpolicies", "allow");
        cluster.delete("networkpolicies", "deny");
        eventually(from_b, |ok| *ok);
        // what a pod sends: nothing but names and TCP to one peer
        let names =
            move || b.0.run(|| over_udp(&question("dns.ns.svc.cluster.local.", RecordType::A))).is_some();
        assert!(names());
        policy("out", json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Egress"]}));
        eventually(from_b, |ok| !ok);
        assert!(!names(), "not even the node's own services");
        assert!(a.0.run(move || ask(to_b)).is_ok(), "answers are allowed");
        let servers = json!({"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
            "ports": [{"port": 53, "protocol": "UDP"}]});
        let peer = json!({"to": [{"podSelector": {"matchLabels": {"pod": "a"}}}]});
        cluster.labelled("namespaces", "kube-system", json!({}));
        cluster.labelled("nodes", "here", json!({}));
        policy("out", json!({"podSelector": {"matchLabels": {"pod": "b"}}, "egress": [servers, peer]}));
        eventually(from_b, |ok| *ok);
        eventually(names, |ok| *ok);
    });
}
