//! The table of built-in kinds.

use std::sync::Arc;

use api::SchemaTable;

use crate::resource::Resource;

/// All built-in rows.
pub fn builtin(table: Arc<SchemaTable>) -> Vec<Resource> {
    drop(table);
    Vec::new()
}
