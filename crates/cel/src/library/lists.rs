//! Functions of lists, sets and optionals.

use std::cmp::Ordering;
use std::sync::Arc;

use super::failed;
use crate::eval::Eval;
use crate::value::Val;

/// A list that `lists.range` makes is at most this long.
const LONGEST_RANGE: i64 = 100_000;

/// The functions of this theme.
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    if let Some(result) = optional(name, member, args) {
        return Some(result);
    }
    let first = args.first()?;
    if let ("lists.range", [Val::Int(n)]) = (name, args) {
        let fits = (0..=LONGEST_RANGE).contains(n);
        return Some(if fits {
            Ok(Val::list((0..*n).map(Val::Int).collect()))
        } else {
            failed("range too large")
        });
    }
    let items = first.items()?;
    let second = args.get(1);
    let index = |at: Option<usize>| Ok(Val::Int(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)));
    let has = |list: &[Val<'a>], item: &Val<'a>| list.iter().any(|other| other.equals(item));
    if !member {
        let other = second?.items()?;
        return Some(match name {
            "sets.contains" => Ok(Val::Bool(other.iter().all(|item| has(&items, item)))),
            "sets.equivalent" => Ok(Val::Bool(
                other.iter().all(|item| has(&items, item)) && items.iter().all(|item| has(&other, item)),
            )),
            "sets.intersects" => Ok(Val::Bool(other.iter().any(|item| has(&items, item)))),
            "_+_" => Ok(Val::list(items.into_iter().chain(other).collect())),
            _ => return None,
        });
    }
    Some(match (name, second) {
        ("isSorted", None) => {
            Ok(Val::Bool(items.windows(2).all(|pair| pair[0].order(&pair[1]) != Some(Ordering::Greater))))
        }
        ("sum", None) => sum(&items),
        ("min", None) => extreme(&items, Ordering::Less),
        ("max", None) => extreme(&items, Ordering::Greater),
        ("indexOf", Some(item)) => index(items.iter().position(|other| other.equals(item))),
        ("lastIndexOf", Some(item)) => index(items.iter().rposition(|other| other.equals(item))),
        ("includes", Some(item)) => Ok(Val::Bool(has(&items, item))),
        ("slice", Some(Val::Int(from))) => slice(&items, *from, args.get(2)),
        ("flatten", None) => flatten(items, 1),
        ("flatten", Some(Val::Int(depth))) => flatten(items, *depth),
        ("sort", None) => {
            let mut items = items;
            items.sort_by(|a, b| a.order(b).unwrap_or(Ordering::Equal));
            Ok(Val::list(items))
        }
        ("distinct", None) => {
            let mut seen: Vec<Val<'a>> = Vec::new();
            for item in items {
                if !has(&seen, &item) {
                    seen.push(item);
                }
            }
            Ok(Val::list(seen))
        }
        ("reverse", None) => Ok(Val::list(items.into_iter().rev().collect())),
        ("first", None) => Ok(Val::Optional(items.first().cloned().map(Arc::new))),
        ("last", None) => Ok(Val::Optional(items.last().cloned().map(Arc::new))),
        _ => return None,
    })
}

fn sum<'a>(items: &[Val<'a>]) -> Eval<'a> {
    let mut items = items.iter();
    let Some(first) = items.next() else { return Ok(Val::Int(0)) };
    items.try_fold(first.clone(), |sum, item| super::call("_+_", false, &[sum, item.clone()]))
}

fn extreme<'a>(items: &[Val<'a>], wanted: Ordering) -> Eval<'a> {
    let Some(first) = items.first() else {
        let what = if wanted == Ordering::Less { "min" } else { "max" };
        return failed(format!("{what} called on empty list"));
    };
    let best =
        items.iter().fold(first, |best, item| if item.order(best) == Some(wanted) { item } else { best });
    Ok(best.clone())
}

fn slice<'a>(items: &[Val<'a>], from: i64, until: Option<&Val<'a>>) -> Eval<'a> {
    let Some(Val::Int(until)) = until else { return failed("no such overload") };
    let bounds = usize::try_from(from).ok().zip(usize::try_from(*until).ok());
    match bounds.filter(|(from, until)| from <= until && *until <= items.len()) {
        Some((from, until)) => Ok(Val::list(items[from..until].to_vec())),
        None => failed(format!("cannot slice({from}, {until}), list is length {}", items.len())),
    }
}

fn flatten(items: Vec<Val<'_>>, depth: i64) -> Eval<'_> {
    if depth < 0 {
        return failed("level must be non-negative");
    }
    let mut out = Vec::new();
    for item in items {
        match item.items().filter(|_| depth > 0) {
            Some(inner) => match flatten(inner, depth - 1)? {
                Val::List(inner) => out.extend(inner.iter().cloned()),
                other => out.push(other),
            },
            None => out.push(item),
        }
    }
    Ok(Val::list(out))
}

fn optional<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    Some(match (name, args) {
        ("optional.of", [value]) => Ok(Val::some(value.clone())),
        ("optional.none", []) => Ok(Val::NONE),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(if is_zero(value) { Val::NONE } else { Val::some(value.clone()) })
        }
        ("optional.unwrap" | "unwrapOpt", [list]) => {
            let items = list.items()?;
            let inner = items.into_iter().filter_map(|item| match item {
                Val::Optional(inner) => inner.map(|inner| (*inner).clone()),
                other => Some(other),
            });
            Ok(Val::list(inner.collect()))
        }
        _ if !member => return None,
        ("hasValue", [Val::Optional(inner)]) => Ok(Val::Bool(inner.is_some())),
        ("value", [Val::Optional(Some(inner))]) => Ok((**inner).clone()),
        ("value", [Val::Optional(None)]) => failed("optional.none() dereference"),
        // With a value they do not look at the alternative.
        ("or" | "orValue", [Val::Optional(None), other]) => Ok(other.clone()),
        _ => return None,
    })
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(b) => !b,
        Val::Int(n) => *n == 0,
        Val::Uint(n) => *n == 0,
        Val::Double(n) => *n == 0.0,
        Val::Duration(d) => d.is_zero(),
        other => other.size() == Some(0),
    }
}
