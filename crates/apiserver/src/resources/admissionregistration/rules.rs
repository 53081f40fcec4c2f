//! Rules of webhook configurations, policies and bindings, with the words of Kubernetes.

use std::collections::HashSet;

use api::{FieldError, FieldErrorKind, Object};

use super::expressions;
use crate::resources::check::{At, Errors};
use crate::resources::{names, selectors};

const MOST_CONDITIONS: usize = 64;
const MOST_AUDIT_ANNOTATIONS: usize = 20;
const LONGEST_AUDIT_EXPRESSION: usize = 5 * 1024;
const URL_FORM: &str = "; desired format: https://host[/path]";

/// Both kinds of webhook configurations.
pub(super) fn webhooks(o: &Object, e: &mut Errors) {
    let hooks = At::top(o, "webhooks");
    for hook in hooks.items() {
        webhook(&hook, e);
    }
    hooks.unique(e, "name");
}

fn webhook(hook: &At<'_>, e: &mut Errors) {
    let name = hook.field("name");
    if name.required(e) {
        let wrong = names::dns_subdomain(name.str());
        if !wrong.is_empty() {
            name.invalid(e, &wrong.join(","));
        } else if name.str().split('.').count() < 3 {
            name.invalid(e, "should be a domain with at least three segments separated by dots");
        }
    }
    for rule in hook.field("rules").items() {
        rule_with_operations(&rule, e);
    }
    hook.field("failurePolicy").one_of(e, &["Fail", "Ignore"]);
    hook.field("matchPolicy").one_of(e, &["Equivalent", "Exact"]);
    hook.field("reinvocationPolicy").one_of(e, &["IfNeeded", "Never"]);
    let effects = hook.field("sideEffects");
    if effects.required_because(e, "must specify one of None, NoneOnDryRun") {
        effects.one_of(e, &["None", "NoneOnDryRun"]);
    }
    let timeout = hook.field("timeoutSeconds");
    if timeout.i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
        timeout.invalid(e, "the timeout value must be between 1 and 30 seconds");
    }
    selectors::validate(&hook.field("namespaceSelector"), e);
    selectors::validate(&hook.field("objectSelector"), e);
    client_config(&hook.field("clientConfig"), e);
    match_conditions(&hook.field("matchConditions"), false, e);
    review_versions(&hook.field("admissionReviewVersions"), "v1, v1beta1", e);
}

/// Versions of a review that a webhook understands; one of those must be ours.
pub(crate) fn review_versions(versions: &At<'_>, ours: &str, e: &mut Errors) {
    if !versions.required_because(e, &format!("must specify one of {ours}")) {
        return;
    }
    let mut seen = HashSet::new();
    for version in versions.items() {
        if !seen.insert(version.str()) {
            version.invalid(e, "duplicate version");
            continue;
        }
        version.text(e, names::dns_1035_label);
    }
    if !ours.split(", ").any(|version| seen.contains(version)) {
        versions.invalid(e, &format!("must include at least one of {ours}"));
    }
}

/// Where a webhook is: a URL or a Service.
pub(crate) fn client_config(config: &At<'_>, e: &mut Errors) {
    let (url, service) = (config.field("url"), config.field("service"));
    match (url.is_set(), service.is_set()) {
        (true, false) => check_url(&url, e),
        (false, true) => check_service(&service, e),
        _ => e.push(FieldError::required(&config.path, "exactly one of url or service is required")),
    }
    let bundle = config.field("caBundle");
    if !bundle.is_empty()
        && let Err(why) = crate::callout::trust_roots(bundle.str())
    {
        bundle.invalid(e, &why);
    }
}

