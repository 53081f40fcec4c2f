//! Rules of containers: names, images, ports, environment, probes, resources, mounts.

use std::cmp::Ordering;
use std::collections::HashSet;

use api::FieldError;

use super::validate::id;
use super::volumes::{Volumes, no_dots};
use crate::resources::check::{At, Errors};
use crate::resources::{names, quantity};

/// Checks all containers of a pod spec.
pub(crate) fn validate_all(spec: &At<'_>, volumes: &Volumes, e: &mut Errors) {
    let containers = spec.field("containers");
    if containers.is_empty() {
        e.push(FieldError::required(&containers.path, ""));
    }
    let mut seen = HashSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.field(list).items() {
            let name = container.field("name");
            if !name.is_empty() && !seen.insert(name.str()) {
                e.push(FieldError::duplicate(&name.path, name.str()));
            }
            validate(&container, list, volumes, e);
        }
    }
    let host_network = spec.field("hostNetwork").is_true();
    host_ports(spec, host_network, e);
}

fn host_ports(spec: &At<'_>, host_network: bool, e: &mut Errors) {
    let mut seen = HashSet::new();
    for container in spec.field("containers").items() {
        for port in container.field("ports").items() {
            let host = port.field("hostPort");
            let Some(number) = host.i64().filter(|n| *n != 0) else { continue };
            if host_network && Some(number) != port.field("containerPort").i64() {
                let at = port.field("containerPort");
                let detail = "must match `hostPort` when `hostNetwork` is true";
                e.push(FieldError::invalid(at.path, at.value.clone(), detail));
            }
            let key = (number, port.field("protocol").str(), port.field("hostIP").str());
            if !seen.insert(key) {
                let text = format!("{}/{}/{number}", key.2, key.1);
                e.push(FieldError::duplicate(&host.path, text));
            }
        }
    }
}

fn validate(container: &At<'_>, list: &str, volumes: &Volumes, e: &mut Errors) {
    container.field("name").required_text(e, names::dns_label);
    let image = container.field("image");
    image.required(e);
    if image.str() != image.str().trim() {
        image.invalid(e, "must not have leading or trailing whitespace");
    }
    container.field("terminationMessagePolicy").required_one_of(e, &["FallbackToLogsOnError", "File"]);
    container.field("imagePullPolicy").required_one_of(e, &["Always", "IfNotPresent", "Never"]);
    ports(&container.field("ports"), e);
    env(container, e);
    mounts(container, volumes, e);
    resources(&container.field("resources"), e);
    security_context(&container.field("securityContext"), e);
    match list {
        "containers" => probes(container, e),
        "ephemeralContainers" => {
            for name in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                if container.field(name).is_set() {
                    container.field(name).forbidden(e, "cannot be set for an Ephemeral Container");
                }
            }
            if !container.field("resources").is_empty() {
                container.field("resources").forbidden(e, "cannot be set for an Ephemeral Container");
            }
        }
        _ => init_rules(container, e),
    }
}

fn init_rules(container: &At<'_>, e: &mut Errors) {
    let policy = container.field("restartPolicy");
    policy.one_of(e, &["Always", "Never", "OnFailure"]);
    if policy.str() == "Always" {
        probes(container, e);
        return;
    }
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.field(name).is_set() {
            container
                .field(name)
                .forbidden(e, "may not be set for init containers without restartPolicy=Always");
        }
    }
}

