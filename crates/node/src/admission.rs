//! Which pods the node takes: what is bound to it by hand, or by a scheduler that knew less, must not take what others
//! have. A pod that is not taken fails for good, and its owner makes another.
//!
//! ```text
//!   new pod ─▶ check (pure) against the book of what is promised ─▶ taken, entered in the book │ Failed: OutOfcpu, NodePorts, …
//!   resized pod ─▶ the same check ─▶ taken │ deferred until something leaves │ infeasible
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1 as core;
use tokio::sync::watch;

use crate::affinity;
use crate::observed::{Failure, NodeFacts, spec};
use crate::resources::{Amounts, milli, pod_requests};

/// Kernel parameters of a pod's own namespaces that harm nobody else ("Using sysctls in a Kubernetes Cluster").
const SAFE_SYSCTLS: [&str; 13] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
];

/// What the node has to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// In thousandths, by resource.
    pub allocatable: Amounts,
    /// The Node has been read: it has nothing but this.
    pub whole: bool,
    pub labels: BTreeMap<String, String>,
    pub max_pods: usize,
    /// Names of the node conditions that keep pods away, as `MemoryPressure`.
    pub pressures: Vec<String>,
}

impl Supply {
    /// From the Node, as far as it is known, else from the machine.
    pub fn new(node: Option<&core::Node>, facts: &NodeFacts, max_pods: u32) -> Self {
        let status = node.and_then(|n| n.status.as_ref());
        let mut allocatable: Amounts = BTreeMap::from([
            ("cpu".to_owned(), i128::from(facts.cpu_milli)),
            ("memory".into(), i128::from(facts.memory_bytes) * 1000),
        ]);
        let told_any = status.is_some_and(|s| s.allocatable.is_some());
        let told = status.and_then(|s| s.allocatable.as_ref()).into_iter().flatten();
        allocatable.extend(told.filter_map(|(name, q)| Some((name.clone(), milli(&q.0)?))));
        Self {
            allocatable,
            whole: told_any,
            labels: node.and_then(|n| n.metadata.labels.clone()).unwrap_or_default(),
            max_pods: max_pods as usize,
            pressures: Vec::new(),
        }
    }
}

/// What is promised to one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    requests: Amounts,
    ports: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn clashes(&self, other: &HostPort) -> bool {
        let every = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || every(&self.ip) || every(&other.ip))
    }
}

impl Entry {
    fn of(pod: &core::Pod) -> Self {
        let sidecars =
            crate::observed::init_containers(pod).iter().filter(|c| crate::observed::is_sidecar(c));
        let ports = spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
        let ports = ports.filter_map(|p| {
            Some(HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: p.host_port.filter(|port| *port > 0)?,
            })
        });
        Self { requests: pod_requests(spec(pod)), ports: ports.collect() }
    }
}

/// Why a resize is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Later, when something has left.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

impl Refusal {
    /// Reason and message of the condition PodResizePending.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Refusal::Deferred(message) => ("Deferred", message),
            Refusal::Infeasible(message) => ("Infeasible", message),
        }
    }
}

/// What all pods of the node have been promised.
pub struct Book {
    entries: Mutex<BTreeMap<String, Entry>>,
    freed: watch::Sender<u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self { entries: Mutex::default(), freed: watch::Sender::new(0) }
    }
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pod, or says why not.
    ///
    /// # Errors
    /// How the pod is to fail.
    pub fn admit(
        &self,
        uid: &str,
        pod: &core::Pod,
        facts: &NodeFacts,
        supply: &Supply,
    ) -> Result<(), Failure> {
        let mut entries = self.entries();
        let entry = Entry::of(pod);
        let others: Vec<&Entry> = entries.iter().filter(|(other, _)| *other != uid).map(|(_, e)| e).collect();
        check(pod, &entry, &others, facts, supply)?;
        entries.insert(uid.to_owned(), entry);
        Ok(())
    }

    /// Enters a pod that was taken before, by this agent or an earlier one.
    pub fn adopt(&self, uid: &str, pod: &core::Pod) {
        self.entries().insert(uid.to_owned(), Entry::of(pod));
    }

    /// Changes what a pod is promised.
    ///
    /// # Errors
    /// Why not.
    pub fn resize(&self, uid: &str, pod: &core::Pod, supply: &Supply) -> Result<(), Refusal> {
        let mut entries = self.entries();
        let entry = Entry::of(pod);
        if let Some((_, message)) = short_of(&entry, &[], supply) {
            return Err(Refusal::Infeasible(message));
        }
        let before = entries.get(uid).cloned().unwrap_or_default();
        let others: Vec<&Entry> = entries.iter().filter(|(other, _)| *other != uid).map(|(_, e)| e).collect();
        // Whoever asks for less is never in the way.
        let grows =
            entry.requests.iter().any(|(name, amount)| before.requests.get(name).unwrap_or(&0) < amount);
        if grows && let Some((_, message)) = short_of(&entry, &others, supply) {
            return Err(Refusal::Deferred(message));
        }
        entries.insert(uid.to_owned(), entry);
        drop(entries);
        self.freed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Gives back what a pod had. Nothing happens when it had nothing.
    pub fn release(&self, uid: &str) {
        if self.entries().remove(uid).is_some() {
            self.freed.send_modify(|count| *count += 1);
        }
    }

    /// Changes whenever a pod has left or shrunk.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }
}

