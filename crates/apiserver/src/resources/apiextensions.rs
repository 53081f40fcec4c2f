//! `apiextensions.k8s.io/v1`: CustomResourceDefinition. What it defines is made by `crate::custom`.

use api::{FieldError, GroupVersionResource, Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::admissionregistration::{client_config, review_versions};
use super::check::{At, Errors};
use super::row::{Row, col, name_col};
use super::{conditions, names};
use crate::custom::jsonpath::JsonPath;
use crate::printing::cells;
use crate::resource::{Change, Extension, Strategy, WriteContext};

/// Holds a definition back until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const APPROVED: &str = "api-approved.kubernetes.io";

/// The resource of definitions.
pub(crate) fn custom_resource_definitions() -> GroupVersionResource {
    GroupVersionResource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
}

/// Whether a definition's names are its own, so that it is served.
pub(crate) fn is_established(crd: &Object) -> bool {
    cells::condition(crd, "Established") == "True"
}

pub(super) fn rows() -> Vec<Row> {
    let created =
        col("Created At", "date", "When the object was created, on the server's clock.", cells::created_at);
    vec![
        Row::new("customresourcedefinitions", "CustomResourceDefinition")
            .cluster()
            .short(&["crd", "crds"])
            .categories(&["api-extensions"])
            .exact_columns(vec![name_col(), created])
            .status()
            .strategy(Definition),
    ]
}

struct Definition;

impl Strategy for Definition {
    fn default(&self, o: &mut Object) {
        let kind = o.str(&["spec", "names", "kind"]).to_owned();
        if o.get(&["spec", "names"]).is_some() {
            o.set_default(&["spec", "names", "singular"], kind.to_lowercase());
            o.set_default(&["spec", "names", "listKind"], format!("{kind}List"));
        }
        if o.get(&["spec"]).is_some() {
            o.set_default(&["spec", "conversion"], json!({}));
            o.set_default(&["spec", "conversion", "strategy"], "None");
            let service = ["spec", "conversion", "webhook", "clientConfig", "service"];
            if o.get(&service).is_some_and(Value::is_object) {
                o.set_default(&[&service[..], &["port"]].concat(), 443);
            }
        }
        if o.get(&["spec", "preserveUnknownFields"]) == Some(&Value::Bool(false)) {
            o.remove(&["spec", "preserveUnknownFields"]);
        }
    }

    fn validate(&self, o: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        validate(o, &mut e);
        e
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        let fixed: [&[&str]; 4] = [
            &["spec", "group"],
            &["spec", "names", "plural"],
            &["spec", "scope"],
            &["spec", "names", "kind"],
        ];
        let count = if is_established(old) { fixed.len() } else { 2 };
        for path in &fixed[..count] {
            if new.get(path) != old.get(path) {
                e.push(FieldError::invalid(path.join("."), new.str(path), "field is immutable"));
            }
        }
        let versions = At::top(new, "spec").field("versions");
        for (index, stored) in cells::list(new, &["status", "storedVersions"]).iter().enumerate() {
            if !versions.items().any(|version| version.field("name").value == stored) {
                let detail = "must appear in spec.versions";
                e.push(FieldError::invalid(
                    format!("status.storedVersions[{index}]"),
                    stored.clone(),
                    detail,
                ));
            }
        }
        e
    }

    fn prepare_for_delete(&self, object: &mut Object, now: jiff::Timestamp) {
        if object.is_deleting() {
            return;
        }
        let mut finalizers = cells::list(object, &["metadata", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == CLEANUP) {
            finalizers.push(CLEANUP.into());
        }
        object.set(&["metadata", "finalizers"], finalizers);
        let message = "CustomResource deletion is in progress";
        conditions::set(object, "Terminating", "True", "InstanceDeletionPending", message, now);
    }

    fn changes_rows(&self) -> bool {
        true
    }

    fn extend_txn<'a>(
        &'a self,
        cx: &'a WriteContext<'a>,
        change: Change<'a>,
        _: &'a mut Extension,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let object = match change {
                Change::Create(object) | Change::Update { new: object, .. } => object,
                Change::Delete(_) => return Ok(()),
            };
            let others = cx.reader.list(&custom_resource_definitions(), None).await?;
            establish(object, &others, cx.now);
            Ok(())
        })
    }
}

