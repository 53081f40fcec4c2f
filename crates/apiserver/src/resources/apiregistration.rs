//! `apiregistration.k8s.io/v1`: APIService. Where requests go because of it is decided by `crate::aggregation`.

use api::{FieldError, Object};
use serde_json::Value;

use super::check::{At, Errors};
use super::row::{Row, age_col, col, name_col};
use super::{conditions, names};
use crate::printing::cells;
use crate::resource::{Strategy, WriteContext};

/// The condition that says whether requests are passed on.
pub(crate) const AVAILABLE: &str = "Available";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("apiservices", "APIService")
            .cluster()
            .categories(&["api-extensions"])
            .named(names::path_segment)
            .status()
            .strategy(Registration)
            .exact_columns(vec![
                name_col(),
                col("Service", "string", "The Service that serves the API, or Local.", |o, _| {
                    let part = |name| o.str(&["spec", "service", name]);
                    if is_local(o) {
                        return "Local".into();
                    }
                    format!("{}/{}", part("namespace"), part("name")).into()
                }),
                col("Available", "string", "Whether requests are passed on.", |o, _| available(o).into()),
                age_col(),
            ]),
    ]
}

/// Whether the server itself serves the API.
fn is_local(o: &Object) -> bool {
    !o.get(&["spec", "service"]).is_some_and(Value::is_object)
}

/// `True`, or the status with its reason.
fn available(o: &Object) -> String {
    let found = cells::list(o, &["status", "conditions"]).iter().find(|c| c["type"] == AVAILABLE);
    match found {
        None => "Unknown".to_owned(),
        Some(condition) if condition["status"] == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", cells::sub(c, "status"), cells::sub(c, "reason")),
    }
}

/// What the server serves itself is there whenever the server is.
fn settle_local(o: &mut Object, now: jiff::Timestamp) {
    if is_local(o) {
        let message = "Local APIServices are always available";
        conditions::set(o, AVAILABLE, "True", "Local", message, now);
    }
}

struct Registration;

impl Strategy for Registration {
    fn default(&self, o: &mut Object) {
        if !is_local(o) {
            o.set_default(&["spec", "service", "port"], 443);
        }
    }

    fn prepare_for_create(&self, cx: &WriteContext<'_>, o: &mut Object) {
        settle_local(o, cx.now);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        if is_local(old) && !is_local(new) {
            // Nobody knows yet whether the other server is there.
            conditions::remove(new, AVAILABLE);
        }
        settle_local(new, cx.now);
    }

    fn validate(&self, o: &Object) -> Vec<FieldError> {
        let mut e = Vec::new();
        validate(o, &mut e);
        e
    }

    fn takes_effect_at_once(&self) -> bool {
        true
    }
}

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let (group, version) = (spec.field("group"), spec.field("version"));
    let name = format!("{}.{}", version.str(), group.str());
    if o.name() != name {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {name:?}");
        e.push(FieldError::invalid("metadata.name", o.name(), &detail));
    }
    if group.is_empty() && version.str() != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        e.push(FieldError::required(&group.path, detail));
    }
    if !group.is_empty() {
        group.text(e, names::dns_subdomain);
    }
    version.required_text(e, names::dns_1035_label);
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let priority = spec.field(field);
        let value = priority.i64().unwrap_or(0);
        if !(1..=most).contains(&value) {
            let detail = format!("must be positive and less than {most}");
            e.push(FieldError::invalid(&priority.path, value, &detail));
        }
    }
    validate_trust(&spec, e);
}

/// Whom to ask, and whom to believe.
fn validate_trust(spec: &At<'_>, e: &mut Errors) {
    let (service, bundle, skip) =
        (spec.field("service"), spec.field("caBundle"), spec.field("insecureSkipTLSVerify"));
    if !service.is_set() {
        if !bundle.is_empty() {
            bundle.invalid(e, "local APIServices may not have a caBundle");
        }
        if skip.is_true() {
            skip.invalid(e, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    service.field("namespace").required(e);
    service.field("name").required(e);
    let port = service.field("port");
    for detail in port.i64().map(names::port_number).into_iter().flatten() {
        port.invalid(e, &format!("port is not valid: {detail}"));
    }
    if skip.is_true() && !bundle.is_empty() {
        skip.invalid(e, "may not be true if caBundle is present");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(name: &str, spec: Value) -> Vec<String> {
        let object = Object::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        Registration
            .validate(&object)
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good =
            json!({"group": "g.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1});
        assert!(found("v1.g.example", good.clone()).is_empty());
        let core =
            json!({"group": "", "version": "v1", "groupPriorityMinimum": 20000, "versionPriority": 1000});
        assert!(found("v1.", core).is_empty());
        let with = |changes: Value| {
            let mut spec = good.clone();
            for (name, value) in changes.as_object().unwrap() {
                spec[name] = value.clone();
            }
            found("v1.g.example", spec).join("; ")
        };
        let remote = |more: Value| {
            let mut spec = json!({"service": {"name": "s", "namespace": "n"}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        for (changes, field, why) in [
            (
                json!({"version": "v2"}),
                "metadata.name",
                "must be `spec.version+\".\"+spec.group`: \"v2.g.example\"",
            ),
            (
                json!({"groupPriorityMinimum": 20001}),
                "spec.groupPriorityMinimum",
                "must be positive and less than 20000",
            ),
            (json!({"versionPriority": 0}), "spec.versionPriority", "must be positive and less than 1000"),
            (json!({"caBundle": "AA=="}), "spec.caBundle", "local APIServices may not have a caBundle"),
            (
                json!({"insecureSkipTLSVerify": true}),
                "spec.insecureSkipTLSVerify",
                "local APIServices may not have insecureSkipTLSVerify",
            ),
            (json!({"service": {"name": "s"}}), "spec.service.namespace", "Required value"),
            (
                json!({"service": {"name": "s", "namespace": "n", "port": 0}}),
                "spec.service.port",
                "port is not valid: must be between 1 and 65535, inclusive",
            ),
            (
                remote(json!({"insecureSkipTLSVerify": true, "caBundle": "AA=="})),
                "spec.insecureSkipTLSVerify",
                "may not be true if caBundle is present",
            ),
        ] {
            let said = with(changes);
            assert!(said.starts_with(field) && said.ends_with(why), "{said}");
        }
    }

    #[test]
    fn an_api_that_moves_away_is_not_available_before_it_was_asked() {
        let object = |spec: Value| Object::from_value(json!({"spec": spec})).unwrap();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut local = object(json!({}));
        settle_local(&mut local, now);
        assert_eq!(available(&local), "True");
        let mut remote = object(json!({"service": {"name": "s"}}));
        settle_local(&mut remote, now);
        assert_eq!(available(&remote), "Unknown");
        conditions::set(&mut remote, AVAILABLE, "False", "MissingEndpoints", "", now);
        assert_eq!(available(&remote), "False (MissingEndpoints)");
    }
}
