//! The objects every cluster starts with. What is missing is made at each start, what has drifted is mended, what people
//! added stays.

use std::net::{IpAddr, Ipv4Addr};

use api::{ApiRequest, GroupVersionResource, Object, Status, Verb};
use serde_json::{Value, json};

use crate::authz::{MASTERS, policy};
use crate::resource::UserInfo;
use crate::server::{ApiServer, FrontProxy, OpenError, ServerConfig};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Priorities of what the cluster itself needs (Kubernetes, "Pod Priority and Preemption").
const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// Makes and mends the objects.
pub(crate) async fn run(server: &ApiServer) -> Result<(), OpenError> {
    let make = Maker { server, user: UserInfo::new("system:apiserver", &[MASTERS, "system:authenticated"]) };
    for name in ["kube-system", "default", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make.ensure(("", "v1", "namespaces"), None, namespace, |_, _| false).await?;
    }
    let rbac = |resource| ("rbac.authorization.k8s.io", "v1", resource);
    for role in policy::cluster_roles() {
        make.ensure(rbac("clusterroles"), None, role, |is, want| add_missing(is, want, "rules")).await?;
    }
    for binding in policy::cluster_role_bindings() {
        let mend = |is: &mut Object, want: &Value| add_missing(is, want, "subjects");
        make.ensure(rbac("clusterrolebindings"), None, binding, mend).await?;
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description});
        make.ensure(("scheduling.k8s.io", "v1", "priorityclasses"), None, class, |_, _| false).await?;
    }
    for role in policy::roles() {
        let namespace = policy::NAMESPACE;
        make.ensure(rbac("roles"), Some(namespace), role, |is, want| add_missing(is, want, "rules")).await?;
    }
    for binding in policy::role_bindings() {
        let mend = |is: &mut Object, want: &Value| add_missing(is, want, "subjects");
        make.ensure(rbac("rolebindings"), Some(policy::NAMESPACE), binding, mend).await?;
    }
    let authentication = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": policy::AUTHENTICATION, "namespace": policy::NAMESPACE},
        "data": authentication(&server.config)});
    make.ensure(("", "v1", "configmaps"), Some(policy::NAMESPACE), authentication, |is, want| {
        take(is, want, &["data"])
    })
    .await?;
    own_network(&make).await?;
    second_family(&make).await?;
    own_service(&make).await
}

/// How other API servers find out who asks them (Kubernetes, "Configure the Aggregation Layer").
fn authentication(config: &ServerConfig) -> Value {
    let mut data = json!({"client-ca-file": config.client_ca_pem});
    if let Some(proxy) = &config.front_proxy {
        data["requestheader-client-ca-file"] = proxy.ca_pem.clone().into();
        for (name, values) in [
            ("requestheader-allowed-names", FrontProxy::NAME),
            ("requestheader-username-headers", "X-Remote-User"),
            ("requestheader-uid-headers", "X-Remote-Uid"),
            ("requestheader-group-headers", "X-Remote-Group"),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ] {
            data[name] = json!([values]).to_string().into();
        }
    }
    data
}

