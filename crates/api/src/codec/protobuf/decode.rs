//! Protobuf to JSON trees.
//!
//! Go writes plain numbers, booleans and strings even when they are zero, and leaves pointers out when they are nil. Zeros
//! are dropped, as JSON's `omitempty` does, except where a field is required or is a pointer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::MAGIC;
use super::wire::{Fields, Wire, first_bytes};
use crate::schema::{Embedded, Field, FieldType, SchemaTable, TypeId};

/// Deeper messages are refused.
const MAX_DEPTH: usize = 64;

/// Reads an enveloped object; apiVersion and kind come from the envelope.
///
/// # Errors
/// What is wrong, for a BadRequest.
pub fn decode(table: &SchemaTable, ty: TypeId, body: &[u8]) -> Result<Value, String> {
    let body = body.strip_prefix(MAGIC).ok_or("the body does not begin with the protobuf prefix")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = message(table, ty, raw, &[], 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a protobuf string is no UTF-8".into())
}

/// An object, or the part of it that Go inlines as the message fields `inlined`.
fn message(
    table: &SchemaTable,
    ty: TypeId,
    bytes: &[u8],
    inlined: &[u32],
    depth: usize,
) -> Result<Map<String, Value>, String> {
    if depth > MAX_DEPTH {
        return Err("the protobuf message is nested too deeply".into());
    }
    let fields = &table.get(ty).fields;
    let mut out = Map::new();
    for item in Fields(bytes) {
        let (number, wire) = item?;
        let here = |field: &&Field| number > 0 && field.number == number && field.inlined_in == inlined;
        if let Some(field) = fields.iter().find(here) {
            add(table, ty, field, wire, &mut out, depth)?;
            continue;
        }
        let deeper =
            |field: &Field| field.inlined_in.strip_prefix(inlined).and_then(<[u32]>::first) == Some(&number);
        if let Wire::Bytes(part) = wire
            && fields.iter().any(deeper)
        {
            let path = [inlined, &[number]].concat();
            merge(&mut out, message(table, ty, part, &path, depth + 1)?);
        }
    }
    Ok(out)
}

/// The rule for a message that comes in parts: lists grow, messages merge, the last scalar wins.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (name, new) in from {
        match (into.get_mut(&name), new) {
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, new) => drop(into.insert(name, new)),
        }
    }
}

fn add(
    table: &SchemaTable,
    owner: TypeId,
    field: &Field,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    let name = field.name.as_ref();
    let at = Place { table, owner, field };
    match &field.ty {
        FieldType::List(inner) => {
            let list = out.entry(name).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { return Err(format!("{name} is no list")) };
            match wire {
                Wire::Bytes(packed) if is_number(inner) => at.unpack(inner, packed, list)?,
                wire => list.push(at.value(inner, wire, depth)?.unwrap_or(Value::Null)),
            }
        }
        FieldType::Map(inner) => {
            let Wire::Bytes(entry) = wire else { return Err(format!("{name} is no map")) };
            let (mut key, mut item) = (String::new(), None);
            for part in Fields(entry) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text)?,
                    (2, wire) => item = at.map_value(inner, wire, depth)?,
                    _ => {}
                }
            }
            let map = out.entry(name).or_insert_with(|| json!({}));
            let Value::Object(map) = map else { return Err(format!("{name} is no map")) };
            map.insert(key, item.unwrap_or_else(|| json!("")));
        }
        ty => {
            let keep = field.required || field.pointer;
            match (at.value(ty, wire, depth)?, out.get_mut(name)) {
                (Some(Value::Object(new)), Some(Value::Object(old))) => merge(old, new),
                (Some(new), _) if keep || !is_zero(&new) => drop(out.insert(name.to_owned(), new)),
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_number(ty: &FieldType) -> bool {
    matches!(ty, FieldType::Int32 | FieldType::Int64 | FieldType::Boolean)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) => false,
        // An empty struct behind a pointer is a choice: `emptyDir: {}`.
        Value::Object(_) => false,
    }
}

/// A field of a type, whose value is being read.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'a SchemaTable,
    owner: TypeId,
    field: &'a Field,
}

