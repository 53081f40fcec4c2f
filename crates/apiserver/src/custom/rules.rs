//! `x-kubernetes-validations`: expressions that objects of a definition have to fulfil.
//!
//! A rule speaks of the value at its place in the schema as `self`; a transition rule also of what it was before, as
//! `oldSelf`, and is asked only where the two can be told to be the same thing: not within lists without keys.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::{FieldError, FieldErrorKind};
use cel::{Bindings, Env, Error, Fields, Program, Structure, TOTAL_BUDGET, Type, Val};
use serde_json::Value;

use super::types::flag;

/// A rule of a schema.
struct Rule {
    text: String,
    message: String,
    message_program: Option<Program>,
    program: Result<Program, String>,
    /// `.spec.name`, from the place of the rule
    field_path: String,
    reason: String,
    transition: bool,
    /// Asked for new objects too, with an `oldSelf` that is none.
    optional: bool,
}

/// The rules of a schema and of what is within it; nothing where there are none.
pub(super) struct Rules {
    ty: Type,
    own: Vec<Rule>,
    fields: BTreeMap<String, Rules>,
    /// Of list items and map values.
    each: Option<Box<Rules>>,
    /// What tells one item of a list from another.
    keys: Vec<String>,
}

/// A schema as a type of expressions.
struct Schema {
    schema: Arc<Value>,
    name: String,
    /// Has `apiVersion`, `kind` and `metadata`.
    whole: bool,
}

impl Structure for Schema {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        if self.whole {
            match name {
                "apiVersion" | "kind" => return Some(Type::String),
                "metadata" => {
                    let fields = [("name", Type::String), ("generateName", Type::String)];
                    return Some(Fields::structure("objectMeta", &fields));
                }
                _ => {}
            }
        }
        let property = self.schema["properties"].get(name)?;
        Some(type_of(property, &format!("{}.{name}", self.name), false))
    }
}