fn check_url(at: &At<'_>, e: &mut Errors) {
    let invalid = |e: &mut Errors, value: &str, detail: &str| {
        e.push(FieldError::invalid(&at.path, value, detail));
    };
    let (scheme, rest) = at.str().split_once("://").unwrap_or(("", at.str()));
    if scheme != "https" {
        invalid(e, scheme, &format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() || scheme.is_empty() {
        invalid(e, "", &format!("host must be specified{URL_FORM}"));
    }
    if !user.is_empty() {
        invalid(e, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        invalid(e, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        invalid(e, query, "query parameters are not permitted in the URL");
    }
}

fn check_service(service: &At<'_>, e: &mut Errors) {
    service.field("name").required(e);
    service.field("namespace").required(e);
    let port = service.field("port");
    if let Some(number) = port.i64() {
        let wrong = names::port_number(number);
        if !wrong.is_empty() {
            port.invalid(e, &format!("port is not valid: {}", wrong.join(", ")));
        }
    }
    let path = service.field("path");
    if matches!(path.str(), "" | "/") {
        return;
    }
    if !path.str().starts_with('/') {
        path.invalid(e, "must start with a '/'");
    }
    let inner = path.str().trim_start_matches('/');
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (index, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            path.invalid(e, &format!("segment[{index}] may not be empty"));
            continue;
        }
        for detail in names::dns_subdomain(segment) {
            path.invalid(e, &format!("segment[{index}]: {detail}"));
        }
    }
}

fn wildcard(at: &At<'_>, e: &mut Errors, what: &str) {
    if at.len() > 1 && at.items().any(|item| item.str() == "*") {
        at.invalid(e, &format!("if '*' is present, must not specify other {what}"));
    }
}

fn rule_with_operations(rule: &At<'_>, e: &mut Errors) {
    let operations = rule.field("operations");
    operations.required(e);
    wildcard(&operations, e, "operations");
    for operation in operations.items() {
        operation.one_of(e, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
    }
    rule.field("apiGroups").required(e);
    wildcard(&rule.field("apiGroups"), e, "API groups");
    let versions = rule.field("apiVersions");
    versions.required(e);
    wildcard(&versions, e, "API versions");
    for version in versions.items() {
        version.required(e);
    }
    resources(&rule.field("resources"), e);
    rule.field("scope").one_of(e, &["*", "Cluster", "Namespaced"]);
}

fn resources(list: &At<'_>, e: &mut Errors) {
    list.required(e);
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    let mut plain = false;
    for item in list.items() {
        if !item.required(e) {
            continue;
        }
        let Some((resource, sub)) = item.str().split_once('/') else {
            plain |= item.str() != "*";
            continue;
        };
        if whole.contains(resource) {
            item.invalid(e, &format!("if '{resource}/*' is present, must not specify {}", item.str()));
        }
        if everywhere.contains(sub) {
            item.invalid(e, &format!("if '*/{sub}' is present, must not specify {}", item.str()));
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(sub);
        }
    }
    let has = |text: &str| list.items().any(|item| item.str() == text);
    if list.len() > 1 && has("*/*") {
        list.invalid(e, "if '*/*' is present, must not specify other resources");
    }
    if has("*") && plain {
        list.invalid(e, "if '*' is present, must not specify other resources without subresources");
    }
}

fn match_conditions(conditions: &At<'_>, params: bool, e: &mut Errors) {
    expressions::conditions(conditions, params, e);
    if conditions.len() > MOST_CONDITIONS {
        e.push(FieldError {
            field: conditions.path.clone(),
            kind: FieldErrorKind::TooMany,
            message: format!("Too many: {}: must have at most {MOST_CONDITIONS} items", conditions.len()),
        });
    }
    for condition in conditions.items() {
        required_expression(&condition.field("expression"), "", e);
        let name = condition.field("name");
        name.required_text(e, names::qualified_name);
    }
    conditions.unique(e, "name");
}

/// Whether there is more than white space.
fn required_expression(at: &At<'_>, because: &str, e: &mut Errors) -> bool {
    let there = !at.str().trim().is_empty();
    if !there {
        e.push(FieldError::required(&at.path, because));
    }
    there
}

fn match_resources(at: &At<'_>, e: &mut Errors) {
    at.field("matchPolicy").required_one_of(e, &["Equivalent", "Exact"]);
    selectors::validate(&at.field("namespaceSelector"), e);
    selectors::validate(&at.field("objectSelector"), e);
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in at.field(list).items() {
            let mut seen = HashSet::new();
            for name in rule.field("resourceNames").items() {
                name.text(e, names::path_segment);
                if !seen.insert(name.str()) {
                    e.push(FieldError::duplicate(&name.path, name.value.clone()));
                }
            }
            rule_with_operations(&rule, e);
        }
    }
}

/// What both kinds of policies have in common.
fn policy(spec: &At<'_>, e: &mut Errors) {
    spec.field("failurePolicy").required_one_of(e, &["Fail", "Ignore"]);
    let kind = spec.field("paramKind");
    if kind.is_set() {
        param_kind(&kind, e);
    }
    let constraints = spec.field("matchConstraints");
    if constraints.is_set() {
        match_resources(&constraints, e);
        constraints.field("resourceRules").required(e);
    } else {
        e.push(FieldError::required(&constraints.path, ""));
    }
    match_conditions(&spec.field("matchConditions"), kind.is_set(), e);
    for variable in spec.field("variables").items() {
        let name = variable.field("name");
        if name.str().trim().is_empty() {
            e.push(FieldError::required(&name.path, "name is not specified"));
        } else if !is_identifier(name.str()) {
            name.invalid(e, "must be a valid CEL identifier");
        }
        required_expression(&variable.field("expression"), "expression is not specified", e);
    }
    expressions::policy(spec, cel::Type::Dyn, e);
}

fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 19] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
    ];
    let first = name.bytes().next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic());
    first
        && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
        && !RESERVED.contains(&name)
        && !matches!(name, "void" | "while")
}

