//! The table in the kernel and what we know of it: turns changed services into small transactions.
//!
//! ```text
//!   set_service(key, frontends) ─▶ claims ─▶ winner per frontend ─▶ touched ─▶ apply(): elements that differ
//! ```
//!
//! If the kernel refuses a delta, what it holds is in doubt: the whole table is replaced in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use api::ObjectKey;

use super::program::{self, Addresses, Entries, Pick, Set};
use super::ruleset::{Backend, Frontend, Protocol, Ruleset, Target, keep_places};
use crate::address::{Family, Network, contains, gateway_of};
use crate::netlink::{NetlinkError, Socket};
use crate::nft::{Batch, Value, conntrack};
use crate::policy::NodeRules;

/// One instance's nftables table of one family, in the network namespace of the thread that first calls [`Table::apply`].
pub struct Table {
    name: String,
    addresses: Addresses,
    /// who wants a frontend; the first key has it
    claims: BTreeMap<Frontend, BTreeMap<ObjectKey, Backend>>,
    by_service: HashMap<ObjectKey, BTreeSet<Frontend>>,
    touched: BTreeSet<Frontend>,
    policies: NodeRules,
    installed: Option<Installed>,
    socket: Option<Socket>,
}

/// What the kernel holds.
#[derive(Default)]
struct Installed {
    frontends: HashMap<Frontend, Backend>,
    policies: NodeRules,
    /// how many targets have the address
    hairpin: HashMap<IpAddr, usize>,
    /// chains are kept when the last service that used them goes: there are few, and they will be needed again
    picks: BTreeSet<Pick>,
}

/// UDP targets that are gone, and UDP frontends that have targets for the first time.
#[derive(Debug, Default, PartialEq, Eq)]
struct StaleUdp {
    gone: BTreeSet<(Frontend, Target)>,
    new: BTreeSet<Frontend>,
}

/// What a change of some frontends means for the kernel.
#[derive(Default)]
struct Delta {
    picks: BTreeSet<Pick>,
    remove: BTreeMap<(Set, Vec<u8>), Value>,
    add: BTreeMap<(Set, Vec<u8>), Value>,
    stale: StaleUdp,
}

impl Table {
    /// A table that is not in the kernel yet. The networks are of one family, which is the table's. `cluster_cidr`
    /// holds the pods of all nodes; addresses of `service_cidr` that no service has are refused.
    pub fn new(name: &str, pod_cidr: Network, cluster_cidr: Network, service_cidr: Option<Network>) -> Self {
        let gateway = gateway_of(pod_cidr);
        let addresses = Addresses { pod_cidr, cluster_cidr, gateway, service_cidr };
        Self {
            name: name.to_owned(),
            addresses,
            claims: BTreeMap::new(),
            by_service: HashMap::new(),
            touched: BTreeSet::new(),
            policies: NodeRules::new(),
            installed: None,
            socket: None,
        }
    }

    /// The family of the addresses that it knows.
    pub fn family(&self) -> Family {
        self.addresses.family()
    }