fn ports(list: &At<'_>, e: &mut Errors) {
    list.unique(e, "name");
    for port in list.items() {
        port.field("name").text(e, names::port_name);
        if port.field("containerPort").i64().unwrap_or(0) == 0 {
            port.field("containerPort").required(e);
        } else {
            port.field("containerPort").port(e);
        }
        if port.field("hostPort").i64().is_some_and(|n| n != 0) {
            port.field("hostPort").port(e);
        }
        port.field("protocol").required_one_of(e, &["SCTP", "TCP", "UDP"]);
        port.field("hostIP").text(e, names::ip);
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(container: &At<'_>, e: &mut Errors) {
    for variable in container.field("env").items() {
        variable.field("name").required_text(e, names::env_name);
        let source = variable.field("valueFrom");
        if source.is_set() {
            env_source(&variable, &source, e);
        }
    }
    for item in container.field("envFrom").items() {
        item.field("prefix").text(e, names::env_name);
        let (map, secret) = (item.field("configMapRef"), item.field("secretRef"));
        match (map.is_set(), secret.is_set()) {
            (false, false) => {
                e.push(FieldError::invalid(
                    &item.path,
                    "",
                    "must specify one of: `configMapRef` or `secretRef`",
                ));
            }
            (true, true) => e.push(FieldError::invalid(
                &item.path,
                "",
                "may not have more than one field specified at a time",
            )),
            (true, false) => drop(map.field("name").required(e)),
            (false, true) => drop(secret.field("name").required(e)),
        }
    }
}

fn env_source(variable: &At<'_>, source: &At<'_>, e: &mut Errors) {
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let set = kinds.iter().filter(|k| source.field(k).is_set()).count();
    if set == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        e.push(FieldError::invalid(&source.path, "", detail));
    } else if set > 1 {
        e.push(FieldError::invalid(&source.path, "", "may not have more than one field specified at a time"));
    } else if !variable.field("value").is_empty() {
        e.push(FieldError::invalid(&source.path, "", "may not be specified when `value` is not empty"));
    }
    if source.field("fieldRef").is_set() {
        field_path(&source.field("fieldRef"), &ENV_FIELDS, e);
    }
    let resource = source.field("resourceFieldRef");
    if resource.is_set() {
        resource.field("resource").required(e);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let at = source.field(kind);
        if at.is_set() {
            at.field("name").required(e);
            at.field("key").required_text(e, names::config_key);
        }
    }
    let file = source.field("fileKeyRef");
    if file.is_set() {
        file.field("volumeName").required(e);
        file.field("path").required(e);
        file.field("key").required(e);
        let path = file.field("path").str();
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            let detail = "must be a relative path and must not contain '..'";
            e.push(FieldError::invalid(&file.field("path").path, path, detail));
        }
    }
}

/// A reference to a field of the pod: one of `plain`, or one label or annotation.
pub(super) fn field_path(reference: &At<'_>, plain: &[&str], e: &mut Errors) {
    reference.field("apiVersion").required(e);
    let at = reference.field("fieldPath");
    if !at.required(e) {
        return;
    }
    let subscript =
        ["metadata.labels['", "metadata.annotations['"].iter().find_map(|p| at.str().strip_prefix(p));
    match subscript.and_then(|rest| rest.strip_suffix("']")) {
        Some(key) => {
            for detail in names::qualified_name(&key.to_lowercase()) {
                at.invalid(e, &detail);
            }
        }
        None => at.one_of(e, plain),
    }
}

fn mounts(container: &At<'_>, volumes: &Volumes, e: &mut Errors) {
    let mut seen = HashSet::new();
    for mount in container.field("volumeMounts").items() {
        let name = mount.field("name");
        if name.required(e) && !volumes.contains_key(name.str()) {
            e.push(FieldError::not_found(&name.path, name.str()));
        }
        let path = mount.field("mountPath");
        path.required(e);
        if !path.is_empty() && !seen.insert(path.str()) {
            path.invalid(e, "must be unique");
        }
        for sub in ["subPath", "subPathExpr"] {
            let at = mount.field(sub);
            if at.str().starts_with('/') {
                at.invalid(e, "must be a relative path");
            }
            no_dots(&at, e);
        }
        if !mount.field("subPath").is_empty() && !mount.field("subPathExpr").is_empty() {
            mount.field("subPathExpr").invalid(e, "subPathExpr and subPath are mutually exclusive");
        }
        mount.field("mountPropagation").one_of(e, &["Bidirectional", "HostToContainer", "None"]);
        if mount.field("mountPropagation").str() == "Bidirectional"
            && !container.field("securityContext").field("privileged").is_true()
        {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            mount.field("mountPropagation").forbidden(e, detail);
        }
    }
    for device in container.field("volumeDevices").items() {
        let name = device.field("name");
        if name.required(e) {
            match volumes.get(name.str()) {
                None => e.push(FieldError::not_found(&name.path, name.str())),
                Some(false) => {
                    name.invalid(e, "can only use volume source type of PersistentVolumeClaim for block mode")
                }
                Some(true) => {}
            }
        }
        device.field("devicePath").required(e);
    }
}

