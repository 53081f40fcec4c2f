//! The cluster as the scheduler sees it: compact arrays, changed by deltas only.
//!
//! Pods count on a node from the moment they are assumed there. What the API server says wins over an
//! assumption. Pods on nodes that are not known yet wait for the node.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::selector::Requirement;
use api::{LabelSelector, ObjectKey};

use crate::counters::{Carried, Counters};
use crate::hints::Hints;
use crate::node::{NodeInfo, NodeSpec};
use crate::pod::{PodInfo, Spread};
use crate::selection::{NamespaceLabels, Selection};
use crate::topology::{Topologies, Topology};
use crate::volumes::Volumes;

pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// What a delta may help: changes of these kinds, on this node if only one is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    pub hints: Hints,
    pub node: Option<String>,
}

impl Effect {
    fn on(hints: Hints, node: &str) -> Self {
        Self { hints, node: Some(node.to_owned()) }
    }
}

#[derive(Clone, Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: String,
    assumed: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    slots: HashMap<String, usize>,
    placed: HashMap<ObjectKey, Placed>,
    /// Pods by node name, known node or not.
    on_node: HashMap<String, BTreeSet<ObjectKey>>,
    namespaces: NamespaceLabels,
    /// Selectors of services.
    services: BTreeMap<ObjectKey, BTreeMap<String, String>>,
    counters: Counters,
    topologies: Topologies,
    pub volumes: Volumes,
}

impl Snapshot {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub(crate) fn slot(&self, node: &str) -> Option<usize> {
        self.slots.get(node).copied()
    }

    /// Where a pod runs or is assumed to run.
    pub fn node_of(&self, pod: &ObjectKey) -> Option<&str> {
        self.placed.get(pod).map(|placed| placed.node.as_str())
    }

