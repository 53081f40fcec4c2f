//! Performing actions and live reads.

use api::{
    ApiRequest, Body, ContentType, GroupVersionResource, Object, ObjectKey, PatchType, RequestOptions,
    Status, Verb,
};
use futures_util::future::join_all;
use serde_json::Value;

use crate::client::{Client, encode, request};
use crate::controller::{Action, Outcome, Read};
use crate::recorder::EventRecorder;

/// A write that the caches must have seen before the key is planned again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) gvr: GroupVersionResource,
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    /// `None`: the object was removed.
    pub(crate) revision: Option<u64>,
}

/// Performs actions in order and stops at the first error. Neighbouring creations (or deletions) run together in
/// groups of 1, 2, 4, …, so that a refusal is met early and a long row is quick.
pub(crate) async fn perform(
    client: &Client,
    events: &EventRecorder,
    actions: Vec<Action>,
) -> (Outcome, Vec<Written>) {
    let mut written = Vec::new();
    let mut performed = 0;
    let mut group = 1;
    while performed < actions.len() {
        let rest = &actions[performed..];
        let size = batch_size(rest, group);
        group = if size > 1 || matches!(rest[0], Action::Create { .. } | Action::Delete { .. }) {
            group * 2
        } else {
            1
        };
        let results = join_all(rest[..size].iter().map(|action| perform_one(client, events, action))).await;
        let mut failed = None;
        for (action, result) in rest[..size].iter().zip(results) {
            match result {
                Ok(write) => {
                    performed += 1;
                    written.extend(write);
                }
                Err(status) => failed = failed.or(Some((action.clone(), status))),
            }
        }
        if failed.is_some() {
            return (Outcome { failed, performed }, written);
        }
    }
    (Outcome { failed: None, performed }, written)
}

fn batch_size(rest: &[Action], group: usize) -> usize {
    let same = |action: &&Action| match rest[0] {
        Action::Create { .. } => matches!(action, Action::Create { .. }),
        Action::Delete { .. } => matches!(action, Action::Delete { .. }),
        _ => false,
    };
    rest.iter().take_while(same).take(group).count().max(1)
}

async fn perform_one(
    client: &Client,
    events: &EventRecorder,
    action: &Action,
) -> Result<Option<Written>, Status> {
    let request = match action {
        Action::Create { gvr, namespace, object } => {
            let request = ApiRequest::resource(Verb::Create, gvr.clone(), Some(namespace), None, None);
            request.with_json(encode(object)?)
        }
        Action::Update { gvr, key, object } => {
            request(Verb::Update, gvr, key, None).with_json(encode(object)?)
        }
        Action::UpdateStatus { gvr, key, object } => {
            request(Verb::Update, gvr, key, Some("status")).with_json(encode(object)?)
        }
        Action::Apply { gvr, key, manager, object } => {
            let mut request = patch(gvr, key, None, PatchType::Apply, object)?;
            request.options = RequestOptions {
                field_manager: Some(manager.clone()),
                force: true,
                ..RequestOptions::default()
            };
            request
        }
        Action::Patch { gvr, key, subresource, kind, patch: body } => {
            patch(gvr, key, subresource.as_deref(), *kind, body)?
        }
        Action::Call { verb, gvr, key, subresource, body } => {
            request(*verb, gvr, key, Some(subresource)).with_json(encode(body)?)
        }
        Action::Delete { gvr, key, options } => return delete(client, gvr, key, options).await,
        Action::DeleteCollection { gvr, namespace, options } => {
            let mut request =
                ApiRequest::resource(Verb::DeleteCollection, gvr.clone(), Some(namespace), None, None);
            request.options = options.clone();
            client.bytes(request).await?;
            return Ok(None);
        }
        Action::Event { about, event_type, reason, message } => {
            events.event(about, *event_type, reason, message);
            return Ok(None);
        }
    };
    let gvr = action_gvr(action);
    let object = client.object(request).await?;
    Ok(gvr.and_then(|gvr| written(gvr, &object)))
}

/// Deletes; an object that is already gone (or was replaced by another one) is as good as deleted.
async fn delete(
    client: &Client,
    gvr: &GroupVersionResource,
    key: &ObjectKey,
    options: &RequestOptions,
) -> Result<Option<Written>, Status> {
    let mut request = request(Verb::Delete, gvr, key, None);
    request.options = options.clone();
    let uid = options.precondition_uid.clone().unwrap_or_default();
    let gone = Written { gvr: gvr.clone(), key: key.clone(), uid, revision: None };
    match client.object(request).await {
        Ok(object) if object.str(&["kind"]) == "Status" => Ok(Some(gone)),
        // An object that is still there carries the mark of deletion; otherwise it is the removed object's last state.
        Ok(object) if object.is_deleting() => Ok(written(gvr, &object)),
        Ok(_) => Ok(Some(gone)),
        Err(status) if status.is_not_found() => Ok(Some(gone)),
        Err(status) => Err(status),
    }
}

fn patch(
    gvr: &GroupVersionResource,
    key: &ObjectKey,
    subresource: Option<&str>,
    kind: PatchType,
    body: &Value,
) -> Result<ApiRequest, Status> {
    let mut request = request(Verb::Patch, gvr, key, subresource);
    request.body = Some(Body { content_type: ContentType::Patch(kind), bytes: encode(body)? });
    Ok(request)
}

fn action_gvr(action: &Action) -> Option<&GroupVersionResource> {
    match action {
        Action::Create { gvr, .. }
        | Action::Update { gvr, .. }
        | Action::Apply { gvr, .. }
        | Action::Patch { gvr, .. }
        | Action::UpdateStatus { gvr, .. }
        | Action::Call { gvr, .. } => Some(gvr),
        Action::Delete { .. } | Action::DeleteCollection { .. } | Action::Event { .. } => None,
    }
}

/// Subresources may answer with an object of another kind; then there is no revision to wait for.
fn written(gvr: &GroupVersionResource, object: &Object) -> Option<Written> {
    let revision = object.resource_version().parse().ok()?;
    Some(Written {
        gvr: gvr.clone(),
        key: object.key(),
        uid: object.uid().to_owned(),
        revision: Some(revision),
    })
}

/// Performs live reads, all at once.
pub(crate) async fn read_live(client: &Client, reads: Vec<Read>) -> Vec<(Read, Result<Value, Status>)> {
    let one = async |read: Read| {
        let result = read_one(client, &read).await;
        (read, result)
    };
    join_all(reads.into_iter().map(one)).await
}

async fn read_one(client: &Client, read: &Read) -> Result<Value, Status> {
    let request = match read {
        Read::Get { gvr, key } => request(Verb::Get, gvr, key, None),
        Read::Subresource { gvr, key, subresource } => request(Verb::Get, gvr, key, Some(subresource)),
        Read::List { gvr, namespace, options } => {
            let mut request = ApiRequest::resource(Verb::List, gvr.clone(), namespace.as_deref(), None, None);
            request.options = options.clone();
            request
        }
        Read::Path(path) => ApiRequest::path(path),
    };
    client.object(request).await.map(Object::into_value)
}
