//! Roles and bindings, compiled for lookup by subject.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::{GroupVersionResource, Status};
use serde::Deserialize;

use super::{Attributes, MASTERS};
use crate::resource::{Resource, ResourceSet, UserInfo};
use crate::stored::CachedObject;
use crate::watch_cache::WatchCaches;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// A PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) non_resource_urls: Vec<String>,
}

fn holds(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

/// `*`, `pods`, `pods/log` or `*/log` against a resource with its subresource.
fn resource_matches(rule: &str, attributes: &Attributes<'_>) -> bool {
    if rule == "*" {
        return true;
    }
    let (resource, subresource) = rule.split_once('/').unwrap_or((rule, ""));
    subresource == attributes.subresource
        && (resource == attributes.resource || (resource == "*" && !subresource.is_empty()))
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

impl Rule {
    /// Whether the rule allows something.
    pub(crate) fn allows(&self, a: &Attributes<'_>) -> bool {
        if !holds(&self.verbs, a.verb) {
            return false;
        }
        if a.resource.is_empty() {
            return self.non_resource_urls.iter().any(|rule| path_matches(rule, a.path));
        }
        holds(&self.api_groups, a.group)
            && self.resources.iter().any(|rule| resource_matches(rule, a))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == a.name))
    }

    /// The rule cut into pieces of one verb, group, resource and name (or one verb and path) each.
    fn pieces(&self) -> Vec<Rule> {
        let mut pieces = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                pieces.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let piece = |names: Vec<String>| Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: names,
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        pieces.push(piece(Vec::new()));
                    }
                    pieces.extend(self.resource_names.iter().map(|name| piece(vec![name.clone()])));
                }
            }
        }
        pieces
    }

    /// Whether the rule gives everything that a piece gives.
    fn covers(&self, piece: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|value| holds(mine, value));
        let resources = |theirs: &str| {
            let subresource = theirs.split_once('/').map(|(_, sub)| sub);
            self.resources.iter().any(|mine| {
                mine == "*" || mine == theirs || subresource.is_some_and(|sub| *mine == format!("*/{sub}"))
            })
        };
        let names = self.resource_names.is_empty()
            || (!piece.resource_names.is_empty() && all(&self.resource_names, &piece.resource_names));
        let urls = |theirs: &String| self.non_resource_urls.iter().any(|mine| path_matches(mine, theirs));
        all(&self.verbs, &piece.verbs)
            && all(&self.api_groups, &piece.api_groups)
            && piece.resources.iter().all(|r| resources(r))
            && names
            && piece.non_resource_urls.iter().all(urls)
    }
}

/// What `rules` would give that `mine` do not.
pub(crate) fn missing(mine: &[Rule], rules: &[Rule]) -> Vec<Rule> {
    let pieces = rules.iter().flat_map(Rule::pieces);
    pieces.filter(|piece| !mine.iter().any(|rule| rule.covers(piece))).collect()
}

#[derive(Deserialize, Default)]
struct RoleObject {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Deserialize)]
struct BindingObject {
    #[serde(rename = "roleRef")]
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl Subject {
    /// `u:alice`, `g:system:nodes`; service accounts are users.
    fn key(&self, binding_namespace: &str) -> String {
        match self.kind.as_str() {
            "Group" => format!("g:{}", self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                format!("u:system:serviceaccount:{namespace}:{}", self.name)
            }
            _ => format!("u:{}", self.name),
        }
    }
}

enum Parsed {
    Role(Arc<Vec<Rule>>),
    Binding { role: RoleRef, subjects: Vec<String> },
    Broken,
}

/// Rules by (namespace of the binding or "", subject).
#[derive(Default)]
struct Compiled {
    revisions: [u64; 4],
    rules: HashMap<(String, String), Vec<Arc<Vec<Rule>>>>,
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
}

/// The rows that hold the policy, in the order of `Compiled::revisions`.
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Decides by roles and bindings.
pub(crate) struct Rbac {
    caches: Arc<WatchCaches>,
    rows: Vec<Arc<Resource>>,
    compiled: Mutex<Arc<Compiled>>,
    parsed: Mutex<HashMap<Arc<str>, (u64, Arc<Parsed>)>>,
}

impl Rbac {
    pub(crate) fn new(caches: Arc<WatchCaches>, resources: &ResourceSet) -> Self {
        let row = |name: &str| resources.get(&GroupVersionResource::new(GROUP, "v1", name)).cloned();
        let rows = RESOURCES.iter().filter_map(|name| row(name)).collect();
        Self { caches, rows, compiled: Mutex::default(), parsed: Mutex::default() }
    }