impl Place<'_> {
    fn unpack(self, ty: &FieldType, packed: &[u8], list: &mut Vec<Value>) -> Result<(), String> {
        let mut numbers = Fields(packed);
        while !numbers.0.is_empty() {
            let number = Wire::Varint(numbers.varint()?);
            list.extend(self.value(ty, number, 0)?);
        }
        Ok(())
    }

    /// Lists as values of a map are a message with the items in field 1.
    fn map_value(self, ty: &FieldType, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
        match (ty, wire) {
            (FieldType::List(inner), Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                for part in Fields(bytes) {
                    if let (1, wire) = part? {
                        items.extend(self.value(inner, wire, depth + 1)?);
                    }
                }
                Ok(Some(items.into()))
            }
            (_, wire) => self.value(ty, wire, depth),
        }
    }

    fn value(self, ty: &FieldType, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
        Ok(match (ty, wire) {
            (FieldType::String, Wire::Bytes(bytes)) => Some(utf8(bytes)?.into()),
            (FieldType::Bytes, Wire::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
            (FieldType::Boolean, Wire::Varint(number)) => Some((number != 0).into()),
            // Negative numbers are written as their two's complement.
            (FieldType::Int32 | FieldType::Int64, Wire::Varint(number)) => Some(number.cast_signed().into()),
            (FieldType::Double, Wire::Fixed64(bits)) => Some(double(f64::from_bits(bits))),
            (FieldType::Double, Wire::Fixed32(bits)) => Some(double(f64::from(f32::from_bits(bits)))),
            (FieldType::Ref(inner), Wire::Bytes(bytes)) => {
                Some(Value::Object(message(self.table, *inner, bytes, &[], depth + 1)?))
            }
            (FieldType::Time | FieldType::MicroTime, Wire::Bytes(bytes)) => time(ty, bytes)?,
            (FieldType::IntOrString, Wire::Bytes(bytes)) => Some(int_or_string(bytes)?),
            (FieldType::Quantity, Wire::Bytes(bytes)) => {
                let text = first_bytes(bytes, 1)?.map(utf8).transpose()?;
                Some(text.unwrap_or_else(|| "0".to_owned()).into())
            }
            (FieldType::Any, Wire::Bytes(bytes)) => self.embedded(bytes, depth)?,
            _ => return Err("a protobuf field has the wrong wire type".into()),
        })
    }

    fn embedded(self, bytes: &[u8], depth: usize) -> Result<Option<Value>, String> {
        let schema = |bytes: &[u8]| message(self.table, self.owner, bytes, &[], depth + 1).map(Value::Object);
        Ok(match self.field.embedded {
            Embedded::Empty => Some(json!({})),
            Embedded::Raw => match first_bytes(bytes, 1)? {
                Some(raw) if !raw.is_empty() => {
                    Some(serde_json::from_slice(raw).map_err(|e| format!("embedded JSON: {e}"))?)
                }
                _ => None,
            },
            Embedded::SchemaOrBool => match first_bytes(bytes, 2)? {
                Some(found) => Some(schema(found)?),
                None => {
                    let mut allows = false;
                    for field in Fields(bytes) {
                        if let (1, Wire::Varint(number)) = field? {
                            allows = number != 0;
                        }
                    }
                    // Not even a false is left out: this is always behind a pointer.
                    Some(allows.into())
                }
            },
            Embedded::SchemaOrList | Embedded::SchemaOrStrings => match first_bytes(bytes, 1)? {
                Some(found) => Some(schema(found)?),
                None => {
                    let strings = self.field.embedded == Embedded::SchemaOrStrings;
                    let mut items = Vec::new();
                    for field in Fields(bytes) {
                        if let (2, Wire::Bytes(item)) = field? {
                            items.push(if strings { utf8(item)?.into() } else { schema(item)? });
                        }
                    }
                    Some(items.into())
                }
            },
        })
    }
}

/// Whole numbers show as such, as Go prints them.
#[allow(clippy::cast_possible_truncation)]
fn double(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { value.into() }
}

/// `{seconds = 1, nanos = 2}`; an empty message is no time.
fn time(ty: &FieldType, bytes: &[u8]) -> Result<Option<Value>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    let text = if *ty == FieldType::Time { crate::time::seconds(time) } else { crate::time::micros(time) };
    Ok(Some(text.into()))
}

/// `{type = 1 (0 integer, 1 string), intVal = 2, strVal = 3}`
fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut kind, mut number, mut text) = (0, 0i64, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(value)) => kind = value,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if kind == 0 { number.into() } else { text.into() })
}
