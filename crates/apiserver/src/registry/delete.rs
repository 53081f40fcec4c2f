//! DELETE: at once, or by steps: a deletion timestamp first, the removal when grace period and finalizers are over.

use api::{ApiResponse, Object, ObjectKey, RequestOptions, Status};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use store::Condition;

use super::create::{RETRIES, Refused, Write};
use super::negotiate::{self, Versioned};
use super::{Call, Registry, finalize, meta};
use crate::admission::Operation;
use crate::resource::{Change, DeleteDecision, Extension};
use crate::stored;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Deletions of a collection under way at a time: enough to share the store's syncs.
const PARALLEL: usize = 16;

/// What became of an object.
pub(crate) enum Deleted {
    Gone(Versioned),
    /// Still there, with a deletion timestamp.
    Marked(Versioned),
}

impl Deleted {
    fn into_stored(self) -> Versioned {
        match self {
            Deleted::Gone(stored) | Deleted::Marked(stored) => stored,
        }
    }
}

/// What a delete does to the object.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    Mark(Object),
    Nothing,
}

impl Registry {
    pub(crate) async fn delete(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        match self.delete_object(call, &call.key(), &call.request.options).await? {
            Deleted::Gone(stored) => {
                let uid = stored::decode(&stored.value, stored.revision)?.uid().to_owned();
                let gvr = &call.resource.gvr;
                let mut details = json!({"name": call.name, "kind": gvr.resource, "uid": uid});
                if !gvr.group.is_empty() {
                    details["group"] = gvr.group.as_str().into();
                }
                call.form.tree(200, &success(details, 200))
            }
            Deleted::Marked(stored) => negotiate::one(call.resource, call.form, 200, &stored),
        }
    }

    pub(crate) async fn delete_collection(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let found = self.find(call).await?;
        let deleted: Vec<Option<Versioned>> = stream::iter(found.items)
            .map(|entry| async move {
                let (namespace, name) = stored::key_parts(call.resource, &entry.key);
                let call = Call { namespace, name, ..*call };
                match self.delete_object(&call, &ObjectKey::new(namespace, name), &call.request.options).await
                {
                    Ok(deleted) => Ok(Some(deleted.into_stored())),
                    Err(status) if status.is_not_found() => Ok(None),
                    Err(status) => Err(status),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let items: Vec<Versioned> = deleted.into_iter().flatten().collect();
        negotiate::list(call.resource, call.form, None, &items, &found.meta)
    }

    /// Deletes an object, or begins to.
    pub(crate) async fn delete_object(
        &self,
        call: &Call<'_>,
        key: &ObjectKey,
        options: &RequestOptions,
    ) -> Result<Deleted, Status> {
        let resource = call.resource;
        check_policy(options)?;
        for _ in 0..RETRIES {
            let existing = self.stored(resource, key).await?.ok_or_else(|| call.not_found())?;
            let mut old = negotiate::read(resource, &existing)?;
            check_preconditions(call, options, &old)?;
            let mut admission = self.admission_context(call, Operation::Delete);
            // An eviction has been reviewed as such.
            admission.reviewed &= call.subresource.is_none();
            self.admission.validate(&admission, None, Some(&old)).await?;
            let context = self.write_context(call);
            let decision = resource.strategy.before_delete(&context, &old, options)?;
            let mut extension = Extension::default();
            resource.strategy.prepare_for_delete(&mut old, call.now);
            let step = step(&old, options, decision, call.now);
            let mut _turn = None;
            let value = match step {
                Step::Nothing => return Ok(Deleted::Marked(existing)),
                Step::Remove => {
                    let change = Change::Delete(&old);
                    resource.strategy.extend_txn(&context, change, &mut extension).await?;
                    finalize::end_deletion(resource, &old, &mut extension);
                    _turn =
                        crate::admission::quota::charge(self, resource, (None, Some(&old)), &mut extension)
                            .await?;
                    None
                }
                Step::Mark(mut object) => {
                    finalize::begin_deletion(resource, &mut object, &mut extension);
                    Some(self.encode(resource, object).await?)
                }
            };
            let result = |revision| match &value {
                Some(value) => Deleted::Marked(Versioned { value: value.clone(), revision }),
                None => Deleted::Gone(Versioned { value: existing.value.clone(), revision }),
            };
            if call.dry_run() {
                return Ok(result(existing.revision));
            }
            let condition = Condition::ModifiedAt(existing.revision);
            match self.commit(Write { resource, key, condition, value: value.clone(), extension }).await {
                Ok(revision) => return Ok(result(revision)),
                Err(Refused::Own(None)) => return Err(call.not_found()),
                Err(Refused::Own(Some(_)) | Refused::Extension) => {}
                Err(Refused::For(status)) => return Err(status),
            }
        }
        Err(call.conflict(&key.name, "the object keeps changing; please try again"))
    }
}

/// A `Status` of success.
pub(crate) fn success(details: Value, code: u16) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    if details.is_null() {
        status["code"] = code.into();
    } else {
        status["details"] = details;
    }
    status
}

fn check_policy(options: &RequestOptions) -> Result<(), Status> {
    let policy = options.propagation_policy.as_deref().unwrap_or("Background");
    if matches!(policy, "Background" | "Foreground" | "Orphan") {
        return Ok(());
    }
    let supported = ["Background", "Foreground", "Orphan"];
    let error = api::FieldError::not_supported("propagationPolicy", policy, &supported);
    Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]))
}