    /// Whether a user may do something.
    pub(crate) async fn allows(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Result<bool, Status> {
        if user.in_group(MASTERS) {
            return Ok(true);
        }
        let allows = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(attributes));
        if self.compiled().await?.visit(user, attributes.namespace, allows) {
            return Ok(true);
        }
        // Nobody is refused because of a permission that the caches have not seen yet.
        self.caches.catch_up().await?;
        Ok(self.compiled().await?.visit(user, attributes.namespace, allows))
    }

    /// All rules that a user has in a namespace ("" means cluster-wide only).
    pub(crate) async fn rules(&self, user: &UserInfo, namespace: &str) -> Result<Vec<Rule>, Status> {
        self.caches.catch_up().await?;
        let compiled = self.compiled().await?;
        let mut all = Vec::new();
        compiled.visit(user, namespace, |rules| {
            all.extend(rules.iter().cloned());
            false
        });
        if user.in_group(MASTERS) {
            let every = || vec!["*".to_owned()];
            all.push(Rule { verbs: every(), api_groups: every(), resources: every(), ..Rule::default() });
            all.push(Rule { verbs: every(), non_resource_urls: every(), ..Rule::default() });
        }
        Ok(all)
    }

    /// The rules of the role that a binding in `namespace` refers to.
    pub(crate) async fn role(
        &self,
        role: &RoleRef,
        namespace: &str,
    ) -> Result<Option<Arc<Vec<Rule>>>, Status> {
        self.caches.catch_up().await?;
        let namespace = if role.kind == "Role" { namespace } else { "" };
        Ok(self.compiled().await?.roles.get(&(namespace.to_owned(), role.name.clone())).cloned())
    }

    async fn compiled(&self) -> Result<Arc<Compiled>, Status> {
        let mut caches = Vec::with_capacity(4);
        for row in &self.rows {
            caches.push(self.caches.of(row, None).await?);
        }
        let mut revisions = [0; 4];
        for (slot, cache) in revisions.iter_mut().zip(&caches) {
            *slot = cache.revision();
        }
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.revisions != revisions || revisions == [0; 4] {
            let snapshots: Vec<_> = caches.iter().map(|cache| cache.snapshot()).collect();
            *compiled = Arc::new(self.compile(&snapshots));
        }
        Ok(Arc::clone(&compiled))
    }

    fn compile(&self, snapshots: &[(Vec<Arc<CachedObject>>, u64)]) -> Compiled {
        let mut compiled = Compiled::default();
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashMap::new();
        for (index, (objects, revision)) in snapshots.iter().enumerate() {
            compiled.revisions[index] = *revision;
            for object in objects {
                let known = parsed.get(&object.key).filter(|(revision, _)| *revision == object.revision);
                let entry =
                    known.map_or_else(|| Arc::new(parse(object, index < 2)), |(_, entry)| Arc::clone(entry));
                seen.insert(Arc::clone(&object.key), (object.revision, Arc::clone(&entry)));
                let (namespace, name) = crate::stored::key_parts(&self.rows[index], &object.key);
                compiled.add(namespace, name, &entry);
            }
        }
        *parsed = seen;
        compiled
    }
}

fn parse(object: &CachedObject, role: bool) -> Parsed {
    if role {
        let role = serde_json::from_slice::<RoleObject>(&object.value);
        return role.map_or(Parsed::Broken, |r| Parsed::Role(Arc::new(r.rules.unwrap_or_default())));
    }
    let Ok(binding) = serde_json::from_slice::<BindingObject>(&object.value) else { return Parsed::Broken };
    let namespace = object.key.split('/').nth(4).unwrap_or_default();
    let subjects = binding.subjects.unwrap_or_default().iter().map(|s| s.key(namespace)).collect();
    Parsed::Binding { role: binding.role_ref, subjects }
}

impl Compiled {
    /// Roles come before the bindings that refer to them.
    fn add(&mut self, namespace: &str, name: &str, entry: &Parsed) {
        match entry {
            Parsed::Role(rules) => {
                self.roles.insert((namespace.to_owned(), name.to_owned()), Arc::clone(rules));
            }
            Parsed::Binding { role, subjects } => {
                let of = if role.kind == "Role" { namespace } else { "" };
                let Some(rules) = self.roles.get(&(of.to_owned(), role.name.clone())).cloned() else {
                    return;
                };
                for subject in subjects {
                    let key = (namespace.to_owned(), subject.clone());
                    self.rules.entry(key).or_default().push(Arc::clone(&rules));
                }
            }
            Parsed::Broken => {}
        }
    }

