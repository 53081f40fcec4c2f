//! `node.k8s.io/v1`: RuntimeClass.

use api::Object;

use super::check::{At, Errors, immutable};
use super::row::{Hooks, Row, col};
use super::{names, quantity};

const CLASS: Hooks =
    Hooks { validate, validate_update: |new, old, e| immutable(e, new, old, &["handler"]), ..Hooks::NONE };

fn validate(o: &Object, e: &mut Errors) {
    At::top(o, "handler").required_text(e, names::dns_label);
    for (name, amount) in At::top(o, "overhead").field("podFixed").entries() {
        for detail in names::qualified_name(name) {
            amount.invalid_key(e, name, &detail);
        }
        quantity::validate(&amount, e);
    }
    let scheduling = At::top(o, "scheduling");
    scheduling.field("nodeSelector").labels(e);
    for toleration in scheduling.field("tolerations").items() {
        toleration.field("key").text(e, names::qualified_name);
        toleration.field("effect").one_of(e, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new("runtimeclasses", "RuntimeClass").cluster().strategy(CLASS).columns(
        vec![col("Handler", "string", "The runtime's own name for it.", |o, _| o.str(&["handler"]).into())],
        Vec::new(),
    )]
}
