//! Operators on numbers, equality, order, membership and conversions.

use std::cmp::Ordering;

use super::{Opaque, failed, time};
use crate::eval::Eval;
use crate::value::Val;

/// The functions of this theme.
#[allow(clippy::cast_precision_loss)] // conversions to double lose precision by definition
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    use Val::{Bool, Bytes, Double, Int, String, Uint};
    let int = |value: Option<i64>| value.map_or_else(|| failed("integer overflow"), |n| Ok(Int(n)));
    let uint =
        |value: Option<u64>| value.map_or_else(|| failed("unsigned integer overflow"), |n| Ok(Uint(n)));
    if member && name != "size" {
        return None;
    }
    Some(match (name, args) {
        ("_==_", [a, b]) => Ok(Bool(a.equals(b))),
        ("_!=_", [a, b]) => Ok(Bool(!a.equals(b))),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => return Some(order(name, a, b)),
        ("!_", [Bool(b)]) => Ok(Bool(!b)),
        ("@in", [item, list]) => match (list.items(), item) {
            (Some(items), _) => Ok(Bool(items.iter().any(|other| other.equals(item)))),
            (None, String(name)) if list.is_map() => Ok(Bool(list.field(name).is_some())),
            (None, item) if list.is_map() => {
                let entries = list.entries().unwrap_or_default();
                Ok(Bool(item.key().is_some_and(|key| entries.iter().any(|(k, _)| *k == key))))
            }
            _ => failed("no such overload"),
        },
        ("_+_", [Int(a), Int(b)]) => int(a.checked_add(*b)),
        ("_-_", [Int(a), Int(b)]) => int(a.checked_sub(*b)),
        ("_*_", [Int(a), Int(b)]) => int(a.checked_mul(*b)),
        ("_/_", [Int(_), Int(0)]) | ("_/_", [Uint(_), Uint(0)]) => failed("division by zero"),
        ("_%_", [Int(_), Int(0)]) | ("_%_", [Uint(_), Uint(0)]) => failed("modulus by zero"),
        ("_/_", [Int(a), Int(b)]) => int(a.checked_div(*b)),
        ("_%_", [Int(a), Int(b)]) => int(a.checked_rem(*b)),
        ("-_", [Int(a)]) => int(a.checked_neg()),
        ("_+_", [Uint(a), Uint(b)]) => uint(a.checked_add(*b)),
        ("_-_", [Uint(a), Uint(b)]) => uint(a.checked_sub(*b)),
        ("_*_", [Uint(a), Uint(b)]) => uint(a.checked_mul(*b)),
        ("_/_", [Uint(a), Uint(b)]) => uint(a.checked_div(*b)),
        ("_%_", [Uint(a), Uint(b)]) => uint(a.checked_rem(*b)),
        ("_+_", [Double(a), Double(b)]) => Ok(Double(a + b)),
        ("_-_", [Double(a), Double(b)]) => Ok(Double(a - b)),
        ("_*_", [Double(a), Double(b)]) => Ok(Double(a * b)),
        ("_/_", [Double(a), Double(b)]) => Ok(Double(a / b)),
        ("-_", [Double(a)]) => Ok(Double(-a)),
        ("size", [value]) => match value.size().and_then(|size| i64::try_from(size).ok()) {
            Some(size) => Ok(Int(size)),
            None => failed("no such overload"),
        },
        ("type", [value]) => Ok(Val::Type(value.type_name().into())),
        ("dyn", [value]) => Ok(value.clone()),
        ("bool", [Bool(b)]) => Ok(Bool(*b)),
        ("bool", [String(text)]) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Bool(false)),
            _ => failed(format!("type conversion error from 'string' to 'bool': {text}")),
        },
        ("int", [Int(n)]) => Ok(Int(*n)),
        ("int", [Uint(n)]) => int(i64::try_from(*n).ok()),
        ("int", [Double(n)]) => int(truncated(*n)),
        ("int", [String(text)]) => text
            .parse()
            .map_or_else(|_| failed("type conversion error from 'string' to 'int'"), |n| Ok(Int(n))),
        ("int", [Val::Timestamp(time)]) => Ok(Int(time.as_second())),
        ("uint", [Uint(n)]) => Ok(Uint(*n)),
        ("uint", [Int(n)]) => uint(u64::try_from(*n).ok()),
        ("uint", [Double(n)]) => uint(truncated(*n).and_then(|n| u64::try_from(n).ok())),
        ("uint", [String(text)]) => text
            .parse()
            .map_or_else(|_| failed("type conversion error from 'string' to 'uint'"), |n| Ok(Uint(n))),
        ("double", [Double(n)]) => Ok(Double(*n)),
        ("double", [Int(n)]) => Ok(Double(*n as f64)),
        ("double", [Uint(n)]) => Ok(Double(*n as f64)),
        ("double", [String(text)]) => text
            .parse()
            .map_or_else(|_| failed("type conversion error from 'string' to 'double'"), |n| Ok(Double(n))),
        ("string", [value]) => return Some(text_of(value)),
        ("bytes", [Bytes(bytes)]) => Ok(Bytes(std::sync::Arc::clone(bytes))),
        ("bytes", [String(text)]) => Ok(Bytes(text.as_bytes().into())),
        ("_+_", [String(a), String(b)]) => Ok(Val::text(&format!("{a}{b}"))),
        ("_+_", [Bytes(a), Bytes(b)]) => Ok(Bytes([&**a, &**b].concat().into())),
        _ => return None,
    })
}

#[allow(clippy::cast_possible_truncation)] // the range was checked
fn truncated(n: f64) -> Option<i64> {
    (n > -9.223_372_036_854_776e18 && n < 9.223_372_036_854_776e18).then_some(n as i64)
}

fn order<'a>(name: &str, a: &Val<'_>, b: &Val<'_>) -> Eval<'a> {
    let Some(order) = a.order(b) else {
        let nan = matches!((a, b), (Val::Double(_), _) | (_, Val::Double(_)));
        return if nan { Ok(Val::Bool(false)) } else { failed("no such overload") };
    };
    Ok(Val::Bool(match name {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

fn text_of<'a>(value: &Val<'a>) -> Eval<'a> {
    Ok(match value {
        Val::String(_) => value.clone(),
        Val::Bool(b) => Val::text(if *b { "true" } else { "false" }),
        Val::Int(n) => Val::text(&n.to_string()),
        Val::Uint(n) => Val::text(&n.to_string()),
        Val::Double(n) => Val::text(&n.to_string()),
        Val::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Val::text(text),
            Err(_) => return failed("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Val::Timestamp(time) => Val::text(&time.to_string()),
        Val::Duration(duration) => Val::text(&time::text(*duration)),
        Val::Opaque(opaque) if matches!(**opaque, Opaque::Ip(_) | Opaque::Cidr(..)) => {
            Val::text(&opaque.to_string())
        }
        _ => return failed("no such overload"),
    })
}