/// Requests and limits: readable, not negative, and no request above its limit.
pub(crate) fn resources(resources: &At<'_>, e: &mut Errors) {
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    for list in [&limits, &requests] {
        for (name, amount) in list.entries() {
            for detail in names::qualified_name(name) {
                amount.invalid_key(e, name, &detail);
            }
            let standard =
                name.starts_with("hugepages-") || ["cpu", "memory", "ephemeral-storage"].contains(&name);
            if !standard && !name.contains('/') {
                amount.invalid_key(e, name, "must be a standard resource type or fully qualified");
            }
            let value = quantity::validate(&amount, e);
            if name.contains('/') && value.is_some_and(|n| !n.is_whole()) {
                amount.invalid(e, "must be an integer");
            }
        }
    }
    for (name, request) in requests.entries() {
        let limit = limits.value.get(name).map(|value| At::new(value, ""));
        let Some(limit) = limit else { continue };
        let overcommit = ["cpu", "memory", "ephemeral-storage"].contains(&name);
        match quantity::compare(&request, &limit) {
            Some(Ordering::Greater) => {
                let detail = format!("must be less than or equal to {name} limit of {}", limit.str());
                e.push(FieldError::invalid(&requests.path, request.value.clone(), &detail));
            }
            Some(Ordering::Less) if !overcommit => {
                let detail = format!("must be equal to {name} limit of {}", limit.str());
                e.push(FieldError::invalid(&requests.path, request.value.clone(), &detail));
            }
            _ => {}
        }
    }
}

/// A seccomp or AppArmor profile.
pub(super) fn profile(at: &At<'_>, e: &mut Errors) {
    if !at.is_set() {
        return;
    }
    at.field("type").required_one_of(e, &["Localhost", "RuntimeDefault", "Unconfined"]);
    let local = at.field("localhostProfile");
    match (at.field("type").str() == "Localhost", local.is_set()) {
        (true, false) => {
            e.push(FieldError::required(&local.path, "must be set when seccomp type is Localhost"));
        }
        (false, true) => local.invalid(e, "can only be set when seccomp type is Localhost"),
        _ => {}
    }
}

fn security_context(context: &At<'_>, e: &mut Errors) {
    id(&context.field("runAsUser"), e);
    id(&context.field("runAsGroup"), e);
    profile(&context.field("seccompProfile"), e);
    profile(&context.field("appArmorProfile"), e);
    context.field("procMount").one_of(e, &["Default", "Unmasked"]);
    let escalation = context.field("allowPrivilegeEscalation");
    if escalation.value == false {
        if context.field("privileged").is_true() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            e.push(FieldError::invalid(&context.path, context.value.clone(), detail));
        }
        let added = context.field("capabilities").field("add");
        if added.items().any(|c| matches!(c.str(), "CAP_SYS_ADMIN" | "SYS_ADMIN")) {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            e.push(FieldError::invalid(&context.path, context.value.clone(), detail));
        }
    }
}

fn probes(container: &At<'_>, e: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.field(name);
        if !probe.is_set() {
            continue;
        }
        handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], e);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            probe.field(field).non_negative(e);
        }
        let successes = probe.field("successThreshold");
        if name != "readinessProbe" && successes.i64().is_some_and(|n| n > 1) {
            successes.invalid(e, "must be 1");
        }
        let grace = probe.field("terminationGracePeriodSeconds");
        if name == "readinessProbe" && grace.is_set() {
            grace.invalid(e, "must not be set for readinessProbes");
        } else {
            grace.positive(e);
        }
    }
    for name in ["postStart", "preStop"] {
        let hook = container.field("lifecycle").field(name);
        if hook.is_set() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], e);
        }
    }
}

fn handler(at: &At<'_>, kinds: &[&str], e: &mut Errors) {
    let set: Vec<&&str> = kinds.iter().filter(|k| at.field(k).is_set()).collect();
    if set.is_empty() {
        e.push(FieldError::required(&at.path, "must specify a handler type"));
    }
    for extra in set.iter().skip(1) {
        at.field(extra).forbidden(e, "may not specify more than 1 handler type");
    }
    let exec = at.field("exec");
    if exec.is_set() {
        exec.field("command").required(e);
    }
    let get = at.field("httpGet");
    if get.is_set() {
        get.field("path").required(e);
        get.field("port").port_or_name(e);
        get.field("scheme").required_one_of(e, &["HTTP", "HTTPS"]);
        for header in get.field("httpHeaders").items() {
            header.field("name").required(e);
        }
    }
    if at.field("tcpSocket").is_set() {
        at.field("tcpSocket").field("port").port_or_name(e);
    }
    if at.field("grpc").is_set() {
        at.field("grpc").field("port").port(e);
    }
    at.field("sleep").field("seconds").non_negative(e);
}
