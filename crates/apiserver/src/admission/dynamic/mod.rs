//! Admission that users configure: webhooks and policies.
//!
//! ```text
//!   mutate    policies, then webhooks, by name ─▶ changed? built-in plugins again, and those that ask for it
//!   validate  policies, then webhooks (all at a time)
//! ```
//!
//! Their configuration itself is exempt, so that nobody can lock everybody out; so are kinds that are never stored.
//! Without any configuration this costs a look at a few numbers.

mod evaluation;
mod live;
mod rules;
mod subject;
mod vocabulary;

use api::{Object, Status};

pub(crate) use self::evaluation::{Condition, Evaluation, Facts, truth};
pub(crate) use self::live::{GROUP, Live};
pub(crate) use self::rules::Matcher;
pub(crate) use self::subject::{Lens, Subject};
pub(crate) use self::vocabulary::{Vocabulary, Wanted};
use super::AdmissionContext;
use super::policy::{MutatingPolicies, ValidatingPolicies};
use super::webhook::Webhooks;
use crate::registry::Registry;

/// What one request has gone through so far.
#[derive(Default)]
pub(crate) struct Round {
    /// The second time, after something was changed.
    pub(crate) again: bool,
    /// Somebody changed the object.
    pub(crate) changed: bool,
    /// Who wants to be asked again when somebody later has changed the object, and who is to be asked.
    pub(crate) eager: Vec<String>,
    pub(crate) due: Vec<String>,
}

impl Round {
    /// Notes a change: whoever asked for it is asked again.
    pub(crate) fn change(&mut self) {
        self.changed = true;
        self.due.extend(self.eager.iter().cloned());
    }

    /// Whether it is somebody's turn.
    pub(crate) fn is_turn_of(&self, key: &str) -> bool {
        !self.again || self.due.iter().any(|due| due == key)
    }
}

/// Webhooks and policies as they are now.
pub(crate) struct Dynamic {
    mutating: MutatingPolicies,
    validating: ValidatingPolicies,
    webhooks: Webhooks,
}

impl Dynamic {
    pub(crate) fn new() -> Self {
        Self {
            mutating: MutatingPolicies::new(),
            validating: ValidatingPolicies::new(),
            webhooks: Webhooks::new(),
        }
    }

    /// Whether a write of a row is reviewed at all.
    fn reviews(cx: &AdmissionContext<'_>) -> bool {
        cx.reviewed && cx.call.resource.gvr.group != GROUP
    }

    /// Lets webhooks and policies change an object. Whether they did.
    pub(crate) async fn mutate(
        &self,
        cx: &AdmissionContext<'_>,
        object: &mut Object,
        old: Option<&Object>,
        round: &mut Round,
    ) -> Result<(), Status> {
        if !Self::reviews(cx) || !self.mutates(cx.registry).await? {
            return Ok(());
        }
        let mut subject = Subject::of(cx, Some(object), old);
        let before = round.changed;
        round.changed = false;
        self.mutate_subject(cx, &mut subject, round).await?;
        if round.changed
            && let Some(changed) = subject.object
        {
            Lens::of(cx.call).put_back(changed, object)?;
        }
        round.changed |= before;
        Ok(())
    }

    async fn mutates(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(self.mutating.any(registry).await? || self.webhooks.mutate_anything(registry).await?)
    }

    async fn mutate_subject(
        &self,
        cx: &AdmissionContext<'_>,
        subject: &mut Subject<'_>,
        round: &mut Round,
    ) -> Result<(), Status> {
        self.mutating.mutate(cx, subject, round).await?;
        self.webhooks.mutate(cx, subject, round).await
    }

    /// Lets webhooks and policies refuse a write.
    pub(crate) async fn validate(
        &self,
        cx: &AdmissionContext<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        if !Self::reviews(cx) {
            return Ok(());
        }
        if object.is_none() && self.mutates(cx.registry).await? {
            // There is nothing to change, but they are asked.
            let mut subject = Subject::of(cx, None, old);
            self.mutate_subject(cx, &mut subject, &mut Round::default()).await?;
        }
        if !self.validates(cx.registry).await? {
            return Ok(());
        }
        let mut subject = Subject::of(cx, object, old);
        if let (Some(object), Some(old)) = (&mut subject.object, old) {
            object.set_default(&["metadata", "resourceVersion"], old.resource_version());
        }
        self.validate_subject(cx, &subject).await
    }

    async fn validates(&self, registry: &Registry) -> Result<bool, Status> {
        Ok(self.validating.any(registry).await? || self.webhooks.validate_anything(registry).await?)
    }

    async fn validate_subject(&self, cx: &AdmissionContext<'_>, subject: &Subject<'_>) -> Result<(), Status> {
        self.validating.validate(cx, subject).await?;
        self.webhooks.validate(cx, subject).await
    }

    /// Reviews a request whose body is of another kind than the row: a binding, an eviction, the options of a stream.
    /// Gives the body as it has become.
    pub(crate) async fn review(
        &self,
        cx: &AdmissionContext<'_>,
        kind: api::GroupVersionKind,
        body: Object,
    ) -> Result<Object, Status> {
        let (mutates, validates) = (self.mutates(cx.registry).await?, self.validates(cx.registry).await?);
        if !Self::reviews(cx) || !(mutates || validates) {
            return Ok(body);
        }
        let mut subject = Subject::new(cx, kind, Some(body.clone()), None);
        if mutates {
            self.mutate_subject(cx, &mut subject, &mut Round::default()).await?;
        }
        if validates {
            self.validate_subject(cx, &subject).await?;
        }
        Ok(subject.object.unwrap_or(body))
    }
}