fn rejected(reason: &str, message: &str) -> Failure {
    Failure { reason: reason.into(), message: format!("Pod was rejected: {message}"), ..Failure::default() }
}

fn check(
    pod: &core::Pod,
    entry: &Entry,
    others: &[&Entry],
    facts: &NodeFacts,
    supply: &Supply,
) -> Result<(), Failure> {
    if let Some(name) = forbidden_sysctl(pod) {
        return Err(rejected("SysctlForbidden", &format!("forbidden sysctl: {name:?} not allowlisted")));
    }
    if !affinity::fits(pod, &facts.node_name, &supply.labels) {
        let why = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(rejected("NodeAffinity", why));
    }
    if entry.ports.iter().any(|port| others.iter().any(|o| o.ports.iter().any(|p| p.clashes(port)))) {
        let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(rejected("NodePorts", why));
    }
    if let Some((resource, message)) = short_of(entry, others, supply) {
        return Err(rejected(&format!("OutOf{resource}"), &message));
    }
    if let Some(pressure) = supply.pressures.iter().find(|pressure| !stands(pod, pressure)) {
        return Err(rejected("Evicted", &format!("The node had condition: [{pressure}]. ")));
    }
    Ok(())
}

/// Critical pods are always taken; memory pressure keeps away only those that promised nothing.
fn stands(pod: &core::Pod, pressure: &str) -> bool {
    let critical = spec(pod).priority.is_some_and(|p| p >= 2_000_000_000);
    critical || (pressure == "MemoryPressure" && crate::resources::qos_class(spec(pod)) != "BestEffort")
}

fn forbidden_sysctl(pod: &core::Pod) -> Option<&str> {
    let list = spec(pod).security_context.as_ref()?.sysctls.as_deref().unwrap_or_default();
    let safe = |name: &str| SAFE_SYSCTLS.contains(&name.replace('/', ".").as_str());
    list.iter().map(|s| s.name.as_str()).find(|name| !safe(name))
}

/// The resource of which there is too little, and the message.
fn short_of(entry: &Entry, others: &[&Entry], supply: &Supply) -> Option<(String, String)> {
    if others.len() >= supply.max_pods {
        let (used, most) = (others.len(), supply.max_pods);
        return Some(("pods".into(), shortage("pods", 1, used as i128, most as i128)));
    }
    for (name, amount) in entry.requests.iter().filter(|(_, amount)| **amount > 0) {
        let used: i128 = others.iter().filter_map(|other| other.requests.get(name)).sum();
        let capacity = match supply.allocatable.get(name) {
            Some(capacity) => *capacity,
            None if supply.whole => 0,
            None => continue,
        };
        if used + amount > capacity {
            // cpu is counted in thousandths, everything else in whole units.
            let unit = if name == "cpu" { 1 } else { 1000 };
            let message = shortage(name, amount / unit, used / unit, capacity / unit);
            return Some((name.clone(), message));
        }
    }
    None
}

