//! `flowcontrol.apiserver.k8s.io/v1`: FlowSchema, PriorityLevelConfiguration.
//!
//! They are kept for those who write them; this server admits requests without looking at them.

use api::{FieldError, Object};
use serde_json::{Value, json};

use super::check::{At, Errors};
use super::defaults::{fill, object_mut};
use super::row::{Hooks, Row, age_col, col, name_col};
use crate::printing::cells;

const SCHEMA: Hooks = Hooks {
    default: |o| {
        if o.i64(&["spec", "matchingPrecedence"]).unwrap_or(0) == 0 {
            o.set(&["spec", "matchingPrecedence"], DEFAULT_PRECEDENCE);
        }
    },
    validate: validate_schema,
    ..Hooks::NONE
};
const LEVEL: Hooks = Hooks { default: default_level, validate: validate_level, ..Hooks::NONE };

const DEFAULT_PRECEDENCE: i64 = 1000;
/// Lowest precedence; 1 is the highest and belongs to the schema `exempt`.
const LAST_PRECEDENCE: i64 = 10_000;
const MOST_QUEUES: i64 = 10_000_000;

fn default_level(o: &mut Object) {
    let Some(spec) = o.0.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if let Some(exempt) = object_mut(spec, "exempt") {
        fill(exempt, "nominalConcurrencyShares", 0);
        fill(exempt, "lendablePercent", 0);
    }
    let Some(limited) = object_mut(spec, "limited") else { return };
    fill(limited, "nominalConcurrencyShares", 30);
    fill(limited, "lendablePercent", 0);
    if let Some(queuing) = object_mut(limited, "limitResponse").and_then(|r| object_mut(r, "queuing")) {
        for (field, default) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
            super::defaults::fill_zero(queuing, field, default);
        }
    }
}

fn validate_schema(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("matchingPrecedence").between(e, 1, LAST_PRECEDENCE);
    if spec.field("matchingPrecedence").i64() == Some(1) && o.name() != "exempt" {
        spec.field("matchingPrecedence")
            .invalid(e, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.field("distinguisherMethod");
    if method.is_set() {
        method.field("type").required_one_of(e, &["ByNamespace", "ByUser"]);
    }
    for rule in spec.field("rules").items() {
        validate_rule(&rule, e);
    }
}

fn validate_rule(rule: &At<'_>, e: &mut Errors) {
    rule.field("subjects").required(e);
    for subject in rule.field("subjects").items() {
        subject.field("kind").required_one_of(e, &["Group", "ServiceAccount", "User"]);
        let detail = match subject.field("kind").str() {
            "Group" => "group",
            "ServiceAccount" => "serviceAccount",
            "User" => "user",
            _ => continue,
        };
        let because = "is required when subject kind says so";
        subject.field(detail).required_because(e, because);
    }
    let (resources, urls) = (rule.field("resourceRules"), rule.field("nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        e.push(FieldError::required(&rule.path, detail));
    }
    for rule in resources.items() {
        for field in ["verbs", "apiGroups", "resources"] {
            rule.field(field).required(e);
        }
        if !rule.field("clusterScope").is_true() && rule.field("namespaces").is_empty() {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            e.push(FieldError::required(rule.field("namespaces").path, detail));
        }
    }
    for rule in urls.items() {
        rule.field("verbs").required(e);
        rule.field("nonResourceURLs").required(e);
    }
}

fn validate_level(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("type").required_one_of(e, &["Exempt", "Limited"]);
    let (exempt, limited) = (spec.field("exempt"), spec.field("limited"));
    match spec.field("type").str() {
        "Exempt" if limited.is_set() => limited.forbidden(e, "must be nil if the type is Exempt"),
        "Limited" if exempt.is_set() => exempt.forbidden(e, "must be nil if the type is Limited"),
        "Limited" if !limited.is_set() => {
            e.push(FieldError::required(&limited.path, "must not be empty when type is Limited"));
        }
        _ => {}
    }
    for part in [&exempt, &limited] {
        part.field("nominalConcurrencyShares").non_negative(e);
        part.field("lendablePercent").between(e, 0, 100);
    }
    if limited.is_set() {
        limited.field("borrowingLimitPercent").non_negative(e);
        validate_response(&limited.field("limitResponse"), e);
    }
}

fn validate_response(response: &At<'_>, e: &mut Errors) {
    response.field("type").required_one_of(e, &["Queue", "Reject"]);
    let queuing = response.field("queuing");
    match (response.field("type").str(), queuing.is_set()) {
        ("Reject", true) => queuing.forbidden(e, "must be nil if limited.limitResponse.type is not Queue"),
        ("Queue", false) => {
            e.push(FieldError::required(&queuing.path, "must not be empty if limitResponse.type is Queue"));
        }
        ("Queue", true) => {
            for field in ["queues", "handSize", "queueLengthLimit"] {
                queuing.field(field).positive(e);
            }
            let queues = queuing.field("queues").i64().unwrap_or(0);
            if queues > MOST_QUEUES {
                queuing.field("queues").invalid(e, &format!("must not be greater than {MOST_QUEUES}"));
            }
            if queuing.field("handSize").i64().is_some_and(|hand| hand > queues) {
                queuing
                    .field("handSize")
                    .invalid(e, &format!("should not be greater than queues ({queues})"));
            }
        }
        _ => {}
    }
}

fn number_or_none(o: &Object, path: &[&str]) -> Value {
    o.i64(path).map_or("<none>".into(), |n| n.to_string().into())
}

fn queuing(o: &Object, field: &str) -> Value {
    number_or_none(o, &["spec", "limited", "limitResponse", "queuing", field])
}

fn level_columns() -> Vec<crate::resource::Column> {
    vec![
        name_col(),
        col("Type", "string", "Whether the level limits anything.", |o, _| o.str(&["spec", "type"]).into()),
        col("NominalConcurrencyShares", "string", "Share of the server's concurrency.", |o, _| {
            number_or_none(o, &["spec", "limited", "nominalConcurrencyShares"])
        }),
        col("Queues", "string", "Number of queues.", |o, _| queuing(o, "queues")),
        col("HandSize", "string", "Queues that a flow may use.", |o, _| queuing(o, "handSize")),
        col("QueueLengthLimit", "string", "Longest queue.", |o, _| queuing(o, "queueLengthLimit")),
        age_col(),
    ]
}

fn dangling(o: &Object) -> Value {
    let conditions = cells::list(o, &["status", "conditions"]);
    let found = conditions.iter().find(|c| c["type"] == "Dangling");
    json!(found.map_or("?", |condition| cells::sub(condition, "status")))
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("flowschemas", "FlowSchema").cluster().status().strategy(SCHEMA).exact_columns(vec![
            name_col(),
            col("PriorityLevel", "string", "The level that its requests belong to.", |o, _| {
                o.str(&["spec", "priorityLevelConfiguration", "name"]).into()
            }),
            col("MatchingPrecedence", "integer", "Schemas with low numbers are asked first.", |o, _| {
                cells::count(o, &["spec", "matchingPrecedence"]).into()
            }),
            col("DistinguisherMethod", "string", "What tells flows apart.", |o, _| {
                cells::or_none(o.str(&["spec", "distinguisherMethod", "type"])).into()
            }),
            age_col(),
            col("MissingPL", "string", "Whether the level is missing.", |o, _| dangling(o)),
        ]),
        Row::new("prioritylevelconfigurations", "PriorityLevelConfiguration")
            .cluster()
            .status()
            .strategy(LEVEL)
            .exact_columns(level_columns()),
    ]
}
