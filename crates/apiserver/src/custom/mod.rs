//! Custom resources: rows of the table that appear and go at run time.
//!
//! ```text
//!   commit of a CustomResourceDefinition ──▶ refresh: read all definitions ──▶ rows of the changed ones ──▶ Catalog
//!   definition being deleted ──▶ cleanup: delete its objects ──▶ take away the finalizer
//! ```
//!
//! Invariants: a request works on one snapshot of the table; nobody who has seen a definition (its writer, a watcher)
//! finds rows older than it; whoever watches objects of a changed definition has to watch again.

mod cleanup;
mod conversion;
pub(crate) mod jsonpath;
mod rows;
pub(crate) mod rules;
mod types;
mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use api::{GroupVersionResource, Object, SchemaTable, Status};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, watch};

pub(crate) use cleanup::run as run_cleanup;
pub(crate) use conversion::Conversion;
pub(crate) use rows::priority as version_order;

use crate::registry::Registry;
use crate::resource::{Reader, Resource, ResourceSet};
use crate::resources::{custom_resource_definitions, is_established};

/// All rows as they are now.
pub(crate) struct Catalog {
    builtin: Vec<Arc<Resource>>,
    table: Arc<SchemaTable>,
    current: RwLock<Arc<ResourceSet>>,
    made: Mutex<BTreeMap<String, Made>>,
    /// Definitions that are being deleted.
    ending: watch::Sender<Vec<String>>,
}

/// The rows of one definition and what they were made from.
pub(crate) struct Made {
    from: Vec<Value>,
    rows: Vec<Arc<Resource>>,
}

impl Catalog {
    /// A catalog of the built-in rows alone.
    pub(crate) fn new(builtin: Vec<Resource>, table: Arc<SchemaTable>) -> Self {
        let builtin: Vec<Arc<Resource>> = builtin.into_iter().map(Arc::new).collect();
        let current = RwLock::new(Arc::new(ResourceSet::from_rows(builtin.clone())));
        let (made, ending) = (Mutex::default(), watch::Sender::default());
        Self { builtin, table, current, made, ending }
    }

    /// The rows of this moment.
    pub(crate) fn current(&self) -> Arc<ResourceSet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the rows from being made anew by others. Whoever commits a definition holds this from before the commit
    /// until its rows are made.
    pub(crate) async fn hold(&self) -> MutexGuard<'_, BTreeMap<String, Made>> {
        self.made.lock().await
    }

    /// Waits until the rows are those of all definitions that anybody can have seen.
    pub(crate) async fn settle(&self) {
        drop(self.made.lock().await);
    }

    /// Tells when the rows have been made anew.
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<String>> {
        self.ending.subscribe()
    }

    /// The row of a path.
    pub(crate) fn get(&self, gvr: &GroupVersionResource) -> Option<Arc<Resource>> {
        self.current().get(gvr).cloned()
    }
}

/// Whatever of a definition its rows depend on.
fn essence(crd: &Object) -> Vec<Value> {
    let part = |path: &[&str]| crd.get(path).cloned().unwrap_or_default();
    vec![part(&["metadata", "uid"]), part(&["spec"]), crd.is_deleting().into()]
}

impl Registry {
    /// Makes the rows of the stored definitions.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn refresh_custom(&self, made: &mut BTreeMap<String, Made>) -> Result<(), Status> {
        let catalog = &self.resources;
        let definitions = Reader::list(self, &custom_resource_definitions(), None).await?;
        let (mut next, mut stale, mut ending) = (BTreeMap::new(), Vec::new(), Vec::new());
        for crd in definitions.iter().filter(|crd| is_established(crd)) {
            let from = essence(crd);
            let known = made.remove(crd.name());
            if crd.is_deleting() {
                ending.push(crd.name().to_owned());
            }
            let made = match known {
                Some(known) if known.from == from => known,
                known => {
                    stale.extend(known);
                    let rows = rows::of(crd, &catalog.table).into_iter().map(Arc::new).collect();
                    Made { from, rows }
                }
            };
            next.insert(crd.name().to_owned(), made);
        }
        stale.extend(std::mem::take(made).into_values());
        let mut custom: Vec<Arc<Resource>> = next.values().flat_map(|made| made.rows.clone()).collect();
        custom.sort_by_cached_key(|row| (row.gvr.group.clone(), rows::priority(&row.gvr.version)));
        let rows = catalog.builtin.iter().cloned().chain(custom).collect();
        *made = next;
        *catalog.current.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(ResourceSet::from_rows(rows));
        for row in stale.iter().filter_map(|made| made.rows.first()) {
            self.caches.forget(&row.store_prefix());
        }
        catalog.ending.send_replace(ending);
        Ok(())
    }
}