/// Nodes that are older than the cluster's second family get their network of it.
async fn second_family(make: &Maker<'_>) -> Result<(), OpenError> {
    if make.server.config.cluster_cidrs.len() < 2 {
        return Ok(());
    }
    let failed = |status| OpenError::Bootstrap { what: "pod networks of the nodes".to_owned(), status };
    let gvr = GroupVersionResource::new("", "v1", "nodes");
    let all = ApiRequest::resource(Verb::List, gvr.clone(), None, None, None);
    let list = make.send(all, None).await.map_err(failed)?;
    for node in list["items"].as_array().into_iter().flatten() {
        if node["spec"]["podCIDRs"].as_array().is_some_and(|networks| networks.len() == 1) {
            let name = node["metadata"]["name"].as_str();
            // The Node's own rules do it with every write.
            let request = ApiRequest::resource(Verb::Update, gvr.clone(), None, name, None);
            make.send(request, Some(node)).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// The network that Service addresses come from, as an object for those who look it up.
async fn own_network(make: &Maker<'_>) -> Result<(), OpenError> {
    let row = ("networking.k8s.io", "v1", "servicecidrs");
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": make.server.config.service_cidrs}});
    // A family that the cluster has gained is added; none is taken away.
    let mend = |is: &mut Object, want: &Value| {
        let count = |list: Option<&Value>| list.and_then(Value::as_array).map_or(0, Vec::len);
        let gained = count(is.get(&["spec", "cidrs"])) < count(want["spec"].get("cidrs"));
        gained && take(is, want, &["spec", "cidrs"])
    };
    make.ensure(row, None, cidr, mend).await?;
    let failed = |status| OpenError::Bootstrap { what: "status of the ServiceCIDR".to_owned(), status };
    let gvr = GroupVersionResource::new(row.0, row.1, row.2);
    let Some(mut cidr) = make.get(&gvr, None, "kubernetes").await.map_err(failed)? else { return Ok(()) };
    if cidr.get(&["status", "conditions"]).is_none() {
        let now = cidr.str(&["metadata", "creationTimestamp"]);
        let ready = json!([{"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": now}]);
        cidr.set(&["status", "conditions"], ready);
        let request = ApiRequest::resource(Verb::Update, gvr, None, Some("kubernetes"), Some("status"));
        make.send(request, Some(&cidr.into_value())).await.map_err(failed)?;
    }
    Ok(())
}

/// The Service by which pods reach the API server.
async fn own_service(make: &Maker<'_>) -> Result<(), OpenError> {
    let config = &make.server.config;
    let advertise = config.advertise;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None",
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertise.port()}]});
    if let Some(address) = config.service_cidrs.first().and_then(|cidr| first_address(cidr)) {
        spec["clusterIP"] = address.to_string().into();
    }
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels}, "spec": spec});
    let mend = |is: &mut Object, want: &Value| take(is, want, &["spec", "ports"]);
    make.ensure(("", "v1", "services"), Some("default"), service, mend).await?;
    let reachable = !advertise.ip().is_loopback() && !advertise.ip().is_unspecified();
    if !reachable {
        tracing::warn!(address = %advertise, "pods cannot reach the API server at its advertised address");
        return Ok(());
    }
    let family = if matches!(advertise.ip(), IpAddr::V4(_)) { "IPv4" } else { "IPv6" };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}]});
    let slices = ("discovery.k8s.io", "v1", "endpointslices");
    let mend = |is: &mut Object, want: &Value| take(is, want, &["endpoints"]) | take(is, want, &["ports"]);
    make.ensure(slices, Some("default"), slice, mend).await?;
    // The same for those who read the older kind.
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": advertise.ip().to_string()}],
            "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}]}]});
    let mend = |is: &mut Object, want: &Value| take(is, want, &["subsets"]);
    make.ensure(("", "v1", "endpoints"), Some("default"), endpoints, mend).await
}

/// The first usable address of a CIDR.
fn first_address(cidr: &str) -> Option<IpAddr> {
    let base: Ipv4Addr = cidr.split('/').next()?.parse().ok()?;
    Some(Ipv4Addr::from_bits(base.to_bits().checked_add(1)?).into())
}

/// Replaces a part that differs from what is wanted; members beyond the wanted ones (defaults) do not count.
fn take(is: &mut Object, want: &Value, path: &[&str]) -> bool {
    let wanted = path.iter().fold(want, |value, name| &value[name]);
    if is.get(path).is_some_and(|value| contains(value, wanted)) {
        return false;
    }
    is.set(path, wanted.clone());
    true
}

fn contains(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Object(have), Value::Object(want)) => {
            want.iter().all(|(name, want)| have.get(name).is_some_and(|have| contains(have, want)))
        }
        (Value::Array(have), Value::Array(want)) => {
            have.len() == want.len() && have.iter().zip(want).all(|(have, want)| contains(have, want))
        }
        _ => value == wanted,
    }
}