    /// Calls `found` for each set of rules of a user until it returns true.
    fn visit(&self, user: &UserInfo, namespace: &str, mut found: impl FnMut(&[Rule]) -> bool) -> bool {
        let subjects = std::iter::once(format!("u:{}", user.name))
            .chain(user.groups.iter().map(|group| format!("g:{group}")));
        let scopes = if namespace.is_empty() { vec![""] } else { vec!["", namespace] };
        for subject in subjects {
            for scope in &scopes {
                let sets = self.rules.get(&((*scope).to_owned(), subject.clone()));
                if sets.into_iter().flatten().any(|rules| found(rules)) {
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| {
            text.split_whitespace().map(|w| if w == "core" { "" } else { w }.to_owned()).collect()
        };
        Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn rules_allow_as_documented() {
        let table = [
            (rule("get", "core", "pods", ""), "get", "", "pods", "", "x", true),
            (rule("get", "core", "pods", ""), "list", "", "pods", "", "", false),
            (rule("get", "core", "pods", ""), "get", "", "pods", "log", "x", false),
            (rule("get", "core", "pods/log", ""), "get", "", "pods", "log", "x", true),
            (rule("get", "core", "*/log", ""), "get", "", "pods", "log", "x", true),
            (rule("*", "*", "*", ""), "delete", "apps", "deployments", "scale", "x", true),
            (rule("get", "apps", "deployments", ""), "get", "", "deployments", "", "x", false),
            (rule("get", "core", "secrets", "a b"), "get", "", "secrets", "", "b", true),
            (rule("get", "core", "secrets", "a b"), "get", "", "secrets", "", "c", false),
            (rule("list", "core", "secrets", "a"), "list", "", "secrets", "", "", false),
        ];
        for (rule, verb, group, resource, subresource, name, want) in table {
            let attributes = Attributes {
                verb,
                group,
                resource,
                subresource,
                name,
                namespace: "n",
                ..Attributes::default()
            };
            assert_eq!(rule.allows(&attributes), want, "{rule:?} {attributes:?}");
        }
        let urls = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz/*".into()],
            ..Rule::default()
        };
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(urls.allows(&path("/healthz/etcd")) && !urls.allows(&path("/metrics")));
    }

    #[test]
    fn nobody_gives_what_they_do_not_have() {
        let mine = [rule("get list", "core", "pods pods/log", ""), rule("*", "apps", "*", "")];
        let nothing: [Rule; 0] = [];
        assert_eq!(missing(&mine, &[rule("get", "core", "pods", "")]), nothing);
        assert_eq!(missing(&mine, &[rule("get", "core", "pods", "only-this")]), nothing);
        assert_eq!(missing(&mine, &[rule("delete", "apps", "deployments/scale", "")]), nothing);
        assert_eq!(
            missing(&mine, &[rule("get delete", "core", "pods", "")]),
            [rule("delete", "core", "pods", "")]
        );
        assert_eq!(missing(&mine, &[rule("*", "core", "pods", "")]).len(), 1);
        assert_eq!(missing(&[rule("get", "core", "pods", "a")], &[rule("get", "core", "pods", "")]).len(), 1);
    }
}
