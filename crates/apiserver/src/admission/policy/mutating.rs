//! MutatingAdmissionPolicy: what a write is changed to.

use std::sync::Arc;

use api::{Cause, FieldType, ListType, Object, Reason, SchemaTable, Status, TypeId};
use cel::{Program, TOTAL_BUDGET, Val};
use serde_json::Value;

use super::{Compiler, Evaluation, Facts, Policy, Subject, Wanted, compile, text};
use crate::admission::AdmissionContext;
use crate::admission::dynamic::{Live, Round};
use crate::registry::Registry;
use crate::resource::Resource;

/// What a policy changes.
struct Changes {
    mutations: Vec<Mutation>,
    eager: bool,
}

enum Mutation {
    Apply(Program),
    Patch(Program),
}

fn changes(spec: &Value, compiler: &mut Compiler) -> Changes {
    let mut mutations = Vec::new();
    for mutation in spec["mutations"].as_array().into_iter().flatten() {
        let program = if mutation["patchType"] == "JSONPatch" {
            compiler.compile(&mutation["jsonPatch"]["expression"], Wanted::Patches).map(Mutation::Patch)
        } else {
            compiler
                .compile(&mutation["applyConfiguration"]["expression"], Wanted::Object)
                .map(Mutation::Apply)
        };
        mutations.extend(program);
    }
    Changes { mutations, eager: text(&spec["reinvocationPolicy"]) == "IfNeeded" }
}

/// All mutating policies.
pub(crate) struct MutatingPolicies {
    policies: Live<Vec<Policy<Changes>>>,
}