/// Adds the items of a list that are missing, unless the administrator has forbidden it.
fn add_missing(is: &mut Object, want: &Value, field: &str) -> bool {
    if is.str(&["metadata", "annotations", AUTOUPDATE]) == "false" {
        return false;
    }
    let mut items = is.get(&[field]).and_then(Value::as_array).cloned().unwrap_or_default();
    let before = items.len();
    for item in want[field].as_array().into_iter().flatten() {
        if !items.contains(item) {
            items.push(item.clone());
        }
    }
    let changed = items.len() > before;
    if changed {
        is.set(&[field], items);
    }
    changed
}

struct Maker<'a> {
    server: &'a ApiServer,
    user: UserInfo,
}

impl Maker<'_> {
    /// Creates an object, or mends the present one when `mend` changes it.
    async fn ensure(
        &self,
        (group, version, resource): (&str, &str, &str),
        namespace: Option<&str>,
        want: Value,
        mend: impl Fn(&mut Object, &Value) -> bool,
    ) -> Result<(), OpenError> {
        let gvr = GroupVersionResource::new(group, version, resource);
        let name = want["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let failed = |status: Status| OpenError::Bootstrap { what: format!("{gvr} {name}"), status };
        match self.get(&gvr, namespace, &name).await.map_err(failed)? {
            Some(mut is) => {
                if mend(&mut is, &want) {
                    let request =
                        ApiRequest::resource(Verb::Update, gvr.clone(), namespace, Some(&name), None);
                    self.send(request, Some(&is.into_value())).await.map_err(failed)?;
                }
            }
            None => {
                let request = ApiRequest::resource(Verb::Create, gvr.clone(), namespace, None, None);
                match self.send(request, Some(&want)).await {
                    Err(status) if !status.is_already_exists() => return Err(failed(status)),
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    async fn get(
        &self,
        gvr: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Object>, Status> {
        let request = ApiRequest::resource(Verb::Get, gvr.clone(), namespace, Some(name), None);
        match self.send(request, None).await {
            Ok(value) => Ok(Object::from_value(value)),
            Err(status) if status.is_not_found() => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn send(&self, mut request: ApiRequest, body: Option<&Value>) -> Result<Value, Status> {
        if let Some(body) = body {
            request = request.with_json(body.to_string());
        }
        request.user_agent = "podium-apiserver".to_owned();
        // No webhook of a user may keep the server from starting.
        let response = self.server.registry.handle_unreviewed(&self.user, &request).await?;
        let bytes = response.into_bytes()?;
        serde_json::from_slice(&bytes).map_err(Status::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_follows_the_base() {
        assert_eq!(first_address("10.96.0.0/16").map(|ip| ip.to_string()).as_deref(), Some("10.96.0.1"));
        assert_eq!(first_address("nonsense"), None);
    }

    #[test]
    fn drift_is_mended_and_additions_stay() {
        let mut is = Object::from_value(json!({"rules": [{"verbs": ["get"]}, {"verbs": ["own"]}]})).unwrap();
        assert!(add_missing(&mut is, &json!({"rules": [{"verbs": ["list"]}, {"verbs": ["get"]}]}), "rules"));
        assert_eq!(is.get(&["rules"]).and_then(Value::as_array).map(Vec::len), Some(3));
        assert!(!add_missing(&mut is, &json!({"rules": [{"verbs": ["list"]}]}), "rules"));
        let mut service =
            Object::from_value(json!({"spec": {"ports": [{"port": 443, "protocol": "TCP"}]}})).unwrap();
        assert!(!take(&mut service, &json!({"spec": {"ports": [{"port": 443}]}}), &["spec", "ports"]));
        assert!(take(&mut service, &json!({"spec": {"ports": [{"port": 444}]}}), &["spec", "ports"]));
    }
}
