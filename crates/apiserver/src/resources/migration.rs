//! `storagemigration.k8s.io/v1`: StorageVersionMigration. Objects are stored in one version: there is nothing to migrate.

use super::check::{At, immutable};
use super::row::{Hooks, Row};

const MIGRATION: Hooks = Hooks {
    validate: |o, e| {
        At::top(o, "spec").field("resource").field("resource").required(e);
    },
    validate_update: |new, old, e| immutable(e, new, old, &["spec"]),
    ..Hooks::NONE
};

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("storageversionmigrations", "StorageVersionMigration")
            .cluster()
            .status()
            .strategy(MIGRATION),
    ]
}
