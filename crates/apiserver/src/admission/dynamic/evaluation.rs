//! Expressions evaluated on a write: the data, the answers of the authorizer, and what may be spent.

use std::cell::Cell;
use std::sync::Arc;

use cel::{Bindings, Check, Decision, Error, Opaque, Program, Type, Val};
use serde_json::Value;

use super::Subject;
use super::vocabulary::{Vocabulary, Wanted};
use crate::admission::webhook::request_of;
use crate::authz::{self, Attributes};
use crate::registry::Registry;
use crate::resource::{Resource, UserInfo};

/// A condition of a webhook or policy: it is asked only when all are true.
pub(crate) struct Condition {
    name: String,
    program: Result<Program, String>,
}

impl Condition {
    /// The conditions in `matchConditions`.
    pub(crate) fn all(list: &Value, params: bool) -> Vec<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
        let vocabulary = Vocabulary::conditions(params);
        let list = list.as_array().into_iter().flatten();
        list.map(|condition| Self {
            name: text(&condition["name"]),
            program: vocabulary.compile(&text(&condition["expression"]), Wanted::Bool),
        })
        .collect()
    }
}

/// The data that expressions speak of.
pub(crate) struct Facts {
    pub(crate) object: Value,
    pub(crate) old: Value,
    pub(crate) request: Value,
    pub(crate) namespace: Value,
    pub(crate) params: Value,
    about: Check,
}

impl Facts {
    /// The facts of a subject as a version of its row shows it.
    ///
    /// # Errors
    /// When objects cannot be converted or the namespace cannot be read.
    pub(crate) async fn of(subject: &Subject<'_>, row: &Arc<Resource>) -> Result<Self, api::Status> {
        let (object, old) = subject.converted(row).await?;
        let tree = |object: Option<api::Object>| object.map_or(Value::Null, api::Object::into_value);
        let is_namespace = subject.row.gvr.group.is_empty() && subject.row.gvr.resource == "namespaces";
        let namespace = if is_namespace { None } else { subject.namespace_object().await? };
        Ok(Self {
            object: tree(object),
            old: tree(old),
            request: Value::Object(request_of(subject, row)),
            namespace: tree(namespace.cloned()),
            params: Value::Null,
            about: Check {
                group: subject.row.gvr.group.clone(),
                resource: subject.row.gvr.resource.clone(),
                subresource: subject.subresource.to_owned(),
                namespace: subject.namespace.clone(),
                name: subject.name.clone(),
                ..Check::default()
            },
        })
    }
}

/// What matters of an evaluation: who is asked, and how much may still be spent.
pub(crate) struct Evaluation<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) user: &'a UserInfo,
    pub(crate) variables: &'a [(String, Program)],
    decisions: Vec<(Check, Decision)>,
    budget: Cell<u64>,
}

impl<'a> Evaluation<'a> {
    pub(crate) fn new(subject: &Subject<'a>, variables: &'a [(String, Program)], budget: u64) -> Self {
        let (registry, user) = (subject.registry, subject.user);
        Self { registry, user, variables, decisions: Vec::new(), budget: Cell::new(budget) }
    }

    /// Evaluates a program and takes what is needed of its value.
    ///
    /// # Errors
    /// Why it failed: `expression '…' resulted in error: …`.
    pub(crate) async fn run<T>(
        &mut self,
        facts: &Facts,
        program: &Program,
        take: fn(&Val<'_>) -> T,
    ) -> Result<T, String> {
        loop {
            let check = match self.once(facts, program, take) {
                Ok(value) => return Ok(value),
                Err(Error::Need(check)) => *check,
                Err(error) => {
                    return Err(format!("expression '{}' resulted in error: {error}", program.text().trim()));
                }
            };
            let decision = self.decide(&check).await;
            self.decisions.push((check, decision));
        }
    }

    fn once<T>(&self, facts: &Facts, program: &Program, take: fn(&Val<'_>) -> T) -> Result<T, Error> {
        let any = Type::Dyn;
        let authorizer = Opaque::Authorizer(String::new(), Box::new(facts.about.clone()));
        let bindings = Bindings {
            values: vec![
                ("object", Val::of(&facts.object, &any)),
                ("oldObject", Val::of(&facts.old, &any)),
                ("request", Val::of(&facts.request, &any)),
                ("namespaceObject", Val::of(&facts.namespace, &any)),
                ("params", Val::of(&facts.params, &any)),
                ("authorizer", Val::Opaque(Arc::new(authorizer))),
            ],
            lazy: self.variables.iter().map(|(name, program)| (name.as_str(), program)).collect(),
            decisions: &self.decisions,
        };
        program.evaluate(&bindings, &self.budget).map(|value| take(&value))
    }

    async fn decide(&mut self, check: &Check) -> Decision {
        let account;
        let user = if check.user.is_empty() {
            self.user
        } else {
            account = service_account(&check.user);
            &account
        };
        let attributes = Attributes {
            verb: &check.verb,
            group: &check.group,
            resource: &check.resource,
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            path: &check.path,
            ..Attributes::default()
        };
        match authz::allows(self.registry, user, &attributes).await {
            Ok(allowed) => Decision { allowed, ..Decision::default() },
            Err(status) => Decision { error: status.message, ..Decision::default() },
        }
    }

    /// Whether all conditions are true. One that is false decides, whatever others fail with.
    ///
    /// # Errors
    /// What the conditions failed with.
    pub(crate) async fn fulfils(&mut self, facts: &Facts, conditions: &[Condition]) -> Result<bool, String> {
        let mut errors = Vec::new();
        for condition in conditions {
            let result = match &condition.program {
                Ok(program) => self.run(facts, program, truth).await,
                Err(why) => Err(why.clone()),
            };
            match result {
                Ok(Some(true)) => {}
                Ok(Some(false)) => {
                    tracing::trace!(condition = condition.name, "a match condition excludes a request");
                    return Ok(false);
                }
                Ok(None) => errors.push(format!("condition {:?} gave no bool", condition.name)),
                Err(why) => errors.push(why),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}

/// A value as yes or no.
pub(crate) fn truth(value: &Val<'_>) -> Option<bool> {
    match value {
        Val::Bool(value) => Some(*value),
        _ => None,
    }
}

fn service_account(name: &str) -> UserInfo {
    let namespace = name.split(':').nth(2).unwrap_or_default();
    let own = format!("system:serviceaccounts:{namespace}");
    UserInfo::new(name, &["system:serviceaccounts", &own, "system:authenticated"])
}