/// Accepts the names unless another definition of the group has them, and says so in the status.
fn establish(object: &mut Object, others: &[Object], now: jiff::Timestamp) {
    let group = object.str(&["spec", "group"]);
    let same = |other: &&Object| {
        other.name() != object.name() && other.str(&["spec", "group"]) == group && is_established(other)
    };
    let taken = others.iter().filter(same).find_map(|other| conflict(object, other));
    let stored = At::top(object, "spec").field("versions").items().find(|v| v.field("storage").is_true());
    let stored = stored.map(|version| version.field("name").value.clone());
    let mut versions = cells::list(object, &["status", "storedVersions"]).to_vec();
    versions.extend(stored.filter(|name| !versions.contains(name)));
    object.set(&["status", "storedVersions"], versions);
    if let Some((reason, message)) = taken {
        conditions::set(object, "NamesAccepted", "False", reason, &message, now);
        if !is_established(object) {
            let message = "not all names are accepted";
            conditions::set(object, "Established", "False", "NotAccepted", message, now);
        }
        object.set_default(&["status", "acceptedNames"], json!({"kind": "", "plural": ""}));
        return;
    }
    let names = object.get(&["spec", "names"]).cloned().unwrap_or_default();
    object.set(&["status", "acceptedNames"], names);
    conditions::set(object, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now);
    let message = "the initial names have been accepted";
    conditions::set(object, "Established", "True", "InitialNamesAccepted", message, now);
}

/// Reason and message when two definitions want the same name.
fn conflict(new: &Object, other: &Object) -> Option<(&'static str, String)> {
    let all = |object: &Object| -> Vec<String> {
        let name = |field: &str| object.str(&["spec", "names", field]).to_owned();
        let short = cells::list(object, &["spec", "names", "shortNames"]).iter().map(cells::plain);
        [name("plural"), name("singular")].into_iter().chain(short).collect()
    };
    let kinds = |object: &Object| ["kind", "listKind"].map(|f| object.str(&["spec", "names", f]).to_owned());
    let (taken_names, taken_kinds) = (all(other), kinds(other));
    let reasons =
        ["PluralConflict", "SingularConflict"].into_iter().chain(std::iter::repeat("ShortNamesConflict"));
    let name = all(new).into_iter().zip(reasons).find(|(name, _)| taken_names.contains(name));
    let kind = kinds(new).into_iter().zip(["KindConflict", "ListKindConflict"]);
    let kind = kind.into_iter().find(|(kind, _)| taken_kinds.contains(kind));
    name.or(kind).map(|(name, reason)| (reason, format!("{name:?} is already in use")))
}

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let (group, plural) = (spec.field("group"), spec.field("names").field("plural"));
    if o.name() != format!("{}.{}", plural.str(), group.str()) {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        e.push(FieldError::invalid("metadata.name", o.name(), detail));
    }
    if group.required(e) {
        group.text(e, names::dns_subdomain);
        if !group.str().contains('.') {
            group.invalid(e, "should be a domain with at least one dot");
        }
        let protected = group.str().ends_with(".k8s.io") || group.str().ends_with(".kubernetes.io");
        if protected && o.str(&["metadata", "annotations", APPROVED]).is_empty() {
            let detail = "protected groups must have approval annotation \"api-approved.kubernetes.io\"";
            e.push(FieldError::required(format!("metadata.annotations[{APPROVED}]"), detail));
        }
    }
    spec.field("scope").required_one_of(e, &["Cluster", "Namespaced"]);
    validate_names(&spec.field("names"), e);
    conversion(&spec.field("conversion"), e);
    if spec.field("preserveUnknownFields").is_true() {
        spec.field("preserveUnknownFields").invalid(e, "must be false");
    }
    let versions = spec.field("versions");
    versions.unique(e, "name");
    for version in versions.items() {
        validate_version(&version, e);
    }
    if versions.items().filter(|version| version.field("storage").is_true()).count() != 1 {
        versions.invalid(e, "must have exactly one version marked as storage version");
    }
}

