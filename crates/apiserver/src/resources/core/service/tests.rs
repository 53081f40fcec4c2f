//! Services: defaults, rules, and who gets which address.

use std::collections::BTreeMap;
use std::sync::Mutex;

use api::{GroupVersionResource, Object, ObjectKey, Status};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::resource::{Change, Expect, Extension, PrivateEntry, Reader, UserInfo, WriteContext};
use crate::resources::tests::{change_findings, defaulted, findings, object, row};

/// Private keys in memory, with the conditions of commits, and the networks of the cluster.
struct Keys(Mutex<BTreeMap<String, Bytes>>, Vec<String>);

impl Default for Keys {
    fn default() -> Self {
        Self(Mutex::default(), vec!["10.96.0.0/24".to_owned()])
    }
}

impl Keys {
    /// Those of a cluster of two families.
    fn dual() -> Self {
        Self(Mutex::default(), ["10.96.0.0/24", "fd00:10:96::/120"].map(str::to_owned).into())
    }

    fn commit(&self, txn: Extension) {
        let mut keys = self.0.lock().unwrap();
        for (key, expect) in txn.conditions {
            assert_eq!(expect, Expect::Absent);
            assert!(!keys.contains_key(&key), "{key} was free");
        }
        for (key, value) in txn.ops {
            match value {
                Some(value) => keys.insert(key, value),
                None => keys.remove(&key),
            };
        }
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(v))).collect()
    }
}

impl Reader for Keys {
    fn get<'a>(
        &'a self,
        _: &'a GroupVersionResource,
        _: &'a ObjectKey,
    ) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        async { Ok(None) }.boxed()
    }

    fn list<'a>(
        &'a self,
        _: &'a GroupVersionResource,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Object>, Status>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn private<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<PrivateEntry>, Status>> {
        let found = self.0.lock().unwrap().get(key).cloned();
        async move { Ok(found.map(|value| PrivateEntry { key: key.to_owned(), value, revision: 1 })) }.boxed()
    }

    fn private_range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<PrivateEntry>, Status>> {
        let keys = self.0.lock().unwrap();
        let found = keys.iter().filter(|(k, _)| k.starts_with(prefix));
        let found: Vec<_> =
            found.map(|(k, v)| PrivateEntry { key: k.clone(), value: v.clone(), revision: 1 }).collect();
        async move { Ok(found) }.boxed()
    }
}

/// A write that passes all rules.
fn write(keys: &Keys, new: Option<Value>, old: Option<&Object>) -> Result<Object, Status> {
    try_write(keys, new, old).map_err(|refused| match refused {
        Refused::Rules(text) => panic!("{text}"),
        Refused::Allocation(status) => status,
    })
}

#[derive(Debug)]
enum Refused {
    Rules(String),
    Allocation(Status),
}

/// A write as the registry does it, without a store. Gives the new object, empty after a deletion.
fn try_write(keys: &Keys, new: Option<Value>, old: Option<&Object>) -> Result<Object, Refused> {
    let user = UserInfo::new("u", &[]);
    let cx = WriteContext {
        user: &user,
        now: jiff::Timestamp::UNIX_EPOCH,
        subresource: None,
        dry_run: false,
        reader: keys,
        service_cidrs: &keys.1,
        cluster_cidrs: &[],
        node_port_range: (30000, 30009),
    };
    let row = row("", "services");
    let mut txn = Extension::default();
    let mut new = new.map(object);
    if let Some(new) = &mut new {
        row.strategy.default(new);
        match old {
            None => row.strategy.prepare_for_create(&cx, new),
            Some(old) => row.strategy.prepare_for_update(&cx, new, old),
        }
        row.strategy.default(new);
        let mut errors = row.strategy.validate(new);
        errors.extend(old.map(|old| row.strategy.validate_update(new, old)).unwrap_or_default());
        if !errors.is_empty() {
            let lines: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            return Err(Refused::Rules(lines.join("\n")));
        }
    }
    let change = match (&mut new, old) {
        (Some(new), None) => Change::Create(new),
        (Some(new), Some(old)) => Change::Update { new, old },
        (None, Some(old)) => Change::Delete(old),
        (None, None) => unreachable!("a write has an object"),
    };
    row.strategy
        .extend_txn(&cx, change, &mut txn)
        .now_or_never()
        .expect("nothing waits")
        .map_err(Refused::Allocation)?;
    keys.commit(txn);
    Ok(new.unwrap_or_default())
}

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})
}

