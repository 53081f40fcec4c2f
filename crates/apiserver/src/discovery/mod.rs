//! Discovery documents: `/api`, `/apis`, `/api/v1`, `/apis/{group}`, `/apis/{group}/{version}`.

use api::ApiResponse;

use crate::resource::ResourceSet;

/// The document at a path, in the form that `accept` prefers (aggregated discovery v2 too); `None` when there is none.
pub fn document(resources: &ResourceSet, path: &str, accept: &str, advertise: &str) -> Option<ApiResponse> {
    let _ = (resources, path, accept, advertise);
    None
}
