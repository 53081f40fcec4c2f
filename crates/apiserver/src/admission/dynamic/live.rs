//! Configuration that is stored as objects and compiled for use; always as new as the watch caches are.

use std::sync::{Arc, Mutex, PoisonError};

use api::{GroupVersionResource, Object, Status};

use crate::registry::Registry;

pub(crate) const GROUP: &str = "admissionregistration.k8s.io";

/// Something compiled from all objects of some resources of [`GROUP`].
pub(crate) struct Live<T> {
    resources: &'static [&'static str],
    compile: fn(Vec<Vec<Object>>) -> T,
    state: Mutex<Option<(Vec<u64>, Arc<T>)>>,
}

impl<T> Live<T> {
    pub(crate) fn new(resources: &'static [&'static str], compile: fn(Vec<Vec<Object>>) -> T) -> Self {
        Self { resources, compile, state: Mutex::default() }
    }

    /// The compiled form of the present objects. Costs a look at one number per resource when nothing changed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn get(&self, registry: &Registry) -> Result<Arc<T>, Status> {
        let mut caches = Vec::with_capacity(self.resources.len());
        for name in self.resources {
            let gvr = GroupVersionResource::new(GROUP, "v1", name);
            let row =
                registry.resources.get(&gvr).ok_or_else(|| Status::internal(format!("no row {name}")))?;
            caches.push((registry.cache(&row, None).await?, row));
        }
        let revisions: Vec<u64> = caches.iter().map(|(cache, _)| cache.revision()).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, compiled)) = state.as_ref()
            && *known == revisions
        {
            return Ok(Arc::clone(compiled));
        }
        let (mut lists, mut revisions) = (Vec::new(), Vec::new());
        for (cache, row) in &caches {
            let (objects, revision) = cache.snapshot();
            revisions.push(revision);
            lists.push(objects.iter().filter_map(|object| read(object, &row.gvr)).collect());
        }
        let compiled = Arc::new((self.compile)(lists));
        *state = Some((revisions, Arc::clone(&compiled)));
        Ok(compiled)
    }
}

fn read(cached: &crate::stored::CachedObject, gvr: &GroupVersionResource) -> Option<Object> {
    match crate::stored::decode(&cached.value, cached.revision) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::error!(%error, resource = gvr.resource, key = &*cached.key, "an object cannot be read");
            None
        }
    }
}
