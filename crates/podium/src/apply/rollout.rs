//! How far a workload is, read from its object alone.

use api::Object;

/// State of one workload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) text: String,
    /// Ready, or failed for good.
    pub(super) finished: bool,
}

/// State of an object of a resource; `None` for resources that have nothing to wait for.
pub(super) fn state(resource: &str, object: &Object) -> Option<State> {
    match resource {
        "deployments" | "replicasets" | "statefulsets" => Some(replicas(object)),
        "pods" => Some(pod(object)),
        _ => None,
    }
}

fn replicas(object: &Object) -> State {
    let count = |field: &str| object.i64(&["status", field]).unwrap_or(0);
    let wanted = object.i64(&["spec", "replicas"]).unwrap_or(1);
    let seen = count("observedGeneration") >= object.i64(&["metadata", "generation"]).unwrap_or(0);
    let updated = object.get(&["status", "updatedReplicas"]).map_or(wanted, |v| v.as_i64().unwrap_or(0));
    let (ready, available, all) = (count("readyReplicas"), count("availableReplicas"), count("replicas"));
    if let Some(message) = condition(object, "Progressing", "False") {
        return State { text: format!("failed: {message}"), finished: true };
    }
    let finished = seen && updated >= wanted && available >= wanted && all == wanted;
    let text = if finished {
        format!("ready: {ready} of {wanted} replicas")
    } else {
        format!("{ready} of {wanted} replicas ready")
    };
    State { text, finished }
}

fn pod(object: &Object) -> State {
    let phase = object.str(&["status", "phase"]);
    match phase {
        "Succeeded" => State { text: "completed".into(), finished: true },
        "Failed" => State { text: format!("failed: {}", object.str(&["status", "message"])), finished: true },
        _ if condition(object, "Ready", "True").is_some() => State { text: "ready".into(), finished: true },
        _ => State { text: waiting(object).unwrap_or(phase).to_owned(), finished: false },
    }
}

/// Why the first waiting container waits.
fn waiting(object: &Object) -> Option<&str> {
    let containers = object.get(&["status", "containerStatuses"])?.as_array()?;
    containers.iter().find_map(|c| c["state"]["waiting"]["reason"].as_str())
}

fn condition<'a>(object: &'a Object, kind: &str, status: &str) -> Option<&'a str> {
    let conditions = object.get(&["status", "conditions"])?.as_array()?;
    let found = conditions.iter().find(|c| c["type"] == kind && c["status"] == status)?;
    Some(found["message"].as_str().unwrap_or_default())
}

/// URL of a Service's first TCP port from this machine: its node port, else its cluster address.
pub(super) fn address(resource: &str, object: &Object) -> Option<String> {
    if resource != "services" {
        return None;
    }
    let ports = object.get(&["spec", "ports"])?.as_array()?;
    let port = ports.iter().find(|p| p["protocol"].as_str().unwrap_or("TCP") == "TCP")?;
    if let Some(node_port) = port["nodePort"].as_i64() {
        return Some(format!("http://127.0.0.1:{node_port}/"));
    }
    let address = object.str(&["spec", "clusterIP"]);
    let usable = !address.is_empty() && address != "None";
    let port = port["port"].as_i64()?;
    usable.then(|| format!("http://{address}:{port}/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn a_deployment_is_ready_only_when_its_newest_generation_is_available() {
        let table = [
            (json!({}), "0 of 3 replicas ready", false),
            (
                json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3, "availableReplicas": 3}),
                "3 of 3 replicas ready",
                false,
            ),
            (
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3, "availableReplicas": 3}),
                "3 of 3 replicas ready",
                false,
            ),
            (
                json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "readyReplicas": 4, "availableReplicas": 4}),
                "4 of 3 replicas ready",
                false,
            ),
            (
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3, "availableReplicas": 3}),
                "ready: 3 of 3 replicas",
                true,
            ),
            (
                json!({"conditions": [{"type": "Progressing", "status": "False", "message": "deadline"}]}),
                "failed: deadline",
                true,
            ),
        ];
        for (status, text, finished) in table {
            let deployment =
                object(json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}));
            assert_eq!(state("deployments", &deployment), Some(State { text: text.into(), finished }));
        }
    }

    #[test]
    fn services_are_reached_by_node_port_or_cluster_address() {
        let service = |spec: Value| address("services", &object(json!({"spec": spec})));
        let port = json!([{"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP"}]);
        assert_eq!(
            service(json!({"clusterIP": "10.96.1.2", "ports": port})).unwrap(),
            "http://10.96.1.2:80/"
        );
        assert_eq!(service(json!({"clusterIP": "None", "ports": port})), None);
        let port = json!([{"port": 80, "nodePort": 30080}]);
        assert_eq!(
            service(json!({"clusterIP": "10.96.1.2", "ports": port})).unwrap(),
            "http://127.0.0.1:30080/"
        );
    }
}