fn check_preconditions(call: &Call<'_>, options: &RequestOptions, old: &Object) -> Result<(), Status> {
    let pairs = [
        ("UID", &options.precondition_uid, old.uid()),
        ("ResourceVersion", &options.precondition_resource_version, old.resource_version()),
    ];
    for (what, wanted, is) in pairs {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != is) {
            let why =
                format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
            return Err(call.conflict(old.name(), &why));
        }
    }
    Ok(())
}

/// Decides what a delete does, by the rules of graceful deletion and propagation.
fn step(old: &Object, options: &RequestOptions, decision: DeleteDecision, now: jiff::Timestamp) -> Step {
    let mut new = old.clone();
    if let Some(policy) = options.propagation_policy.as_deref() {
        set_propagation(&mut new, policy);
    }
    let seconds = match decision {
        DeleteDecision::Now => 0,
        DeleteDecision::Graceful { seconds } => seconds.max(0),
    };
    if seconds == 0 && !meta::is_held(&new) {
        return Step::Remove;
    }
    let marked = old.i64(&["metadata", "deletionGracePeriodSeconds"]).filter(|_| old.is_deleting());
    if marked.is_none_or(|before| seconds < before) {
        let from = if old.is_deleting() && seconds > 0 { asked_at(old).unwrap_or(now) } else { now };
        let at = from.as_second().saturating_add(seconds);
        let at = jiff::Timestamp::from_second(at).unwrap_or(now);
        new.set(&["metadata", "deletionTimestamp"], meta::timestamp(at));
        new.set(&["metadata", "deletionGracePeriodSeconds"], seconds);
        if let Some(generation) = old.i64(&["metadata", "generation"]) {
            new.set(&["metadata", "generation"], generation + 1);
        }
    }
    if new == *old { Step::Nothing } else { Step::Mark(new) }
}

/// When the deletion was asked for first.
fn asked_at(old: &Object) -> Option<jiff::Timestamp> {
    let due: jiff::Timestamp = old.str(&["metadata", "deletionTimestamp"]).parse().ok()?;
    let seconds = old.i64(&["metadata", "deletionGracePeriodSeconds"])?;
    jiff::Timestamp::from_second(due.as_second().checked_sub(seconds)?).ok()
}

fn set_propagation(object: &mut Object, policy: &str) {
    let finalizers = object.get(&["metadata", "finalizers"]).and_then(Value::as_array);
    let mut list: Vec<Value> = finalizers.cloned().unwrap_or_default();
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    match policy {
        "Orphan" => list.push(ORPHAN.into()),
        "Foreground" => list.push(FOREGROUND.into()),
        _ => {}
    }
    if list.is_empty() {
        object.remove(&["metadata", "finalizers"]);
    } else {
        object.set(&["metadata", "finalizers"], list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(metadata: Value) -> Object {
        Object::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn show(metadata: Value, policy: Option<&str>, decision: DeleteDecision) -> String {
        let now = jiff::Timestamp::from_second(1000).unwrap();
        let options =
            RequestOptions { propagation_policy: policy.map(str::to_owned), ..RequestOptions::default() };
        match step(&object(metadata), &options, decision, now) {
            Step::Remove => "remove".into(),
            Step::Nothing => "nothing".into(),
            Step::Mark(object) => object.get(&["metadata"]).map(ToString::to_string).unwrap_or_default(),
        }
    }

    #[test]
    fn deletion_goes_by_steps() {
        let graceful = |seconds| DeleteDecision::Graceful { seconds };
        assert_eq!(show(json!({}), None, DeleteDecision::Now), "remove");
        assert_eq!(show(json!({}), Some("Background"), graceful(0)), "remove");
        assert_eq!(
            show(json!({}), None, graceful(30)),
            r#"{"deletionGracePeriodSeconds":30,"deletionTimestamp":"1970-01-01T00:17:10Z"}"#
        );
        assert_eq!(
            show(json!({"generation": 2}), Some("Foreground"), DeleteDecision::Now),
            r#"{"deletionGracePeriodSeconds":0,"deletionTimestamp":"1970-01-01T00:16:40Z","finalizers":["foregroundDeletion"],"generation":3}"#
        );
        let marked = json!({"deletionTimestamp": "1970-01-01T00:17:00Z", "deletionGracePeriodSeconds": 30});
        assert_eq!(show(marked.clone(), None, graceful(30)), "nothing");
        assert_eq!(show(marked.clone(), None, graceful(60)), "nothing");
        assert_eq!(show(marked.clone(), None, DeleteDecision::Now), "remove");
        assert_eq!(
            show(marked, None, graceful(10)),
            r#"{"deletionGracePeriodSeconds":10,"deletionTimestamp":"1970-01-01T00:16:40Z"}"#
        );
        let held = json!({"finalizers": ["orphan"]});
        assert_eq!(show(held.clone(), Some("Background"), DeleteDecision::Now), "remove");
        assert!(show(held, None, DeleteDecision::Now).contains("orphan"));
    }
}