#[test]
fn addresses_are_claimed_and_given_back() {
    let keys = Keys::default();
    let web = write(&keys, Some(service("web", json!({"clusterIP": "10.96.0.10"}))), None).unwrap();
    assert_eq!(web.get(&["spec", "clusterIPs"]), Some(&json!(["10.96.0.10"])));
    assert_eq!(keys.all(), ["/podium/services/ips/10.96.0.10=d/web"]);
    let taken = write(&keys, Some(service("b", json!({"clusterIP": "10.96.0.10"}))), None).unwrap_err();
    assert!(taken.message.contains("provided IP is already allocated"), "{taken}");
    let outside = write(&keys, Some(service("b", json!({"clusterIP": "10.97.0.10"}))), None).unwrap_err();
    assert!(outside.message.contains("not in the valid range"), "{outside}");
    let b = write(&keys, Some(service("b", json!({}))), None).unwrap();
    assert_ne!(b.str(&["spec", "clusterIP"]), "10.96.0.10");
    write(&keys, None, Some(&b)).unwrap();
    let headless = write(&keys, Some(service("c", json!({"clusterIP": "None"}))), None).unwrap();
    assert_eq!(headless.get(&["spec", "clusterIPs"]), Some(&json!(["None"])));
    write(&keys, Some(service("d", json!({"type": "ExternalName", "externalName": "a.b"}))), None).unwrap();
    assert_eq!(keys.all(), ["/podium/services/ips/10.96.0.10=d/web"]);
    write(&keys, None, Some(&web)).unwrap();
    assert!(keys.all().is_empty());
}

#[test]
fn a_network_can_be_used_up() {
    let keys = Keys::default();
    for i in 0..254 {
        write(&keys, Some(service(&format!("s{i}"), json!({}))), None).unwrap();
    }
    assert_eq!(keys.all().len(), 254);
    let full = write(&keys, Some(service("more", json!({}))), None).unwrap_err();
    assert!(full.message.contains("range is full"), "{full}");
}

#[test]
fn node_ports_come_and_go_with_the_type() {
    let keys = Keys::default();
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30005}]);
    let mut web =
        write(&keys, Some(service("web", json!({"type": "NodePort", "ports": ports}))), None).unwrap();
    let chosen = web.get(&["spec", "ports"]).unwrap()[0]["nodePort"].as_i64().unwrap();
    assert!((30000..=30009).contains(&chosen) && chosen != 30005);
    assert_eq!(keys.all().len(), 3);
    let spec = |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let taken = write(&keys, Some(service("b", spec(30005))), None).unwrap_err();
    assert!(
        taken
            .message
            .contains("spec.ports[0].nodePort: Invalid value: 30005: provided port is already allocated"),
        "{taken}"
    );
    let outside = write(&keys, Some(service("b", spec(80))), None).unwrap_err();
    assert!(outside.message.contains("valid ports is 30000-30009"), "{outside}");

    // An update that says nothing of addresses and ports keeps them.
    let again = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let same =
        write(&keys, Some(service("web", json!({"type": "NodePort", "ports": again}))), Some(&web)).unwrap();
    assert_eq!(same.get(&["spec", "ports"]), web.get(&["spec", "ports"]));
    assert_eq!(same.get(&["spec", "clusterIP"]), web.get(&["spec", "clusterIP"]));
    web = same;

    let mut plain = web.clone();
    plain.set(&["spec", "type"], "ClusterIP");
    let plain = write(&keys, Some(plain.into_value()), Some(&web)).unwrap();
    assert_eq!(keys.all().len(), 1, "{:?}", keys.all());
    assert!(plain.get(&["spec", "ports"]).unwrap()[0].get("nodePort").is_none());
    assert!(plain.get(&["spec", "externalTrafficPolicy"]).is_none());

    let mut name = plain.clone();
    name.set(&["spec", "type"], "ExternalName");
    name.set(&["spec", "externalName"], "example.com");
    let name = write(&keys, Some(name.into_value()), Some(&plain)).unwrap();
    assert!(keys.all().is_empty());
    assert!(name.get(&["spec", "clusterIP"]).is_none());
}

