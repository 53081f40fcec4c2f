//! Defaults and rules of jobs.

use api::{FieldError, Object};
use serde_json::{Value, json};

use crate::resource::WriteContext;
use crate::resources::check::{At, Errors, immutable};
use crate::resources::defaults::{fill, items_mut};
use crate::resources::row::Hooks;
use crate::resources::{pod_spec, selectors};

pub(super) const JOB: Hooks = Hooks {
    default: |o| {
        let labels = o.get(&["spec", "template", "metadata", "labels"]).cloned();
        if let (Some(labels), true) = (labels, At::top(o, "metadata").field("labels").is_empty())
            && labels.is_object()
        {
            o.set(&["metadata", "labels"], labels);
        }
        if let Some(spec) = o.0.get_mut("spec") {
            default_spec(spec);
        }
    },
    create: own_selector,
    validate: |o, e| {
        let spec = At::top(o, "spec");
        validate_spec(&spec, e);
        selectors::validate_with_template(&spec, e, "job");
    },
    validate_update: |new, old, e| {
        for name in ["completionMode", "selector", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"] {
            immutable(e, new, old, &["spec", name]);
        }
        let suspended = |o: &Object| o.get(&["spec", "suspend"]).and_then(Value::as_bool) == Some(true);
        if !suspended(old) || old.get(&["status", "startTime"]).is_some() {
            immutable(e, new, old, &["spec", "template"]);
        }
    },
    ..Hooks::NONE
};

pub(super) const CRON_JOB: Hooks = Hooks {
    default: |o| {
        if o.str(&["spec", "concurrencyPolicy"]).is_empty() {
            o.set(&["spec", "concurrencyPolicy"], "Allow");
        }
        o.set_default(&["spec", "suspend"], false);
        o.set_default(&["spec", "successfulJobsHistoryLimit"], 3);
        o.set_default(&["spec", "failedJobsHistoryLimit"], 1);
        let template = o.0.get_mut("spec").and_then(|s| s.get_mut("jobTemplate"));
        if let Some(template) = template.and_then(|t| t.pointer_mut("/spec/template/spec")) {
            pod_spec::defaults::pod_spec(template);
        }
    },
    validate: validate_cron_job,
    ..Hooks::NONE
};

fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    let unset = |spec: &Value, name: &str| spec.get(name).is_none_or(Value::is_null);
    if unset(spec, "completions") && unset(spec, "parallelism") {
        spec["completions"] = 1.into();
    }
    fill(spec, "parallelism", 1);
    let per_index = !unset(spec, "backoffLimitPerIndex");
    fill(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    let replacement = if unset(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    fill(spec, "podReplacementPolicy", replacement);
    for rule in items_mut(spec.pointer_mut("/podFailurePolicy/rules")) {
        for pattern in items_mut(rule.get_mut("onPodConditions")) {
            fill(pattern, "status", "True");
        }
    }
    if let Some(template) = spec.pointer_mut("/template/spec") {
        pod_spec::defaults::pod_spec(template);
    }
}

/// A job that brings no selector of its own gets one on its uid.
fn own_selector(_: &WriteContext<'_>, o: &mut Object) {
    if o.get(&["spec", "manualSelector"]).and_then(Value::as_bool) == Some(true) {
        return;
    }
    let (uid, name) = (o.uid().to_owned(), o.name().to_owned());
    if uid.is_empty() {
        return;
    }
    for (key, value) in [
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        o.set_default(&["spec", "template", "metadata", "labels", key], value.as_str());
    }
    o.set_default(&["spec", "selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
}

fn validate_spec(spec: &At<'_>, e: &mut Errors) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        spec.field(name).non_negative(e);
    }
    let mode = spec.field("completionMode");
    mode.one_of(e, &["Indexed", "NonIndexed"]);
    if mode.str() == "Indexed" && !spec.field("completions").is_set() {
        let detail = "when completion mode is Indexed";
        e.push(FieldError::required(spec.field("completions").path, detail));
    }
    spec.field("podReplacementPolicy").one_of(e, &["Failed", "TerminatingOrFailed"]);
    for rule in spec.field("podFailurePolicy").field("rules").items() {
        rule.field("action").required_one_of(e, &["Count", "FailIndex", "FailJob", "Ignore"]);
    }
    let policy = spec.field("template").field("spec").field("restartPolicy");
    if policy.str() == "Always" {
        let detail = "Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"";
        e.push(FieldError {
            field: policy.path,
            kind: api::FieldErrorKind::NotSupported,
            message: detail.to_owned(),
        });
    }
    pod_spec::validate_template(&spec.field("template"), &["Always", "OnFailure", "Never"], e);
}

fn validate_cron_job(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let schedule = spec.field("schedule");
    if schedule.required(e) {
        let text = schedule.str();
        if text.contains("TZ") {
            schedule.invalid(e, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
        if !text.starts_with('@') && text.split_whitespace().count() != 5 {
            let found = text.split_whitespace().count();
            schedule.invalid(e, &format!("expected exactly 5 fields, found {found}: [{text}]"));
        }
    }
    spec.field("concurrencyPolicy").required_one_of(e, &["Allow", "Forbid", "Replace"]);
    for name in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.field(name).non_negative(e);
    }
    // Jobs are named after their CronJob, with 11 characters added.
    if o.name().len() > 52 {
        e.push(FieldError::invalid("metadata.name", o.name(), "must be no more than 52 characters"));
    }
    validate_spec(&spec.field("jobTemplate").field("spec"), e);
}
