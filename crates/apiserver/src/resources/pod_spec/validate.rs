//! Rules of pod specs beyond containers and volumes.

use std::collections::HashSet;

use api::FieldError;

use super::{containers, volumes};
use crate::resources::check::{At, Errors};
use crate::resources::{names, selectors};

/// Everything wrong with a pod spec.
pub(crate) fn pod_spec(spec: &At<'_>, e: &mut Errors) {
    let volumes = volumes::validate(&spec.field("volumes"), e);
    containers::validate_all(spec, &volumes, e);
    spec.field("restartPolicy").required_one_of(e, &["Always", "OnFailure", "Never"]);
    spec.field("dnsPolicy")
        .required_one_of(e, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    dns(spec, e);
    spec.field("nodeSelector").labels(e);
    spec.field("serviceAccountName").text(e, names::dns_subdomain);
    spec.field("nodeName").text(e, names::dns_subdomain);
    spec.field("schedulerName").text(e, names::dns_subdomain);
    spec.field("priorityClassName").text(e, names::dns_subdomain);
    spec.field("runtimeClassName").text(e, names::dns_subdomain);
    spec.field("hostname").text(e, names::dns_label);
    spec.field("subdomain").text(e, names::dns_label);
    spec.field("preemptionPolicy").one_of(e, &["Never", "PreemptLowerPriority"]);
    spec.field("terminationGracePeriodSeconds").non_negative(e);
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        deadline.invalid(e, "must be between 1 and 2147483647, inclusive");
    }
    for secret in spec.field("imagePullSecrets").items() {
        secret.field("name").text(e, names::dns_subdomain);
    }
    for alias in spec.field("hostAliases").items() {
        alias.field("ip").required_text(e, names::ip);
        for host in alias.field("hostnames").items() {
            host.text(e, names::dns_subdomain);
        }
    }
    for gate in spec.field("readinessGates").items() {
        gate.field("conditionType").text(e, names::qualified_name);
    }
    let gates = spec.field("schedulingGates");
    gates.unique(e, "name");
    for gate in gates.items() {
        gate.field("name").required_text(e, names::qualified_name);
    }
    security_context(spec, e);
    affinity(&spec.field("affinity"), e);
    tolerations(&spec.field("tolerations"), e);
    spread(&spec.field("topologySpreadConstraints"), e);
    spec.field("os").field("name").one_of(e, &["linux", "windows"]);
}

fn dns(spec: &At<'_>, e: &mut Errors) {
    let config = spec.field("dnsConfig");
    let servers = config.field("nameservers");
    if spec.field("dnsPolicy").str() == "None" {
        let path = format!("{}.nameservers", config.path);
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            e.push(FieldError::required(path, detail));
        }
    }
    if servers.len() > 3 {
        servers.invalid(e, "must not have more than 3 nameservers");
    }
    for server in servers.items() {
        server.text(e, names::ip);
    }
    if config.field("searches").len() > 32 {
        config.field("searches").invalid(e, "must not have more than 32 search paths");
    }
    for option in config.field("options").items() {
        option.field("name").required(e);
    }
}

fn security_context(spec: &At<'_>, e: &mut Errors) {
    let context = spec.field("securityContext");
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context.field(name), e);
    }
    for group in context.field("supplementalGroups").items() {
        id(&group, e);
    }
    context.field("fsGroupChangePolicy").one_of(e, &["Always", "OnRootMismatch"]);
    context.field("supplementalGroupsPolicy").one_of(e, &["Merge", "Strict"]);
    containers::profile(&context.field("seccompProfile"), e);
    containers::profile(&context.field("appArmorProfile"), e);
    let sysctls = context.field("sysctls");
    sysctls.unique(e, "name");
    for sysctl in sysctls.items() {
        sysctl.field("name").required_text(e, sysctl_name);
        let network = sysctl.field("name").str().replace('/', ".").starts_with("net.");
        for (name, concerned) in [("hostNetwork", network), ("hostIPC", !network)] {
            if concerned && spec.field(name).is_true() {
                sysctl.field("name").invalid(e, &format!("may not be specified when '{name}' is true"));
            }
        }
    }
    if spec.field("shareProcessNamespace").is_true() && spec.field("hostPID").is_true() {
        let at = context.field("shareProcessNamespace");
        e.push(FieldError::invalid(
            at.path,
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    if spec.field("hostUsers").value == false {
        for name in ["hostNetwork", "hostPID", "hostIPC"] {
            if spec.field(name).is_true() {
                e.push(FieldError::forbidden(&spec.field(name).path, "when `hostUsers` is false"));
            }
        }
    }
}

/// Parts of letters, digits, dashes and underscores, parted by dots or slashes.
fn sysctl_name(text: &str) -> Vec<String> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        part.starts_with(edge)
            && part.ends_with(edge)
            && part.chars().all(|c| edge(c) || c == '-' || c == '_')
    };
    if text.len() <= 253 && text.split(['.', '/']).all(part) {
        return Vec::new();
    }
    vec![
        "must have at most 253 characters and match regex \
        ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            .into(),
    ]
}

