//! The end of a definition: its objects go first, then its finalizer, and with it the definition itself.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::{ApiRequest, GroupVersionResource, ObjectKey, Status, Verb};
use serde_json::Value;

use crate::authz::MASTERS;
use crate::registry::Registry;
use crate::resource::{Reader, Resource, UserInfo};
use crate::resources::{CLEANUP, custom_resource_definitions};
use crate::server::ApiServer;

/// Ends definitions as their deletion begins; returns when the server is gone.
pub(crate) async fn run(server: Weak<ApiServer>) {
    let Some(mut changed) = server.upgrade().map(|server| server.registry.resources.ending.subscribe())
    else {
        return;
    };
    let busy: Arc<Mutex<HashSet<String>>> = Arc::default();
    loop {
        let ending = changed.borrow_and_update().clone();
        for name in ending {
            if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
                continue;
            }
            let (server, busy) = (Weak::clone(&server), Arc::clone(&busy));
            tokio::spawn(async move {
                if let Err(error) = end(&server, &name).await {
                    tracing::error!(%error, definition = name, "a definition cannot be taken away");
                }
                busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            });
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn user() -> UserInfo {
    UserInfo::new("system:apiserver", &[MASTERS])
}

async fn end(server: &Weak<ApiServer>, name: &str) -> Result<(), Status> {
    loop {
        let Some(server) = server.upgrade() else { return Ok(()) };
        let Some(row) = row_of(&server.registry, name) else { return release(&server, name).await };
        let mut changed = server.registry.cache(&row, None).await?.subscribe();
        let objects = Reader::list(&server.registry, &row.gvr, None).await?;
        if objects.is_empty() {
            return release(&server, name).await;
        }
        for object in objects.iter().filter(|object| !object.is_deleting()) {
            let namespace = Some(object.namespace()).filter(|_| row.namespaced);
            let gvr = row.gvr.clone();
            let request = ApiRequest::resource(Verb::Delete, gvr, namespace, Some(object.name()), None);
            match server.registry.handle_unreviewed(&user(), &request).await {
                Err(status) if !status.is_not_found() => return Err(status),
                Ok(_) | Err(_) => {}
            }
        }
        drop(server);
        // Finalizers of others hold the rest back: the next change tells. A closed cache means that the rows changed.
        if changed.changed().await.is_err() {
            tracing::debug!(definition = name, "the rows of an ending definition changed");
        }
    }
}

/// Any row of a definition; all its versions show the same objects.
fn row_of(registry: &Registry, name: &str) -> Option<Arc<Resource>> {
    let (plural, group) = name.split_once('.')?;
    registry.resources.current().by_group_resource(group, plural).cloned()
}

/// Takes the finalizer away. A conflict means that somebody else wrote meanwhile.
async fn release(server: &ApiServer, name: &str) -> Result<(), Status> {
    let gvr: GroupVersionResource = custom_resource_definitions();
    let key = ObjectKey::new("", name);
    loop {
        let Some(mut crd) = Reader::get(&server.registry, &gvr, &key).await? else { return Ok(()) };
        let finalizers = crd.get(&["metadata", "finalizers"]).and_then(Value::as_array);
        let rest: Vec<Value> = finalizers.into_iter().flatten().filter(|f| *f != CLEANUP).cloned().collect();
        crd.set(&["metadata", "finalizers"], rest);
        let request = ApiRequest::resource(Verb::Update, gvr.clone(), None, Some(name), None);
        let body = Value::Object(crd.0).to_string();
        match server.call(&user(), request.with_json(body)).await {
            Err(status) if status.is_conflict() => {}
            Err(status) if status.is_not_found() => return Ok(()),
            other => return other.map(drop),
        }
    }
}
