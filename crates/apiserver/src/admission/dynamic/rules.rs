//! Which writes a webhook or a policy is about: rules by resource and operation, and selectors.

use std::sync::Arc;

use api::{GroupVersionResource, Status};
use serde_json::Value;

use super::Subject;
use crate::admission::Operation;
use crate::resource::Resource;
use crate::resources::selectors;

/// A rule with operations, and for policies with names.
#[derive(Clone, Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn holds(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

/// The part of a subject that rules look at.
#[derive(Clone, Copy)]
struct Target<'a> {
    gvr: &'a GroupVersionResource,
    subresource: &'a str,
    operation: Operation,
    namespace: &'a str,
    name: &'a str,
}

impl Rule {
    fn of(value: &Value) -> Self {
        Self {
            operations: texts(&value["operations"]),
            groups: texts(&value["apiGroups"]),
            versions: texts(&value["apiVersions"]),
            resources: texts(&value["resources"]),
            names: texts(&value["resourceNames"]),
            scope: value["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    fn matches(&self, target: Target<'_>) -> bool {
        let resource = |rule: &String| {
            let (resource, sub) = rule.split_once('/').unwrap_or((rule, ""));
            (resource == "*" || resource == target.gvr.resource) && (sub == "*" || sub == target.subresource)
        };
        let is_namespace = target.gvr.group.is_empty() && target.gvr.resource == "namespaces";
        let cluster = is_namespace || target.namespace.is_empty();
        holds(&self.operations, target.operation.as_str())
            && holds(&self.groups, &target.gvr.group)
            && holds(&self.versions, &target.gvr.version)
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == target.name))
            && match self.scope.as_str() {
                "Namespaced" => !cluster,
                "Cluster" => cluster,
                _ => true,
            }
    }
}

/// Rules and selectors of a webhook, a policy or a binding.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Rules mean exactly the versions that they name.
    exact: bool,
    namespaces: Value,
    objects: Value,
    /// Without rules everything matches.
    open: bool,
}

impl Matcher {
    /// Of a webhook.
    pub(crate) fn of_webhook(hook: &Value) -> Self {
        Self { rules: rules(&hook["rules"]), ..Self::selectors(hook) }
    }

    /// Of `matchConstraints` or `matchResources`; null matches everything.
    pub(crate) fn of_resources(resources: &Value) -> Self {
        let own = rules(&resources["resourceRules"]);
        Self {
            open: own.is_empty(),
            rules: own,
            excluded: rules(&resources["excludeResourceRules"]),
            ..Self::selectors(resources)
        }
    }

    fn selectors(value: &Value) -> Self {
        Self {
            rules: Vec::new(),
            excluded: Vec::new(),
            exact: value["matchPolicy"] == "Exact",
            namespaces: value["namespaceSelector"].clone(),
            objects: value["objectSelector"].clone(),
            open: false,
        }
    }

    /// The row in whose version the subject is to be shown, or `None` when it does not match.
    ///
    /// # Errors
    /// When the namespace, whose labels decide, cannot be read.
    pub(crate) async fn invocation(&self, subject: &Subject<'_>) -> Result<Option<Arc<Resource>>, Status> {
        // Rules come first: what they do not match must not fail because of a missing namespace.
        let Some(row) = self.row(subject) else { return Ok(None) };
        let matches = self.selects_object(subject) && self.selects_namespace(subject).await?;
        Ok(matches.then_some(row))
    }

    fn row(&self, subject: &Subject<'_>) -> Option<Arc<Resource>> {
        if self.applied(&self.excluded, subject).is_some() {
            return None;
        }
        if self.open { Some(Arc::clone(&subject.row)) } else { self.applied(&self.rules, subject) }
    }

