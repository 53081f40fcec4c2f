//! `admissionregistration.k8s.io/v1`: webhook configurations, and admission policies with their bindings. What they say
//! is done by `crate::admission`.

mod expressions;
mod rules;

pub(crate) use self::rules::{client_config, review_versions};

use api::{FieldError, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::check::Errors;
use super::defaults::{fill, items_mut, object_mut};
use super::row::{Row, col};
use crate::printing::cells;
use crate::resource::{Change, Column, Extension, Strategy, WriteContext};

/// What the kinds of this group share: every change counts, and an update names the version that it changes.
struct Registration {
    default: fn(&mut Object),
    validate: fn(&Object, &mut Errors),
    /// Its expressions are checked against the kinds that it is about.
    typed: bool,
}

impl Strategy for Registration {
    fn default(&self, object: &mut Object) {
        (self.default)(object);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        (self.validate)(object, &mut errors);
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn counts_every_change(&self) -> bool {
        true
    }

    fn takes_effect_at_once(&self) -> bool {
        true
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        _: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        if let Change::Create(object) | Change::Update { new: object, .. } = change
            && self.typed
            && cx.subresource.is_none()
        {
            expressions::note_types(object, &schema::table());
        }
        Box::pin(async { Ok(()) })
    }
}

fn default_webhooks(o: &mut Object) {
    let mutating = o.str(&["kind"]) == "MutatingWebhookConfiguration";
    for hook in items_mut(o.0.get_mut("webhooks")) {
        fill(hook, "failurePolicy", "Fail");
        default_matching(hook);
        fill(hook, "timeoutSeconds", 10);
        if mutating {
            fill(hook, "reinvocationPolicy", "Never");
        }
        default_scopes(hook, "rules");
        if let Some(service) =
            object_mut(hook, "clientConfig").and_then(|config| object_mut(config, "service"))
        {
            fill(service, "port", 443);
        }
    }
}

fn default_matching(value: &mut Value) {
    fill(value, "matchPolicy", "Equivalent");
    fill(value, "namespaceSelector", json!({}));
    fill(value, "objectSelector", json!({}));
}

fn default_scopes(value: &mut Value, rules: &str) {
    for rule in items_mut(value.get_mut(rules)) {
        fill(rule, "scope", "*");
    }
}

fn default_policy(o: &mut Object) {
    let Some(spec) = o.0.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    fill(spec, "failurePolicy", "Fail");
    default_resources(spec, "matchConstraints");
}

fn default_binding(o: &mut Object) {
    if let Some(spec) = o.0.get_mut("spec") {
        default_resources(spec, "matchResources");
    }
}

fn default_resources(spec: &mut Value, field: &str) {
    if let Some(resources) = object_mut(spec, field) {
        default_matching(resources);
        default_scopes(resources, "resourceRules");
        default_scopes(resources, "excludeResourceRules");
    }
}

fn param_kind(o: &Object) -> Value {
    let part = |name: &str| o.str(&["spec", "paramKind", name]);
    if part("kind").is_empty() {
        return "<unset>".into();
    }
    format!("{}/{}", part("apiVersion"), part("kind")).into()
}

fn param_ref(o: &Object) -> Value {
    let part = |name: &str| o.str(&["spec", "paramRef", name]);
    let selector = o.get(&["spec", "paramRef", "selector"]);
    match (part("name"), part("namespace")) {
        ("", _) => selector.map_or("<unset>".into(), |selector| cells::selector(Some(selector)).into()),
        // Whether parameters have a namespace cannot be told from here.
        (name, "") => format!("*/{name}").into(),
        (name, namespace) => format!("{namespace}/{name}").into(),
    }
}

fn webhooks() -> Vec<Column> {
    vec![col("Webhooks", "integer", "Number of webhooks in this configuration.", |o, _| {
        cells::size(o, &["webhooks"]).into()
    })]
}

fn policy_columns(first: Column) -> Vec<Column> {
    vec![first, col("ParamKind", "string", "Kind of the parameters.", |o, _| param_kind(o))]
}

fn binding_columns() -> Vec<Column> {
    vec![
        col("PolicyName", "string", "The policy that is bound.", |o, _| {
            o.str(&["spec", "policyName"]).into()
        }),
        col("ParamRef", "string", "The parameters that it is bound to.", |o, _| param_ref(o)),
    ]
}

pub(super) fn rows() -> Vec<Row> {
    let configuration =
        || Registration { default: default_webhooks, validate: rules::webhooks, typed: false };
    let policy = |validate| Registration { default: default_policy, validate, typed: false };
    let binding = |validate| Registration { default: default_binding, validate, typed: false };
    let row = |resource, kind| Row::new(resource, kind).cluster().categories(&["api-extensions"]);
    let validations = col("Validations", "integer", "Number of validations in this policy.", |o, _| {
        cells::size(o, &["spec", "validations"]).into()
    });
    let mutations = col("Mutations", "integer", "Number of mutations in this policy.", |o, _| {
        cells::size(o, &["spec", "mutations"]).into()
    });
    vec![
        row("mutatingadmissionpolicies", "MutatingAdmissionPolicy")
            .strategy(policy(rules::mutating_policy))
            .columns(policy_columns(mutations), Vec::new()),
        row("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding")
            .strategy(binding(rules::mutating_binding))
            .columns(binding_columns(), Vec::new()),
        row("mutatingwebhookconfigurations", "MutatingWebhookConfiguration")
            .strategy(configuration())
            .columns(webhooks(), Vec::new()),
        row("validatingadmissionpolicies", "ValidatingAdmissionPolicy")
            .status()
            .strategy(Registration { typed: true, ..policy(rules::validating_policy) })
            .columns(policy_columns(validations), Vec::new()),
        row("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")
            .strategy(binding(rules::validating_binding))
            .columns(binding_columns(), Vec::new()),
        row("validatingwebhookconfigurations", "ValidatingWebhookConfiguration")
            .strategy(configuration())
            .columns(webhooks(), Vec::new()),
    ]
}

#[cfg(test)]
mod tests;
