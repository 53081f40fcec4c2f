//! `policy/v1`: PodDisruptionBudget.

use api::{FieldError, Object};

use super::check::{At, Errors};
use super::row::{Hooks, Row, col};
use super::selectors;
use crate::printing::cells;

const BUDGET: Hooks = Hooks { validate, ..Hooks::NONE };

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let (min, max) = (spec.field("minAvailable"), spec.field("maxUnavailable"));
    if min.is_set() && max.is_set() {
        e.push(FieldError::invalid(
            "spec",
            spec.value.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for value in [min, max] {
        count_or_percent(&value, e);
    }
    selectors::validate(&spec.field("selector"), e);
    spec.field("unhealthyPodEvictionPolicy").one_of(e, &["AlwaysAllow", "IfHealthyBudget"]);
}

/// A number of at least 0, or a percentage from 0% to 100%.
pub(super) fn count_or_percent(at: &At<'_>, e: &mut Errors) {
    at.non_negative(e);
    if let Some(text) = at.value.as_str() {
        match text.strip_suffix('%').and_then(|n| n.parse::<u32>().ok()) {
            None => at.invalid(
                e,
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                 regex used for validation is '[0-9]+%')",
            ),
            Some(n) if n > 100 => at.invalid(e, "must not be greater than 100%"),
            Some(_) => {}
        }
    }
}

fn or_not_applicable(o: &Object, name: &str) -> serde_json::Value {
    match cells::text(o, &["spec", name]) {
        text if text.is_empty() => "N/A".into(),
        text => text.into(),
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("poddisruptionbudgets", "PodDisruptionBudget")
            .short(&["pdb"])
            .status()
            .strategy(BUDGET)
            .columns(
                vec![
                    col("Min Available", "string", "Fewest pods that must stay available.", |o, _| {
                        or_not_applicable(o, "minAvailable")
                    }),
                    col("Max Unavailable", "string", "Most pods that may be unavailable.", |o, _| {
                        or_not_applicable(o, "maxUnavailable")
                    }),
                    col("Allowed Disruptions", "integer", "How many pods may be disrupted now.", |o, _| {
                        cells::count(o, &["status", "disruptionsAllowed"]).into()
                    }),
                ],
                Vec::new(),
            ),
    ]
}
