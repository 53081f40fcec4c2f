//! UPDATE and PATCH: read, change, check, write if it is still what was read; again after a conflict where the
//! client did not name the version it changes.

use api::{ApiResponse, ContentType, FieldError, Object, ObjectKey, PatchType, Reason, Status};
use store::Condition;

use super::create::{RETRIES, Refused, Write, refuse};
use super::negotiate::{self, Versioned};
use super::{Call, Registry, codec, finalize, meta};
use crate::admission::Operation;
use crate::resource::{Change, Extension};

pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Makes the new object from the present one. May run several times.
pub(crate) type Mutate<'a> = dyn FnMut(&Object, &mut Vec<String>) -> Result<Object, Status> + Send + 'a;

/// How an update treats the object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A client's update: all hooks; the caller is recorded as manager of what it changed.
    Client,
    /// Server-side apply: all hooks; apply has recorded its manager itself.
    Apply,
    /// The server's own change (binding): no hooks of the kind, fields are tracked.
    Server,
}

impl Registry {
    pub(crate) async fn update(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let mut warnings = Vec::new();
        let mut body = codec::decode(call, call.resource, &mut warnings)?;
        meta::settle_namespace(call.resource, &mut body, call.namespace)?;
        settle_name(call, &mut body)?;
        let key = call.key();
        let found = self.stored(call.resource, &key).await?.is_some();
        if !found && call.subresource.is_none() && call.resource.strategy.allow_create_on_update() {
            let stored = self.create_object(call, body, true, &mut warnings).await?;
            return respond(call, 201, &stored, warnings);
        }
        let mut mutate = |_: &Object, _: &mut Vec<String>| Ok(body.clone());
        let stored = self.update_object(call, &key, Mode::Client, &mut mutate, &mut warnings).await?;
        respond(call, 200, &stored, warnings)
    }

    pub(crate) async fn patch(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let body = call.request.body.as_ref().ok_or_else(|| Status::bad_request("a patch needs a body"))?;
        let ContentType::Patch(kind) = body.content_type else { return Err(unsupported_patch()) };
        if kind == PatchType::Strategic && !call.resource.strategy.merges_strategically() {
            return Err(no_strategic_patch());
        }
        let key = call.key();
        let mut warnings = Vec::new();
        if kind != PatchType::Apply {
            let mut mutate = |old: &Object, warnings: &mut Vec<String>| {
                codec::patch(call, call.resource, kind, &body.bytes, old, warnings)
            };
            let stored = self.update_object(call, &key, Mode::Client, &mut mutate, &mut warnings).await?;
            return respond(call, 200, &stored, warnings);
        }
        if call.request.options.field_manager.as_deref().unwrap_or_default().is_empty() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        for _ in 0..RETRIES {
            if self.stored(call.resource, &key).await?.is_some() {
                let mut mutate = |old: &Object, warnings: &mut Vec<String>| {
                    codec::apply(call, Some(old), &body.bytes, warnings)
                };
                let stored = self.update_object(call, &key, Mode::Apply, &mut mutate, &mut warnings).await?;
                return respond(call, 200, &stored, warnings);
            }
            if call.subresource.is_some() {
                return Err(call.not_found());
            }
            let mut object = codec::apply(call, None, &body.bytes, &mut warnings)?;
            meta::settle_namespace(call.resource, &mut object, call.namespace)?;
            settle_name(call, &mut object)?;
            match self.create_object(call, object, false, &mut warnings).await {
                Ok(stored) => return respond(call, 201, &stored, warnings),
                Err(status) if status.is_already_exists() => {}
                Err(status) => return Err(status),
            }
        }
        Err(call.conflict(call.name, MODIFIED))
    }