    fn applied(&self, rules: &[Rule], subject: &Subject<'_>) -> Option<Arc<Resource>> {
        if rules.is_empty() {
            return None;
        }
        let target = Target {
            gvr: &subject.row.gvr,
            subresource: subject.subresource,
            operation: subject.operation,
            namespace: &subject.namespace,
            name: &subject.name,
        };
        if rules.iter().any(|rule| rule.matches(target)) {
            return Some(Arc::clone(&subject.row));
        }
        if self.exact {
            return None;
        }
        let rows = subject.registry.resources.current();
        let prefix = subject.row.store_prefix();
        let same = |row: &&Arc<Resource>| row.gvr != subject.row.gvr && row.store_prefix() == prefix;
        let equivalents: Vec<_> = rows.iter().filter(same).cloned().collect();
        rules.iter().find_map(|rule| {
            equivalents.iter().find(|row| rule.matches(Target { gvr: &row.gvr, ..target })).cloned()
        })
    }

    fn selects_object(&self, subject: &Subject<'_>) -> bool {
        if selectors::is_empty(&self.objects) {
            return true;
        }
        let labels = |object: &Option<api::Object>| {
            let object = object.as_ref()?;
            Some(object.get(&["metadata", "labels"]).cloned().unwrap_or_default())
        };
        [labels(&subject.object), labels(&subject.old)]
            .iter()
            .flatten()
            .any(|labels| selectors::matches(&self.objects, labels))
    }

    async fn selects_namespace(&self, subject: &Subject<'_>) -> Result<bool, Status> {
        if selectors::is_empty(&self.namespaces) || subject.namespace.is_empty() {
            return Ok(true);
        }
        let Some(namespace) = subject.namespace_object().await? else { return Ok(true) };
        let labels = namespace.get(&["metadata", "labels"]).cloned().unwrap_or_default();
        Ok(selectors::matches(&self.namespaces, &labels))
    }
}

fn rules(list: &Value) -> Vec<Rule> {
    list.as_array().into_iter().flatten().map(Rule::of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_match_by_resource_operation_and_scope() {
        let rule = |change: Value| {
            let mut rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"], "scope": "*"});
            for (name, value) in change.as_object().unwrap() {
                rule[name] = value.clone();
            }
            Rule::of(&rule)
        };
        let gvr = |resource: &str| GroupVersionResource::new("", "v1", resource);
        let (pods, namespaces) = (gvr("pods"), gvr("namespaces"));
        let target =
            Target { gvr: &pods, subresource: "", operation: Operation::Create, namespace: "n", name: "a" };
        let attach = Target { subresource: "attach", operation: Operation::Connect, ..target };
        let namespace = Target { gvr: &namespaces, namespace: "n", ..target };
        let table = [
            (json!({}), target, true),
            (json!({"operations": ["*"]}), attach, false),
            (json!({"operations": ["*"], "resources": ["pods/*"]}), attach, true),
            (json!({"operations": ["*"], "resources": ["pods/*"]}), target, true),
            (json!({"operations": ["CONNECT"], "resources": ["pods/attach"]}), attach, true),
            (json!({"operations": ["CONNECT"], "resources": ["*/attach"]}), attach, true),
            (json!({"operations": ["CONNECT"], "resources": ["*/*"]}), attach, true),
            (json!({"operations": ["CONNECT"], "resources": ["*"]}), attach, false),
            (json!({"apiVersions": ["v2"]}), target, false),
            (json!({"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}), target, true),
            (json!({"operations": ["UPDATE", "DELETE"]}), target, false),
            (json!({"scope": "Namespaced"}), target, true),
            (json!({"scope": "Cluster"}), target, false),
            (json!({"scope": "Cluster", "resources": ["namespaces"]}), namespace, true),
            (json!({"scope": "Namespaced", "resources": ["namespaces"]}), namespace, false),
            (json!({"resourceNames": ["b"]}), target, false),
            (json!({"resourceNames": ["a"]}), target, true),
        ];
        for (change, target, want) in table {
            assert_eq!(rule(change.clone()).matches(target), want, "{change}");
        }
    }
}
