//! The Node object: registration, status, lease.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{GroupVersionResource, ObjectKey, PatchType, RequestOptions, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::eviction::{Measure, Signal};
use crate::ports::RuntimeHandler;
use crate::worker::Shared;

/// API version that the node speaks.
const KUBELET_VERSION: &str = "v1.37.0";
/// Where the node's own server listens (Kubernetes, "Ports and Protocols").
pub const SERVER_PORT: u16 = 10250;
/// A lease is renewed after this part of its life.
const RENEWALS: u32 = 4;
/// An unchanged status is written again this often.
pub(crate) const REPORT: Duration = Duration::from_secs(300);

/// What the machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub kernel: String,
    pub os_image: String,
    pub architecture: String,
    pub machine_id: String,
    pub boot_id: String,
}

/// Reads the machine's facts. What cannot be read stays empty.
pub fn machine(config: &NodeConfig) -> Machine {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let meminfo = text("/proc/meminfo");
    let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        memory.and_then(|m| m.trim().split(' ').next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let release = text("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let disk =
        rustix::fs::statvfs(&config.root_dir).map(|s| s.f_blocks.saturating_mul(s.f_frsize)).unwrap_or(0);
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        memory_bytes: kib * 1024,
        disk_bytes: disk,
        kernel: text("/proc/sys/kernel/osrelease"),
        os_image: name.unwrap_or("Linux").trim_matches('"').to_owned(),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .into(),
        machine_id: text("/etc/machine-id"),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
    }
}

/// The Node as it should be registered.
pub fn node_object(config: &NodeConfig, machine: &Machine, now: Timestamp) -> core::Node {
    let name = config.node_name.clone();
    let mut labels = BTreeMap::new();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".into());
        labels.insert(format!("{prefix}/arch"), machine.architecture.clone());
    }
    labels.insert("kubernetes.io/hostname".into(), name.clone());
    labels.extend(config.labels.iter().cloned());
    core::Node {
        metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(core::NodeSpec {
            pod_cidr: config.pod_cidrs.first().cloned(),
            pod_cidrs: Some(config.pod_cidrs.clone()).filter(|cidrs| !cidrs.is_empty()),
            ..core::NodeSpec::default()
        }),
        status: Some(node_status(config, machine, &[], None, now)),
    }
}

