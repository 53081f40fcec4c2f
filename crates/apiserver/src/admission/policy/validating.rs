//! ValidatingAdmissionPolicy: what must be true of a write.

use api::{Cause, Reason, Status};
use cel::{Program, TOTAL_BUDGET, Val};
use serde_json::Value;

use super::{Binding, Compiler, Evaluation, Facts, Policy, Subject, Wanted, compile, text};
use crate::admission::AdmissionContext;
use crate::admission::dynamic::{Live, truth};
use crate::registry::Registry;

/// A message of an expression is at most this long.
const LONGEST_MESSAGE: usize = 5 * 1024;
const LONGEST_ANNOTATION: usize = 10 * 1024;

/// What a policy demands.
struct Demands {
    validations: Vec<Validation>,
    annotations: Vec<(String, Program)>,
}

struct Validation {
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: Reason,
}

fn demands(spec: &Value, compiler: &mut Compiler) -> Demands {
    let list = |name: &str| spec[name].as_array().cloned().unwrap_or_default();
    let mut validations = Vec::new();
    for validation in list("validations") {
        let Some(program) = compiler.compile(&validation["expression"], Wanted::Bool) else { continue };
        let message_program = if text(&validation["messageExpression"]).trim().is_empty() {
            None
        } else {
            compiler.vocabulary.authorizer = false;
            let program = compiler.compile(&validation["messageExpression"], Wanted::Text);
            compiler.vocabulary.authorizer = true;
            program
        };
        let reason = text(&validation["reason"]);
        validations.push(Validation {
            message: text(&validation["message"]).trim().to_owned(),
            message_program,
            reason: if reason.is_empty() { Reason::Invalid } else { Reason::parse(reason) },
            program,
        });
    }
    let mut annotations = Vec::new();
    for annotation in list("auditAnnotations") {
        if let Some(program) = compiler.compile(&annotation["valueExpression"], Wanted::TextOrNull) {
            annotations.push((text(&annotation["key"]).to_owned(), program));
        }
    }
    Demands { validations, annotations }
}

/// All validating policies.
pub(crate) struct ValidatingPolicies {
    policies: Live<Vec<Policy<Demands>>>,
}

/// Why a write is refused.
struct Denial {
    message: String,
    reason: Reason,
}

impl Denial {
    fn invalid(message: String) -> Self {
        Self { message, reason: Reason::Invalid }
    }
}

impl ValidatingPolicies {
    pub(crate) fn new() -> Self {
        let resources = &["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
        Self { policies: Live::new(resources, |lists| compile(lists, demands)) }
    }

    pub(crate) async fn any(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(!self.policies.get(registry).await?.is_empty())
    }

    /// Refuses what a policy with the action `Deny` does not accept; warns of the rest.
    pub(crate) async fn validate(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &Subject<'_>,
    ) -> Result<(), Status> {
        let mut refusal = None;
        for policy in self.policies.get(cx.registry).await?.iter() {
            let Some(row) = policy.applies(subject).await? else { continue };
            let mut facts = Facts::of(subject, &row).await?;
            for binding in &policy.bindings {
                let denials = match policy.cases(binding, subject).await {
                    Ok(None) => continue,
                    Ok(Some(cases)) => {
                        let mut denials = Vec::new();
                        for params in cases {
                            facts.params = params;
                            denials.extend(policy.judge(subject, &facts).await);
                        }
                        denials
                    }
                    Err(_) if !policy.closed => continue,
                    Err(why) => {
                        let denial = Denial::invalid(format!("failed to configure binding: {why}"));
                        refusal.get_or_insert_with(|| refused(subject, policy, binding, &denial));
                        continue;
                    }
                };
                for denial in denials {
                    act(cx, policy, binding, &denial);
                    if binding.actions.iter().any(|action| action == "Deny") {
                        refusal.get_or_insert_with(|| refused(subject, policy, binding, &denial));
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}

/// Warns and notes, where the binding says so.
fn act(cx: &AdmissionContext<'_>, policy: &Policy<Demands>, binding: &Binding, denial: &Denial) {
    let (policy, binding_name) = (&policy.name, &binding.name);
    for action in &binding.actions {
        match action.as_str() {
            "Warn" => cx.call.warnings.extend([format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding_name}': {}",
                denial.message
            )]),
            "Audit" => tracing::info!(
                target: "audit",
                policy,
                binding = binding_name,
                message = denial.message,
                "a validation has failed"
            ),
            _ => {}
        }
    }
}

fn refused(subject: &Subject<'_>, policy: &Policy<Demands>, binding: &Binding, denial: &Denial) -> Status {
    let message = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        policy.name, binding.name, denial.message
    );
    let gvr = &subject.row.gvr;
    let mut status = Status::forbidden(&gvr.group, &gvr.resource, &subject.name, &message);
    status.reason = denial.reason;
    status.code = denial.reason.code();
    status.causes.push(Cause { reason: String::new(), message, field: String::new() });
    status
}

impl Policy<Demands> {
    /// What the policy does not accept.
    async fn judge(&self, subject: &Subject<'_>, facts: &Facts) -> Vec<Denial> {
        let failure = |why: String| if self.closed { vec![Denial::invalid(why)] } else { Vec::new() };
        if let Some(why) = &self.broken {
            return failure(why.clone());
        }
        let mut conditions = Evaluation::new(subject, &[], cel::CONDITIONS_BUDGET);
        match conditions.fulfils(facts, &self.conditions).await {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(why) => return failure(why),
        }
        let mut evaluation = Evaluation::new(subject, &self.variables, TOTAL_BUDGET);
        let mut denials = Vec::new();
        for validation in &self.does.validations {
            match evaluation.run(facts, &validation.program, truth).await {
                Ok(Some(true)) => {}
                Ok(_) => {
                    let message = validation.told(&mut evaluation, facts).await;
                    denials.push(Denial { message, reason: validation.reason });
                }
                Err(why) => denials.extend(failure(why)),
            }
        }
        for (key, program) in &self.does.annotations {
            match evaluation.run(facts, program, |value: &Val<'_>| value.as_str().map(str::to_owned)).await {
                Ok(Some(value)) => {
                    let end = (0..=value.len().min(LONGEST_ANNOTATION))
                        .rev()
                        .find(|at| value.is_char_boundary(*at));
                    let value = &value[..end.unwrap_or(0)];
                    tracing::info!(target: "audit", policy = self.name, key, value, "a policy has annotated a request");
                }
                Ok(None) => {}
                Err(why) => denials.extend(failure(why)),
            }
        }
        denials
    }
}

impl Validation {
    /// What the user is told: the expression's message, else the fixed one, else the expression.
    async fn told(&self, evaluation: &mut Evaluation<'_>, facts: &Facts) -> String {
        if let Some(program) = &self.message_program {
            let message = evaluation
                .run(facts, program, |value: &Val<'_>| value.as_str().unwrap_or_default().trim().to_owned());
            match message.await {
                Ok(text) if !text.is_empty() && text.len() <= LONGEST_MESSAGE && !text.contains('\n') => {
                    return text;
                }
                Ok(_) => {}
                Err(why) => tracing::debug!(why, "a message expression failed"),
            }
        }
        if self.message.is_empty() {
            format!("failed expression: {}", self.program.text().trim())
        } else {
            self.message.clone()
        }
    }
}
