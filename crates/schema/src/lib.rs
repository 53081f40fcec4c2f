//! The built-in kinds as data: fields, types, list types, merge keys, field numbers, descriptions.
//!
//! ```text
//!   k8s-openapi v1_37 (text) ─┐
//!   k8s-pb (text) ────────────┼─ build.rs ─▶ table.txt ─▶ table(): api::SchemaTable
//!   supplement.txt ───────────┤
//!   pointers.txt ─────────────┘
//! ```
//!
//! Invariants: the table borrows from the program's own bytes and is read once, at first use; nothing in it is written by hand
//! but the supplement and the pointers.

pub mod openapi;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use api::{Embedded, Field, FieldType, ListType, SchemaTable, TypeDef, TypeId};

/// See `build/table.rs` for the form.
static TABLE: &str = include_str!(concat!(env!("OUT_DIR"), "/table.txt"));

/// The table of all built-in types.
pub fn table() -> Arc<SchemaTable> {
    static CELL: OnceLock<Arc<SchemaTable>> = OnceLock::new();
    Arc::clone(CELL.get_or_init(|| Arc::new(load(TABLE))))
}

fn load(text: &'static str) -> SchemaTable {
    let mut types: Vec<TypeDef> = Vec::new();
    let mut kinds = HashMap::new();
    for record in text.split_terminator('\x1e') {
        let mut parts = record.split('\x1f');
        let mut next = || parts.next().unwrap_or_default();
        match next() {
            "T" => types.push(TypeDef {
                name: Cow::Borrowed(next()),
                atomic: next().contains('a'),
                description: Cow::Borrowed(next()),
                fields: Vec::new(),
                preserve_unknown: false,
            }),
            "F" => {
                let field = field(&mut next);
                types.last_mut().expect("a field follows its type").fields.push(field);
            }
            "K" => {
                let (group, version, kind, list) = (next(), next(), next(), next());
                let mut kind_of = |name: &str, index: &str| {
                    if let Ok(index) = index.parse() {
                        kinds.insert((group.to_owned(), version.to_owned(), name.to_owned()), TypeId(index));
                    }
                };
                kind_of(kind, next());
                kind_of(list, next());
            }
            other => unreachable!("the build script writes no record {other:?}"),
        }
    }
    SchemaTable::new(types, kinds)
}

fn field(next: &mut impl FnMut() -> &'static str) -> Field {
    let name = Cow::Borrowed(next());
    let letters = next();
    let ty = field_type(letters);
    let flags = next();
    let list = next();
    let list_type = match list.strip_prefix('m') {
        Some(keys) => ListType::Map(keys.split(',').map(str::to_owned).collect()),
        None if list == "s" => ListType::Set,
        None => ListType::Atomic,
    };
    let text = |part: &'static str| Some(part).filter(|p| !p.is_empty()).map(Cow::Borrowed);
    Field {
        name,
        ty,
        required: flags.contains('r'),
        list_type,
        atomic: flags.contains('a'),
        patch_merge_key: text(next()),
        patch_merge: flags.contains('m'),
        patch_retain_keys: flags.contains('k'),
        default: text(next()),
        number: next().parse().unwrap_or(0),
        inlined_in: next().split(',').filter_map(|number| number.parse().ok()).collect(),
        pointer: flags.contains('p'),
        embedded: embedded(letters),
        description: Cow::Borrowed(next()),
    }
}

fn embedded(letters: &str) -> Embedded {
    match letters.as_bytes().last() {
        Some(b'E') => Embedded::Empty,
        Some(b'B') => Embedded::SchemaOrBool,
        Some(b'A') => Embedded::SchemaOrList,
        Some(b'S') => Embedded::SchemaOrStrings,
        _ => Embedded::Raw,
    }
}

fn field_type(text: &str) -> FieldType {
    let rest = text.get(1..).unwrap_or_default();
    match text.as_bytes().first() {
        Some(b's') => FieldType::String,
        Some(b't') => FieldType::Time,
        Some(b'm') => FieldType::MicroTime,
        Some(b'b') => FieldType::Bytes,
        Some(b'o') => FieldType::Boolean,
        Some(b'i') => FieldType::Int32,
        Some(b'l') => FieldType::Int64,
        Some(b'd') => FieldType::Double,
        Some(b'x') => FieldType::IntOrString,
        Some(b'q') => FieldType::Quantity,
        Some(b'L') => FieldType::List(Box::new(field_type(rest))),
        Some(b'M') => FieldType::Map(Box::new(field_type(rest))),
        Some(b'r') => rest.parse().map_or(FieldType::Any, |index| FieldType::Ref(TypeId(index))),
        Some(_) | None => FieldType::Any,
    }
}

#[cfg(test)]
mod tests;