    /// Records what a service wants; nothing reaches the kernel before [`Table::apply`].
    pub fn set_service(&mut self, key: &ObjectKey, rules: Vec<(Frontend, Backend)>) {
        let mut wanted = BTreeMap::new();
        for (frontend, backend) in rules {
            wanted.entry(frontend).or_insert(backend);
        }
        let before = self.by_service.remove(key).unwrap_or_default();
        for frontend in before.iter().filter(|f| !wanted.contains_key(f)) {
            self.touched.insert(*frontend);
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.remove(key);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
        if !wanted.is_empty() {
            self.by_service.insert(key.clone(), wanted.keys().copied().collect());
        }
        for (frontend, backend) in wanted {
            let claims = self.claims.entry(frontend).or_default();
            if claims.get(key) != Some(&backend) {
                claims.insert(key.clone(), backend);
                self.touched.insert(frontend);
            }
        }
    }

    /// Records what isolated pods of this node may do, as far as it is about the table's family; nothing reaches the
    /// kernel before [`Table::apply`].
    pub fn set_policies(&mut self, rules: &NodeRules) {
        let family = self.family();
        let ours = rules.iter().filter(|(address, _)| Family::of(**address) == family);
        self.policies = ours.map(|(address, rules)| (*address, rules.clone())).collect();
    }

    /// The rules as they should be now.
    pub fn desired(&self) -> Ruleset {
        let first = |claims: &BTreeMap<ObjectKey, Backend>| claims.values().next().cloned();
        Ruleset { frontends: self.claims.iter().filter_map(|(f, c)| Some((*f, first(c)?))).collect() }
    }

    /// Brings the kernel up to date: everything in one transaction the first time, then only what changed.
    /// Blocks for a fraction of a millisecond; the first load of 10,000 services for a quarter of a second.
    pub fn apply(&mut self) -> Result<(), NetlinkError> {
        if self.socket.is_none() {
            self.socket = Some(Socket::netfilter()?);
        }
        let touched = std::mem::take(&mut self.touched);
        let Some(mut installed) = self.installed.take() else {
            return self.replace();
        };
        let delta = self.delta(&mut installed, &touched);
        match self.commit(&delta) {
            Ok(()) => self.installed = Some(installed),
            Err(error) => {
                tracing::warn!(%error, "packet rules could not be changed; loading all of them again");
                self.replace()?;
            }
        }
        self.forget_stale(&delta.stale);
        Ok(())
    }

    fn replace(&mut self) -> Result<(), NetlinkError> {
        let mut installed = Installed::default();
        let all = self.claims.keys().copied().collect();
        let delta = self.delta(&mut installed, &all);
        let mut batch = Batch::new(&self.name, self.family());
        batch.replace_table();
        program::write_sets_and_leaves(&mut batch);
        write_delta(&mut batch, &delta);
        program::write_hooks(&mut batch, &self.addresses);
        self.send(batch)?;
        self.installed = Some(installed);
        Ok(())
    }

    fn commit(&self, delta: &Delta) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(&self.name, self.family());
        write_delta(&mut batch, delta);
        self.send(batch)
    }

    fn send(&self, batch: Batch) -> Result<(), NetlinkError> {
        batch.commit(self.socket.as_ref().ok_or(NetlinkError::NoAnswer)?)
    }

    /// Compares the touched frontends with what is installed, which becomes what it will be.
    fn delta(&self, installed: &mut Installed, touched: &BTreeSet<Frontend>) -> Delta {
        let mut delta = Delta::default();
        let family = self.family();
        for frontend in touched {
            let old = installed.frontends.remove(frontend);
            let old_targets = old.as_ref().map(targets).unwrap_or_default();
            let new =
                self.claims.get(frontend).and_then(|c| c.values().next()).map(|b| arranged(b, old_targets));
            let new_targets = new.as_ref().map(targets).unwrap_or_default();
            if frontend.protocol == Protocol::Udp {
                let kept: BTreeSet<&Target> = new_targets.iter().collect();
                let gone = old_targets.iter().filter(|t| !kept.contains(t));
                // A flow does not tell from where its client was.
                let place = Frontend { inside: false, ..*frontend };
                delta.stale.gone.extend(gone.map(|t| (place, *t)));
                if old_targets.is_empty() && !new_targets.is_empty() {
                    delta.stale.new.insert(place);
                }
            }
            self.count_hairpins(&mut installed.hairpin, old_targets, new_targets, &mut delta);
            let entries = |b: &Option<Backend>| {
                b.as_ref().map(|b| program::entries(family, frontend, b)).unwrap_or_default()
            };
            let (before, after): (Entries, Entries) = (entries(&old), entries(&new));
            for (key, value) in &before.elements {
                if after.elements.get(key) != Some(value) {
                    delta.remove.insert(key.clone(), value.clone());
                }
            }
            for (key, value) in after.elements {
                if before.elements.get(&key) != Some(&value) {
                    delta.add.insert(key, value);
                }
            }
            delta.picks.extend(after.picks.iter().filter(|p| installed.picks.insert(**p)));
            if let Some(new) = new {
                installed.frontends.insert(*frontend, new);
            }
        }
        self.policy_delta(installed, &mut delta);
        delta
    }

