//! The paths of a row with their operations.

use api::{GroupVersionKind, Verb};
use serde_json::{Map, Value, json};

use super::{meta_name, reference};
use crate::discovery;
use crate::resource::{Resource, Subresource};

/// (path, operations) of the collection, of one object, and of its subresources.
pub(super) fn of(row: &Resource) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    let namespace = row.namespaced.then_some("{namespace}");
    let kind = Operations { row, kind: row.gvk(), schema: name(row, &row.gvk()) };
    let collection = [Verb::List, Verb::Create, Verb::DeleteCollection];
    out.push((row.gvr.path(namespace, None, None), kind.item(&collection, &row.verbs, namespace, false)));
    if row.namespaced && row.allows(Verb::List) {
        out.push((row.gvr.path(None, None, None), kind.item(&[Verb::List], &row.verbs, None, false)));
    }
    let single = [Verb::Get, Verb::Update, Verb::Patch, Verb::Delete];
    if row.allows(Verb::Get) {
        let path = row.gvr.path(namespace, Some("{name}"), None);
        out.push((path, kind.item(&single, &row.verbs, namespace, true)));
    }
    for sub in &row.subresources {
        let path = row.gvr.path(namespace, Some("{name}"), Some(sub.name()));
        let gvk = discovery::kind_of(row, sub);
        let schema = match sub {
            Subresource::Connect { .. } => None,
            _ => name(row, &gvk),
        };
        let operations = Operations { row, kind: gvk, schema };
        let verbs = sub.verbs();
        out.push((
            path,
            operations.item(&[Verb::Get, Verb::Update, Verb::Patch, Verb::Create], &verbs, namespace, true),
        ));
    }
    out
}

/// Name of a kind's component.
fn name(row: &Resource, kind: &GroupVersionKind) -> Option<String> {
    let id = row.table.kind(&kind.group, &kind.version, &kind.kind)?;
    Some(row.table.get(id).name.clone().into_owned())
}

struct Operations<'a> {
    row: &'a Resource,
    kind: GroupVersionKind,
    schema: Option<String>,
}

/// (method, `x-kubernetes-action`) of a verb.
fn method(verb: Verb) -> (&'static str, &'static str) {
    match verb {
        Verb::Get => ("get", "get"),
        Verb::List | Verb::Watch => ("get", "list"),
        Verb::Create => ("post", "post"),
        Verb::Update => ("put", "put"),
        Verb::Patch => ("patch", "patch"),
        Verb::Delete => ("delete", "delete"),
        Verb::DeleteCollection => ("delete", "deletecollection"),
    }
}

fn parameter(name: &str, place: &str, type_: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path",
        "schema": {"type": type_, "uniqueItems": true}})
}

/// Query parameters of a verb.
fn query(verb: Verb) -> &'static [(&'static str, &'static str)] {
    const WRITE: &[(&str, &str)] =
        &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
    const PATCH: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("fieldManager", "string"),
        ("fieldValidation", "string"),
        ("force", "boolean"),
    ];
    const DELETE: &[(&str, &str)] =
        &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")];
    const LIST: &[(&str, &str)] = &[
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    match verb {
        Verb::Create | Verb::Update => WRITE,
        Verb::Patch => PATCH,
        Verb::Delete => DELETE,
        Verb::List | Verb::Watch | Verb::DeleteCollection => LIST,
        Verb::Get => &[],
    }
}

impl Operations<'_> {
    fn item(&self, candidates: &[Verb], allowed: &[Verb], namespace: Option<&str>, named: bool) -> Value {
        let mut item = Map::new();
        for verb in candidates.iter().filter(|v| allowed.contains(v)) {
            item.insert(method(*verb).0.to_owned(), self.operation(*verb));
        }
        let mut parameters = vec![parameter("pretty", "query", "string")];
        if namespace.is_some() {
            parameters.push(parameter("namespace", "path", "string"));
        }
        if named {
            parameters.push(parameter("name", "path", "string"));
        }
        item.insert("parameters".to_owned(), parameters.into());
        Value::Object(item)
    }

    fn operation(&self, verb: Verb) -> Value {
        let own = self.schema.as_deref().map_or_else(|| json!({"type": "string"}), reference);
        let answer = match verb {
            Verb::List | Verb::Watch => {
                let list = GroupVersionKind { kind: self.row.list_kind.clone(), ..self.row.gvk() };
                name(self.row, &list).map_or_else(|| own.clone(), |n| reference(&n))
            }
            Verb::Delete | Verb::DeleteCollection => reference(&meta_name("Status")),
            _ => own.clone(),
        };
        let code = if verb == Verb::Create { "201" } else { "200" };
        let mut operation = json!({
            "operationId": self.id(verb),
            "tags": [self.row.api_version()],
            "parameters": query(verb).iter().map(|(n, t)| parameter(n, "query", t)).collect::<Vec<_>>(),
            "responses": {
                code: {"description": "OK", "content": {"application/json": {"schema": answer}}},
                "401": {"description": "Unauthorized"},
            },
            "x-kubernetes-action": method(verb).1,
            "x-kubernetes-group-version-kind": {
                "group": self.kind.group, "version": self.kind.version, "kind": self.kind.kind,
            },
        });
        if let Some(body) = body(verb, &own, self.row.strategy.merges_strategically()) {
            operation["requestBody"] = body;
        }
        operation
    }

    fn id(&self, verb: Verb) -> String {
        let gvr = &self.row.gvr;
        let group: String = gvr.group.split('.').next().unwrap_or_default().to_owned();
        let scope = if self.row.namespaced { "Namespaced" } else { "" };
        format!("{}_{group}_{}_{scope}_{}_{}", verb.as_str(), gvr.version, gvr.resource, self.kind.kind)
    }
}

fn body(verb: Verb, own: &Value, strategic: bool) -> Option<Value> {
    let content = |types: &[&str], schema: &Value| {
        let content: Map<String, Value> =
            types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect();
        json!({"content": content})
    };
    match verb {
        Verb::Create | Verb::Update => Some(content(&["application/json", "application/yaml"], own)),
        Verb::Patch => {
            let types = [
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ];
            let types = if strategic { &types[..] } else { &types[..3] };
            Some(content(types, &reference(&meta_name("Patch"))))
        }
        Verb::Delete | Verb::DeleteCollection => {
            Some(content(&["application/json"], &reference(&meta_name("DeleteOptions"))))
        }
        Verb::Get | Verb::List | Verb::Watch => None,
    }
}
