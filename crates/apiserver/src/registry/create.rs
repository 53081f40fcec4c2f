//! CREATE, and the commit that all writes share.

use api::{ApiResponse, FieldError, Object, ObjectKey, Status};
use bytes::Bytes;
use store::{CommitError, Condition, Entry, Op, Txn};

use super::negotiate::{self, Versioned};
use super::{Call, Registry, codec, finalize, meta, store_error};
use crate::admission::Operation;
use crate::resource::{Change, Expect, Extension, Resource};
use crate::stored;

/// How often a taken generated name, or a lost private key, is tried again.
pub(crate) const RETRIES: usize = 8;

/// Why a commit did not happen.
pub(crate) enum Refused {
    /// The object's own key is not what it was; this is what it is now.
    Own(Option<Entry>),
    /// A private key of the extension changed.
    Extension,
    /// For good.
    For(Status),
}

/// One object's part of a transaction.
pub(crate) struct Write<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) key: &'a ObjectKey,
    pub(crate) condition: Condition,
    /// `None` deletes.
    pub(crate) value: Option<Bytes>,
    pub(crate) extension: Extension,
}

impl Registry {
    pub(crate) async fn create(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        if !call.resource.allows(api::Verb::List) {
            return self.create_virtual(call).await;
        }
        let mut warnings = Vec::new();
        let mut object = codec::decode(call, call.resource, &mut warnings)?;
        meta::settle_namespace(call.resource, &mut object, call.namespace)?;
        let stored = self.create_object(call, object, true, &mut warnings).await?;
        let mut response = negotiate::one(call.resource, call.form, 201, &stored)?;
        response.warnings = warnings;
        Ok(response)
    }