/// A user or group id.
pub(super) fn id(at: &At<'_>, e: &mut Errors) {
    at.between(e, 0, i64::from(i32::MAX));
}

fn affinity(affinity: &At<'_>, e: &mut Errors) {
    let node = affinity.field("nodeAffinity");
    let required = node.field("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        let terms = required.field("nodeSelectorTerms");
        terms.required_because(e, "must have at least one node selector term");
        for term in terms.items() {
            node_selector_term(&term, e);
        }
    }
    for preferred in node.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preferred, e);
        node_selector_term(&preferred.field("preference"), e);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(kind);
        for term in pods.field("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_affinity_term(&term, e);
        }
        for preferred in pods.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(&preferred, e);
            pod_affinity_term(&preferred.field("podAffinityTerm"), e);
        }
    }
}

fn weight(at: &At<'_>, e: &mut Errors) {
    let weight = at.field("weight");
    if !(1..=100).contains(&weight.i64().unwrap_or(0)) {
        e.push(FieldError::invalid(&weight.path, weight.i64().unwrap_or(0), "must be in the range 1-100"));
    }
}

/// A term of a node selector, as in affinity and in volumes.
pub(crate) fn node_selector_term(term: &At<'_>, e: &mut Errors) {
    for item in term.field("matchExpressions").items() {
        node_requirement(&item, e);
        item.field("key").text(e, names::qualified_name);
    }
    for item in term.field("matchFields").items() {
        item.field("operator").one_of(e, &["In", "NotIn"]);
        if item.field("values").len() != 1 {
            e.push(FieldError::required(
                item.field("values").path,
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        if item.field("key").str() != "metadata.name" {
            item.field("key").invalid(e, "not a valid field selector key");
        }
    }
}

fn node_requirement(item: &At<'_>, e: &mut Errors) {
    let (operator, values) = (item.field("operator"), item.field("values"));
    match operator.str() {
        "In" | "NotIn" => {
            values.required_because(e, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                values.forbidden(e, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                e.push(FieldError::required(&values.path, detail));
            }
        }
        _ => e.push(FieldError::invalid(&operator.path, operator.str(), "not a valid selector operator")),
    }
}

fn pod_affinity_term(term: &At<'_>, e: &mut Errors) {
    selectors::validate(&term.field("labelSelector"), e);
    selectors::validate(&term.field("namespaceSelector"), e);
    for namespace in term.field("namespaces").items() {
        namespace.text(e, names::dns_label);
    }
    let key = term.field("topologyKey");
    if key.required_because(e, "can not be empty") {
        key.text(e, names::qualified_name);
    }
}

fn tolerations(list: &At<'_>, e: &mut Errors) {
    for item in list.items() {
        let (key, operator, value) = (item.field("key"), item.field("operator"), item.field("value"));
        key.text(e, names::qualified_name);
        if key.is_empty() && operator.str() != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.push(FieldError::invalid(&operator.path, operator.str(), detail));
        }
        if item.field("tolerationSeconds").is_set() && item.field("effect").str() != "NoExecute" {
            let effect = item.field("effect");
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            e.push(FieldError::invalid(&effect.path, effect.str(), detail));
        }
        match operator.str() {
            "" | "Equal" => value.text(e, names::label_value),
            "Exists" if !value.is_empty() => {
                operator.invalid(e, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" | "Lt" | "Gt" => {}
            _ => operator.one_of(e, &["Equal", "Exists"]),
        }
        item.field("effect").one_of(e, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}

fn spread(list: &At<'_>, e: &mut Errors) {
    let mut seen = HashSet::new();
    for item in list.items() {
        let skew = item.field("maxSkew");
        if skew.i64().unwrap_or(0) <= 0 {
            e.push(FieldError::invalid(&skew.path, skew.i64().unwrap_or(0), "must be greater than zero"));
        }
        let key = item.field("topologyKey");
        if key.required_because(e, "can not be empty") {
            key.text(e, names::qualified_name);
        }
        item.field("whenUnsatisfiable").required_one_of(e, &["DoNotSchedule", "ScheduleAnyway"]);
        if !seen.insert((key.str(), item.field("whenUnsatisfiable").str())) {
            let pair = format!("{{{}, {}}}", key.str(), item.field("whenUnsatisfiable").str());
            e.push(FieldError::duplicate(format!("{}.{{topologyKey, whenUnsatisfiable}}", item.path), pair));
        }
        let domains = item.field("minDomains");
        domains.positive(e);
        if domains.is_set() && item.field("whenUnsatisfiable").str() != "DoNotSchedule" {
            domains
                .invalid(e, "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway");
        }
        item.field("nodeAffinityPolicy").one_of(e, &["Honor", "Ignore"]);
        item.field("nodeTaintsPolicy").one_of(e, &["Honor", "Ignore"]);
        selectors::validate(&item.field("labelSelector"), e);
    }
}