impl MutatingPolicies {
    pub(crate) fn new() -> Self {
        let resources = &["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];
        Self { policies: Live::new(resources, |lists| compile(lists, changes)) }
    }

    pub(crate) async fn any(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(!self.policies.get(registry).await?.is_empty())
    }

    /// Lets policies change the subject.
    pub(crate) async fn mutate(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &mut Subject<'_>,
        round: &mut Round,
    ) -> Result<(), Status> {
        if subject.object.is_none() {
            return Ok(());
        }
        let mut refusal = None;
        for policy in self.policies.get(cx.registry).await?.iter() {
            let Some(row) = policy.applies(subject).await? else { continue };
            for binding in &policy.bindings {
                let key = format!("policy {}/{}", policy.name, binding.name);
                let result = match policy.cases(binding, subject).await {
                    Ok(None) => continue,
                    Ok(Some(cases)) => {
                        if !round.is_turn_of(&key) {
                            continue;
                        }
                        policy.change(subject, &row, cases, round).await
                    }
                    Err(why) => Err(why),
                };
                if let Err(why) = result
                    && policy.closed
                {
                    let message = format!(
                        "policy '{}' with binding '{}' denied request: {why}",
                        policy.name, binding.name
                    );
                    refusal.get_or_insert_with(|| refused(subject, &message));
                }
                if policy.does.eager && !round.again {
                    round.eager.push(key);
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}

fn refused(subject: &Subject<'_>, message: &str) -> Status {
    let gvr = &subject.row.gvr;
    let mut status = Status::forbidden(&gvr.group, &gvr.resource, &subject.name, "");
    message.clone_into(&mut status.message);
    status.reason = Reason::Invalid;
    status.causes.push(Cause { reason: String::new(), message: message.to_owned(), field: String::new() });
    status
}

impl Policy<Changes> {
    async fn change(
        &self,
        subject: &mut Subject<'_>,
        row: &Arc<Resource>,
        cases: Vec<Value>,
        round: &mut Round,
    ) -> Result<(), String> {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        for params in cases {
            let mut facts = Facts::of(subject, row).await.map_err(|status| status.message)?;
            facts.params = params;
            let mut conditions = Evaluation::new(subject, &[], cel::CONDITIONS_BUDGET);
            if !conditions.fulfils(&facts, &self.conditions).await? {
                continue;
            }
            for mutation in &self.does.mutations {
                let mut evaluation = Evaluation::new(subject, &self.variables, TOTAL_BUDGET);
                let changed = mutation.apply(&mut evaluation, &facts, row).await?;
                let own = Arc::clone(&subject.row);
                let changed = subject.convert(changed, row, &own).await.map_err(|status| status.message)?;
                let by = format!("policy {:?}", self.name);
                if subject.replace(changed, &by).map_err(|status| status.message)? {
                    round.change();
                }
                let params = std::mem::take(&mut facts.params);
                facts = Facts::of(subject, row).await.map_err(|status| status.message)?;
                facts.params = params;
            }
        }
        Ok(())
    }
}

impl Mutation {
    /// The object as the mutation makes it.
    async fn apply(
        &self,
        evaluation: &mut Evaluation<'_>,
        facts: &Facts,
        row: &Resource,
    ) -> Result<Object, String> {
        let object = Object::from_value(facts.object.clone()).ok_or("there is no object to change")?;
        match self {
            Mutation::Apply(program) => {
                let take = |value: &Val<'_>| value.check_places().map(|()| value.to_json());
                let config = evaluation.run(facts, program, take).await?;
                let config =
                    config.map_err(|why| format!("type mismatch: {why}"))?.and_then(Object::from_value);
                merge(row, object, config.ok_or("invalid return type")?)
            }
            Mutation::Patch(program) => {
                let operations = evaluation.run(facts, program, |value: &Val<'_>| value.to_json()).await?;
                let operations = operations.ok_or("the patch has no JSON form")?;
                match api::patch::json(&object, &operations) {
                    Ok(patched) => Ok(patched),
                    // A test that fails means that nothing is to be changed.
                    Err(status) if status.message.contains("value did not match") => Ok(object),
                    Err(status) => Err(status.message),
                }
            }
        }
    }
}

/// Merges a configuration as server-side apply does, without anybody becoming the owner of its fields.
fn merge(row: &Resource, object: Object, mut config: Object) -> Result<Object, String> {
    for (name, value) in [("apiVersion", row.api_version()), ("kind", row.kind.clone())] {
        config.set(&[name], value);
    }
    let mut atomics = Vec::new();
    find_atomics(&row.table, row.schema, &Value::Object(config.0.clone()), "", &mut atomics);
    if !atomics.is_empty() {
        let list = atomics.join(", ");
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {list}"
        ));
    }
    let mut live = object;
    let managers = live.remove(&["metadata", "managedFields"]);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let merged = api::patch::apply(&row.table, row.schema, Some(&live), &config, "policy", "", true, now);
    let mut merged = merged.map_err(|error| format!("error applying patch: {error}"))?;
    merged.remove(&["metadata", "managedFields"]);
    if let Some(managers) = managers {
        merged.set(&["metadata", "managedFields"], managers);
    }
    Ok(merged)
}

/// Paths of the values that can only be replaced as a whole.
fn find_atomics(table: &SchemaTable, ty: TypeId, value: &Value, path: &str, found: &mut Vec<String>) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let Some(field) = table.get(ty).field(name) else { continue };
        let path = format!("{path}.{name}");
        match (&field.ty, value) {
            (FieldType::List(_), Value::Array(_)) if field.list_type == ListType::Atomic => found.push(path),
            (FieldType::Map(_) | FieldType::Ref(_), Value::Object(_)) if field.atomic => found.push(path),
            (FieldType::Ref(id), Value::Object(_)) if table.get(*id).atomic => found.push(path),
            (FieldType::Ref(id), value) => find_atomics(table, *id, value, &path, found),
            (FieldType::List(item), Value::Array(items)) => {
                if let FieldType::Ref(id) = **item {
                    for (index, item) in items.iter().enumerate() {
                        find_atomics(table, id, item, &format!("{path}[{index}]"), found);
                    }
                }
            }
            _ => {}
        }
    }
}
