//! Expressions in policies and webhook configurations: they must compile when they are written. What they assume of the
//! built-in kinds that a policy is about is told in its status, as warnings.

use std::sync::Arc;

use api::{FieldType, Object, SchemaTable, TypeId};
use cel::{Structure, Type};
use serde_json::{Value, json};

use crate::admission::dynamic::{Vocabulary, Wanted};
use crate::resources::check::{At, Errors};

/// Checks one expression; white space alone is somebody else's finding.
fn check(at: &At<'_>, vocabulary: &Vocabulary, wanted: Wanted, e: &mut Errors) -> Option<Type> {
    if at.str().trim().is_empty() {
        return None;
    }
    match vocabulary.compile(at.str(), wanted) {
        Ok(program) => Some(program.result),
        Err(why) => {
            at.invalid(e, &why);
            None
        }
    }
}

/// Checks match conditions.
pub(super) fn conditions(list: &At<'_>, params: bool, e: &mut Errors) {
    for condition in list.items() {
        check(&condition.field("expression"), &Vocabulary::conditions(params), Wanted::Bool, e);
    }
}

/// Checks everything but the match conditions of a policy's spec.
pub(super) fn policy(spec: &At<'_>, object: Type, e: &mut Errors) {
    let params = spec.field("paramKind").is_set();
    let mut vocabulary = Vocabulary { object, params, authorizer: true, variables: Some(Vec::new()) };
    for variable in spec.field("variables").items() {
        let ty = check(&variable.field("expression"), &vocabulary, Wanted::Anything, e);
        if let Some(known) = &mut vocabulary.variables {
            // A variable that does not compile is no reason to find fault with those who use it.
            known.push((variable.field("name").str().to_owned(), ty.unwrap_or(Type::Dyn)));
        }
    }
    for validation in spec.field("validations").items() {
        check(&validation.field("expression"), &vocabulary, Wanted::Bool, e);
        let told = Vocabulary { authorizer: false, ..vocabulary.clone() };
        check(&validation.field("messageExpression"), &told, Wanted::Text, e);
    }
    for annotation in spec.field("auditAnnotations").items() {
        check(&annotation.field("valueExpression"), &vocabulary, Wanted::TextOrNull, e);
    }
    for mutation in spec.field("mutations").items() {
        check(&mutation.field("jsonPatch").field("expression"), &vocabulary, Wanted::Patches, e);
        check(&mutation.field("applyConfiguration").field("expression"), &vocabulary, Wanted::Object, e);
    }
}

/// A type of the schema as expressions see it.
struct Typed {
    table: Arc<SchemaTable>,
    id: TypeId,
}

impl Structure for Typed {
    fn name(&self) -> &str {
        &self.table.get(self.id).name
    }

    fn field(&self, name: &str) -> Option<Type> {
        let def = self.table.get(self.id);
        match def.field(name) {
            Some(field) => Some(type_of(&self.table, &field.ty)),
            None => def.preserve_unknown.then_some(Type::Dyn),
        }
    }
}

fn type_of(table: &Arc<SchemaTable>, ty: &FieldType) -> Type {
    match ty {
        FieldType::String => Type::String,
        FieldType::Time | FieldType::MicroTime => Type::Timestamp,
        FieldType::Bytes => Type::Bytes,
        FieldType::Boolean => Type::Bool,
        FieldType::Int32 | FieldType::Int64 => Type::Int,
        FieldType::Double => Type::Double,
        FieldType::IntOrString | FieldType::Quantity | FieldType::Any => Type::Dyn,
        FieldType::Ref(id) => Type::Struct(Arc::new(Typed { table: Arc::clone(table), id: *id })),
        FieldType::List(item) => Type::list(type_of(table, item)),
        FieldType::Map(value) => Type::map(type_of(table, value)),
    }
}

/// Most kinds that one policy is checked against.
const MOST_KINDS: usize = 10;

/// The built-in kinds that a policy's rules name without stars: how they are called and their types.
fn kinds(spec: &At<'_>, table: &Arc<SchemaTable>) -> Vec<(String, TypeId)> {
    let mut found = Vec::new();
    for rule in spec.field("matchConstraints").field("resourceRules").items() {
        let texts =
            |name: &str| rule.field(name).items().map(|item| item.str().to_owned()).collect::<Vec<_>>();
        for group in texts("apiGroups") {
            for version in texts("apiVersions") {
                for resource in texts("resources") {
                    let row = super::super::kind_of(&group, &version, &resource);
                    let Some(kind) = row else { continue };
                    let Some(id) = table.kind(&group, &version, kind) else { continue };
                    let api_version =
                        if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
                    let name = format!("{api_version}, Kind={kind}");
                    if !found.iter().any(|(known, _)| *known == name) && found.len() < MOST_KINDS {
                        found.push((name, id));
                    }
                }
            }
        }
    }
    found
}

/// Notes in a validating policy's status which of its expressions do not fit the kinds that it is about.
pub(super) fn note_types(o: &mut Object, table: &Arc<SchemaTable>) {
    let generation = o.i64(&["metadata", "generation"]).unwrap_or(0);
    if o.i64(&["status", "observedGeneration"]) == Some(generation) {
        return;
    }
    let spec = At::top(o, "spec");
    let mut warnings: Vec<(String, String)> = Vec::new();
    for (name, id) in kinds(&spec, table) {
        let mut errors = Errors::new();
        policy(&spec, Type::Struct(Arc::new(Typed { table: Arc::clone(table), id })), &mut errors);
        for error in errors {
            let at = error.message.find("ERROR: ").unwrap_or(0);
            let text = format!("{name}: {}\n", &error.message[at..]);
            match warnings.iter_mut().find(|(field, _)| *field == error.field) {
                Some((_, known)) => known.push_str(&text),
                None => warnings.push((error.field, text)),
            }
        }
    }
    let list: Vec<Value> =
        warnings.into_iter().map(|(field, warning)| json!({"fieldRef": field, "warning": warning})).collect();
    let checking = if list.is_empty() { json!({}) } else { json!({"expressionWarnings": list}) };
    o.set(&["status", "observedGeneration"], generation);
    o.set(&["status", "typeChecking"], checking);
}