    fn policy_delta(&self, installed: &mut Installed, delta: &mut Delta) {
        let pods: BTreeSet<&IpAddr> = installed.policies.keys().chain(self.policies.keys()).collect();
        for pod in pods {
            let (old, new) = (installed.policies.get(pod), self.policies.get(pod));
            if old == new {
                continue;
            }
            let entries =
                |rules: Option<&_>| rules.map(|r| program::policy_entries(*pod, r)).unwrap_or_default();
            let (before, after) = (entries(old), entries(new));
            delta.remove.extend(before.iter().filter(|(k, v)| after.get(*k) != Some(*v)).map(owned));
            delta.add.extend(after.iter().filter(|(k, v)| before.get(*k) != Some(*v)).map(owned));
        }
        installed.policies.clone_from(&self.policies);
    }

    /// Keeps the hairpin set equal to the addresses of this node's pods that are targets.
    fn count_hairpins(
        &self,
        counts: &mut HashMap<IpAddr, usize>,
        old: &[Target],
        new: &[Target],
        delta: &mut Delta,
    ) {
        for target in new.iter().filter(|t| self.is_local_pod(t.address)) {
            let count = counts.entry(target.address).or_default();
            *count += 1;
            if *count == 1 {
                let element = program::hairpin(target.address);
                if delta.remove.remove(&element).is_none() {
                    delta.add.insert(element, Value::Nothing);
                }
            }
        }
        for target in old.iter().filter(|t| self.is_local_pod(t.address)) {
            let Some(count) = counts.get_mut(&target.address) else { continue };
            *count -= 1;
            if *count == 0 {
                counts.remove(&target.address);
                let element = program::hairpin(target.address);
                if delta.add.remove(&element).is_none() {
                    delta.remove.insert(element, Value::Nothing);
                }
            }
        }
    }

    fn is_local_pod(&self, address: IpAddr) -> bool {
        contains(self.addresses.pod_cidr, address)
    }

    fn forget_stale(&self, stale: &StaleUdp) {
        if stale.gone.is_empty() && stale.new.is_empty() {
            return;
        }
        let forgotten = conntrack::forget_udp(self.family(), |flow| is_stale(flow, stale));
        match forgotten {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "forgot UDP flows of endpoints that are gone"),
            // Only old flows suffer, and they expire.
            Err(error) => {
                tracing::warn!(%error, "UDP flows of endpoints that are gone could not be forgotten")
            }
        }
    }
}

fn is_stale(flow: &conntrack::Flow, stale: &StaleUdp) -> bool {
    let frontend = |address| Frontend::new(address, Protocol::Udp, flow.to.port());
    let direct = frontend(Some(flow.to.ip()));
    let target = Target { address: flow.answered_by.ip(), port: flow.answered_by.port() };
    let never_rewritten = flow.to == flow.answered_by;
    stale.gone.contains(&(direct, target))
        || stale.gone.contains(&(frontend(None), target))
        || (never_rewritten && stale.new.contains(&direct))
}

fn targets(backend: &Backend) -> &[Target] {
    match backend {
        Backend::Targets { targets, .. } => targets,
        Backend::Reject | Backend::Drop | Backend::DropOutside => &[],
    }
}

fn arranged(backend: &Backend, old: &[Target]) -> Backend {
    match backend {
        Backend::Targets { targets, affinity_seconds, sources } => Backend::Targets {
            targets: keep_places(old, targets.clone()),
            affinity_seconds: *affinity_seconds,
            sources: sources.clone(),
        },
        Backend::Reject | Backend::Drop | Backend::DropOutside => backend.clone(),
    }
}

fn owned((key, value): (&(Set, Vec<u8>), &Value)) -> ((Set, Vec<u8>), Value) {
    (key.clone(), value.clone())
}

fn write_delta(batch: &mut Batch, delta: &Delta) {
    for pick in &delta.picks {
        pick.write(batch);
    }
    for set in Set::ALL {
        let of = |elements: &BTreeMap<(Set, Vec<u8>), Value>| -> Vec<(Vec<u8>, Value)> {
            elements
                .iter()
                .filter(|((s, _), _)| *s == set)
                .map(|((_, k), v)| (k.clone(), v.clone()))
                .collect()
        };
        let (remove, add) = (of(&delta.remove), of(&delta.add));
        batch.remove(set.name(), remove.iter().map(|(k, v)| (&k[..], v)));
        batch.add(set.name(), add.iter().map(|(k, v)| (&k[..], v)));
    }
}

#[cfg(test)]
mod tests;
