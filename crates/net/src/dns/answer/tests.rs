use std::fmt::Write;

use api::ObjectKey;
use expect_test::{Expect, expect};
use hickory_proto::op::MessageType;
use serde_json::{Value, json};

use super::*;
use crate::model::{EndpointSlice, Service, View};

fn zone() -> Zone {
    let mut view = View::default();
    let services = json!([
        {"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{"name": "https", "port": 443}]}},
        {"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {"clusterIP": "10.96.0.10",
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "port": 53}]}},
        {"metadata": {"name": "db", "namespace": "prod"}, "spec": {"clusterIP": "None",
            "ports": [{"name": "sql", "port": 5432}]}},
        {"metadata": {"name": "peers", "namespace": "prod"}, "spec": {"clusterIP": "None",
            "publishNotReadyAddresses": true}},
        {"metadata": {"name": "idle", "namespace": "prod"}, "spec": {"clusterIP": "None"}},
        {"metadata": {"name": "out", "namespace": "prod"}, "spec": {"type": "ExternalName",
            "externalName": "www.example.com"}},
        {"metadata": {"name": "within", "namespace": "prod"}, "spec": {"type": "ExternalName",
            "externalName": "kubernetes.default.svc.cluster.local"}},
    ]);
    let slice = |service: &str, rest: Value| {
        let mut slice = json!({"metadata": {"name": service, "namespace": "prod",
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4"});
        slice.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        slice
    };
    let slices = json!([
        slice(
            "db",
            json!({"ports": [{"name": "sql", "port": 15432}], "endpoints": [
            {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.7"], "hostname": "db-2",
             "conditions": {"ready": false, "serving": true, "terminating": true}}]})
        ),
        {"metadata": {"name": "db-v6", "namespace": "prod", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv6", "ports": [{"name": "sql", "port": 15432}], "endpoints": [
            {"addresses": ["fd00:10:244::5"], "hostname": "db-0", "conditions": {"ready": true}}]},
        slice(
            "peers",
            json!({"ports": null, "endpoints": [
            {"addresses": ["10.244.0.8"], "conditions": {"ready": false}}]})
        ),
    ]);
    for service in serde_json::from_value::<Vec<Service>>(services).unwrap() {
        view.set_service(&service.metadata.key(), Some(service));
    }
    for slice in serde_json::from_value::<Vec<EndpointSlice>>(slices).unwrap() {
        view.set_slice(&slice.metadata.key(), Some(slice));
    }
    let ranges = ["10.96.0.0/16", "10.244.0.0/24", "fd00::/112", "fd00:10:244::/64"];
    let ranges = ranges.map(|range| crate::parse_cidr(range).unwrap()).into();
    let mut zone = Zone::new("cluster.local", ranges).unwrap();
    for (key, service) in view.services() {
        zone.set_service(key, Some(service), view.slices(key));
    }
    zone
}

fn request(name: &str, kind: RecordType) -> Message {
    let mut request = Message::new(0, MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    request.add_query(Query::query(name, kind));
    request
}

fn show(zone: &Zone, name: &str, kind: RecordType) -> String {
    let Some(reply) = answer(&request(name, kind), zone) else {
        return format!("{kind} {name}: forward\n");
    };
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    let mut out = format!("{kind} {name}: {:?}\n", reply.metadata.response_code);
    let sections =
        [("", &reply.answers), ("  authority", &reply.authorities), ("  additional", &reply.additionals)];
    for (section, records) in sections {
        for record in records {
            writeln!(out, "{section}  {} {} {}", record.name, record.record_type(), record.data).unwrap();
        }
    }
    // What is said must also survive the wire.
    assert_eq!(Message::from_vec(&reply.to_vec().unwrap()).unwrap().answers, reply.answers);
    out
}

fn check(queries: &[(&str, RecordType)], expected: Expect) {
    let zone = zone();
    let all: String = queries.iter().map(|(name, kind)| show(&zone, name, *kind)).collect();
    expected.assert_eq(&all);
}

use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};

#[test]
fn the_zone_itself() {
    check(
        &[
            ("dns-version.cluster.local", TXT),
            ("dns-version.cluster.local", A),
            ("cluster.local", SOA),
            ("cluster.local", NS),
            ("ns.dns.cluster.local", A),
            ("cluster.local", A),
            ("svc.cluster.local", A),
            ("prod.svc.cluster.local", A),
            ("nowhere.svc.cluster.local", A),
            ("x.cluster.local", A),
            ("cluster.local", ANY),
            ("example.com", A),
            ("xcluster.local", A),
        ],
        expect![[r#"
            TXT dns-version.cluster.local: NoError
              dns-version.cluster.local. TXT 1.1.0
            A dns-version.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SOA cluster.local: NoError
              cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            NS cluster.local: NoError
              cluster.local. NS ns.dns.cluster.local.
            A ns.dns.cluster.local: NoError
              ns.dns.cluster.local. A 10.96.0.10
            A cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A prod.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A nowhere.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A x.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            ANY cluster.local: Refused
            A example.com: forward
            A xcluster.local: forward
        "#]],
    );
}

#[test]
fn services_with_a_cluster_ip() {
    check(
        &[
            ("kubernetes.default.svc.cluster.local", A),
            ("KUBERNETES.Default.svc.Cluster.LOCAL", A),
            ("kubernetes.default.svc.cluster.local", AAAA),
            ("kubernetes.default.svc.cluster.local", MX),
            ("nothing.default.svc.cluster.local", A),
            ("_https._tcp.kubernetes.default.svc.cluster.local", SRV),
            ("_https._tcp.kubernetes.default.svc.cluster.local", A),
            ("_https._udp.kubernetes.default.svc.cluster.local", SRV),
            ("_tcp.kubernetes.default.svc.cluster.local", SRV),
            ("_dns._udp.kube-dns.kube-system.svc.cluster.local", SRV),
            ("x.kubernetes.default.svc.cluster.local", A),
            ("1.0.96.10.in-addr.arpa", PTR),
            ("10.0.96.10.in-addr.arpa", A),
            ("99.0.96.10.in-addr.arpa", PTR),
            ("1.1.168.192.in-addr.arpa", PTR),
            ("96.10.in-addr.arpa", PTR),
        ],
        expect![[r#"
            A kubernetes.default.svc.cluster.local: NoError
              kubernetes.default.svc.cluster.local. A 10.96.0.1
            A KUBERNETES.Default.svc.Cluster.LOCAL: NoError
              KUBERNETES.Default.svc.Cluster.LOCAL. A 10.96.0.1
            AAAA kubernetes.default.svc.cluster.local: NoError
              kubernetes.default.svc.cluster.local. AAAA fd00::1
            MX kubernetes.default.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A nothing.default.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _https._tcp.kubernetes.default.svc.cluster.local: NoError
              _https._tcp.kubernetes.default.svc.cluster.local. SRV 0 100 443 kubernetes.default.svc.cluster.local.
              additional  kubernetes.default.svc.cluster.local. A 10.96.0.1
              additional  kubernetes.default.svc.cluster.local. AAAA fd00::1
            A _https._tcp.kubernetes.default.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _https._udp.kubernetes.default.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _tcp.kubernetes.default.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _dns._udp.kube-dns.kube-system.svc.cluster.local: NoError
              _dns._udp.kube-dns.kube-system.svc.cluster.local. SRV 0 100 53 kube-dns.kube-system.svc.cluster.local.
              additional  kube-dns.kube-system.svc.cluster.local. A 10.96.0.10
            A x.kubernetes.default.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            PTR 1.0.96.10.in-addr.arpa: NoError
              1.0.96.10.in-addr.arpa. PTR kubernetes.default.svc.cluster.local.
            A 10.0.96.10.in-addr.arpa: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            PTR 99.0.96.10.in-addr.arpa: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            PTR 1.1.168.192.in-addr.arpa: forward
            PTR 96.10.in-addr.arpa: forward
        "#]],
    );
}

#[test]
fn headless_services() {
    check(
        &[
            ("db.prod.svc.cluster.local", A),
            ("db-0.db.prod.svc.cluster.local", A),
            ("10-244-0-6.db.prod.svc.cluster.local", A),
            ("db-2.db.prod.svc.cluster.local", A),
            ("_sql._tcp.db.prod.svc.cluster.local", SRV),
            ("5.0.244.10.in-addr.arpa", PTR),
            ("6.0.244.10.in-addr.arpa", PTR),
            ("peers.prod.svc.cluster.local", A),
            ("idle.prod.svc.cluster.local", A),
        ],
        expect![[r#"
            A db.prod.svc.cluster.local: NoError
              db.prod.svc.cluster.local. A 10.244.0.5
              db.prod.svc.cluster.local. A 10.244.0.6
            A db-0.db.prod.svc.cluster.local: NoError
              db-0.db.prod.svc.cluster.local. A 10.244.0.5
            A 10-244-0-6.db.prod.svc.cluster.local: NoError
              10-244-0-6.db.prod.svc.cluster.local. A 10.244.0.6
            A db-2.db.prod.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _sql._tcp.db.prod.svc.cluster.local: NoError
              _sql._tcp.db.prod.svc.cluster.local. SRV 0 50 15432 10-244-0-6.db.prod.svc.cluster.local.
              _sql._tcp.db.prod.svc.cluster.local. SRV 0 50 15432 db-0.db.prod.svc.cluster.local.
              additional  10-244-0-6.db.prod.svc.cluster.local. A 10.244.0.6
              additional  db-0.db.prod.svc.cluster.local. A 10.244.0.5
              additional  db-0.db.prod.svc.cluster.local. AAAA fd00:10:244::5
            PTR 5.0.244.10.in-addr.arpa: NoError
              5.0.244.10.in-addr.arpa. PTR db-0.db.prod.svc.cluster.local.
            PTR 6.0.244.10.in-addr.arpa: NoError
              6.0.244.10.in-addr.arpa. PTR 10-244-0-6.db.prod.svc.cluster.local.
            A peers.prod.svc.cluster.local: NoError
              peers.prod.svc.cluster.local. A 10.244.0.8
            A idle.prod.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
        "#]],
    );
}

#[test]
fn aliases_and_pods() {
    check(
        &[
            ("out.prod.svc.cluster.local", A),
            ("out.prod.svc.cluster.local", CNAME),
            ("within.prod.svc.cluster.local", A),
            ("10-244-0-5.prod.pod.cluster.local", A),
            ("10-244-0-5.prod.pod.cluster.local", AAAA),
            ("10-244-0.prod.pod.cluster.local", A),
            ("prod.pod.cluster.local", A),
        ],
        expect![[r#"
            A out.prod.svc.cluster.local: NoError
              out.prod.svc.cluster.local. CNAME www.example.com.
            CNAME out.prod.svc.cluster.local: NoError
              out.prod.svc.cluster.local. CNAME www.example.com.
            A within.prod.svc.cluster.local: NoError
              within.prod.svc.cluster.local. CNAME kubernetes.default.svc.cluster.local.
              kubernetes.default.svc.cluster.local. A 10.96.0.1
            A 10-244-0-5.prod.pod.cluster.local: NoError
              10-244-0-5.prod.pod.cluster.local. A 10.244.0.5
            AAAA 10-244-0-5.prod.pod.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A 10-244-0.prod.pod.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            A prod.pod.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
        "#]],
    );
}

#[test]
fn what_is_not_a_plain_query_is_refused() {
    let zone = zone();
    let code = |request: &Message| answer(request, &zone).unwrap().metadata.response_code;
    let mut update = request("cluster.local", SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut empty = request("cluster.local", SOA);
    empty.queries.clear();
    assert_eq!(code(&empty), ResponseCode::FormErr);
    let mut chaos = request("cluster.local", TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut newer = request("cluster.local", SOA);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    assert_eq!(code(&newer), ResponseCode::BADVERS);
}

#[test]
fn addresses_take_turns() {
    let zone = zone();
    let first = |id| {
        let mut request = request("db.prod.svc.cluster.local", A);
        request.metadata.id = id;
        answer(&request, &zone).unwrap().answers[0].data.to_string()
    };
    assert_eq!([first(0), first(1), first(2)], ["10.244.0.5", "10.244.0.6", "10.244.0.5"]);
}

#[test]
fn records_go_with_their_service() {
    let mut zone = zone();
    let key = ObjectKey::new("prod", "db");
    zone.set_service(&key, None, std::iter::empty());
    assert_eq!(
        show(&zone, "db.prod.svc.cluster.local", A).lines().next(),
        Some("A db.prod.svc.cluster.local: NXDomain")
    );
    let ptr = show(&zone, "5.0.244.10.in-addr.arpa", PTR);
    assert_eq!(ptr.lines().next(), Some("PTR 5.0.244.10.in-addr.arpa: NXDomain"));
}

#[test]
fn both_families_have_their_records() {
    check(
        &[
            ("kubernetes.default.svc.cluster.local", A),
            ("kubernetes.default.svc.cluster.local", AAAA),
            ("kube-dns.kube-system.svc.cluster.local", AAAA),
            ("nothing.default.svc.cluster.local", AAAA),
            ("db.prod.svc.cluster.local", AAAA),
            ("db-0.db.prod.svc.cluster.local", A),
            ("db-0.db.prod.svc.cluster.local", AAAA),
            ("10-244-0-6.db.prod.svc.cluster.local", AAAA),
            ("_sql._tcp.db.prod.svc.cluster.local", SRV),
            ("fd00-10-244--5.prod.pod.cluster.local", AAAA),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", PTR),
            ("5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa", PTR),
            ("9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa", PTR),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", PTR),
        ],
        expect![[r#"
            A kubernetes.default.svc.cluster.local: NoError
              kubernetes.default.svc.cluster.local. A 10.96.0.1
            AAAA kubernetes.default.svc.cluster.local: NoError
              kubernetes.default.svc.cluster.local. AAAA fd00::1
            AAAA kube-dns.kube-system.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            AAAA nothing.default.svc.cluster.local: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            AAAA db.prod.svc.cluster.local: NoError
              db.prod.svc.cluster.local. AAAA fd00:10:244::5
            A db-0.db.prod.svc.cluster.local: NoError
              db-0.db.prod.svc.cluster.local. A 10.244.0.5
            AAAA db-0.db.prod.svc.cluster.local: NoError
              db-0.db.prod.svc.cluster.local. AAAA fd00:10:244::5
            AAAA 10-244-0-6.db.prod.svc.cluster.local: NoError
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            SRV _sql._tcp.db.prod.svc.cluster.local: NoError
              _sql._tcp.db.prod.svc.cluster.local. SRV 0 50 15432 10-244-0-6.db.prod.svc.cluster.local.
              _sql._tcp.db.prod.svc.cluster.local. SRV 0 50 15432 db-0.db.prod.svc.cluster.local.
              additional  10-244-0-6.db.prod.svc.cluster.local. A 10.244.0.6
              additional  db-0.db.prod.svc.cluster.local. A 10.244.0.5
              additional  db-0.db.prod.svc.cluster.local. AAAA fd00:10:244::5
            AAAA fd00-10-244--5.prod.pod.cluster.local: NoError
              fd00-10-244--5.prod.pod.cluster.local. AAAA fd00:10:244::5
            PTR 1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa: NoError
              1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR kubernetes.default.svc.cluster.local.
            PTR 5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa: NoError
              5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa. PTR db-0.db.prod.svc.cluster.local.
            PTR 9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa: NXDomain
              authority  cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
            PTR 1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa: forward
        "#]],
    );
}

proptest::proptest! {
    /// Whatever bytes arrive, answering does not panic, and a reply can be encoded.
    #[test]
    fn noise_is_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
                         labels in proptest::collection::vec("[a-z0-9_]([a-z0-9-]{0,10}[a-z0-9])?", 0..6)) {
        let zone = zone();
        let mut requests: Vec<Message> = Message::from_vec(&bytes).into_iter().collect();
        for end in ["svc.cluster.local", "pod.cluster.local", "cluster.local", "in-addr.arpa"] {
            let name = [&labels[..], &[end.to_owned()]].concat().join(".");
            requests.extend([A, SRV, PTR].map(|kind| request(&name, kind)));
        }
        for request in requests {
            if let Some(reply) = answer(&request, &zone) {
                assert_eq!(reply.metadata.id, request.metadata.id);
                reply.to_vec().unwrap();
            }
        }
    }
}
