//! Admission policies: expressions instead of webhooks.
//!
//! A policy says what is demanded or changed, its bindings say where and with which parameters. Expressions are compiled
//! when a policy changes, not when a request comes.

mod mutating;
mod params;
mod validating;

use std::sync::Arc;

use api::{Object, Status};
use cel::{Program, Type};
use serde_json::Value;

pub(crate) use self::mutating::MutatingPolicies;
pub(crate) use self::validating::ValidatingPolicies;
use super::dynamic::{Condition, Evaluation, Facts, Matcher, Subject, Vocabulary, Wanted};
use crate::resource::Resource;

/// What both kinds of policies have in common; `T` is what this kind does.
struct Policy<T> {
    name: String,
    /// A failure refuses the request.
    closed: bool,
    matcher: Matcher,
    param_kind: Value,
    conditions: Vec<Condition>,
    variables: Vec<(String, Program)>,
    /// An expression that does not compile: the definition changed meaning since it was accepted.
    broken: Option<String>,
    does: T,
    bindings: Vec<Binding>,
}

struct Binding {
    name: String,
    matcher: Matcher,
    param_ref: Value,
    actions: Vec<String>,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Compiles an expression, or notes why that is impossible.
struct Compiler {
    vocabulary: Vocabulary,
    broken: Option<String>,
}

impl Compiler {
    fn compile(&mut self, expression: &Value, wanted: Wanted) -> Option<Program> {
        match self.vocabulary.compile(text(expression), wanted) {
            Ok(program) => Some(program),
            Err(why) => {
                self.broken.get_or_insert(why);
                None
            }
        }
    }
}

/// Policies with their bindings, by name; a policy that nobody binds is left out.
fn compile<T>(mut lists: Vec<Vec<Object>>, does: impl Fn(&Value, &mut Compiler) -> T) -> Vec<Policy<T>> {
    let mut bindings = lists.pop().unwrap_or_default();
    let mut policies = lists.pop().unwrap_or_default();
    bindings.sort_by(|a, b| a.name().cmp(b.name()));
    policies.sort_by(|a, b| a.name().cmp(b.name()));
    let bound = |policy: &Object| -> Vec<Binding> {
        let own = bindings.iter().filter(|binding| binding.str(&["spec", "policyName"]) == policy.name());
        own.map(Binding::of).collect()
    };
    let compiled = policies.iter().map(|policy| (policy, bound(policy))).filter(|(_, list)| !list.is_empty());
    compiled.map(|(policy, list)| Policy::of(policy, list, &does)).collect()
}

impl Binding {
    fn of(binding: &Object) -> Self {
        let spec = binding.get(&["spec"]).cloned().unwrap_or_default();
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Self {
            name: binding.name().to_owned(),
            matcher: Matcher::of_resources(&spec["matchResources"]),
            param_ref: spec["paramRef"].clone(),
            actions: actions.map(|action| text(action).to_owned()).collect(),
        }
    }
}

impl<T> Policy<T> {
    fn of(policy: &Object, bindings: Vec<Binding>, does: &impl Fn(&Value, &mut Compiler) -> T) -> Self {
        let spec = policy.get(&["spec"]).cloned().unwrap_or_default();
        let has_params = spec["paramKind"].is_object();
        let vocabulary = Vocabulary {
            object: Type::Dyn,
            params: has_params,
            authorizer: true,
            variables: Some(Vec::new()),
        };
        let mut compiler = Compiler { vocabulary, broken: None };
        let mut variables = Vec::new();
        for variable in spec["variables"].as_array().into_iter().flatten() {
            let name = text(&variable["name"]).to_owned();
            if let Some(program) = compiler.compile(&variable["expression"], Wanted::Anything) {
                if let Some(known) = &mut compiler.vocabulary.variables {
                    known.push((name.clone(), program.result.clone()));
                }
                variables.push((name, program));
            }
        }
        let does = does(&spec, &mut compiler);
        Self {
            name: policy.name().to_owned(),
            closed: spec["failurePolicy"] != "Ignore",
            matcher: Matcher::of_resources(&spec["matchConstraints"]),
            param_kind: spec["paramKind"].clone(),
            conditions: Condition::all(&spec["matchConditions"], has_params),
            variables,
            broken: compiler.broken,
            does,
            bindings,
        }
    }

    /// The row in whose version the policy wants to see the subject, if it applies.
    async fn applies(&self, subject: &Subject<'_>) -> Result<Option<Arc<Resource>>, Status> {
        self.matcher.invocation(subject).await
    }

    /// The facts for each parameter of a binding that applies.
    ///
    /// # Errors
    /// Why the binding cannot be used.
    async fn cases(&self, binding: &Binding, subject: &Subject<'_>) -> Result<Option<Vec<Value>>, String> {
        let applies = binding.matcher.invocation(subject).await.map_err(|status| status.message)?;
        if applies.is_none() {
            return Ok(None);
        }
        params::of(subject, &self.param_kind, &binding.param_ref).await.map(Some)
    }
}
