//! Random deltas: no node is ever overcommitted, and deltas give the snapshot that a rebuild gives.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::ObjectKey;
use common::{node, pod_json};
use proptest::prelude::*;
use scheduler::cycle::{Choice, Decision, fits, schedule};
use scheduler::node::NodeSpec;
use scheduler::pod::PodInfo;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Step {
    Node(u8, u8),
    RemoveNode(u8),
    Create(u8, u8),
    Schedule(u8, u64),
    /// The API server confirms a binding.
    Confirm(u8),
    BindFails(u8),
    Delete(u8),
    Finish(u8),
    Namespace(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..5, 0u8..4).prop_map(|(n, kind)| Step::Node(n, kind)),
        1 => (0u8..5).prop_map(Step::RemoveNode),
        6 => (0u8..24, 0u8..8).prop_map(|(p, kind)| Step::Create(p, kind)),
        12 => (0u8..24, any::<u64>()).prop_map(|(p, random)| Step::Schedule(p, random)),
        6 => (0u8..24).prop_map(Step::Confirm),
        2 => (0u8..24).prop_map(Step::BindFails),
        3 => (0u8..24).prop_map(Step::Delete),
        1 => (0u8..24).prop_map(Step::Finish),
        1 => (0u8..2).prop_map(Step::Namespace),
    ]
}

fn node_spec(number: u8, kind: u8) -> NodeSpec {
    let labels = json!({ "zone": format!("z{}", kind % 2) });
    let allocatable =
        json!({ "cpu": (2 + kind / 2).to_string(), "memory": "4Gi", "pods": "6", "example.com/x": "2" });
    node(
        &format!("n{number}"),
        json!({ "metadata": { "labels": labels }, "status": { "allocatable": allocatable } }),
    )
}