/// The type of a schema.
fn type_of(schema: &Value, name: &str, whole: bool) -> Type {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    if flag(schema, "x-kubernetes-int-or-string") {
        return Type::Dyn;
    }
    match (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default()) {
        ("boolean", _) => Type::Bool,
        ("integer", _) => Type::Int,
        ("number", _) => Type::Double,
        ("string", "date-time" | "date") => Type::Timestamp,
        ("string", "duration") => Type::Duration,
        ("string", "byte" | "binary") => Type::Bytes,
        ("string", _) => Type::String,
        ("array", _) => Type::list(type_of(&schema["items"], &format!("{name}.@idx"), false)),
        ("object", _) => {
            if schema["additionalProperties"].is_object() && !embedded && !whole {
                return Type::map(type_of(
                    &schema["additionalProperties"],
                    &format!("{name}.@values"),
                    false,
                ));
            }
            let known = schema["properties"].as_object().is_some_and(|map| !map.is_empty());
            if !known && !whole && !embedded {
                let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
                return if open || schema["additionalProperties"] == true {
                    Type::Dyn
                } else {
                    Type::map(Type::Dyn)
                };
            }
            let (schema, name) = (Arc::new(schema.clone()), name.to_owned());
            Type::Struct(Arc::new(Schema { schema, name, whole: whole || embedded }))
        }
        _ => Type::Dyn,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Rule {
    fn of(rule: &Value, ty: &Type) -> Self {
        let optional = rule["optionalOldSelf"] == true;
        let old = if optional { Type::Optional(Arc::new(ty.clone())) } else { ty.clone() };
        let env = Env::new().with("self", ty.clone()).with("oldSelf", old);
        let compile = |text: &str, wanted: &Type, what: &str| {
            let program = Program::compile(text, &env).map_err(|why| format!("compilation failed: {why}"))?;
            if program.gives(wanted) { Ok(program) } else { Err(what.to_owned()) }
        };
        let program = compile(&text(&rule["rule"]), &Type::Bool, "cel expression must evaluate to a bool");
        let told = text(&rule["messageExpression"]);
        let message = compile(&told, &Type::String, "messageExpression must evaluate to a string");
        Self {
            text: text(&rule["rule"]),
            message: text(&rule["message"]).trim().to_owned(),
            message_program: message.ok().filter(|_| !told.is_empty()),
            transition: program.as_ref().is_ok_and(|program| program.mentions("oldSelf")),
            program,
            field_path: text(&rule["fieldPath"]),
            reason: text(&rule["reason"]),
            optional,
        }
    }
}

/// Something wrong with a rule: its index, the field of the rule, and why.
pub(crate) type Fault = (usize, &'static str, String);

/// What is wrong with the rules at one place of a schema. `correlated` places are those where what an object was before
/// can be told.
pub(crate) fn faults(schema: &Value, whole: bool, correlated: bool) -> Vec<Fault> {
    let rules = schema["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rules.is_empty() {
        return Vec::new();
    }
    let ty = type_of(schema, if whole { "selfType" } else { "type" }, whole);
    let mut found = Vec::new();
    for (index, value) in rules.iter().enumerate() {
        if text(&value["rule"]).trim().is_empty() {
            continue;
        }
        let rule = Rule::of(value, &ty);
        let told = text(&value["messageExpression"]);
        if let Err(why) = &rule.program {
            found.push((index, "rule", why.clone()));
        }
        if !told.trim().is_empty() && rule.message_program.is_none() {
            let env = Env::new().with("self", ty.clone()).with("oldSelf", ty.clone());
            let why = Program::compile(&told, &env).err().map(|why| format!("compilation failed: {why}"));
            let why = why.unwrap_or_else(|| "messageExpression must evaluate to a string".to_owned());
            found.push((index, "messageExpression", why));
        }
        if rule.transition && !correlated {
            let why = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            found.push((index, "rule", why.to_owned()));
        }
        if !rule.transition && value["optionalOldSelf"].is_boolean() && rule.program.is_ok() {
            found.push((
                index,
                "optionalOldSelf",
                "may not be set if oldSelf is not used in rule".to_owned(),
            ));
        }
    }
    found
}

impl Rules {
    /// The rules of a version's schema.
    pub(super) fn of(schema: &Value) -> Option<Self> {
        Self::at(schema, "selfType", true)
    }

    fn at(schema: &Value, name: &str, whole: bool) -> Option<Self> {
        let ty = type_of(schema, name, whole);
        let own: Vec<Rule> = schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|rule| Rule::of(rule, &ty))
            .collect();
        let mut fields = BTreeMap::new();
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(rules) = Self::at(property, &format!("{name}.{field}"), false) {
                fields.insert(field.clone(), rules);
            }
        }
        let within =
            if schema["items"].is_object() { &schema["items"] } else { &schema["additionalProperties"] };
        let each = within.is_object().then(|| Self::at(within, &format!("{name}.@each"), false)).flatten();
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        let keys = keys.filter_map(|key| key.as_str().map(str::to_owned)).collect();
        let nothing = own.is_empty() && fields.is_empty() && each.is_none();
        (!nothing).then(|| Self { ty, own, fields, each: each.map(Box::new), keys })
    }

    /// What an object does not fulfil. Without an old object transition rules are not asked, unless they want to be.
    pub(super) fn check(&self, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let budget = Cell::new(TOTAL_BUDGET);
        self.walk(value, old, "", &budget, &mut errors);
        errors
    }

    fn walk(
        &self,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        budget: &Cell<u64>,
        errors: &mut Vec<FieldError>,
    ) {
        if value.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        for rule in &self.own {
            if !rule.transition || old.is_some() || rule.optional {
                self.ask(rule, value, old, path, budget, errors);
            }
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let rules = self.fields.get(name).or(self.each.as_deref());
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    if let Some(rules) = rules {
                        rules.walk(value, old.and_then(|old| old.get(name)), &path, budget, errors);
                    }
                }
            }
            Value::Array(items) => {
                let Some(rules) = &self.each else { return };
                for (index, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| self.same_item(old, item));
                    rules.walk(item, before, &format!("{path}[{index}]"), budget, errors);
                }
            }
            _ => {}
        }
    }

    /// The item of an older list that has the same keys.
    fn same_item<'v>(&self, old: &'v Value, item: &Value) -> Option<&'v Value> {
        let list = old.as_array().filter(|_| !self.keys.is_empty())?;
        list.iter().find(|other| self.keys.iter().all(|key| other[key] == item[key]))
    }

    fn ask(
        &self,
        rule: &Rule,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        budget: &Cell<u64>,
        errors: &mut Vec<FieldError>,
    ) {
        let mut bindings =
            Bindings { values: vec![("self", Val::of(value, &self.ty))], ..Bindings::default() };
        let before = old.map(|old| Val::of(old, &self.ty));
        match (rule.optional, before) {
            (true, before) => bindings.values.push(("oldSelf", Val::Optional(before.map(Arc::new)))),
            (false, Some(before)) => bindings.values.push(("oldSelf", before)),
            (false, None) => {}
        }
        let shown = |text: &str| format!("rule: {text:?}");
        let failure = match &rule.program {
            Err(why) => Some(format!("rule compile error: {why}")),
            Ok(program) => match program.evaluate(&bindings, budget) {
                Ok(Val::Bool(true)) => return,
                Ok(_) => None,
                Err(Error::Budget) => Some(
                    "validation failed due to running out of cost budget, no further validation rules will be run"
                        .to_owned(),
                ),
                Err(error) if error.to_string().starts_with("no such overload") => Some(format!(
                    "'{error}': call arguments did not match a supported operator, function or macro signature for {}",
                    shown(&rule.text)
                )),
                Err(error) => Some(format!("{error} evaluating {}", shown(&rule.text))),
            },
        };
        if let Some(why) = failure {
            let value = type_name(value);
            let field = named(path);
            let message = format!("Invalid value: {value:?}: {why}");
            errors.push(FieldError { field, kind: FieldErrorKind::Invalid, message });
            return;
        }
        let told = rule.message_program.as_ref().and_then(|program| program.evaluate(&bindings, budget).ok());
        let told = told.and_then(|value| value.as_str().map(|text| text.trim().to_owned()));
        let told = told.filter(|text| !text.is_empty() && !text.contains('\n'));
        let message = told.unwrap_or_else(|| {
            if rule.message.is_empty() {
                format!("failed rule: {}", rule.text.trim())
            } else {
                rule.message.clone()
            }
        });
        errors.push(finding(rule, value, path, &message));
    }
}

