//! `rbac.authorization.k8s.io/v1`: roles and their bindings.

use api::{FieldError, Object};
use serde_json::Value;

use super::check::{At, Errors};
use super::row::{Hooks, Row, col, wide};
use super::{defaults, names, selectors};
use crate::printing::cells;

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLE: Hooks =
    Hooks { validate: |o, e| validate_rules(o, e, true), create_on_update: true, ..Hooks::NONE };
const CLUSTER_ROLE: Hooks = Hooks { validate: validate_cluster_role, create_on_update: true, ..Hooks::NONE };
const BINDING: Hooks = Hooks {
    default: default_binding,
    validate: |o, e| validate_binding(o, e, true),
    validate_update: validate_binding_update,
    create_on_update: true,
    ..Hooks::NONE
};
const CLUSTER_BINDING: Hooks = Hooks { validate: |o, e| validate_binding(o, e, false), ..BINDING };

fn validate_rules(o: &Object, e: &mut Errors, namespaced: bool) {
    for rule in At::top(o, "rules").items() {
        rule.field("verbs").required_because(e, "verbs must contain at least one value");
        let urls = rule.field("nonResourceURLs");
        let (groups, resources) = (rule.field("apiGroups"), rule.field("resources"));
        if !urls.is_empty() {
            if namespaced {
                urls.invalid(e, "namespaced rules cannot apply to non-resource URLs");
            }
            if !groups.is_empty() || !resources.is_empty() || !rule.field("resourceNames").is_empty() {
                urls.invalid(e, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        groups.required_because(e, "resource rules must supply at least one api group");
        resources.required_because(e, "resource rules must supply at least one resource");
    }
}

fn validate_cluster_role(o: &Object, e: &mut Errors) {
    validate_rules(o, e, false);
    let selectors = At::top(o, "aggregationRule").field("clusterRoleSelectors");
    if o.get(&["aggregationRule"]).is_some_and(Value::is_object) {
        selectors
            .required_because(e, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    for selector in selectors.items() {
        selectors::validate(&selector, e);
    }
}

fn default_binding(o: &mut Object) {
    if o.get(&["roleRef"]).is_some_and(Value::is_object) && o.str(&["roleRef", "apiGroup"]).is_empty() {
        o.set(&["roleRef", "apiGroup"], GROUP);
    }
    for subject in defaults::items_mut(o.0.get_mut("subjects")) {
        let of_kind = matches!(cells::sub(subject, "kind"), "User" | "Group");
        if of_kind && cells::sub(subject, "apiGroup").is_empty() {
            subject["apiGroup"] = GROUP.into();
        }
    }
}

fn validate_binding(o: &Object, e: &mut Errors, namespaced: bool) {
    let role = At::top(o, "roleRef");
    role.field("apiGroup").one_of(e, &[GROUP]);
    role.field("kind").one_of(e, if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] });
    if role.field("kind").is_empty() {
        e.push(FieldError::not_supported(
            "roleRef.kind",
            "",
            if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] },
        ));
    }
    role.field("name").required_text(e, names::path_segment);
    for subject in At::top(o, "subjects").items() {
        subject.field("name").required(e);
        let group = subject.field("apiGroup");
        match subject.field("kind").str() {
            "ServiceAccount" => {
                subject.field("name").text(e, names::dns_subdomain);
                if !group.is_empty() {
                    e.push(FieldError::not_supported(&group.path, group.str(), &[""]));
                }
                // A RoleBinding's ServiceAccount without namespace matches nobody; Kubernetes asks for one in both kinds.
                subject.field("namespace").required(e);
            }
            "User" | "Group" => group.one_of(e, &[GROUP]),
            _ => e.push(FieldError::not_supported(
                subject.field("kind").path,
                subject.field("kind").str(),
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

fn validate_binding_update(new: &Object, old: &Object, e: &mut Errors) {
    if new.get(&["roleRef"]) != old.get(&["roleRef"]) {
        let value = new.get(&["roleRef"]).cloned().unwrap_or(Value::Null);
        e.push(FieldError::invalid("roleRef", value, "cannot change roleRef"));
    }
}

fn subjects(o: &Object, kind: &str) -> Value {
    let of_kind = cells::list(o, &["subjects"]).iter().filter(|s| cells::sub(s, "kind") == kind);
    let texts: Vec<String> = of_kind
        .map(|s| match (kind, cells::sub(s, "namespace")) {
            ("ServiceAccount", ns) => format!("{ns}/{}", cells::sub(s, "name")),
            _ => cells::sub(s, "name").to_owned(),
        })
        .collect();
    texts.join(", ").into()
}

fn binding(resource: &'static str, kind: &'static str) -> Row {
    Row::new(resource, kind).named(names::path_segment).columns(
        vec![col("Role", "string", "The role that is granted.", |o, _| {
            format!("{}/{}", o.str(&["roleRef", "kind"]), o.str(&["roleRef", "name"])).into()
        })],
        vec![
            wide("Users", "string", "Users that get the role.", |o, _| subjects(o, "User")),
            wide("Groups", "string", "Groups that get the role.", |o, _| subjects(o, "Group")),
            wide("ServiceAccounts", "string", "ServiceAccounts that get the role.", |o, _| {
                subjects(o, "ServiceAccount")
            }),
        ],
    )
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        binding("clusterrolebindings", "ClusterRoleBinding").cluster().strategy(CLUSTER_BINDING),
        Row::new("clusterroles", "ClusterRole").cluster().named(names::path_segment).strategy(CLUSTER_ROLE),
        binding("rolebindings", "RoleBinding").strategy(BINDING),
        Row::new("roles", "Role").named(names::path_segment).strategy(ROLE),
    ]
}