fn param_kind(at: &At<'_>, e: &mut Errors) {
    let version = at.field("apiVersion");
    if version.required(e) {
        let parts: Vec<&str> = version.str().split('/').collect();
        let label = match parts.as_slice() {
            [label] => label,
            [group, label] => {
                for detail in names::dns_subdomain(group) {
                    version.invalid(e, &detail);
                }
                label
            }
            _ => {
                version.invalid(e, &format!("unexpected GroupVersion string: {}", version.str()));
                return;
            }
        };
        let wrong = names::dns_1035_label(label);
        if label.is_empty() {
            version.invalid(e, "version must be specified");
        } else if !wrong.is_empty() {
            version.invalid(e, &wrong.join(","));
        }
    }
    let kind = at.field("kind");
    if kind.required(e) {
        let wrong = names::dns_1035_label(&kind.str().to_lowercase());
        if !wrong.is_empty() {
            let text = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            kind.invalid(e, &text);
        }
    }
}

pub(super) fn validating_policy(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    policy(&spec, e);
    let (validations, audit) = (spec.field("validations"), spec.field("auditAnnotations"));
    if validations.is_empty() && audit.is_empty() {
        let because = "validations or auditAnnotations must contain at least one item";
        e.push(FieldError::required(&validations.path, because));
        e.push(FieldError::required(&audit.path, because));
    }
    for validation in validations.items() {
        required_expression(&validation.field("expression"), "expression is not specified", e);
        for field in ["messageExpression", "message"] {
            let text = validation.field(field);
            if !text.is_empty() && text.str().trim().is_empty() {
                text.invalid(e, "must be non-empty if specified");
            }
        }
        if validation.field("message").str().trim().contains(['\n', '\r']) {
            validation.field("message").invalid(e, "must not contain line breaks");
        }
        validation.field("reason").one_of(e, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
    audit_annotations(o, &audit, e);
}

fn audit_annotations(o: &Object, audit: &At<'_>, e: &mut Errors) {
    if audit.len() > MOST_AUDIT_ANNOTATIONS {
        audit.invalid(e, &format!("must not have more than {MOST_AUDIT_ANNOTATIONS} auditAnnotations"));
    }
    for annotation in audit.items() {
        let key = annotation.field("key");
        if o.name().is_empty() {
            key.invalid(e, "requires metadata.name be non-empty");
        } else {
            let whole = format!("{}/{}", o.name(), key.str());
            for detail in names::qualified_name(&whole) {
                e.push(FieldError::invalid(&key.path, whole.as_str(), &detail));
            }
        }
        let value = annotation.field("valueExpression");
        if required_expression(&value, "valueExpression is not specified", e)
            && value.str().trim().len() > LONGEST_AUDIT_EXPRESSION
        {
            let because = format!("must not exceed {LONGEST_AUDIT_EXPRESSION} bytes in length");
            e.push(FieldError::required(&value.path, &because));
        }
    }
    audit.unique(e, "key");
}

pub(super) fn mutating_policy(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    policy(&spec, e);
    no_deletions(&spec.field("matchConstraints"), e);
    let mutations = spec.field("mutations");
    mutations.required_because(e, "mutations must contain at least one item");
    for mutation in mutations.items() {
        let kind = mutation.field("patchType");
        kind.required_one_of(e, &["ApplyConfiguration", "JSONPatch"]);
        let (own, other) = match kind.str() {
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            _ => continue,
        };
        let (own, other) = (mutation.field(own), mutation.field(other));
        if own.is_set() {
            required_expression(&own.field("expression"), "", e);
        } else {
            let because = format!("must be specified when patchType is {}", kind.str());
            e.push(FieldError::required(&own.path, &because));
        }
        if other.is_set() {
            other.invalid(e, &format!("must not be specified when patchType is {}", kind.str()));
        }
    }
    spec.field("reinvocationPolicy").required_one_of(e, &["IfNeeded", "Never"]);
}

/// What is deleted is not changed.
fn no_deletions(resources: &At<'_>, e: &mut Errors) {
    for rule in resources.field("resourceRules").items() {
        for operation in rule.field("operations").items() {
            if !matches!(operation.str(), "*" | "CONNECT" | "CREATE" | "UPDATE") {
                let allowed = ["*", "CONNECT", "CREATE", "UPDATE"];
                let path = format!("{}.resourceRules.operations", resources.path);
                e.push(FieldError::not_supported(path, operation.value.clone(), &allowed));
            }
        }
    }
}

fn binding(spec: &At<'_>, e: &mut Errors) {
    spec.field("policyName").required_text(e, names::dns_subdomain);
    let reference = spec.field("paramRef");
    if reference.is_set() {
        param_ref(&reference, e);
    }
    let resources = spec.field("matchResources");
    if resources.is_set() {
        match_resources(&resources, e);
    }
}

fn param_ref(at: &At<'_>, e: &mut Errors) {
    let (name, selector) = (at.field("name"), at.field("selector"));
    name.text(e, names::path_segment);
    if selector.is_set() {
        selectors::validate(&selector, e);
    }
    match (name.is_empty(), selector.is_set()) {
        (false, true) => {
            name.forbidden(e, "name and selector are mutually exclusive");
            selector.forbidden(e, "name and selector are mutually exclusive");
        }
        (true, false) => {
            e.push(FieldError::required(&at.path, "one of name or selector must be specified"));
        }
        _ => {}
    }
    at.field("parameterNotFoundAction").required_one_of(e, &["Allow", "Deny"]);
}

pub(super) fn validating_binding(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    binding(&spec, e);
    let actions = spec.field("validationActions");
    let mut seen = HashSet::new();
    for action in actions.items() {
        action.one_of(e, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action.str()) {
            e.push(FieldError::duplicate(&action.path, action.value.clone()));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        actions.invalid(
            e,
            "must not contain both Deny and Warn (repeating the same validation failure information in the API \
             response and headers serves no purpose)",
        );
    }
    actions.required_because(e, "at least one validation action is required");
}

pub(super) fn mutating_binding(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    binding(&spec, e);
    no_deletions(&spec.field("matchResources"), e);
}