/// The node's status; transition times are kept from `old` where nothing changed.
pub fn node_status(
    config: &NodeConfig,
    machine: &Machine,
    pressures: &[String],
    old: Option<&core::NodeStatus>,
    now: Timestamp,
) -> core::NodeStatus {
    let quantity = |text: String| Quantity(text);
    let capacity: BTreeMap<String, Quantity> = [
        ("cpu", quantity(machine.cpus.to_string())),
        ("memory", quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("ephemeral-storage", quantity(format!("{}Ki", machine.disk_bytes / 1024))),
        ("pods", quantity(config.max_pods.to_string())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let address = |kind: &str, text: String| core::NodeAddress { address: text, type_: kind.into() };
    core::NodeStatus {
        addresses: Some(
            config
                .node_ips
                .iter()
                .map(|ip| address("InternalIP", ip.to_string()))
                .chain([address("Hostname", config.node_name.clone())])
                .collect(),
        ),
        allocatable: Some(allocatable(config, machine, &capacity)),
        capacity: Some(capacity),
        conditions: Some(conditions(pressures, old, now)),
        // KEP-3619: containers get exactly the groups that a pod asks for.
        features: Some(core::NodeFeatures { supplemental_groups_policy: Some(true) }),
        daemon_endpoints: Some(core::NodeDaemonEndpoints {
            kubelet_endpoint: Some(core::DaemonEndpoint { port: i32::from(SERVER_PORT) }),
        }),
        node_info: Some(core::NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("podium://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.machine_id.clone(),
            ..core::NodeSystemInfo::default()
        }),
        ..core::NodeStatus::default()
    }
}

/// What pods may take: nothing of what hard eviction thresholds keep free ("Node Allocatable").
fn allocatable(
    config: &NodeConfig,
    machine: &Machine,
    capacity: &BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let mut left = capacity.clone();
    let kept = [
        ("memory", Signal::Memory, machine.memory_bytes),
        ("ephemeral-storage", Signal::Disk, machine.disk_bytes),
    ];
    for (name, signal, total) in kept {
        let hard = config.eviction.thresholds.iter().find(|t| t.signal == signal && t.grace.is_none());
        let amount = hard.map_or(0, |t| t.amount(Measure { available: total, total }));
        left.insert(name.into(), Quantity(format!("{}Ki", total.saturating_sub(amount) / 1024)));
    }
    left
}

fn conditions(
    pressures: &[String],
    old: Option<&core::NodeStatus>,
    now: Timestamp,
) -> Vec<core::NodeCondition> {
    let list = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let known = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let pressed = [
        (
            "MemoryPressure",
            "True",
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    ];
    let list = list.map(|calm| {
        let shown = pressed.into_iter().find(|p| p.0 == calm.0 && pressures.iter().any(|name| name == p.0));
        shown.unwrap_or(calm)
    });
    let condition = |(name, status, reason, message): (&str, &str, &str, &str)| {
        let same = known.iter().find(|c| c.type_ == name && c.status == status);
        core::NodeCondition {
            type_: name.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: same
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(now.clone())),
        }
    };
    list.into_iter().map(condition).collect()
}

fn nodes() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "nodes")
}

/// Creates the Node, or brings an existing one up to date.
///
/// # Errors
/// The API's.
pub(crate) async fn register(shared: &Shared, machine: &Machine) -> Result<(), Status> {
    let now = shared.clock.now();
    let wanted = node_object(&shared.config, machine, now);
    match shared.client.create(None, &wanted).await {
        Ok(_) => {}
        Err(status) if status.is_already_exists() => {
            let key = ObjectKey::new("", shared.config.node_name.clone());
            let mut patch = json!({"metadata": {"labels": wanted.metadata.labels}});
            let present: core::Node = shared.client.get(&key).await?;
            let has_cidr = present.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
            if let Some(first) = shared.config.pod_cidrs.first().filter(|_| !has_cidr) {
                patch["spec"] = json!({"podCIDR": first, "podCIDRs": shared.config.pod_cidrs});
            }
            let options = RequestOptions::default();
            shared.client.patch(&nodes(), &key, None, PatchType::Merge, &patch, options).await?;
        }
        Err(status) => return Err(status),
    }
    report(shared, machine).await
}

/// Writes the status.
async fn report(shared: &Shared, machine: &Machine) -> Result<(), Status> {
    let key = ObjectKey::new("", shared.config.node_name.clone());
    let present: core::Node = shared.client.get(&key).await?;
    let pressures = shared.pressures.borrow().clone();
    let old = present.status.as_ref();
    let mut status = node_status(&shared.config, machine, &pressures, old, shared.clock.now());
    let list = shared.runtime.list_images().await.unwrap_or_default();
    let image = |i: crate::ports::ImageInfo| core::ContainerImage {
        names: Some(i.repo_digests.into_iter().chain(i.repo_tags).collect()),
        size_bytes: i64::try_from(i.size_bytes).ok(),
    };
    status.images = Some(list.into_iter().take(50).map(image).collect());
    status.runtime_handlers = Some(shared.runtime.handlers().into_iter().map(handler).collect());
    let ours: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    let foreign: Vec<core::NodeCondition> = present
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter(|c| !ours.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    status.conditions.get_or_insert_with(Vec::new).extend(foreign);
    let value: Value = serde_json::to_value(&status).map_err(Status::internal)?;
    let patch = json!({"metadata": {"uid": present.metadata.uid}, "status": value});
    let options = RequestOptions::default();
    shared.client.patch(&nodes(), &key, Some("status"), PatchType::Merge, &patch, options).await?;
    Ok(())
}

/// As in `status.runtimeHandlers` (KEP-3857).
fn handler(handler: RuntimeHandler) -> core::NodeRuntimeHandler {
    core::NodeRuntimeHandler {
        name: Some(handler.name),
        features: Some(core::NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
            user_namespaces: Some(handler.user_namespaces),
        }),
    }
}

/// Registers, then renews the lease and writes the status in their rhythm until `stop` turns true.
pub(crate) async fn run(shared: &Shared, mut stop: watch::Receiver<bool>) {
    let machine = machine(&shared.config);
    let mut registered = false;
    let mut next_report = Duration::ZERO;
    let mut renewed = None;
    let mut pressures = shared.pressures.subscribe();
    loop {
        let now = shared.clock.monotonic();
        if !registered || now >= next_report {
            let result =
                if registered { report(shared, &machine).await } else { register(shared, &machine).await };
            match result {
                Ok(()) => {
                    registered = true;
                    next_report = now + REPORT;
                }
                Err(status) if status.is_not_found() => registered = false,
                Err(error) => tracing::warn!(%error, "cannot report the node"),
            }
        }
        let between = shared.config.lease_duration / RENEWALS;
        if registered {
            match renew(shared).await {
                Ok(()) => {
                    let now = shared.clock.monotonic();
                    let late = renewed.is_some_and(|before| now.saturating_sub(before) > 2 * between);
                    renewed = Some(now);
                    // Who was silent may have been given up: only a report says that the node is well again.
                    if late {
                        next_report = Duration::ZERO;
                        continue;
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot renew the node's lease"),
            }
        }
        let wait = if registered { between } else { Duration::from_secs(1) };
        tokio::select! {
            () = shared.clock.sleep(wait) => {}
            () = crate::agent::stopped(&mut stop) => return,
            Ok(()) = pressures.changed() => next_report = Duration::ZERO,
        }
    }
}

/// Renews the node's lease (KEP-589).
async fn renew(shared: &Shared) -> Result<(), Status> {
    let leases = GroupVersionResource::new("coordination.k8s.io", "v1", "leases");
    let name = shared.config.node_name.clone();
    let key = ObjectKey::new("kube-node-lease", name.clone());
    let now = Timestamp::from_microsecond(shared.clock.now().as_microsecond()).unwrap_or_default();
    let renew_time = format!("{now:.6}");
    let seconds = shared.config.lease_duration.as_secs().max(1);
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": renew_time});
    let options = RequestOptions::default();
    let patch = json!({"spec": spec});
    match shared.client.patch(&leases, &key, None, PatchType::Merge, &patch, options).await {
        Err(status) if status.is_not_found() => {}
        other => return other.map(drop),
    }
    let node: core::Node = shared.client.get(&ObjectKey::new("", name.clone())).await?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid},
        ]},
        "spec": spec,
    });
    let bytes = serde_json::to_vec(&lease).map_err(Status::internal)?;
    let request = api::ApiRequest::resource(api::Verb::Create, leases, Some("kube-node-lease"), None, None);
    shared.client.call(request.with_json(bytes)).await?;
    Ok(())
}
