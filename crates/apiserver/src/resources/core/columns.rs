//! Printer columns of the core group that need more than a line.

use api::Object;
use jiff::Timestamp;
use serde_json::Value;

use crate::printing::{cells, pod};
use crate::resource::Column;
use crate::resources::row::{col, wide};

pub(super) fn pod_before_age() -> Vec<Column> {
    vec![
        col("Ready", "string", "Ready containers of all containers.", pod::ready),
        col("Status", "string", "What the containers of the pod are up to.", pod::status),
        col("Restarts", "string", "How often containers were restarted, and when last.", pod::restarts),
    ]
}

pub(super) fn pod_after_age() -> Vec<Column> {
    vec![
        wide("IP", "string", "Address of the pod.", pod::ip),
        wide("Node", "string", "Node the pod runs on.", |o, _| {
            cells::or_none(o.str(&["spec", "nodeName"])).into()
        }),
        wide("Nominated Node", "string", "Node where room is made for the pod.", |o, _| {
            cells::or_none(o.str(&["status", "nominatedNodeName"])).into()
        }),
        wide("Readiness Gates", "string", "Fulfilled readiness gates of all.", pod::readiness_gates),
    ]
}

pub(super) fn template_with_label_selector() -> Vec<Column> {
    vec![
        wide("Containers", "string", "Names of the template's containers.", cells::template_containers),
        wide("Images", "string", "Images of the template's containers.", cells::template_images),
        wide("Selector", "string", "Which pods belong to this object.", cells::spec_selector_labels),
    ]
}

fn node_status(o: &Object, _: Timestamp) -> Value {
    let ready = match cells::condition(o, "Ready") {
        "True" => "Ready",
        "" => "Unknown",
        _ => "NotReady",
    };
    if o.get(&["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true) {
        return format!("{ready},SchedulingDisabled").into();
    }
    ready.into()
}

fn node_roles(o: &Object, _: Timestamp) -> Value {
    let labels = o.get(&["metadata", "labels"]).and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    cells::or_none(&roles.join(",")).into()
}

fn node_address(o: &Object, type_: &str) -> Value {
    let all = cells::list(o, &["status", "addresses"]);
    let found = all.iter().find(|a| cells::sub(a, "type") == type_).map(|a| cells::sub(a, "address"));
    cells::or_none(found.unwrap_or_default()).into()
}

fn node_info(o: &Object, name: &str) -> String {
    match o.str(&["status", "nodeInfo", name]) {
        "" => "<unknown>".to_owned(),
        text => text.to_owned(),
    }
}

pub(super) fn node_before_age() -> Vec<Column> {
    vec![
        col("Status", "string", "Whether the node is ready.", node_status),
        col("Roles", "string", "Roles given by labels.", node_roles),
    ]
}

pub(super) fn node_after_age() -> Vec<Column> {
    vec![
        col("Version", "string", "Version of the node agent.", |o, _| {
            o.str(&["status", "nodeInfo", "kubeletVersion"]).into()
        }),
        wide("Internal-IP", "string", "Address inside the cluster.", |o, _| node_address(o, "InternalIP")),
        wide("External-IP", "string", "Address outside the cluster.", |o, _| node_address(o, "ExternalIP")),
        wide("OS-Image", "string", "Operating system.", |o, _| node_info(o, "osImage").into()),
        wide("Kernel-Version", "string", "Kernel.", |o, _| node_info(o, "kernelVersion").into()),
        wide("Container-Runtime", "string", "Container runtime.", |o, _| {
            node_info(o, "containerRuntimeVersion").into()
        }),
    ]
}

fn external_ip(o: &Object, _: Timestamp) -> Value {
    let external = cells::joined(cells::list(o, &["spec", "externalIPs"]));
    match o.str(&["spec", "type"]) {
        "ExternalName" => o.str(&["spec", "externalName"]).into(),
        "LoadBalancer" => {
            let both = [cells::load_balancer(o), external];
            let text = both.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(",");
            if text.is_empty() { "<pending>".into() } else { text.into() }
        }
        "ClusterIP" | "NodePort" => cells::or_none(&external).into(),
        _ => "<unknown>".into(),
    }
}

fn service_ports(o: &Object, _: Timestamp) -> Value {
    let texts: Vec<String> = cells::list(o, &["spec", "ports"])
        .iter()
        .map(|p| {
            let number = |name: &str| p.get(name).and_then(Value::as_i64).unwrap_or(0);
            let protocol = cells::sub(p, "protocol");
            match number("nodePort") {
                0 => format!("{}/{protocol}", number("port")),
                node => format!("{}:{node}/{protocol}", number("port")),
            }
        })
        .collect();
    cells::or_none(&texts.join(",")).into()
}

pub(super) fn service() -> Vec<Column> {
    vec![
        col("Type", "string", "How the Service is reached.", |o, _| o.str(&["spec", "type"]).into()),
        col("Cluster-IP", "string", "Address inside the cluster.", |o, _| {
            let first = cells::list(o, &["spec", "clusterIPs"]).first().map(cells::plain).unwrap_or_default();
            let text = if first.is_empty() { o.str(&["spec", "clusterIP"]).to_owned() } else { first };
            cells::or_none(&text).into()
        }),
        col("External-IP", "string", "Addresses outside the cluster.", external_ip),
        col("Port(s)", "string", "Ports, with node ports.", service_ports),
    ]
}

pub(super) fn service_after_age() -> Vec<Column> {
    vec![wide("Selector", "string", "Labels of the pods behind the Service.", cells::spec_selector_labels)]
}

pub(super) fn endpoints(o: &Object, _: Timestamp) -> Value {
    let mut texts = Vec::new();
    for subset in cells::list(o, &["subsets"]) {
        let addresses = || subset["addresses"].as_array().into_iter().flatten().map(|a| cells::sub(a, "ip"));
        let ports = subset["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        if ports.is_empty() {
            texts.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            texts.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", port["port"]),
                false => format!("{ip}:{}", port["port"]),
            }));
        }
    }
    if texts.is_empty() { "<none>".into() } else { cells::at_most_three(&texts).into() }
}