fn shortage(name: &str, wanted: i128, used: i128, capacity: i128) -> String {
    format!(
        "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> core::Pod {
        let mut full = json!({"containers": [{"name": "c", "image": "i"}]});
        for (name, value) in spec.as_object().unwrap() {
            full[name] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": full})).unwrap()
    }

    fn container(requests: Value, ports: Value) -> Value {
        json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}, "ports": ports}]})
    }

    fn supply() -> Supply {
        let allocatable = [("cpu", 2000), ("memory", 4 << 30), ("x.y/z", 1000)];
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        let allocatable = allocatable.map(|(n, v)| (n.to_owned(), v * if n == "memory" { 1000 } else { 1 }));
        Supply { allocatable: allocatable.into(), whole: true, labels, max_pods: 3, pressures: Vec::new() }
    }

    fn facts() -> NodeFacts {
        NodeFacts { node_name: "n".into(), ..NodeFacts::default() }
    }

    #[test]
    fn pods_that_do_not_fit_fail_with_a_reason() {
        let book = Book::default();
        let web = container(json!({"cpu": "1500m"}), json!([{"hostPort": 80, "containerPort": 80}]));
        book.admit("1", &pod(web), &facts(), &supply()).unwrap();
        let port = |ip: &str, port: u16, protocol: &str| {
            container(
                json!({}),
                json!([{"hostIP": ip, "hostPort": port, "protocol": protocol, "containerPort": 1}]),
            )
        };
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let table = [
            (json!({}), ""),
            (container(json!({"cpu": "500m"}), json!([])), ""),
            (container(json!({"cpu": "501m"}), json!([])), "OutOfcpu"),
            (container(json!({"memory": "5Gi"}), json!([])), "OutOfmemory"),
            (container(json!({"x.y/z": "2"}), json!([])), "OutOfx.y/z"),
            (port("127.0.0.1", 80, "TCP"), "NodePorts"),
            (port("", 80, "UDP"), ""),
            (port("", 81, "TCP"), ""),
            (json!({"nodeSelector": {"zone": "b"}}), "NodeAffinity"),
            (sysctl("kernel.msgmax"), "SysctlForbidden"),
            (sysctl("kernel/shm_rmid_forced"), ""),
        ];
        for (spec, reason) in table {
            let outcome = book.admit("2", &pod(spec.clone()), &facts(), &supply());
            assert_eq!(outcome.err().map(|f| f.reason).unwrap_or_default(), reason, "{spec}");
            book.release("2");
        }
        let error = book.admit("2", &pod(container(json!({"cpu": "1"}), json!([]))), &facts(), &supply());
        let want = "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000";
        assert_eq!(error.unwrap_err().message, want);
    }

    #[test]
    fn there_is_room_for_so_many_pods_and_under_pressure_for_few() {
        let book = Book::default();
        for uid in ["1", "2", "3"] {
            book.admit(uid, &pod(json!({})), &facts(), &supply()).unwrap();
        }
        let full = book.admit("4", &pod(json!({})), &facts(), &supply());
        assert_eq!(full.unwrap_err().reason, "OutOfpods");
        book.release("3");
        let pressed = Supply { pressures: vec!["MemoryPressure".into()], ..supply() };
        let burstable = container(json!({"memory": "1Mi"}), json!([]));
        let outcomes = [json!({}), burstable, json!({"priority": 2_000_000_000})].map(|spec| {
            let outcome = book.admit("3", &pod(spec), &facts(), &pressed);
            outcome.err().map(|f| f.reason)
        });
        assert_eq!(outcomes, [Some("Evicted".to_owned()), None, None]);
    }

    #[test]
    fn resizes_wait_for_room_or_never_get_it() {
        let book = Book::default();
        let sized = |cpu: &str| pod(container(json!({"cpu": cpu}), json!([])));
        book.admit("1", &sized("1"), &facts(), &supply()).unwrap();
        book.admit("2", &sized("1"), &facts(), &supply()).unwrap();
        assert!(matches!(book.resize("1", &sized("3"), &supply()), Err(Refusal::Infeasible(_))));
        assert!(matches!(book.resize("1", &sized("1500m"), &supply()), Err(Refusal::Deferred(_))));
        let freed = book.freed();
        assert_eq!(book.resize("2", &sized("500m"), &supply()), Ok(()));
        assert!(freed.has_changed().unwrap(), "those who wait are woken");
        assert_eq!(book.resize("1", &sized("1500m"), &supply()), Ok(()));
    }
}