/// How objects get from one version into another.
fn conversion(at: &At<'_>, e: &mut Errors) {
    at.field("strategy").one_of(e, &["None", "Webhook"]);
    let webhook = at.field("webhook");
    if at.field("strategy").str() != "Webhook" {
        if webhook.is_set() {
            webhook.forbidden(e, "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    let config = webhook.field("clientConfig");
    if config.is_set() {
        client_config(&config, e);
    } else {
        e.push(FieldError::required(&config.path, "required when strategy is set to Webhook"));
    }
    review_versions(&webhook.field("conversionReviewVersions"), "v1, v1beta1", e);
}

fn validate_names(at: &At<'_>, e: &mut Errors) {
    for name in ["plural", "singular", "kind", "listKind"] {
        let name = at.field(name);
        if name.required(e) {
            let lower = name.str().to_lowercase();
            for detail in names::dns_1035_label(&lower) {
                name.invalid(e, &detail);
            }
        }
    }
    for list in ["shortNames", "categories"] {
        for name in at.field(list).items() {
            name.required_text(e, names::dns_1035_label);
        }
    }
    if at.field("kind").str() == at.field("listKind").str() && !at.field("kind").is_empty() {
        at.field("listKind").invalid(e, "kind and listKind may not be the same");
    }
}

fn validate_version(version: &At<'_>, e: &mut Errors) {
    version.field("name").required_text(e, names::dns_1035_label);
    let schema = version.field("schema").field("openAPIV3Schema");
    if schema.required_because(e, "schemas are required") {
        schema.field("type").required_one_of(e, &["object"]);
        structural_parts(&schema, Place { whole: true, correlated: true }, e);
    }
    for column in version.field("additionalPrinterColumns").items() {
        column.field("name").required(e);
        let types = ["boolean", "date", "integer", "number", "string"];
        column.field("type").required_one_of(e, &types);
        let path = column.field("jsonPath");
        if path.required(e)
            && let Err(why) = JsonPath::parse(path.str())
        {
            path.invalid(e, &why);
        }
    }
    let scale = version.field("subresources").field("scale");
    if scale.is_set() {
        for (name, prefix) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
            let path = scale.field(name);
            if path.required(e) && !path.str().starts_with(prefix) {
                path.invalid(e, &format!("should be a json path under {}", prefix.trim_end_matches('.')));
            }
        }
    }
    for field in version.field("selectableFields").items() {
        field.field("jsonPath").required(e);
    }
}

/// Where in a schema something stands.
#[derive(Clone, Copy)]
struct Place {
    /// The schema of whole objects.
    whole: bool,
    /// What was here before can be told: not within lists without keys.
    correlated: bool,
}

/// The rules of structural schemas: every value has a type, lists have items, maps have one way of values.
fn structural(schema: &At<'_>, place: Place, e: &mut Errors) {
    let any = schema.field("x-kubernetes-preserve-unknown-fields").is_true()
        || schema.field("x-kubernetes-int-or-string").is_true();
    let type_ = schema.field("type");
    if !any {
        type_.required_because(e, "must not be empty for specified object fields");
    }
    type_.one_of(e, &["array", "boolean", "integer", "number", "object", "string"]);
    structural_parts(schema, place, e);
}

/// Expressions that objects have to fulfil.
fn validations(schema: &At<'_>, place: Place, e: &mut Errors) {
    let rules = schema.field("x-kubernetes-validations");
    for rule in rules.items() {
        let text = rule.field("rule");
        if text.str().trim().is_empty() {
            text.required_because(e, "rule is not specified");
        }
        for name in ["message", "fieldPath"] {
            let field = rule.field(name);
            if field.str().contains(['\n', '\r']) {
                field.invalid(e, "must not contain line breaks");
            }
        }
        let reasons =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        rule.field("reason").one_of(e, &reasons);
    }
    for (index, field, why) in crate::custom::rules::faults(schema.value, place.whole, place.correlated) {
        if let Some(rule) = rules.items().nth(index) {
            rule.field(field).invalid(e, &why);
        }
    }
}

/// The same for everything but the type.
fn structural_parts(schema: &At<'_>, place: Place, e: &mut Errors) {
    validations(schema, place, e);
    let inner = Place { whole: false, ..place };
    let type_ = schema.field("type");
    let items = schema.field("items");
    if type_.str() == "array" && !items.is_set() {
        items.required_because(e, "must be specified");
    }
    if items.is_set() {
        let keyed = schema.field("x-kubernetes-list-type").str() == "map";
        structural(&items, Place { correlated: place.correlated && keyed, ..inner }, e);
    }
    if let Some(pattern) = schema.field("pattern").value.as_str()
        && let Err(error) = regex::Regex::new(pattern)
    {
        let text = format!("must be a valid regular expression, but isn't: {error}");
        schema.field("pattern").invalid(e, &text);
    }
    let list_type = schema.field("x-kubernetes-list-type");
    list_type.one_of(e, &["atomic", "map", "set"]);
    if list_type.str() == "map" {
        schema
            .field("x-kubernetes-list-map-keys")
            .required_because(e, "must not be empty if x-kubernetes-list-type is map");
    }
    let values = schema.field("additionalProperties");
    if values.value.is_object() {
        if !schema.field("properties").is_empty() {
            values.forbidden(e, "additionalProperties and properties are mutual exclusive");
        }
        structural(&values, inner, e);
    }
    for name in ["$ref", "definitions", "dependencies", "patternProperties"] {
        if !schema.field(name).is_empty() {
            schema.field(name).forbidden(e, &format!("{name} is not supported"));
        }
    }
    if schema.field("uniqueItems").is_true() {
        schema
            .field("uniqueItems")
            .forbidden(e, "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    for (_, property) in schema.field("properties").entries() {
        structural(&property, inner, e);
    }
}