    /// Creates an object. `track` records the caller as manager of its fields (apply has done so itself).
    pub(crate) async fn create_object(
        &self,
        call: &Call<'_>,
        mut object: Object,
        track: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Versioned, Status> {
        let resource = call.resource;
        codec::default(resource, &mut object);
        let admission = self.admission_context(call, Operation::Create);
        self.admission.mutate(&admission, &mut object, None).await?;
        if resource.has_status() && !resource.strategy.keeps_status_on_create() {
            object.0.remove("status");
        }
        meta::begin(resource, &mut object, call.now);
        let context = self.write_context(call);
        resource.strategy.prepare_for_create(&context, &mut object);
        codec::default(resource, &mut object);
        if track {
            codec::track(call, None, &mut object);
        }
        let mut errors = meta::validate(resource, &object);
        errors.extend(resource.strategy.validate(&object));
        errors.extend(resource.strategy.validate_create(&object));
        refuse(resource, &object, errors)?;
        warnings.extend(resource.strategy.warnings(&object));
        self.admission.validate(&admission, Some(&object), None).await?;
        self.commit_new(call, object).await
    }

    async fn commit_new(&self, call: &Call<'_>, mut object: Object) -> Result<Versioned, Status> {
        let resource = call.resource;
        let context = self.write_context(call);
        for _ in 0..RETRIES {
            let mut candidate = object.clone();
            let mut extension = Extension::default();
            resource.strategy.extend_txn(&context, Change::Create(&mut candidate), &mut extension).await?;
            if resource.namespaced {
                finalize::require_living(self, candidate.namespace(), &mut extension);
            }
            let _turn =
                crate::admission::quota::charge(self, resource, (Some(&candidate), None), &mut extension)
                    .await?;
            let key = meta::key(resource, &candidate);
            let value = self.encode(resource, candidate).await?;
            let exists = || Status::already_exists(&resource.gvr.group, &resource.gvr.resource, &key.name);
            if call.dry_run() {
                let taken = self.stored(resource, &key).await?.is_some();
                return if taken { Err(exists()) } else { Ok(Versioned { value, revision: 0 }) };
            }
            let condition = Condition::Absent;
            let write = Write { resource, key: &key, condition, value: Some(value.clone()), extension };
            match self.commit(write).await {
                Ok(revision) => return Ok(Versioned { value, revision }),
                Err(Refused::Own(_)) if object.str(&["metadata", "generateName"]).is_empty() => {
                    return Err(exists());
                }
                Err(Refused::Own(_)) => {
                    let name = meta::generated_name(object.str(&["metadata", "generateName"]));
                    object.set(&["metadata", "name"], name);
                }
                Err(Refused::Extension) => {}
                Err(Refused::For(status)) => return Err(status),
            }
        }
        Err(call.conflict(object.name(), "too many conflicts; please try again"))
    }

    /// An object as it is stored: in the stored row's version.
    ///
    /// # Errors
    /// When a webhook has to convert it and fails.
    pub(crate) async fn encode(&self, resource: &Resource, mut object: Object) -> Result<Bytes, Status> {
        for name in resource.strategy.always_present() {
            object.set_default(&[name], serde_json::json!({}));
        }
        if let Some(conversion) = resource.strategy.conversion() {
            return self.encode_by(conversion, resource, object).await;
        }
        if let Some(row) = resource.stored_as.as_ref().and_then(|gvr| self.resources.get(gvr)) {
            resource.strategy.to_stored(&mut object);
            object.set(&["apiVersion"], row.api_version());
            object.set(&["kind"], row.kind.clone());
        }
        Ok(stored::encode(&object))
    }

    /// Commits one object with its extension; gives the object's revision.
    pub(crate) async fn commit(&self, write: Write<'_>) -> Result<u64, Refused> {
        let own = write.resource.store_key(write.key);
        let mut txn =
            Txn { relaxed: write.resource.durability.is_relaxed(&write.key.namespace), ..Txn::default() };
        txn.conditions.push((own.clone(), write.condition));
        txn.ops.push((own.clone(), write.value.clone().map_or(Op::Delete, Op::Put)));
        for (key, expect) in write.extension.conditions {
            let condition = match expect {
                Expect::Absent => Condition::Absent,
                Expect::Present => Condition::Present,
                Expect::ModifiedAt(revision) => Condition::ModifiedAt(revision),
            };
            txn.conditions.push((key, condition));
        }
        for (key, value) in write.extension.ops {
            txn.ops.push((key, value.map_or(Op::Delete, Op::Put)));
        }
        let mut rows = match write.resource.strategy.changes_rows() {
            true => Some(self.resources.hold().await),
            false => None,
        };
        match self.store.commit(txn).await {
            Ok(committed) => {
                if let Some(rows) = &mut rows
                    && let Err(error) = self.refresh_custom(rows).await
                {
                    tracing::error!(%error, "the rows of custom resources are not those that are defined");
                }
                if write.resource.strategy.takes_effect_at_once() {
                    self.caches.catch_up().await.map_err(Refused::For)?;
                }
                Ok(committed.first)
            }
            Err(CommitError::Conflict { key, current }) if key == own => Err(Refused::Own(current)),
            Err(CommitError::Conflict { key, .. }) => {
                Err(finalize::refusal(&key, write.resource, write.key)
                    .map_or(Refused::Extension, Refused::For))
            }
            Err(CommitError::Closed) => Err(Refused::For(store_error(store::StoreError::Closed))),
            Err(CommitError::Unknown(why)) => self.outcome(&own, write.value.as_ref(), &why).await,
            Err(CommitError::Invalid(why)) => {
                let text = format!("the object is too large or malformed: {why}");
                Err(Refused::For(Status::new(api::Reason::RequestEntityTooLarge, text)))
            }
        }
    }

    /// Reads back what a commit of unknown outcome has done.
    async fn outcome(&self, own: &str, value: Option<&Bytes>, why: &str) -> Result<u64, Refused> {
        let now = self.store.get(own).await.map_err(|e| Refused::For(store_error(e)))?;
        match (now, value) {
            (Some(entry), Some(value)) if entry.value == *value => Ok(entry.mod_revision),
            (None, None) => self.store.current_revision().await.map_err(|e| Refused::For(store_error(e))),
            _ => {
                let text = format!("the outcome of the write is unknown: {why}");
                Err(Refused::For(Status::new(api::Reason::Timeout, text)))
            }
        }
    }
}

/// `Invalid` with all findings, if there are any.
pub(crate) fn refuse(resource: &Resource, object: &Object, errors: Vec<FieldError>) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&resource.gvr.group, &resource.kind, object.name(), &errors))
}