#[test]
fn defaults() {
    let out = defaulted(
        "",
        "services",
        service("a", json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"})),
    );
    assert_eq!(
        out["spec"],
        json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": true})
    );
    let out = defaulted("", "services", service("a", json!({"type": "ExternalName", "externalName": "x"})));
    assert!(out["spec"].get("internalTrafficPolicy").is_none());
}

#[test]
fn rules() {
    let cases = [
        (json!({}), ""),
        (json!({"ports": []}), "spec.ports: Required value\n"),
        (json!({"clusterIP": "None", "ports": []}), ""),
        (
            json!({"type": "Other"}),
            "spec.type: Unsupported value: \"Other\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"\n",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value\n"),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive\n\
             spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive\n",
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            "spec.ports[0].name: Required value\nspec.ports[1].name: Required value\n",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'\n",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "clusterIPs": ["None"]}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services\n",
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services\n",
        ),
        (
            json!({"selector": {"a b": "c"}}),
            "spec.selector: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')\n",
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(findings("", "services", service("a", spec.clone())), want, "{spec}");
    }
    assert!(findings("", "services", service("1a", json!({}))).contains("a DNS-1035 label must consist of"));
    let ips = |ip: &str| json!({"clusterIP": ip, "clusterIPs": [ip]});
    let (old, new) = (ips("10.96.0.1"), ips("10.96.0.2"));
    assert_eq!(
        change_findings("", "services", service("a", old), service("a", new)),
        "spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set\n"
    );
}

/// Small deterministic numbers; the same seed gives the same trace.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn random_spec(numbers: &mut Numbers) -> Value {
    let ports: Vec<Value> = (0..=numbers.below(2))
        .map(|i| match numbers.below(3) {
            0 => json!({"name": format!("p{i}"), "port": 80 + i, "nodePort": 30000 + numbers.below(10)}),
            _ => json!({"name": format!("p{i}"), "port": 80 + i}),
        })
        .collect();
    let without: Vec<Value> = ports.iter().map(|p| json!({"name": p["name"], "port": p["port"]})).collect();
    match numbers.below(6) {
        0 => json!({"type": "ExternalName", "externalName": "example.com", "ports": without}),
        1 => json!({"clusterIP": "None", "ports": without}),
        2 => json!({"type": "NodePort", "ports": ports}),
        3 => json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports}),
        4 => json!({"clusterIP": format!("10.96.0.{}", 1 + numbers.below(6)), "ports": without}),
        _ => json!({"ports": without}),
    }
}

/// Whatever happens, exactly the addresses and ports of the living Services are taken, each once.
#[test]
fn keys_follow_the_services() {
    for seed in 0..30 {
        let (keys, mut numbers) = (Keys::default(), Numbers(seed));
        let mut living: BTreeMap<u64, Object> = BTreeMap::new();
        for _ in 0..60 {
            let id = numbers.below(6);
            let old = living.get(&id).cloned();
            let delete = numbers.below(4) == 0;
            let new = match (&old, delete) {
                (Some(_), true) => None,
                (None, true) => continue,
                (_, false) => Some(service(&format!("s{id}"), random_spec(&mut numbers))),
            };
            match try_write(&keys, new, old.as_ref()) {
                Ok(new) if new.0.is_empty() => drop(living.remove(&id)),
                Ok(new) => drop(living.insert(id, new)),
                Err(_) => {} // refused: nothing may have changed
            }
            let mut wanted: Vec<String> = living
                .values()
                .flat_map(|o| {
                    let ips = super::addresses(o).into_iter().map(crate::resources::core::allocation::ip_key);
                    let mut ports = super::node_ports(o);
                    ports.sort_unstable();
                    ports.dedup();
                    let ports = ports.into_iter().map(crate::resources::core::allocation::port_key);
                    ips.chain(ports).map(|key| format!("{key}={}", super::owner(o))).collect::<Vec<_>>()
                })
                .collect();
            wanted.sort();
            let count = wanted.len();
            wanted.dedup_by_key(|line| line.split('=').next().map(str::to_owned));
            assert_eq!(wanted.len(), count, "seed {seed}: something is used twice");
            let mut present = keys.all();
            present.sort();
            assert_eq!(present, wanted, "seed {seed}");
        }
    }
}

/// Policy, families and addresses of a Service in one line; addresses that were picked at random are `?`.
fn shown(o: &Object) -> String {
    let list = |name: &str| -> Vec<String> {
        let items = o.get(&["spec", name]).and_then(Value::as_array).cloned().unwrap_or_default();
        items.iter().map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
    };
    let short = |ip: String| match ip.as_str() {
        "None" | "10.96.0.10" | "fd00:10:96::10" => ip,
        v6 if v6.starts_with("fd00:10:96::") => "v6?".to_owned(),
        _ => "v4?".to_owned(),
    };
    let ips: Vec<String> = list("clusterIPs").into_iter().map(short).collect();
    assert_eq!(
        list("clusterIPs").first().map(String::as_str).unwrap_or_default(),
        o.str(&["spec", "clusterIP"])
    );
    if ips.is_empty() {
        return "no address".to_owned();
    }
    format!("{} {} {}", o.str(&["spec", "ipFamilyPolicy"]), list("ipFamilies").join(","), ips.join(","))
}