    /// Pods that run, or are assumed to run, on a node.
    pub(crate) fn pods_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        let keys = self.on_node.get(node).into_iter().flatten();
        keys.map(|key| Arc::clone(&self.placed[key].pod)).collect()
    }

    /// Adds or changes a node.
    pub fn set_node(&mut self, spec: NodeSpec) -> Effect {
        let name = spec.name.clone();
        if let Some(slot) = self.slot(&name) {
            let hints = changed(&self.nodes[slot].spec, &spec);
            self.topologies.set_node(slot, &spec.labels);
            self.nodes[slot].spec = spec;
            return Effect::on(hints, &name);
        }
        let slot = self.nodes.len();
        self.topologies.set_node(slot, &spec.labels);
        self.nodes.push(NodeInfo::new(spec));
        self.slots.insert(name.clone(), slot);
        self.counters.push_node();
        for key in self.on_node.get(&name).into_iter().flatten() {
            let pod = &self.placed[key].pod;
            self.nodes[slot].add(pod);
            self.counters.add(slot, pod, &self.namespaces);
        }
        Effect::on(Hints::NODE_ADDED, &name)
    }

    pub fn remove_node(&mut self, name: &str) -> Effect {
        let Some(slot) = self.slots.remove(name) else { return Effect::default() };
        self.nodes.swap_remove(slot);
        self.counters.swap_remove_node(slot);
        self.topologies.swap_remove_node(slot);
        if let Some(moved) = self.nodes.get(slot) {
            self.slots.insert(moved.spec.name.clone(), slot);
        }
        Effect { hints: Hints::NODE_REMOVED, node: None }
    }

    /// Takes over what the API server says of a pod.
    pub fn set_pod(&mut self, pod: &Arc<PodInfo>) -> Effect {
        let node = pod.spec.node_name.as_deref().filter(|_| !pod.finished);
        let old = self.placed.get(&pod.key).map(|p| (Arc::clone(&p.pod), p.node.clone(), p.assumed));
        let Some(node) = node else {
            return match old {
                Some((old, _, true)) if old.uid == pod.uid && !pod.finished => Effect::default(),
                Some((old, ..)) => self.remove_pod(&old.key),
                None => Effect::default(),
            };
        };
        self.unplace(&pod.key);
        self.place(Arc::clone(pod), node.to_owned(), false);
        let hints = match &old {
            Some((_, was, true)) if was == node => Hints::POD_ADDED,
            Some((old, was, _)) if old.uid == pod.uid && was == node => {
                let labels = old.spec.labels != pod.spec.labels || old.deleting != pod.deleting;
                let resized = old.spec.requests != pod.spec.requests;
                let labels = if labels { Hints::POD_LABELS } else { Hints::NONE };
                labels.or(if resized { Hints::POD_REMOVED } else { Hints::NONE })
            }
            Some((_, was, _)) if was != node => {
                // It went from one node to another: both matter, so no single node is named.
                return Effect { hints: Hints::POD_ADDED.or(Hints::POD_REMOVED), node: None };
            }
            Some(_) => Hints::POD_ADDED.or(Hints::POD_REMOVED),
            None => Hints::POD_ADDED,
        };
        Effect::on(hints, node)
    }

    /// Forgets a pod that is gone.
    pub fn remove_pod(&mut self, key: &ObjectKey) -> Effect {
        match self.unplace(key) {
            Some(placed) => Effect::on(Hints::POD_REMOVED, &placed.node),
            None => Effect::default(),
        }
    }

    /// Reserves a node for a pod before it is bound.
    pub fn assume(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.unplace(&pod.key);
        self.place(Arc::clone(pod), node.to_owned(), true);
    }

    /// Gives back what was reserved for a pod, unless it turned out to be bound meanwhile.
    pub fn forget(&mut self, pod: &PodInfo) -> Effect {
        let reserved = self.placed.get(&pod.key).is_some_and(|p| p.assumed && p.pod.uid == pod.uid);
        if reserved { self.remove_pod(&pod.key) } else { Effect::default() }
    }

    /// Sets or, with `None`, removes the labels of a namespace.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> Effect {
        let old = match &labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        if old == labels {
            return Effect::default();
        }
        self.counters.namespaces_changed();
        Effect { hints: Hints::NAMESPACE_LABELS, node: None }
    }

    /// Sets or, with `None`, removes the selector of a service.
    pub fn set_service(&mut self, key: &ObjectKey, selector: Option<BTreeMap<String, String>>) {
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => self.services.insert(key.clone(), selector),
            None => self.services.remove(key),
        };
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: String, assumed: bool) {
        if let Some(slot) = self.slot(&node) {
            self.nodes[slot].add(&pod);
            self.counters.add(slot, &pod, &self.namespaces);
        }
        self.on_node.entry(node.clone()).or_default().insert(pod.key.clone());
        self.placed.insert(pod.key.clone(), Placed { pod, node, assumed });
    }

    fn unplace(&mut self, key: &ObjectKey) -> Option<Placed> {
        let placed = self.placed.remove(key)?;
        if let Some(slot) = self.slot(&placed.node) {
            self.nodes[slot].remove(&placed.pod);
            self.counters.remove(slot, &placed.pod, &self.namespaces);
        }
        if let Some(keys) = self.on_node.get_mut(&placed.node) {
            keys.remove(key);
            if keys.is_empty() {
                self.on_node.remove(&placed.node);
            }
        }
        Some(placed)
    }

    /// Makes sure that everything a decision about the pod counts is counted already.
    pub fn prepare(&mut self, pod: &PodInfo) {
        let spread = self.spread_constraints(pod).into_owned();
        let mut selections: Vec<Selection> = spread.iter().map(|spread| spread.selection.clone()).collect();
        let preferred = pod.spec.preferred_pods.iter().map(|(_, term)| term);
        let own = pod.spec.affinity.iter().chain(&pod.spec.anti_affinity).chain(preferred);
        let carried = self.counters.carried().map(|carried| &carried.term);
        let keys = spread.iter().map(|spread| &spread.topology_key);
        for key in keys.chain(own.chain(carried).map(|term| &term.topology_key)) {
            self.topologies.ensure(key, &self.nodes);
        }
        if !pod.spec.affinity.is_empty() {
            selections.push(Selection::all(&pod.spec.affinity));
        }
        selections.extend(pod.spec.anti_affinity.iter().map(|term| term.selection.clone()));
        selections.extend(pod.spec.preferred_pods.iter().map(|(_, term)| term.selection.clone()));
        for selection in &selections {
            let mut counters = std::mem::take(&mut self.counters);
            counters.ensure(selection, |selection| self.count_anew(selection));
            self.counters = counters;
        }
    }

    /// Domain number of each node for a topology key, and how many numbers there are.
    pub(crate) fn domains(&self, key: &str) -> (Cow<'_, [u32]>, usize) {
        match self.topologies.get(key) {
            Some(topology) => (Cow::Borrowed(topology.of()), topology.size()),
            None => {
                let topology = Topology::new(key, &self.nodes);
                (Cow::Owned(topology.of().to_vec()), topology.size())
            }
        }
    }

    /// Pods per node that a selection selects.
    pub(crate) fn count(&self, selection: &Selection) -> Cow<'_, [u32]> {
        match self.counters.get(selection) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(self.count_anew(selection)),
        }
    }

    fn count_anew(&self, selection: &Selection) -> Vec<u32> {
        let mut per_node = vec![0; self.nodes.len()];
        for placed in self.placed.values() {
            if let Some(slot) = self.slot(&placed.node) {
                per_node[slot] += u32::from(selection.contains(&placed.pod, &self.namespaces));
            }
        }
        per_node
    }

    /// Terms of running pods that select this pod.
    pub(crate) fn carried_terms_selecting(&self, pod: &PodInfo) -> Vec<&Carried> {
        let all = self.counters.carried();
        all.filter(|carried| carried.term.selection.contains(pod, &self.namespaces)).collect()
    }

    pub(crate) fn selects(&self, selection: &Selection, pod: &PodInfo) -> bool {
        selection.contains(pod, &self.namespaces)
    }

    /// The pod's own constraints, else the default ones: spread softly over hosts and zones with its siblings, the
    /// pods of the same controller and services (Kubernetes documentation, "Built-in default constraints").
    pub(crate) fn spread_constraints<'a>(&self, pod: &'a PodInfo) -> Cow<'a, [Spread]> {
        if !pod.spec.spread.is_empty() {
            return Cow::Borrowed(&pod.spec.spread);
        }
        let first = ObjectKey::new(pod.key.namespace.as_str(), "");
        let services = self.services.range(first..).take_while(|(key, _)| key.namespace == pod.key.namespace);
        let selecting = services.filter(|(_, selector)| {
            selector.iter().all(|(name, value)| pod.spec.labels.get(name) == Some(value))
        });
        let pairs: BTreeSet<_> = selecting.flat_map(|(_, selector)| selector).collect();
        if pairs.is_empty() && pod.spec.controller.is_none() {
            return Cow::Borrowed(&[]);
        }
        let requirements =
            pairs.into_iter().map(|(name, value)| Requirement::In(name.clone(), vec![value.clone()]));
        let labels = LabelSelector { requirements: requirements.collect() };
        let controller = pod.spec.controller.as_deref();
        let selection = Selection::of_controller(&pod.key.namespace, controller, labels).living();
        let constraint = |key: &str, max_skew| Spread {
            topology_key: key.to_owned(),
            max_skew,
            min_domains: 1,
            hard: false,
            selection: selection.clone(),
            matches_itself: true,
            honor_affinity: true,
            honor_taints: false,
        };
        Cow::Owned(vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)])
    }

    /// Everything that decisions depend on, in an order that does not depend on the order of deltas.
    pub fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.nodes.iter().map(|node| format!("{node:?}")).collect();
        for selection in self.counters.selections() {
            let counted = self.count(&selection);
            let per_node = self.nodes.iter().zip(counted.iter()).filter(|(_, count)| **count > 0);
            lines.extend(per_node.map(|(n, count)| format!("{} {} {count}", selection.text(), n.spec.name)));
        }
        for carried in self.counters.carried() {
            let per_node = self.nodes.iter().zip(&carried.per_node).filter(|(_, count)| **count > 0);
            lines.extend(
                per_node.map(|(n, count)| {
                    format!("{:?} {:?} {} {count}", carried.term, carried.carry, n.spec.name)
                }),
            );
        }
        lines.sort();
        lines
    }
}

fn changed(old: &NodeSpec, new: &NodeSpec) -> Hints {
    let mut hints = Hints::NONE;
    if old.labels != new.labels {
        hints = hints.or(Hints::NODE_LABELS);
    }
    if old.taints != new.taints || old.unschedulable != new.unschedulable {
        hints = hints.or(Hints::NODE_TAINTS);
    }
    if old.allocatable != new.allocatable || old.max_pods != new.max_pods {
        hints = hints.or(Hints::NODE_ALLOCATABLE);
    }
    hints
}