fn named(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::Null => "null",
    }
}

fn finding(rule: &Rule, value: &Value, path: &str, message: &str) -> FieldError {
    let inner = rule.field_path.trim_start_matches('.');
    let field = match (path.is_empty(), inner.is_empty()) {
        (_, true) => named(path),
        (true, false) => inner.to_owned(),
        (false, false) => format!("{path}.{inner}"),
    };
    match rule.reason.as_str() {
        "FieldValueRequired" => FieldError::required(field, message),
        "FieldValueForbidden" => FieldError::forbidden(field, message),
        "FieldValueDuplicate" => FieldError::duplicate(field, value.clone()),
        _ if value.is_object() || value.is_array() => {
            FieldError { field, kind: FieldErrorKind::Invalid, message: format!("Invalid value: {message}") }
        }
        _ => FieldError::invalid(field, value.clone(), message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'"},
                {"rule": "!has(self.fixed) || self.fixed == oldSelf.fixed", "message": "fixed stays", "reason": "FieldValueForbidden", "fieldPath": ".fixed"},
                {"rule": "oldSelf.hasValue() || self.min == 0", "optionalOldSelf": true, "message": "begin at 0"}],
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "fixed": {"type": "string"},
                "since": {"type": "string", "format": "date-time", "x-kubernetes-validations": [{"rule": "self.getFullYear() > 2000"}]},
                "names": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 3", "message": "too long"}]}},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
                    "x-kubernetes-validations": [{"rule": "self.port >= oldSelf.port", "message": "ports only grow"}],
                    "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}}}}}})
    }

    #[test]
    fn objects_have_to_fulfil_the_rules() {
        let rules = Rules::of(&schema()).unwrap();
        let table: Vec<(Value, Option<Value>, &str)> = vec![
            (json!({"min": 0, "max": 2}), None, ""),
            (
                json!({"min": 3, "max": 2}),
                None,
                "spec: Invalid value: min 3 is above max|spec: Invalid value: begin at 0",
            ),
            (json!({"min": 1, "max": 2}), Some(json!({"min": 0, "max": 1})), ""),
            (
                json!({"min": 0, "max": 2, "fixed": "b"}),
                Some(json!({"fixed": "a"})),
                "spec.fixed: Forbidden: fixed stays",
            ),
            (json!({"min": 0, "max": 2, "fixed": "b"}), None, ""),
            (
                json!({"min": 0, "max": 2, "since": "1999-01-01T00:00:00Z"}),
                None,
                "spec.since: Invalid value: \"1999-01-01T00:00:00Z\": failed rule: self.getFullYear() > 2000",
            ),
            (
                json!({"min": 0, "max": 2, "names": {"a": "long"}}),
                None,
                "spec.names.a: Invalid value: \"long\": too long",
            ),
            (
                json!({"min": 0, "max": 2, "ports": [{"name": "b", "port": 9}, {"name": "a", "port": 1}]}),
                Some(json!({"ports": [{"name": "a", "port": 2}]})),
                "spec.ports[1]: Invalid value: ports only grow",
            ),
            (
                json!({"max": 2}),
                None,
                "spec: Invalid value: \"object\": no such key: min evaluating rule: \"self.min <= self.max\"|spec: Invalid value: \"object\": no such key: min evaluating rule: \"oldSelf.hasValue() || self.min == 0\"",
            ),
        ];
        for (spec, old, want) in table {
            let old = old.map(|old| json!({"spec": old}));
            let found = rules.check(&json!({"spec": spec}), old.as_ref());
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.join("|"), want, "{spec}");
        }
        assert!(Rules::of(&json!({"type": "object", "properties": {"a": {"type": "string"}}})).is_none());
    }

    #[test]
    fn rules_that_do_not_compile_are_found() {
        let faults_of = |rule: Value, correlated: bool| {
            let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [rule]});
            let list = faults(&schema, false, correlated).into_iter();
            list.map(|(_, field, why)| format!("{field}: {}", why.lines().next().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join("|")
        };
        let table = [
            (json!({"rule": "self.a > 0"}), true, ""),
            (
                json!({"rule": "self.b > 0"}),
                true,
                "rule: compilation failed: ERROR: <input>:1:5: undefined field 'b'",
            ),
            (json!({"rule": "self.a"}), true, "rule: cel expression must evaluate to a bool"),
            (
                json!({"rule": "self.a == oldSelf.a"}),
                false,
                "rule: oldSelf cannot be used on the uncorrelatable portion of the schema",
            ),
            (
                json!({"rule": "self.a > 0", "optionalOldSelf": true}),
                true,
                "optionalOldSelf: may not be set if oldSelf is not used in rule",
            ),
            (
                json!({"rule": "self.a > 0", "messageExpression": "self.a"}),
                true,
                "messageExpression: messageExpression must evaluate to a string",
            ),
        ];
        for (rule, correlated, want) in table {
            assert_eq!(faults_of(rule.clone(), correlated), want, "{rule}");
        }
    }
}
