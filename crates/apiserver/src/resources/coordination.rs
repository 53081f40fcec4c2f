//! `coordination.k8s.io/v1`: Lease.

use api::Object;

use super::check::{At, Errors};
use super::row::{Hooks, Row, col};
use crate::printing::cells;
use crate::resource::Durability;

/// Nodes say here that they live; elsewhere leases elect leaders.
const NODE_LEASES: &str = "kube-node-lease";

const LEASE: Hooks = Hooks { validate, create_on_update: true, ..Hooks::NONE };

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    spec.field("leaseDurationSeconds").positive(e);
    spec.field("leaseTransitions").non_negative(e);
    let strategy = spec.field("strategy");
    if strategy.is_empty() && spec.field("preferredHolder").is_set() {
        spec.field("preferredHolder").forbidden(e, "may only be specified if `strategy` is defined");
    }
    strategy.one_of(e, &["OldestEmulationVersion"]);
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new("leases", "Lease").strategy(LEASE).durability(Durability::RelaxedIn(NODE_LEASES)).columns(
        vec![col("Holder", "string", "Who holds the lease.", |o, _| {
            cells::text(o, &["spec", "holderIdentity"]).into()
        })],
        Vec::new(),
    )]
}