fn pod_value(number: u8, kind: u8, generation: usize) -> Value {
    let term = json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "kind": (kind % 4).to_string() } },
        "namespaceSelector": { "matchLabels": { "team": "red" } } });
    let hostname = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "web" } } });
    let affinity = match kind {
        5 => json!({ "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } }),
        6 => json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [hostname] } }),
        7 => {
            json!({ "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 10, "podAffinityTerm": term }] } })
        }
        _ => json!({}),
    };
    let mut requests = json!({ "cpu": format!("{}m", 200 * u32::from(kind) + 100), "memory": "512Mi" });
    if kind == 1 {
        requests["example.com/x"] = json!("1");
    }
    let ports = if kind == 2 { json!([{ "containerPort": 80, "hostPort": 8000 }]) } else { json!([]) };
    let mut spread = json!([]);
    if kind == 3 {
        spread = json!([{ "topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "kind": "3" } } }]);
    }
    pod_json(
        &format!("p{number}"),
        json!({
            "metadata": { "uid": format!("u{number}-{generation}"), "labels": { "kind": kind.to_string() } },
            "spec": { "affinity": affinity, "topologySpreadConstraints": spread,
                "containers": [{ "name": "c", "resources": { "requests": requests }, "ports": ports }] },
        }),
    )
}

fn parse(value: &Value) -> Arc<PodInfo> {
    Arc::new(serde_json::from_value(value.clone()).unwrap())
}

/// What the API server holds, and what is reserved beside.
#[derive(Default)]
struct World {
    pods: BTreeMap<u8, Value>,
    assumed: BTreeMap<u8, String>,
    nodes: BTreeMap<u8, NodeSpec>,
    namespace: Option<BTreeMap<String, String>>,
    generation: usize,
    /// Nodes that shrank or came back below their pods: they may hold more than they have.
    shrunk: BTreeSet<String>,
}

impl World {
    fn perform(&mut self, snapshot: &mut Snapshot, step: &Step) {
        match step {
            Step::Node(n, kind) => {
                let spec = node_spec(*n, *kind);
                self.shrunk.insert(spec.name.clone());
                snapshot.set_node(spec.clone());
                self.nodes.insert(*n, spec);
            }
            Step::RemoveNode(n) => {
                snapshot.remove_node(&format!("n{n}"));
                self.nodes.remove(n);
            }
            Step::Create(p, kind) if !self.pods.contains_key(p) => {
                self.generation += 1;
                let value = pod_value(*p, *kind, self.generation);
                snapshot.set_pod(&parse(&value));
                self.pods.insert(*p, value);
            }
            Step::Schedule(p, random) => self.schedule(snapshot, *p, *random),
            Step::Confirm(p) => {
                if let Some(node) = self.assumed.remove(p) {
                    let value = self.pods.get_mut(p).unwrap();
                    value["spec"]["nodeName"] = node.into();
                    snapshot.set_pod(&parse(value));
                }
            }
            Step::BindFails(p) => {
                if self.assumed.remove(p).is_some() {
                    snapshot.forget(&parse(&self.pods[p]));
                }
            }
            Step::Delete(p) => {
                self.assumed.remove(p);
                if self.pods.remove(p).is_some() {
                    snapshot.remove_pod(&ObjectKey::new("default", format!("p{p}")));
                }
            }
            Step::Finish(p) if !self.assumed.contains_key(p) => {
                if let Some(value) = self.pods.get_mut(p) {
                    value["status"]["phase"] = "Succeeded".into();
                    snapshot.set_pod(&parse(value));
                }
            }
            Step::Namespace(team) => {
                let team = if *team == 0 { "red" } else { "blue" };
                self.namespace = Some([("team".to_owned(), team.to_owned())].into());
                snapshot.set_namespace("default", self.namespace.clone());
            }
            Step::Create(..) | Step::Finish(_) => {}
        }
    }

    fn schedule(&mut self, snapshot: &mut Snapshot, p: u8, random: u64) {
        let Some(pod) = self.pods.get(&p).map(parse) else { return };
        if !pod.is_pending() || self.assumed.contains_key(&p) {
            return;
        }
        snapshot.prepare(&pod);
        let choice = Choice { start: usize::from(p), random };
        match schedule(snapshot, &pod, choice) {
            Decision::Bind { node } => {
                assert!(fits(snapshot, &pod, [&*node]));
                snapshot.assume(&pod, &node);
                self.assumed.insert(p, node);
            }
            Decision::Unschedulable(why) => {
                assert!(
                    snapshot.nodes().iter().all(|node| !fits(snapshot, &pod, [&*node.spec.name])),
                    "{why}"
                );
                assert!(why.reasons.values().sum::<usize>() >= snapshot.nodes().len());
            }
        }
    }

    /// A snapshot made from nothing, with its pods in another order.
    fn rebuild(&self, prepared: bool) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_namespace("default", self.namespace.clone());
        for value in self.pods.values().rev() {
            let pod = parse(value);
            snapshot.set_pod(&pod);
            if prepared {
                snapshot.prepare(&pod);
            }
        }
        for spec in self.nodes.values().rev() {
            snapshot.set_node(spec.clone());
        }
        for (p, node) in &self.assumed {
            snapshot.assume(&parse(&self.pods[p]), node);
        }
        snapshot
    }
}

fn check_capacity(snapshot: &Snapshot, shrunk: &BTreeSet<String>) {
    for node in snapshot.nodes().iter().filter(|node| !shrunk.contains(&node.spec.name)) {
        let (used, has) = (&node.used, &node.spec.allocatable);
        assert!(used.milli_cpu <= has.milli_cpu && used.memory <= has.memory, "{node:?}");
        assert!(node.pods <= node.spec.max_pods, "{node:?}");
        assert!(
            used.extended.iter().all(|(name, amount)| has.extended.get(name) >= Some(amount)),
            "{node:?}"
        );
        assert!(node.ports.windows(2).all(|pair| pair[0] != pair[1]), "{node:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn deltas_never_overcommit_and_equal_a_rebuild(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::default();
        let mut snapshot = Snapshot::default();
        for n in 0..4 {
            world.perform(&mut snapshot, &Step::Node(n, n));
        }
        world.shrunk.clear();
        for step in &steps {
            world.perform(&mut snapshot, step);
            check_capacity(&snapshot, &world.shrunk);
        }
        for value in world.pods.values() {
            snapshot.prepare(&parse(value));
        }
        let (rebuilt, bare) = (world.rebuild(true), world.rebuild(false));
        let counted = |snapshot: &Snapshot| snapshot.summary().into_iter().collect::<BTreeSet<_>>();
        // Counters of pods that are gone may linger in one of the two; what both count must be equal.
        let (here, there) = (counted(&snapshot), counted(&rebuilt));
        prop_assert!(there.is_subset(&here), "{:#?}", there.difference(&here).collect::<Vec<_>>());
        for value in world.pods.values() {
            let pod = parse(value);
            for node in rebuilt.nodes() {
                let name = &node.spec.name;
                let here = fits(&snapshot, &pod, [name.as_str()]);
                prop_assert_eq!(here, fits(&rebuilt, &pod, [name.as_str()]));
                prop_assert_eq!(here, fits(&bare, &pod, [name.as_str()]), "counted by deltas or when asked");
            }
        }
    }
}
