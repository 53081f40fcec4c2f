//! Admission webhooks: MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
//!
//! Mutating ones are called one after the other by the names of their configurations; validating ones all at a time.

mod review;

use std::sync::Arc;
use std::time::Duration;

use api::{Object, Reason, Status};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;

pub(crate) use self::review::request_of;
use super::AdmissionContext;
use super::dynamic::{Condition, Evaluation, Facts, Live, Matcher, Round, Subject};
use crate::callout::Webhook;
use crate::registry::Registry;
use crate::resource::Resource;

/// What a webhook may take when its configuration does not say.
const USUAL_TIMEOUT: u64 = 10;

/// A webhook of a configuration.
struct Hook {
    name: String,
    /// Configuration and name.
    key: String,
    matcher: Matcher,
    conditions: Vec<Condition>,
    /// A webhook that does not answer refuses the request.
    closed: bool,
    /// May be called for a dry run.
    harmless: bool,
    /// Is called again when a later one changes the object.
    eager: bool,
    timeout: Duration,
    versions: Vec<String>,
    webhook: Webhook,
}

impl Hook {
    fn of(configuration: &str, hook: &Value) -> Self {
        let text = |name: &str| hook[name].as_str().unwrap_or_default();
        let versions = hook["admissionReviewVersions"].as_array().into_iter().flatten();
        Self {
            name: text("name").to_owned(),
            key: format!("{configuration}/{}", text("name")),
            matcher: Matcher::of_webhook(hook),
            conditions: Condition::all(&hook["matchConditions"], false),
            closed: text("failurePolicy") != "Ignore",
            harmless: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            eager: text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(USUAL_TIMEOUT)),
            versions: versions.filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            webhook: Webhook::of(&hook["clientConfig"]),
        }
    }
}

/// The webhooks of all configurations, by the names of these.
fn compile(mut lists: Vec<Vec<Object>>) -> Vec<Hook> {
    let mut configurations = lists.pop().unwrap_or_default();
    configurations.sort_by(|a, b| a.name().cmp(b.name()));
    let hooks = configurations.iter().flat_map(|configuration| {
        let hooks = configuration.get(&["webhooks"]).and_then(Value::as_array).into_iter().flatten();
        hooks.map(|hook| Hook::of(configuration.name(), hook))
    });
    hooks.collect()
}

/// Why a call came to nothing.
enum Failure {
    /// The webhook cannot be called, or its answer makes no sense: its failure policy decides.
    Calling(String),
    /// For good.
    Refused(Status),
}

/// All webhooks.
pub(crate) struct Webhooks {
    mutating: Live<Vec<Hook>>,
    validating: Live<Vec<Hook>>,
}

impl Webhooks {
    pub(crate) fn new() -> Self {
        Self {
            mutating: Live::new(&["mutatingwebhookconfigurations"], compile),
            validating: Live::new(&["validatingwebhookconfigurations"], compile),
        }
    }

    pub(crate) async fn mutate_anything(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(!self.mutating.get(registry).await?.is_empty())
    }

    pub(crate) async fn validate_anything(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(!self.validating.get(registry).await?.is_empty())
    }

    pub(crate) async fn mutate(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &mut Subject<'_>,
        round: &mut Round,
    ) -> Result<(), Status> {
        for hook in self.mutating.get(cx.registry).await?.iter() {
            let Some(row) = hook.invocation(subject).await? else { continue };
            if !round.is_turn_of(&hook.key) {
                continue;
            }
            let changed = match hook.change(cx, subject, &row).await {
                Ok(changed) => changed,
                Err(failure) => {
                    hook.judge(failure)?;
                    false
                }
            };
            if changed {
                round.change();
            }
            if hook.eager && !round.again {
                round.eager.push(hook.key.clone());
            }
        }
        Ok(())
    }

