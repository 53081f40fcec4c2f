//! Rules of resource quantities in specs.

use std::cmp::Ordering;

use api::quantity::Quantity;

use super::check::{At, Errors};

/// The quantity at a place, where there is a readable one; numbers in JSON count too.
pub(crate) fn parse(at: &At<'_>) -> Option<Quantity> {
    match at.value {
        serde_json::Value::String(s) => Quantity::parse(s).ok(),
        serde_json::Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

/// A quantity of at least 0.
pub(crate) fn validate(at: &At<'_>, e: &mut Errors) -> Option<Quantity> {
    let value = parse(at);
    match &value {
        None => at.invalid(
            e,
            "quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        Some(n) if n.is_negative() => at.invalid(e, "must be greater than or equal to 0"),
        Some(_) => {}
    }
    value
}

/// Order of two quantities, where both are readable.
pub(crate) fn compare(a: &At<'_>, b: &At<'_>) -> Option<Ordering> {
    parse(a)?.partial_cmp(&parse(b)?)
}
