//! OpenAPI documents: `/openapi/v3`, `/openapi/v3/apis/{group}/{version}`, `/openapi/v2`.

use api::ApiResponse;

use crate::resource::ResourceSet;

/// The document at a path; `None` when there is none. `hash` is the query parameter of that name, "" when absent.
pub fn document(resources: &ResourceSet, path: &str, accept: &str, hash: &str) -> Option<ApiResponse> {
    let _ = (resources, path, accept, hash);
    None
}
