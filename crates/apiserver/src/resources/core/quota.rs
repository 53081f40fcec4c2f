//! ResourceQuota: its rules, and the namespace's allowances that are kept beside it.

use api::{FieldError, Object, Status};
use futures_util::future::BoxFuture;

use crate::admission::quota::define;
use crate::resource::{Change, Extension, Strategy, WriteContext};
use crate::resources::check::{At, Errors};
use crate::resources::{names, quantity};

pub(super) struct QuotaStrategy;

/// Scopes that choose pods.
const OF_PODS: [&str; 6] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];
const OPERATORS: &[&str] = &["DoesNotExist", "Exists", "In", "NotIn"];

impl Strategy for QuotaStrategy {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, quota: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        let spec = At::top(quota, "spec");
        for (name, amount) in spec.field("hard").entries() {
            for detail in names::qualified_name(name) {
                amount.invalid_key(&mut e, name, &detail);
            }
            if quantity::validate(&amount, &mut e).is_some_and(|n| counts(name) && !n.is_whole()) {
                amount.invalid(&mut e, "must be an integer");
            }
        }
        let scopes = spec.field("scopes");
        for scope in scopes.items() {
            check_scope(&scope, &spec, &mut e);
        }
        let named = |name: &str| scopes.items().any(|scope| scope.str() == name);
        for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
            if pair.into_iter().all(named) {
                scopes.invalid(&mut e, "conflicting scopes");
            }
        }
        for expression in spec.field("scopeSelector").field("matchExpressions").items() {
            check_scope(&expression.field("scopeName"), &spec, &mut e);
            let operator = expression.field("operator");
            operator.required_one_of(&mut e, OPERATORS);
            let values = expression.field("values");
            match operator.str() {
                "In" | "NotIn" if values.is_empty() => {
                    let why =
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                    values.required_because(&mut e, why);
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why =
                        "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                    values.invalid(&mut e, why);
                }
                _ => {}
            }
        }
        e
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        let scopes = |o: &Object| At::top(o, "spec").field("scopes").value.clone();
        if scopes(new) != scopes(old) {
            e.push(FieldError::invalid("spec.scopes", scopes(new), "field is immutable"));
        }
        e
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        txn: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(define(cx, change, txn))
    }
}

/// Whether an amount is a number of objects.
fn counts(name: &str) -> bool {
    let whole = ["pods", "services", "services.nodeports", "services.loadbalancers", "configmaps", "secrets"];
    name.starts_with("count/")
        || whole.contains(&name)
        || ["replicationcontrollers", "resourcequotas"].contains(&name)
        || name.ends_with("persistentvolumeclaims")
}

fn check_scope(scope: &At<'_>, spec: &At<'_>, e: &mut Errors) {
    let name = scope.str();
    let of_claims = name == "VolumeAttributesClass";
    if !of_claims && !OF_PODS.contains(&name) {
        scope.invalid(e, "unsupported scope");
        return;
    }
    let storage = |name: &str| name.ends_with("persistentvolumeclaims") || name.ends_with("requests.storage");
    let of_pods = |name: &str| {
        let plain = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name);
        !storage(name)
            && (plain == "pods" || plain != name || matches!(plain, "cpu" | "memory" | "ephemeral-storage"))
    };
    for (resource, amount) in spec.field("hard").entries() {
        let fits = match name {
            _ if of_claims => storage(resource),
            "BestEffort" => resource == "pods",
            _ => of_pods(resource),
        };
        if !fits {
            amount.invalid_key(e, resource, "unsupported scope applied to resource");
        }
    }
}