    /// Changes an object.
    pub(crate) async fn update_object(
        &self,
        call: &Call<'_>,
        key: &ObjectKey,
        mode: Mode,
        mutate: &mut Mutate<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Versioned, Status> {
        for _ in 0..RETRIES {
            let existing = self.stored(call.resource, key).await?.ok_or_else(|| call.not_found())?;
            let old = negotiate::read(call.resource, &existing)?;
            let mut texts = Vec::new();
            let new = mutate(&old, &mut texts)?;
            let unconditional =
                new.resource_version().is_empty() || new.resource_version() == old.resource_version();
            let pinned = mode == Mode::Client
                && call.request.verb == api::Verb::Update
                && !new.resource_version().is_empty();
            if !unconditional {
                return Err(call.conflict(key.name.as_str(), MODIFIED));
            }
            let new = self.prepare(call, mode, new, &old, &mut texts).await?;
            match self.commit_change(call, key, &existing, new, &old).await {
                Ok(stored) => {
                    warnings.append(&mut texts);
                    return Ok(stored);
                }
                Err(Refused::Own(None)) => return Err(call.not_found()),
                Err(Refused::Own(Some(_))) if pinned => return Err(call.conflict(&key.name, MODIFIED)),
                Err(Refused::Own(Some(_)) | Refused::Extension) => {}
                Err(Refused::For(status)) => return Err(status),
            }
        }
        Err(call.conflict(&key.name, MODIFIED))
    }

    /// Everything between the client's wish and the commit.
    async fn prepare(
        &self,
        call: &Call<'_>,
        mode: Mode,
        mut new: Object,
        old: &Object,
        warnings: &mut Vec<String>,
    ) -> Result<Object, Status> {
        let resource = call.resource;
        let client_put = mode == Mode::Client && call.request.verb == api::Verb::Update;
        if client_put && new.resource_version().is_empty() && !resource.strategy.allow_unconditional_update()
        {
            let detail = "must be specified for an update";
            let error = FieldError::invalid("metadata.resourceVersion", 0, detail);
            return Err(Status::invalid(&resource.gvr.group, &resource.kind, old.name(), &[error]));
        }
        if !new.uid().is_empty() && new.uid() != old.uid() {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                new.uid(),
                old.uid()
            );
            return Err(call.conflict(old.name(), &why));
        }
        codec::default(resource, &mut new);
        let mut admission = self.admission_context(call, Operation::Update);
        admission.reviewed &= mode != Mode::Server;
        self.admission.mutate(&admission, &mut new, Some(old)).await?;
        meta::isolate(resource, call.subresource, &mut new, old);
        meta::carry_over(&mut new, old);
        if mode != Mode::Server {
            let context = self.write_context(call);
            resource.strategy.prepare_for_update(&context, &mut new, old);
            codec::default(resource, &mut new);
        }
        if mode != Mode::Apply {
            codec::track(call, Some(old), &mut new);
        }
        let mut errors = meta::validate(resource, &new);
        errors.extend(meta::validate_update(&new, old));
        if mode != Mode::Server {
            errors.extend(resource.strategy.validate(&new));
            errors.extend(resource.strategy.validate_part(call.subresource, &new, old));
        }
        refuse(resource, &new, errors)?;
        if mode != Mode::Server {
            warnings.extend(resource.strategy.warnings(&new));
            // a binding is no change of what the user wants
            meta::bump_generation(resource, &mut new, old);
        }
        self.admission.validate(&admission, Some(&new), Some(old)).await?;
        Ok(new)
    }

    async fn commit_change(
        &self,
        call: &Call<'_>,
        key: &ObjectKey,
        existing: &Versioned,
        new: Object,
        old: &Object,
    ) -> Result<Versioned, Refused> {
        let resource = call.resource;
        let condition = Condition::ModifiedAt(existing.revision);
        let context = self.write_context(call);
        for _ in 0..RETRIES {
            let mut candidate = new.clone();
            let mut extension = Extension::default();
            let ends = candidate.is_deleting()
                && candidate.i64(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
                && !meta::is_held(&candidate);
            let change = if ends { Change::Delete(old) } else { Change::Update { new: &mut candidate, old } };
            resource.strategy.extend_txn(&context, change, &mut extension).await.map_err(Refused::For)?;
            if ends {
                finalize::end_deletion(resource, old, &mut extension);
            }
            let states = ((!ends).then_some(&candidate), Some(old));
            let _turn = crate::admission::quota::charge(self, resource, states, &mut extension)
                .await
                .map_err(Refused::For)?;
            let value = self.encode(resource, candidate).await.map_err(Refused::For)?;
            if value == existing.value && !ends && extension.ops.is_empty() {
                return Ok(existing.clone());
            }
            if call.dry_run() {
                return Ok(Versioned { value, revision: existing.revision });
            }
            let written = (!ends).then(|| value.clone());
            match self.commit(Write { resource, key, condition, value: written, extension }).await {
                Ok(revision) => return Ok(Versioned { value, revision }),
                Err(Refused::Extension) => {}
                Err(other) => return Err(other),
            }
        }
        Err(Refused::Extension)
    }
}

fn respond(
    call: &Call<'_>,
    code: u16,
    stored: &Versioned,
    warnings: Vec<String>,
) -> Result<ApiResponse, Status> {
    let mut response = negotiate::one(call.resource, call.form, code, stored)?;
    response.warnings = warnings;
    Ok(response)
}

fn unsupported_patch() -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
         application/apply-patch+yaml",
    )
}

fn no_strategic_patch() -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
    )
}

/// The name in the body must be the URL's; an absent one is filled in.
fn settle_name(call: &Call<'_>, object: &mut Object) -> Result<(), Status> {
    if object.name().is_empty() {
        object.set(&["metadata", "name"], call.name);
    } else if object.name() != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            object.name(),
            call.name
        )));
    }
    Ok(())
}