/// What becomes of a Service that is made, and then changed.
fn outcome(keys: &Keys, steps: &[Value]) -> String {
    let mut old: Option<Object> = None;
    let mut lines = Vec::new();
    for spec in steps {
        let mut new = old.clone().map_or_else(|| service("s", json!({})), Object::into_value);
        for (name, value) in spec.as_object().unwrap() {
            new["spec"][name] = value.clone();
        }
        match try_write(keys, Some(new), old.as_ref()) {
            Ok(written) => {
                lines.push(shown(&written));
                let held = super::addresses(&written).len();
                assert_eq!(keys.all().len(), held, "{:?}", keys.all());
                old = Some(written);
            }
            Err(Refused::Allocation(status)) => lines.push(status.message),
            Err(Refused::Rules(text)) => lines.push(text),
        }
    }
    lines.join("\n")
}

#[test]
fn families_follow_the_policy() {
    let check = |keys: fn() -> Keys, steps: &[Value], expected: expect_test::Expect| {
        expected.assert_eq(&outcome(&keys(), steps));
    };
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy});
    let (single, dual): (fn() -> Keys, fn() -> Keys) = (Keys::default, Keys::dual);
    check(single, &[json!({})], expect_test::expect!["SingleStack IPv4 v4?"]);
    check(single, &[policy("PreferDualStack")], expect_test::expect!["PreferDualStack IPv4 v4?"]);
    check(
        single,
        &[policy("RequireDualStack")],
        expect_test::expect![[
            r#"Service "s" is invalid: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#
        ]],
    );
    check(
        single,
        &[json!({"ipFamilies": ["IPv6"]})],
        expect_test::expect![[
            r#"Service "s" is invalid: spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#
        ]],
    );
    check(
        single,
        &[json!({"clusterIP": "fd00:10:96::10"})],
        expect_test::expect![[
            r#"Service "s" is invalid: spec.clusterIPs[0]: Invalid value: ["fd00:10:96::10"]: IPv6 is not configured on this cluster"#
        ]],
    );
    check(single, &[json!({"clusterIP": "None"})], expect_test::expect!["RequireDualStack IPv4,IPv6 None"]);
    check(
        single,
        &[json!({"clusterIP": "None", "selector": {"a": "b"}})],
        expect_test::expect!["SingleStack IPv4 None"],
    );
    check(dual, &[json!({})], expect_test::expect!["SingleStack IPv4 v4?"]);
    check(dual, &[policy("PreferDualStack")], expect_test::expect!["PreferDualStack IPv4,IPv6 v4?,v6?"]);
    check(dual, &[policy("RequireDualStack")], expect_test::expect!["RequireDualStack IPv4,IPv6 v4?,v6?"]);
    check(dual, &[json!({"ipFamilies": ["IPv6"]})], expect_test::expect!["SingleStack IPv6 v6?"]);
    check(
        dual,
        &[json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"})],
        expect_test::expect!["PreferDualStack IPv6,IPv4 v6?,v4?"],
    );
    check(
        dual,
        &[json!({"clusterIP": "fd00:10:96::10"})],
        expect_test::expect!["SingleStack IPv6 fd00:10:96::10"],
    );
    check(dual, &[json!({"clusterIP": "None"})], expect_test::expect!["RequireDualStack IPv4,IPv6 None"]);
    check(
        dual,
        &[json!({"clusterIP": "None", "selector": {"a": "b"}})],
        expect_test::expect!["SingleStack IPv4 None"],
    );
    check(
        dual,
        &[json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"})],
        expect_test::expect!["PreferDualStack IPv4,IPv6 None"],
    );
    let both = json!({"clusterIPs": ["10.96.0.10", "fd00:10:96::10"], "ipFamilyPolicy": "RequireDualStack"});
    check(dual, &[both], expect_test::expect!["RequireDualStack IPv4,IPv6 10.96.0.10,fd00:10:96::10"]);
}

#[test]
fn families_come_and_go_with_the_policy() {
    let check = |steps: &[Value], expected: expect_test::Expect| {
        expected.assert_eq(&outcome(&Keys::dual(), steps));
    };
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy});
    let (single, prefer) = (policy("SingleStack"), policy("PreferDualStack"));
    // up, down, up again
    check(
        &[json!({}), prefer.clone(), single.clone(), policy("RequireDualStack")],
        expect_test::expect![[r#"
        SingleStack IPv4 v4?
        PreferDualStack IPv4,IPv6 v4?,v6?
        SingleStack IPv4 v4?
        RequireDualStack IPv4,IPv6 v4?,v6?"#]],
    );
    // the secondary ones are not let go in passing
    check(
        &[prefer.clone(), json!({"ipFamilies": ["IPv4"]})],
        expect_test::expect![[r#"
            PreferDualStack IPv4,IPv6 v4?,v6?
            spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary ipFamily"#]],
    );
    let first = json!({"clusterIPs": ["10.96.0.10"]});
    check(
        &[json!({"clusterIP": "10.96.0.10", "ipFamilyPolicy": "PreferDualStack"}), first],
        expect_test::expect![[r#"
            PreferDualStack IPv4,IPv6 10.96.0.10,v6?
            spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP"#]],
    );
    // the primary ones stay
    let ips = json!({"clusterIPs": ["10.96.0.10", "fd00:10:96::10"], "ipFamilyPolicy": "PreferDualStack"});
    check(
        &[json!({"clusterIP": "10.96.0.10"}), json!({"ipFamilies": ["IPv6"]})],
        expect_test::expect![[r#"
            SingleStack IPv4 10.96.0.10
            spec.clusterIPs[0]: Invalid value: "10.96.0.10": expected an IPv6 value as indicated by `ipFamilies[0]`
            spec.ipFamilies[0]: Invalid value: ["IPv6"]: may not change once set"#]],
    );
    check(
        &[ips, json!({"ipFamilies": ["IPv6", "IPv4"]})],
        expect_test::expect![[r#"
            PreferDualStack IPv4,IPv6 10.96.0.10,fd00:10:96::10
            spec.clusterIPs[0]: Invalid value: "10.96.0.10": expected an IPv6 value as indicated by `ipFamilies[0]`
            spec.clusterIPs[1]: Invalid value: "fd00:10:96::10": expected an IPv4 value as indicated by `ipFamilies[1]`
            spec.ipFamilies[0]: Invalid value: ["IPv6","IPv4"]: may not change once set
            spec.ipFamilies[1]: Invalid value: ["IPv6","IPv4"]: may not change once set"#]],
    );
    check(
        &[
            prefer,
            json!({"type": "ExternalName", "externalName": "a.b", "ports": []}),
            json!({"type": "ClusterIP", "ports": [{"port": 80}]}),
        ],
        expect_test::expect![[r#"
            PreferDualStack IPv4,IPv6 v4?,v6?
            no address
            SingleStack IPv4 v4?"#]],
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    let check = |spec: Value, expected: expect_test::Expect| {
        expected.assert_eq(&outcome(&Keys::dual(), &[spec]));
    };
    check(
        json!({"ipFamilies": ["IPv4", "IPv4"]}),
        expect_test::expect![[r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#]],
    );
    check(
        json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
        expect_test::expect![[
            r#"Service "s" is invalid: spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#
        ]],
    );
    check(
        json!({"clusterIPs": ["10.96.0.10", "10.96.0.11"], "ipFamilyPolicy": "PreferDualStack"}),
        expect_test::expect![[
            r#"spec.clusterIPs: Invalid value: ["10.96.0.10","10.96.0.11"]: may specify no more than one IP for each IP family"#
        ]],
    );
    check(
        json!({"clusterIPs": ["10.96.0.10", "fd00:10:96::10"]}),
        expect_test::expect![[
            r#"Service "s" is invalid: spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"#
        ]],
    );
    check(
        json!({"clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv6"]}),
        expect_test::expect![[
            r#"spec.clusterIPs[0]: Invalid value: "10.96.0.10": expected an IPv6 value as indicated by `ipFamilies[0]`"#
        ]],
    );
    check(
        json!({"clusterIPs": ["None", "10.96.0.10"]}),
        expect_test::expect![[
            r#"spec.clusterIPs: Invalid value: ["None","10.96.0.10"]: 'None' must be the first and only value"#
        ]],
    );
    check(
        json!({"clusterIPs": ["10.96.0.10", "fd00::10"], "ipFamilyPolicy": "PreferDualStack"}),
        expect_test::expect![[
            r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["fd00::10"]: failed to allocate IP fd00::10: the provided IP (fd00::10) is not in the valid range. The range of valid IPs is fd00:10:96::/120"#
        ]],
    );
    check(
        json!({"ipFamilyPolicy": "Both"}),
        expect_test::expect![[
            r#"spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "PreferDualStack", "RequireDualStack", "SingleStack""#
        ]],
    );
}