/// `used/hard` of the quota's entries; limits apart from everything else.
pub(super) fn quota(o: &Object, limits: bool) -> Value {
    let hard = o.get(&["status", "hard"]).and_then(Value::as_object);
    let texts: Vec<String> = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used =
                o.get(&["status", "used", name.as_str()]).map(cells::plain).unwrap_or_else(|| "0".into());
            format!("{name}: {used}/{}", cells::plain(hard))
        })
        .collect();
    texts.join(", ").into()
}

pub(super) fn volume_mode() -> Column {
    wide("VolumeMode", "string", "File system or raw device.", |o, _| {
        let mode = o.str(&["spec", "volumeMode"]);
        if mode.is_empty() { "<unset>".into() } else { mode.into() }
    })
}

fn storage_class(o: &Object, _: Timestamp) -> Value {
    let old = o.str(&["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    if old.is_empty() { o.str(&["spec", "storageClassName"]).into() } else { old.into() }
}

fn attributes_class(o: &Object, _: Timestamp) -> Value {
    let name = o.str(&["spec", "volumeAttributesClassName"]);
    if name.is_empty() { "<unset>".into() } else { name.into() }
}

pub(super) fn volume() -> Vec<Column> {
    vec![
        col("Capacity", "string", "Size of the volume.", |o, _| {
            cells::text(o, &["spec", "capacity", "storage"]).into()
        }),
        col("Access Modes", "string", "How the volume can be mounted.", |o, _| {
            cells::access_modes(cells::list(o, &["spec", "accessModes"])).into()
        }),
        col("Reclaim Policy", "string", "What happens to the released volume.", |o, _| {
            o.str(&["spec", "persistentVolumeReclaimPolicy"]).into()
        }),
        col("Status", "string", "Phase of the volume.", |o, _| match o.is_deleting() {
            true => "Terminating".into(),
            false => o.str(&["status", "phase"]).into(),
        }),
        col("Claim", "string", "The claim bound to the volume.", |o, _| {
            let text = |name| o.str(&["spec", "claimRef", name]);
            match text("name") {
                "" => "".into(),
                name => format!("{}/{name}", text("namespace")).into(),
            }
        }),
        col("StorageClass", "string", "StorageClass of the volume.", storage_class),
        col("VolumeAttributesClass", "string", "VolumeAttributesClass of the volume.", attributes_class),
        col("Reason", "string", "Why the volume failed.", |o, _| o.str(&["status", "reason"]).into()),
    ]
}

pub(super) fn claim() -> Vec<Column> {
    vec![
        col("Status", "string", "Phase of the claim.", |o, _| match o.is_deleting() {
            true => "Terminating".into(),
            false => o.str(&["status", "phase"]).into(),
        }),
        col("Volume", "string", "The bound volume.", |o, _| o.str(&["spec", "volumeName"]).into()),
        col("Capacity", "string", "Size of the bound volume.", |o, _| match o.str(&["spec", "volumeName"]) {
            "" => "".into(),
            _ => cells::text(o, &["status", "capacity", "storage"]).into(),
        }),
        col("Access Modes", "string", "How the bound volume can be mounted.", |o, _| {
            match o.str(&["spec", "volumeName"]) {
                "" => "".into(),
                _ => cells::access_modes(cells::list(o, &["status", "accessModes"])).into(),
            }
        }),
        col("StorageClass", "string", "StorageClass of the claim.", storage_class),
        col("VolumeAttributesClass", "string", "VolumeAttributesClass of the claim.", attributes_class),
    ]
}