    pub(crate) async fn validate(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &Subject<'_>,
    ) -> Result<(), Status> {
        let hooks = self.validating.get(cx.registry).await?;
        let mut relevant = Vec::new();
        for hook in hooks.iter() {
            if let Some(row) = hook.invocation(subject).await? {
                relevant.push((hook, row));
            }
        }
        let calls = relevant.iter().map(|(hook, row)| async move {
            let answer = hook.ask(cx, subject, row, false).await;
            answer.map(drop).or_else(|failure| hook.judge(failure))
        });
        let mut calls: FuturesUnordered<_> = calls.collect();
        let mut refused = None;
        while let Some(result) = calls.next().await {
            refused = refused.or(result.err());
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Hook {
    /// The row in whose version the webhook wants to see the subject, if it wants to.
    async fn invocation(&self, subject: &Subject<'_>) -> Result<Option<Arc<Resource>>, Status> {
        let Some(row) = self.matcher.invocation(subject).await? else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(row));
        }
        let facts = Facts::of(subject, &row).await?;
        let mut evaluation = Evaluation::new(subject, &[], cel::CONDITIONS_BUDGET);
        match evaluation.fulfils(&facts, &self.conditions).await {
            Ok(fulfilled) => Ok(Some(row).filter(|_| fulfilled)),
            Err(_) if !self.closed => Ok(None),
            Err(why) => {
                let gvr = &subject.row.gvr;
                Err(Status::forbidden(&gvr.group, &gvr.resource, &subject.name, &why))
            }
        }
    }

    /// What a failure means: nothing, or the refusal of the request.
    fn judge(&self, failure: Failure) -> Result<(), Status> {
        match failure {
            Failure::Refused(status) => Err(status),
            Failure::Calling(why) => {
                let text = format!("failed calling webhook {:?}: {why}", self.name);
                tracing::warn!(webhook = self.key, closed = self.closed, why, "a webhook cannot be called");
                if self.closed { Err(Status::internal(text)) } else { Ok(()) }
            }
        }
    }

    /// Asks and gives the answer of a webhook that allows the request.
    async fn ask(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &Subject<'_>,
        row: &Arc<Resource>,
        mutating: bool,
    ) -> Result<review::Answer, Failure> {
        if subject.dry_run && !self.harmless {
            let text = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Refused(Status::bad_request(text)));
        }
        let version = self.versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
        let version = version.ok_or_else(|| {
            let why =
                "could not create admission objects: webhook does not accept known AdmissionReview versions";
            Failure::Calling(format!("{why} (v1, v1beta1)"))
        })?;
        let (object, old) = subject.converted(row).await.map_err(Failure::Refused)?;
        let (uid, request) = review::request(subject, row, object, old, version);
        let answer = self.webhook.call(&cx.registry.network(), &request, self.timeout).await;
        let answer = answer.map_err(|error| Failure::Calling(error.reason))?;
        let answer = review::read(&answer, &uid, version, mutating)
            .map_err(|why| Failure::Calling(format!("received invalid webhook response: {why}")))?;
        for (key, value) in &answer.audit {
            tracing::info!(target: "audit", webhook = self.name, key, value, "a webhook has annotated a request");
        }
        cx.call.warnings.extend(answer.warnings.iter().cloned());
        if answer.allowed {
            Ok(answer)
        } else {
            Err(Failure::Refused(review::denial(&self.name, &answer.result)))
        }
    }

    /// Lets a mutating webhook change the subject. Whether it did.
    async fn change(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &mut Subject<'_>,
        row: &Arc<Resource>,
    ) -> Result<bool, Failure> {
        let answer = self.ask(cx, subject, row, true).await?;
        let Some(patch) = answer.patch.filter(|patch| patch.as_array().is_none_or(|list| !list.is_empty()))
        else {
            return Ok(false);
        };
        let by = format!("admission webhook {:?}", self.name);
        let Some(object) = subject.object.clone() else {
            let why =
                format!("{by} attempted to modify the object, which is not supported for this operation");
            return Err(Failure::Refused(Status::internal(why)));
        };
        let own = Arc::clone(&subject.row);
        let object = subject.convert(object, &own, row).await.map_err(Failure::Refused)?;
        let patched = api::patch::json(&object, &patch).map_err(|status| {
            Failure::Refused(Status { reason: Reason::InternalError, code: 500, ..status })
        })?;
        let patched = subject.convert(patched, row, &own).await.map_err(Failure::Refused)?;
        subject.replace(patched, &by).map_err(Failure::Refused)
    }
}
